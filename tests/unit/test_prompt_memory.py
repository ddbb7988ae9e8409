"""Encoded prompts on disk: the same bits again without a weight being read, and nothing for what could differ."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import comfy.hooks
import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints import file_content, linear
from mulan_nodes.mulan.conditioning import remembering_clip
from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, to_published
from mulan_nodes.mulan.conditioning.clip import encode_prompts, load_clip, negative_view
from mulan_nodes.mulan.conditioning.families import PIXART, SD15, SD21, SDXL
from mulan_nodes.mulan.conditioning.internvl_llama import InternVLEncoder
from mulan_nodes.mulan.conditioning.model_files import open_text_encoder
from mulan_nodes.mulan.conditioning.prompt_memory import EncodedPrompt, PromptMemory
from mulan_nodes.mulan.conditioning.text_encoder import MulanTextEncoder
from mulan_nodes.mulan.conversion import __main__ as command
from mulan_nodes.mulan.conversion.converters import convert

GOLDENS = Path(__file__).resolve().parents[1] / "parity" / "goldens" / "mulan"
ADAPTER = GOLDENS / "weights" / "sd15_tiny.safetensors"
ADAPTER_XL = GOLDENS / "weights" / "sdxl_embed_attnpool_tiny.safetensors"
PROMPT = "a (red:1.2) cat"


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files that were made a moment ago may be relied on."""
    monkeypatch.setattr(file_content, "CLOCK_RESOLUTION", -1)


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """The golden text encoder as a folder, and an adapter: files of this test's own."""
    folder = tmp_path / "InternVL-tiny"
    shutil.copytree(GOLDENS / "text_encoder", folder)
    shutil.copy(GOLDENS / "tokenizer" / "tokenizer.model", folder)
    return {
        "encoder": folder,
        "adapter": Path(shutil.copy(ADAPTER, tmp_path / "adapter.safetensors")),
        "xl": Path(shutil.copy(ADAPTER_XL, tmp_path / "xl.safetensors")),
    }


@pytest.fixture
def memory(tmp_path) -> PromptMemory:
    return PromptMemory(tmp_path / "prompts")


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """The number of prompts of each call that reached the text encoder."""
    calls, encode = [], MulanTextEncoder.encode_token_weights

    def counted(self, tokens):
        calls.append(len(self.prompts(tokens)))
        return encode(self, tokens)

    monkeypatch.setattr(MulanTextEncoder, "encode_token_weights", counted)
    return calls


def load(files, memory, **options):
    return load_clip(files["encoder"], files["adapter"], memory=memory, **{"family": SD15, **options})


def scheduled(clip, text: str) -> list:
    """What CLIPTextEncode gives."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def same(ours, theirs) -> bool:
    if isinstance(ours, torch.Tensor):
        return ours.dtype == theirs.dtype and ours.device == theirs.device and torch.equal(ours, theirs)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(map(same, ours.values(), theirs.values()))
    return ours == theirs


def share_read(process: int | str, file: Path) -> float:
    """The share of a mapped file that a process has touched."""
    maps = Path(f"/proc/{process}/smaps").read_text("utf-8")
    rows = re.findall(rf"{re.escape(str(file.resolve()))}\n(?:.*\n)*?Rss: +(\d+) kB", maps)
    assert rows, f"{file} is not mapped"
    return max(map(int, rows)) * 1024 / file.stat().st_size


def stored(memory: PromptMemory) -> list[Path]:
    return sorted(memory.folder.iterdir()) if memory.folder.exists() else []


# --- the same again, and nothing is read for it ---

TEXTS = ["a cat", "", "a (red:1.2) cat", "a cat BREAK (a dog:0.5)", "один кот, " * 40, "一只猫 <unk>"]


@pytest.mark.parametrize("family", [SD15, SD21, SDXL, PIXART], ids=lambda family: family.name)
@pytest.mark.parametrize("negative", [False, True])
def test_a_known_prompt_is_the_same_bit_for_bit_and_needs_no_weights(family, negative, files, memory, encoded):
    """Another CLIP stands for another start of ComfyUI: nothing but the folder is common."""
    adapter = {SDXL: files["xl"], PIXART: GOLDENS / "weights" / "pixart_tiny.pth"}.get(family, files["adapter"])
    make = negative_view if negative else lambda clip: clip
    options = {"family": family, "zeroing": "all pooled, empty negative"}
    clip = make(load_clip(files["encoder"], adapter, memory=memory, **options))
    first = [scheduled(clip, text) for text in TEXTS]
    unused = make(load_clip(files["encoder"], adapter, **options))
    assert same([scheduled(unused, text) for text in TEXTS], first), "keeping changes nothing"
    count, loaded = len(encoded), len(comfy.model_management.current_loaded_models)

    again = make(load_clip(files["encoder"], adapter, memory=memory, **options))
    assert same([scheduled(again, text) for text in TEXTS], first) and len(encoded) == count
    tokens = again.tokenize(TEXTS[2])
    assert same(again.encode_from_tokens(tokens), first[2][0][0])
    assert same(list(again.encode_from_tokens(tokens, return_pooled=True))[1], first[2][0][1]["pooled_output"])
    assert again.patcher.loaded_size() == 0 and len(comfy.model_management.current_loaded_models) == loaded


def test_what_was_encoded_together_is_known_alone_and_only_new_prompts_are_encoded(files, memory, encoded):
    texts, negatives = ["a cat", "a dog", "a cat"], ["", "blurry"]
    first = encode_prompts(load(files, memory), texts, negatives)
    assert encoded == [4], "one of them twice"
    clip = load(files, memory)
    assert same(encode_prompts(clip, texts, negatives), first) and same(scheduled(clip, "a dog"), first[1])
    assert same(scheduled(negative_view(clip), "blurry"), first[4]) and encoded == [4]
    more = encode_prompts(clip, ["a bird", *texts], negatives)
    assert encoded == [4, 1] and same(more[1:], first)


def test_a_result_belongs_to_who_got_it(files, memory):
    clip = load(files, memory)
    wanted = clip.encode("a cat").clone()
    for _ in range(2):
        clip.encode("a cat").zero_()
    assert torch.equal(clip.encode("a cat"), wanted)


def test_neither_style_nor_word_ids_make_another_prompt(files, memory, encoded):
    wanted = load(files, memory).encode("a photo of a cat")
    upstream = load(files, memory, prompt_style="upstream")
    tokens = upstream.tokenize("a photo of a cat", return_word_ids=True)
    assert torch.equal(upstream.encode_from_tokens(tokens), wanted) and encoded == [1]


# --- lazily, with a memory or without ---


def wide(files, path: Path, weight_format: str) -> tuple[Path, Path]:
    """A text encoder of 50 MB in float16, in one of the converter's formats, and an adapter that reads it."""
    source = open_text_encoder(files["encoder"])
    sizes = dict(hidden_size=1024, intermediate_size=2816, num_hidden_layers=2, num_attention_heads=8)
    module = InternVLEncoder(dataclasses.replace(source.config, **sizes), dtype=torch.float16).transformer
    weights = {"spiece_model": torch.frombuffer(bytearray(source.tokenizer()), dtype=torch.uint8)}
    for name, tensor in module.state_dict().items():
        weights[name] = torch.randn(tensor.shape).half() * 0.02
    save_file(weights, path / "wide.safetensors", metadata={"config": json.dumps({"num_attention_heads": 8})})
    shape = AdapterShape(text_hidden_size=1024, context_dim=768, num_queries=77, intermediate_size=64)
    adapter = {name: torch.randn(t.shape) * 0.02 for name, t in LanguageAdapter(shape).state_dict().items()}
    save_file(to_published(adapter), path / "wide_adapter.safetensors")
    converted = convert(path / "wide.safetensors", path / "converted.safetensors", weight_format)
    return converted.path, path / "wide_adapter.safetensors"


@pytest.mark.parametrize("weight_format", ["fp16", "int8", "fp8", "int4"])
def test_no_weight_is_read_before_a_prompt_must_be_encoded(weight_format, files, tmp_path):
    """What ComfyUI is told stays right: a CLIP that was never used has its size, and counts for nothing loaded.

    A layer's format lies between the weights, and the system fetches 64 kB around each: much of such a small file.
    """
    encoder, adapter = wide(files, tmp_path, weight_format)
    loaded = len(comfy.model_management.current_loaded_models)
    clip = load_clip(encoder, adapter)
    assert share_read("self", encoder) < 0.25 and share_read("self", adapter) < 0.5
    assert clip.patcher.loaded_size() == 0 and len(comfy.model_management.current_loaded_models) == loaded
    assert clip.patcher.model_size() == pytest.approx(encoder.stat().st_size + adapter.stat().st_size, rel=0.1)
    changed = clip.clone()
    lora(changed, None)
    assert changed.patcher.patches and share_read("self", encoder) < 0.25
    assert clip.encode(PROMPT).isfinite().all() and share_read("self", encoder) > 0.8
    assert len(comfy.model_management.current_loaded_models) == loaded + 1


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
def test_no_memory_for_the_weights_is_told_when_they_are_needed(error, files, memory, monkeypatch):
    def full(*_, **__):
        raise error("tried to allocate 26.00 MiB")

    clip = load(files, memory)
    with monkeypatch.context() as patch:
        patch.setattr(comfy.model_management, "load_models_gpu", full)
        with pytest.raises(error, match="for the text encoder InternVL-tiny: .*26.00 MiB.*int8 conversion") as failure:
            clip.encode(PROMPT)
        assert type(failure.value) is error and not stored(memory)
    assert torch.equal(clip.encode(PROMPT), load(files, None).encode(PROMPT))


# --- what makes another prompt ---


def rewritten(path: Path, change=lambda tensors: None) -> None:
    """Write a file's tensors anew under its name, with the same size and the same time."""
    before, tensors = path.stat(), load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"} if b"__metadata__" in path.read_bytes()[:200] else None)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def last_weight(part: str):
    def change(tensors):
        (name,) = [name for name in tensors if name.endswith(part)]
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[-1] += 1

    return change


PROMPTS = {
    "other words": "a (red:1.2) dog",
    "another order": "a cat (red:1.2)",
    "another weight": "a (red:1.2000001) cat",
    "no weight": "a red cat",
    "another token's weight": "(a:1.2) red cat",
    "windows": "a (red:1.2) cat BREAK a",
    "parts": "a BREAK (red:1.2) cat",
    "empty": "",
    "a space within": "a (r ed:1.2) cat",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_another_prompt_is_another(name, files, memory, encoded):
    load(files, memory).encode(PROMPT)
    wanted = load(files, None).encode(PROMPTS[name])
    assert torch.equal(load(files, memory).encode(PROMPTS[name]), wanted) and encoded == [1, 1, 1]


def test_a_negative_is_another_prompt(files, memory, encoded):
    """Of SD1.5 it has no prefix; of SDXL the tokens are the same and the pooled vector differs."""
    for adapter, family in ((files["adapter"], SD15), (files["xl"], SDXL)):
        clip = load_clip(files["encoder"], adapter, memory=memory, family=family)
        ours = [scheduled(view, PROMPT) for view in (clip, negative_view(clip))]
        plain = load_clip(files["encoder"], adapter, family=family)
        assert same([scheduled(view, PROMPT) for view in (plain, negative_view(plain))], ours)
    assert len(encoded) == 8 and len(stored(memory)) == 4


def loaded_with(**options):
    return lambda files, memory, patch: load(files, memory, **options)


def changed_file(name: str, part: str, change=last_weight):
    def load_changed(files, memory, patch):
        path = files[name] / "model.safetensors" if files[name].is_dir() else files[name]
        rewritten(path, change(part))
        return load(files, memory)

    return load_changed


def patched(where, name: str, value):
    def load_patched(files, memory, patch):
        patch.setattr(where, name, value)
        return load(files, memory)

    return load_patched


def skipping(files, memory, patch):
    clip = load(files, memory)
    clip.clip_layer(-2)
    return clip


def in_other_numbers(files, memory, patch):
    clip = load(files, memory)
    clip.patcher.set_model_compute_dtype(torch.float16)
    return clip


def half(files, memory, patch):
    path = files["encoder"] / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    return load(files, memory)


def other_config(files, memory, patch):
    config = files["encoder"] / "config.json"
    config.write_text(config.read_text("utf-8") + " ", "utf-8")
    return load(files, memory)


def of_sdxl(zeroing: str):
    def load_xl(files, memory, patch):
        return load_clip(files["encoder"], files["xl"], memory=memory, family=SDXL, zeroing=zeroing)

    return load_xl


CHANGES = {
    "a weight of the text encoder": changed_file("encoder", "layers.1.mlp.down_proj.weight"),
    "a weight of the adapter": changed_file("adapter", "decoder.norm.weight"),
    "the text encoder's dtype": half,
    "another file of its folder": other_config,
    "the family": loaded_with(family=SD21),
    "SDXL": of_sdxl("negative pooled"),
    "clip skip": skipping,
    "what is computed in": in_other_numbers,
    "how a layer computes": patched(linear, "VERSION", "0"),
    "the pack": patched(remembering_clip, "VERSION", "0.0"),
    "ComfyUI": patched(remembering_clip.comfyui_version, "__version__", "0.0"),
    "torch": patched(torch, "__version__", "99.0.0"),
    "the device": patched(comfy.model_management, "get_torch_device_name", lambda device: "another card"),
    "the intermediate dtype": patched(comfy.model_management, "intermediate_dtype", lambda: torch.float16),
    "the precision of products": patched(torch, "get_float32_matmul_precision", lambda: "high"),
    "attention": patched(remembering_clip, "optimized_attention_for_device", lambda *_, **__: sorted),
    "--fast": patched(remembering_clip.args, "fast", {"fp16_accumulation"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_contents_depend_on_belongs_to_the_key(name, files, memory, encoded, monkeypatch):
    load(files, memory).encode(PROMPT)
    before = set(stored(memory))
    clip = CHANGES[name](files, memory, monkeypatch)
    assert clip._identity() is not None
    clip.encode(PROMPT)
    assert encoded == [1, 1] and len(set(stored(memory)) - before) == 1


def test_zeroing_belongs_to_the_key(files, memory, encoded):
    for zeroing in ("negative pooled", "all pooled, empty negative", "nothing"):
        clip = of_sdxl(zeroing)(files, memory, None)
        plain = of_sdxl(zeroing)(files, None, None)
        for view, wanted in ((clip, plain), (negative_view(clip), negative_view(plain))):
            assert same([scheduled(view, text) for text in ("a", "")], [scheduled(wanted, text) for text in ("a", "")])
    assert len(stored(memory)) == 3 * 4


def test_a_file_that_changes_under_a_loaded_clip_ends_its_memory(files, memory, encoded):
    clip = load(files, memory)
    clip.encode(PROMPT)
    rewritten(files["adapter"], last_weight("decoder.norm.weight"))
    clip.encode(PROMPT)
    clip.encode("another")
    assert encoded == [1, 1, 1] and len(stored(memory)) == 1
    files["adapter"].unlink()
    clip.encode("one more")
    assert len(stored(memory)) == 1


def test_a_file_of_this_moment_is_not_relied_on_yet(files, memory, encoded, monkeypatch):
    """A clock of a file system may not show that it changes once more."""
    monkeypatch.setattr(file_content, "CLOCK_RESOLUTION", 60 * 10**9)
    clip = load(files, memory)
    clip.encode(PROMPT)
    assert not stored(memory)
    monkeypatch.setattr(file_content, "CLOCK_RESOLUTION", 0)
    clip.encode(PROMPT)
    clip.encode(PROMPT)
    assert encoded == [1, 1] and len(stored(memory)) == 1


@pytest.mark.parametrize("size", [1, 5000, 2**20 + 1, 2**24])
def test_content_is_told_by_every_part_of_a_file(size, tmp_path):
    """Also without times, as a copy may keep them: every byte of a small file, every part of a large one."""
    path, seen, zeros = tmp_path / "file", set(), bytes(size)
    changes = range(0, size, max(1, size // 8)) if size > 2**21 else sorted({0, size // 2, size - 1})
    for start in [size, *changes]:
        end = min(size, start + max(1, size // 8 * (size > 2**21)))
        path.write_bytes(zeros[:start] + b"1" * (end - start) + zeros[end:])
        seen.add(file_content._sampled(path, size))
    assert len(seen) == 1 + len(changes)


# --- what is never remembered ---


def lora(clip, patch):
    key = "internvl.transformer.model.layers.0.self_attn.q_proj.weight"
    clip.add_patches({key: (torch.ones(clip.patcher.model.state_dict()[key].shape),)}, 0.5)


def hooks(clip, patch):
    clip.patcher.forced_hooks = comfy.hooks.HookGroup()
    clip.patcher.forced_hooks.add(comfy.hooks.WeightHook())


def wrapper(clip, patch):
    clip.patcher.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, lambda *_: None)


def callback(clip, patch):
    clip.patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_LOAD, lambda *_: None)


def method(clip, patch):
    module = clip.cond_stage_model.internvl.adapter
    patch.setattr(module, "forward", module.forward)


UNKNOWN = {
    "LoRA or merge": lora,
    "hooks": hooks,
    "wrapper": wrapper,
    "callback": callback,
    "replaced method": method,
    "weight wrapper": lambda clip, patch: clip.patcher.add_weight_wrapper("a", lambda *_: None),
    "object patch": lambda clip, patch: clip.patcher.add_object_patch("internvl.num_layers", 2),
    "injection": lambda clip, patch: clip.patcher.set_injections("a", [comfy.patcher_extension.PatcherInjection(
        lambda _: None, lambda _: None
    )]),
    "model option": lambda clip, patch: clip.patcher.model_options.update(a=1),
    "transformer option": lambda clip, patch: clip.patcher.model_options["transformer_options"].update(a=1),
    "another model": lambda clip, patch: patch.setattr(clip.patcher, "model", torch.nn.Linear(1, 1)),
    "no content": lambda clip, patch: patch.setattr(clip.cond_stage_model, "contents", (None,)),
    "off": lambda clip, patch: patch.setattr(clip, "prompt_memory", None),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_changes_contents_without_a_name_is_not_remembered(name, files, memory, monkeypatch):
    clip = load(files, memory)
    wanted = clip.encode(PROMPT)
    (entry,) = stored(memory)
    changed = clip.clone()
    assert changed._identity() is not None
    with monkeypatch.context() as patch:
        UNKNOWN[name](changed, patch)
        assert changed._identity() is None
        if name not in ("another model", "hooks"):
            result = changed.encode(PROMPT)
            assert torch.equal(result, wanted) == (name != "LoRA or merge")
    assert stored(memory) == [entry] and torch.equal(clip.encode(PROMPT), wanted)


def test_a_lora_is_as_without_a_memory(files, memory):
    """On weights that nobody has read yet, and after a known prompt."""
    plain = load(files, None)
    lora(plain, None)
    wanted = plain.encode(PROMPT)
    for known in (False, True):
        clip = load(files, memory)
        if known:
            clip.encode(PROMPT)
        changed = clip.clone()
        lora(changed, None)
        assert torch.equal(changed.encode(PROMPT), wanted)
        assert torch.equal(clip.encode(PROMPT), load(files, None).encode(PROMPT))


def test_who_reads_clip_s_own_pooled_vector_is_told_also_of_a_known_prompt(files, memory):
    clip = load(files, memory)
    clip.encode(PROMPT)
    with pytest.raises(ValueError, match="GLIGEN"):
        clip.encode_from_tokens(clip.tokenize(PROMPT), return_pooled="unprojected")


def test_hooks_for_the_sampler_stay_with_a_known_prompt(files, memory):
    clip = load(files, memory)
    clip.encode(PROMPT)
    clip.apply_hooks_to_conds = comfy.hooks.HookGroup()
    clip.apply_hooks_to_conds.add(comfy.hooks.WeightHook())
    for prompt in (PROMPT, "another"):
        assert clip.clone().encode_from_tokens(clip.tokenize(prompt), return_dict=True)["hooks"]


# --- the files ---


def entry(number: int, rows: int = 4) -> tuple[str, EncodedPrompt]:
    return f"{number:064x}", EncodedPrompt(torch.full((1, rows, 8), float(number)), None)


def holds(memory: PromptMemory, *numbers: int) -> list[bool]:
    return [(memory.folder / f"{number:064x}.safetensors").exists() for number in numbers]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "empty": lambda path, other: path.write_bytes(b""),
    "cut": lambda path, other: path.write_bytes(path.read_bytes()[:-1]),
    "a web page": lambda path, other: path.write_bytes(b"<html>"),
    "a bit of its numbers": lambda path, other: flip(path, -1),
    "another prompt's": lambda path, other: shutil.copy(other, path),
    "another kind": lambda path, other: save_file({"context": torch.zeros(1, 4, 8)}, path),
    "NaN": lambda path, other: save_file(
        {"context": torch.full((1, 4, 8), torch.nan)}, path, {"mulan_prompt": "1", "sha256": "0"}
    ),
    "a newer layout": lambda path, other: save_file(load_file(path), path, {"mulan_prompt": "2"}),
    "a link to nothing": lambda path, other: (path.unlink(), path.symlink_to("nothing")),
    "a pipe": lambda path, other: (path.unlink(), os.mkfifo(path)),
    "a folder": lambda path, other: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_or_foreign_file_is_ignored_and_replaced(name, files, memory, encoded):
    clip = load(files, memory)
    wanted = clip.encode(PROMPT)
    (path,) = stored(memory)
    clip.encode("another")
    (other,) = [file for file in stored(memory) if file != path]
    DAMAGES[name](path, other)
    assert torch.equal(clip.encode(PROMPT), wanted) and encoded == [1, 1, 1]
    if name != "a folder":
        assert torch.equal(clip.encode(PROMPT), wanted) and encoded == [1, 1, 1], "it was replaced"


def test_the_ones_unused_for_longest_make_room(tmp_path):
    memory = PromptMemory(tmp_path)
    memory.store(dict([entry(1)]))
    size = stored(memory)[0].stat().st_size
    memory = PromptMemory(tmp_path, limit=3 * size)
    for number in (2, 3):
        memory.store(dict([entry(number)]))
    assert all(holds(memory, 1, 2, 3)) and memory.recall(entry(1)[0]) is not None
    (tmp_path / "note.txt").write_text("not ours")
    memory.store(dict([entry(4)]))
    assert holds(memory, 1, 2, 3, 4) == [True, False, True, True]
    memory.store(dict([entry(5, rows=1000)]))
    assert holds(memory, 5) == [False], "one that would take all the room"
    memory.store(dict(map(entry, range(10, 20))))
    assert sum(holds(memory, *range(10, 20))) == 3 and (tmp_path / "note.txt").exists()


@pytest.mark.parametrize("failure", ["a file where the folder should be", "a full disk", "a read-only folder"])
def test_a_disk_that_refuses_is_told_once(failure, files, tmp_path, monkeypatch, caplog):
    memory = PromptMemory(tmp_path / "prompts")
    if failure == "a file where the folder should be":
        memory.folder.write_text("")
    else:
        number = errno.ENOSPC if failure == "a full disk" else errno.EROFS

        def refuse(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("mulan_nodes.mulan.boundary.files._create", refuse)
    clip = load(files, memory)
    wanted = load(files, None).encode(PROMPT)
    with caplog.at_level(logging.WARNING):
        assert all(torch.equal(clip.encode(PROMPT), wanted) for _ in range(3))
    assert len([record for record in caplog.records if "cannot be kept" in record.message]) == 1


def test_no_file_holds_the_prompt(files, memory):
    load(files, memory).encode("the quick brown fox")
    (path,) = stored(memory)
    assert not any(word in path.read_bytes() for word in (b"quick", b"brown", b"fox", b"InternVL", b"adapter"))


WRITER = """
import sys, torch
from pathlib import Path
from mulan_nodes.mulan.conditioning.prompt_memory import EncodedPrompt, PromptMemory
folder, first = Path(sys.argv[1]), int(sys.argv[2])
memory = PromptMemory(folder, limit=40 * 5000)
print("ready", flush=True)
for number in range(first, first + int(sys.argv[3])):
    key = f"{number % 30:064x}"
    memory.store({key: EncodedPrompt(torch.full((1, 32, 32), float(number % 30)), None)})
    found = memory.recall(f"{(number * 7) % 30:064x}")
    assert found is None or found.context.eq(number * 7 % 30).all()
"""


def test_two_servers_and_one_that_is_killed(tmp_path):
    """What a killed one was writing is gone with the next entry, and no reader ever sees half a file."""
    memory = PromptMemory(tmp_path / "prompts", limit=40 * 5000)
    command_line = [sys.executable, "-c", WRITER, str(memory.folder)]
    writers = [
        subprocess.Popen([*command_line, str(first), count], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
        for first, count in ((0, "150"), (11, "1000000"))
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    writers[1].send_signal(signal.SIGKILL)
    assert writers[0].wait(120) == 0 and writers[1].wait(120) != 0
    memory.store(dict([entry(99)]))
    files = stored(memory)
    assert not [file for file in files if file.suffix != ".safetensors"] and len(files) > 20
    assert sum(file.stat().st_size for file in files) <= 40 * 5000
    assert all(memory.recall(file.stem) is not None for file in files)


def test_the_command_forgets_all_and_nothing_else(tmp_path, capsys):
    memory = PromptMemory(tmp_path / "prompts")
    memory.store(dict(map(entry, range(3))))
    (memory.folder / "notes.safetensors").write_bytes(b"a person's")
    assert command.main(["--forget-prompts"], prompts=lambda: memory.folder) == 0
    assert "Removed 3 encoded prompts (0.0 MB)" in capsys.readouterr().out
    assert [file.name for file in stored(memory)] == ["notes.safetensors"]
    assert command.main(["--forget-prompts", str(tmp_path / "nowhere")], prompts=lambda: memory.folder) == 0
    assert "Removed 0 encoded prompts" in capsys.readouterr().out
