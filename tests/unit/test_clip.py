"""The CLIP in one process: dtypes, quantised weights, training states, ComfyUI's contract, and what goes wrong."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
from pathlib import Path

import comfy.model_management
import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints.safetensors_reader import SafetensorsReader
from mulan_nodes.mulan.conditioning import clip as clip_module
from mulan_nodes.mulan.conditioning import internvl_llama, text_encoder
from mulan_nodes.mulan.conditioning.clip import encode_prompts, load_clip, negative_view
from mulan_nodes.mulan.conditioning.families import SD15, SDXL
from mulan_nodes.mulan.conditioning.model_files import WrongFileError, open_adapter, open_text_encoder
from mulan_nodes.mulan.training.text_states import CaptionEncoder, LiveCaptions

GOLDENS = Path(__file__).resolve().parents[1] / "parity" / "goldens" / "mulan"
ADAPTER = GOLDENS / "weights" / "sd15_tiny.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "InternVL-tiny"
    shutil.copytree(GOLDENS / "text_encoder", folder)
    shutil.copy(GOLDENS / "tokenizer" / "tokenizer.model", folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(folder, ADAPTER, family=SD15)


def one_file(folder: Path, path: Path, change) -> Path:
    """The folder's encoder as one .safetensors of our own layout; `change` maps (name, tensor) to more tensors."""
    source = open_text_encoder(folder)
    weights = {"spiece_model": torch.frombuffer(bytearray(source.tokenizer()), dtype=torch.uint8)}
    for name, tensor in source.state_dict().items():
        weights |= change(name, tensor)
    config = json.dumps(
        {"num_attention_heads": source.config.num_attention_heads, "rms_norm_eps": source.config.rms_norm_eps}
    )
    save_file(weights, path, metadata={"config": config})
    return path


def marked(quantization: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps({"format": quantization}).encode()), dtype=torch.uint8)


def int8(name, tensor):
    if not name.endswith("_proj.weight"):
        return {name: tensor}
    layer, scale = name[: -len(".weight")], tensor.abs().amax(dim=1, keepdim=True) / 127
    return {
        name: (tensor / scale).round().to(torch.int8),
        f"{layer}.weight_scale": scale,
        f"{layer}.comfy_quant": marked("int8_tensorwise"),
    }


def fp8(name, tensor):
    if not name.endswith("_proj.weight"):
        return {name: tensor}
    layer, scale = name[: -len(".weight")], tensor.abs().amax() / 448
    return {
        name: (tensor / scale).to(torch.float8_e4m3fn),
        f"{layer}.weight_scale": scale,
        f"{layer}.comfy_quant": marked("float8_e4m3fn"),
    }


@pytest.mark.parametrize(
    "form, tolerance",
    [
        (lambda name, tensor: {name: tensor}, 1e-6),
        (lambda name, tensor: {name: tensor.half()}, 0.01),
        (int8, 0.05),
        (fp8, 0.15),
    ],
    ids=("float32", "float16", "int8", "fp8"),
)
def test_half_and_quantised_encoders_stay_close_and_small(form, tolerance, folder, clip, tmp_path):
    loaded = load_clip(one_file(folder, tmp_path / "encoder.safetensors", form), ADAPTER, family=SD15)
    wanted, ours = clip.encode("a photo of a cat"), loaded.encode("a photo of a cat")
    assert (ours - wanted).norm() / wanted.norm() < tolerance
    stored = form("model.layers.0.self_attn.q_proj.weight", torch.ones(4, 4))[
        "model.layers.0.self_attn.q_proj.weight"
    ].dtype
    weight = loaded.cond_stage_model.internvl.transformer.model.layers[0].self_attn.q_proj.weight
    assert (
        weight.element_size() == stored.itemsize or getattr(weight, "_qdata", weight).element_size() == stored.itemsize
    )


def test_files_of_float64_are_read_in_float32(folder, clip, tmp_path):
    encoder = one_file(folder, tmp_path / "encoder.safetensors", lambda name, tensor: {name: tensor.double()})
    adapter = tmp_path / "adapter.safetensors"
    save_file({name: tensor.double() for name, tensor in load_file(ADAPTER).items()}, adapter)
    for loaded in (load_clip(encoder, ADAPTER, family=SD15), load_clip(encoder, adapter, family=SD15)):
        assert torch.equal(loaded.encode("a photo of a cat"), clip.encode("a photo of a cat"))


def test_the_adapter_keeps_its_own_dtype(folder, tmp_path):
    half = one_file(folder, tmp_path / "half.safetensors", lambda name, tensor: {name: tensor.half()})
    encoder = load_clip(half, ADAPTER, family=SD15).cond_stage_model.internvl
    assert (
        encoder.adapter.queries.dtype == torch.float32 and encoder.transformer.model.norm.weight.dtype == torch.float16
    )


def test_training_states_are_what_the_adapter_reads(folder):
    cases = json.loads((GOLDENS / "cases_sd15.json").read_text("utf-8"))
    kept = load_file(GOLDENS / "sd15.safetensors")
    texts = load_file(GOLDENS / "text.safetensors")
    captions = [next(e["prompt"] for e in cases["positives"] if e["id"] == id) for id in ("p07", "p09")]
    encoder = CaptionEncoder(open_text_encoder(folder), SD15)
    states = LiveCaptions(encoder)([captions[0], "", captions[1]]).rows
    assert torch.allclose(states[0], kept["p07.prompt_embeds"], atol=2e-3), "kept in float16"
    assert torch.allclose(states[2], kept["p09.prompt_embeds"], atol=2e-3)
    assert torch.allclose(states[1], texts["n00.text80"][:77], atol=2e-3)


def test_the_negative_view_shares_the_weights_and_leaves_the_clip_alone(clip):
    view = negative_view(clip)
    assert view.patcher.is_clone(clip.patcher) and clip.tokenizer_options == {}
    assert len(view.tokenize("x")["l"][0]) == 77 and len(clip.tokenize("x")["l"][0]) == 80


def test_prompts_encoded_together_are_what_each_is_alone(clip):
    """More windows than one batch holds; one prompt takes several, one has weights."""
    prompts = [
        *(f"a photo of {number} cats" for number in range(text_encoder.BATCH_SIZE)),
        "a cat and " * 60,
        "a (red:1.4) cat",
        "",
    ]
    together = encode_prompts(clip, prompts, ["blurry", ""])
    alone = [clip.encode(prompt) for prompt in prompts] + [
        negative_view(clip).encode(negative) for negative in ("blurry", "")
    ]
    assert alone[text_encoder.BATCH_SIZE].shape[1] > 120
    for ((context, _),), wanted in zip(together, alone, strict=True):
        assert torch.allclose(context, wanted, atol=2e-5) and context.untyped_storage().nbytes() == 4 * context.numel()


def test_a_context_is_the_same_in_runs_of_any_size(clip, monkeypatch):
    """Hidden states are kept for a run of windows at a time."""
    prompts = [f"{number} (cats:1.2)" for number in range(7)] + ["", "a cat and " * 60]
    wanted = encode_prompts(clip, prompts, ["", "blurry"])
    monkeypatch.setattr(text_encoder, "RUN_SIZE", 3)
    for ((context, values),), ((other, others),) in zip(
        encode_prompts(clip, prompts, ["", "blurry"]), wanted, strict=True
    ):
        assert torch.allclose(context, other, atol=2e-5) and values["mulan"] == others["mulan"]


def test_a_pooled_vector_of_zeros_as_wide_as_the_context(clip):
    """Packs that make a batch of prompts concatenate it without looking: FizzNodes, AnimateDiff-Evolved."""
    for view in (clip, negative_view(clip)):
        for text in ("a cat", "", "a (cat:-1)", "a BREAK b", "word " * 200):
            context, pooled = view.encode_from_tokens(view.tokenize(text), return_pooled=True)
            assert pooled.shape == (1, context.shape[-1]) and pooled.dtype == context.dtype and not pooled.any()
    for ((context, values),) in encode_prompts(clip, ["a", "b"], ["c"]):
        assert values["pooled_output"].shape == (1, context.shape[-1]) and not values["pooled_output"].any()


def test_who_reads_clip_s_own_pooled_vector_is_told(clip):
    """GLIGEN would run on zeros without a word."""
    with pytest.raises(ValueError, match="GLIGEN.*connect the checkpoint's CLIP"):
        clip.encode_from_tokens(clip.tokenize("a cat"), return_pooled="unprojected")
    assert clip.encode("a cat").isfinite().all()


def changed(window, index, row) -> list:
    return [*window[:index], row, *window[index + 1 :]]


FOREIGN_TOKENS = {
    "another key": (lambda w: {"g": [w]}, r"no key 'l', which MuLan's CLIP for Stable Diffusion 1.5 reads; .* 'g'"),
    "no key": (lambda w: {"negative": []}, "no key 'l'.* 'negative'"),
    "a list": (lambda w: [[w]], "no key 'l'.*have none"),
    "no windows": (lambda w: {"l": []}, "no windows under 'l'"),
    "None": (lambda w: {"l": None}, "no windows under 'l'"),
    "an empty window": (lambda w: {"l": [[]]}, "another CLIP: 0 in a window"),
    "a flat list": (lambda w: {"l": w}, "a int where"),
    "ids alone": (lambda w: {"l": [[id for id, _ in w]]}, "a int where"),
    "numbers": (lambda w: {"l": [1, 2]}, "no windows under 'l'"),
    "CLIP-L's": (lambda w: {"l": [[(496, 1.0), (320, 1.0)] + [(497, 1.0)] * 75]}, r"another CLIP: 77 .*\[496, 320"),
    "another family's": (lambda w: {"l": [[*w, (0, 1.0), (0, 1.0), (0, 1.0)]]}, "another CLIP: 83 in a window"),
    "without the prefix": (lambda w: {"l": [[w[0], *w[4:], *[(0, 1.0)] * 3]]}, "another CLIP: 80 in a window"),
    "without eos": (lambda w: {"l": [[row for row in w if row[0] != 2] + [(0, 1.0)]]}, "another CLIP"),
    "an unknown id": (lambda w: {"l": [changed(w, 5, (10**9, 1.0))]}, "the id 1000000000"),
    "a negative id": (lambda w: {"l": [changed(w, 5, (-1, 1.0))]}, "the id -1"),
    "a text": (lambda w: {"l": [changed(w, 5, ("cat", 1.0))]}, "a str where an id belongs"),
    "an inversion": (lambda w: {"l": [changed(w, 5, (torch.zeros(768), 1.0))]}, "an embedding where an id belongs"),
    "a weight NaN": (lambda w: {"l": [changed(w, 5, (7, float("nan")))]}, "a weight among the tokens is nan"),
    "a huge weight": (lambda w: {"l": [changed(w, 5, (7, 1e300))]}, "a weight among the tokens is 1e.300"),
    "no weight": (lambda w: {"l": [changed(w, 5, (7, None))]}, "a weight among the tokens is None"),
}


@pytest.mark.parametrize("name", FOREIGN_TOKENS)
def test_tokens_that_are_not_this_clip_s_are_refused(name, clip):
    change, message = FOREIGN_TOKENS[name]
    (window,) = clip.tokenize("a cat by the river")["l"]
    with pytest.raises(ValueError, match=message):
        clip.encode_from_tokens(change(window))


def test_tokens_as_other_packs_hand_them_over(clip):
    """Rows of three, lists in place of tuples, numbers of numpy, windows of several prompts in one list."""
    tokens = clip.tokenize("a (cat:1.5) by the river", return_word_ids=True)
    wanted = clip.encode("a (cat:1.5) by the river")
    assert torch.equal(clip.encode_from_tokens(tokens), wanted)
    (window,) = tokens["l"]
    rows = [[np.int64(id), np.float32(weight)] for id, weight, _ in window]
    assert torch.equal(clip.encode_from_tokens({"l": [rows]}), wanted)
    both = clip.encode_from_tokens({"l": [*clip.tokenize("a cat")["l"], *clip.tokenize("a dog")["l"]]})
    assert torch.allclose(both, clip.encode("a cat BREAK a dog"), atol=2e-5)


def test_too_many_windows_at_once_are_refused(clip, monkeypatch):
    monkeypatch.setattr(clip_module, "MAX_WINDOWS", 3)
    with pytest.raises(ValueError, match="the 3 prompts take 4 windows .* at most 3 are encoded at once"):
        encode_prompts(clip, ["a", "b BREAK c"], [""])


def test_every_lora_name_has_one_common_prefix(clip):
    assert {name.split(".")[0] for name in clip.cond_stage_model.state_dict()} == {"internvl"}


def test_the_patcher_can_be_built_anew(clip):
    """Hooks on dynamic memory and a second device need it."""
    build, arguments = clip.patcher.cached_patcher_init
    assert (
        build(*arguments, disable_dynamic=True).model.state_dict().keys() == clip.cond_stage_model.state_dict().keys()
    )


def test_a_folder_without_a_shard_or_tokenizer_is_named(folder, tmp_path):
    cut = tmp_path / "Cut"
    cut.mkdir()
    (cut / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )
    with pytest.raises(WrongFileError, match="Cut .*lacks 1 of its shards.*model-00001-of-00002.safetensors"):
        open_text_encoder(cut)
    bare = tmp_path / "Bare"
    shutil.copytree(folder, bare)
    (bare / "tokenizer.model").unlink()
    with pytest.raises(WrongFileError, match="without its sentencepiece model.*tokenizer.model"):
        open_text_encoder(bare)


def test_an_incomplete_encoder_is_named(folder, tmp_path):
    path = one_file(
        folder, tmp_path / "holes.safetensors", lambda name, tensor: {} if "layers.1.mlp" in name else {name: tensor}
    )
    with pytest.raises(
        WrongFileError, match="incomplete: 3 tensors are missing, the first is model.layers.1.mlp.down_proj.weight"
    ):
        open_text_encoder(path)


def test_an_adapter_of_unknown_width_is_refused():
    with pytest.raises(WrongFileError, match=r"contexts of width 32; known are 768 \(Stable Diffusion 1.5\), 1024"):
        open_adapter(ADAPTER)


# --- files that are whole but wrong ---


def sentencepiece_model(pieces: int, path: Path, **options) -> bytes:
    """A sentencepiece model of so many pieces, trained on a few words."""
    text = path / "text.txt"
    text.write_text(
        "\n".join(f"summarize: a photo of {number} cats and dogs number {number * 7}" for number in range(500)), "utf-8"
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(path / "trained"),
        vocab_size=pieces,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
        **options,
    )
    return (path / "trained.model").read_bytes()


def with_tokenizer(folder: Path, path: Path, model: bytes) -> Path:
    shutil.copytree(folder, path)
    (path / "tokenizer.model").write_bytes(model)
    return path


@pytest.mark.parametrize(
    "model",
    [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", bytes(1000), "cut"],
    ids=("empty", "git-lfs pointer", "web page", "zeros", "cut"),
)
def test_a_tokenizer_that_cannot_be_read(model, folder, tmp_path):
    model = (folder / "tokenizer.model").read_bytes()[:5000] if model == "cut" else model
    with pytest.raises(
        WrongFileError,
        match="Broken .*its sentencepiece model cannot be read .*"
        "Take tokenizer.model from .*OpenGVLab/InternVL-14B-224px",
    ):
        load_clip(with_tokenizer(folder, tmp_path / "Broken", model), ADAPTER, family=SD15)


def test_a_tokenizer_of_another_vocabulary(folder, tmp_path):
    rows = open_text_encoder(folder).config.vocab_size
    other = with_tokenizer(folder, tmp_path / "Other", sentencepiece_model(400, tmp_path))
    with pytest.raises(
        WrongFileError, match=f"Other .*knows 400 pieces, but its embedding has {rows} rows.*another model's"
    ):
        load_clip(other, ADAPTER, family=SD15)


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"user_defined_symbols": ["summarize:"]},
            r"unk, bos, eos = \[0, 1, 2\] and 'summarize:' is 2 pieces, but InternVL's has \[0, 1, 2\] and 3",
        ),
        ({"unk_id": 2, "bos_id": 0, "eos_id": 1}, r"unk, bos, eos = \[2, 0, 1\]"),
    ],
    ids=("prefix", "special"),
)
def test_a_tokenizer_of_the_right_size_that_reads_otherwise(options, words, folder, tmp_path):
    """The prefix's rows are cut by their number, so any other number would cut the prompt."""
    model = sentencepiece_model(420, tmp_path, **options)
    weights = load_file(folder / "model.safetensors")
    other = with_tokenizer(folder, tmp_path / "Other", model)
    weights["qllama.model.embed_tokens.weight"] = weights["qllama.model.embed_tokens.weight"][:420].clone()
    save_file(weights, other / "model.safetensors")
    with pytest.raises(WrongFileError, match=words):
        load_clip(other, ADAPTER, family=SD15)


def poisoned(tensors: dict[str, torch.Tensor], part: str, path: Path) -> Path:
    """The tensors with one NaN in that whose name ends with `part`."""
    (name,) = [name for name in tensors if name.endswith(part)]
    tensors = tensors | {name: tensors[name].clone()}
    tensors[name].view(-1)[-1] = float("nan")
    save_file(tensors, path)
    return path


def test_nan_in_the_text_encoder_is_told_of_the_text_encoder(folder, tmp_path):
    spoilt = tmp_path / "Spoilt"
    shutil.copytree(folder, spoilt)
    poisoned(load_file(folder / "model.safetensors"), "layers.1.mlp.down_proj.weight", spoilt / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=r"the text encoder Spoilt \(in models/text_encoders\) gives numbers that are not finite.*Download it",
    ):
        load_clip(spoilt, ADAPTER, family=SD15).encode("a cat")


def test_nan_in_the_adapter_is_told_of_the_adapter(folder, tmp_path):
    spoilt = poisoned(load_file(ADAPTER), "decoder.norm.weight", tmp_path / "spoilt.safetensors")
    with pytest.raises(
        ValueError, match=r"the adapter spoilt.safetensors \(in models/mulan\) gives numbers that are not finite"
    ):
        load_clip(folder, spoilt, family=SD15).encode("a cat")


def test_nan_in_the_pooled_part_of_an_sdxl_adapter(folder, tmp_path):
    source = load_file(GOLDENS / "weights" / "sdxl_embed_attnpool_tiny.safetensors")
    spoilt = poisoned(source, "pool_caption_projection.c_proj.bias", tmp_path / "spoilt.safetensors")
    clip = load_clip(folder, spoilt, family=SDXL)
    with pytest.raises(ValueError, match="the adapter spoilt.safetensors .*not finite"):
        clip.encode("a cat")
    assert (
        negative_view(clip).encode_from_tokens(negative_view(clip).tokenize(""), return_pooled=True)[1].eq(0).all()
    ), "zeros need no weights"


# --- memory that ends, and a user who stops ---


def encoders_in_memory() -> int:
    gc.collect()
    return sum(type(thing) is internvl_llama.InternVLEncoder for thing in gc.get_objects())


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize("when", ["reading", "assigning"])
def test_no_memory_while_loading(when, error, folder, clip, monkeypatch):
    """ComfyUI frees memory by the error's type; the message tells what would be smaller; nothing half-loaded stays."""
    before, loaded = encoders_in_memory(), len(comfy.model_management.current_loaded_models)
    wanted = clip.encode("a photo of a cat")

    reads = itertools.count(1)

    def full(self, name):
        if next(reads) == 3:
            raise error("tried to allocate 26.00 MiB")
        return read(self, name)

    def no_room(self, sd):
        if not any(name.startswith("model.") for name in sd):
            raise error("tried to allocate 26.00 MiB")
        return load_sd(self, sd)

    read, load_sd = SafetensorsReader.read, text_encoder.MulanTextEncoder.load_sd
    with monkeypatch.context() as patch:
        if when == "reading":
            patch.setattr(SafetensorsReader, "read", full)
        else:
            patch.setattr(text_encoder.MulanTextEncoder, "load_sd", no_room)
        with pytest.raises(
            error,
            match="not enough memory for the text encoder InternVL-tiny: .*26.00 MiB.*int8 conversion.*device = cpu",
        ) as failure:
            load_clip(folder, ADAPTER, family=SD15)
        assert type(failure.value) is error
    del failure
    assert encoders_in_memory() == before and len(comfy.model_management.current_loaded_models) == loaded
    assert torch.equal(load_clip(folder, ADAPTER, family=SD15).encode("a photo of a cat"), wanted)


def stop_in_layer_1(clip, monkeypatch, act) -> None:
    layer = clip.cond_stage_model.internvl.transformer.model.layers[1]
    forward = layer.forward

    def stopped(*arguments, **options):
        act()
        return forward(*arguments, **options)

    monkeypatch.setattr(layer, "forward", stopped)


def test_no_memory_while_encoding(folder, clip, monkeypatch):
    wanted = clip.encode("a (big:1.2) cat")
    fresh = load_clip(folder, ADAPTER, family=SD15)

    def full():
        raise torch.OutOfMemoryError("tried to allocate 26.00 MiB")

    with monkeypatch.context() as patch:
        stop_in_layer_1(fresh, patch, full)
        with pytest.raises(torch.OutOfMemoryError):
            fresh.encode("a (big:1.2) cat")
    assert not any(layer._forward_hooks for layer in fresh.cond_stage_model.internvl.transformer.model.layers)
    assert torch.equal(fresh.encode("a (big:1.2) cat"), wanted)


def test_the_user_stops_an_encode(folder, clip, monkeypatch):
    wanted = clip.encode("a (big:1.2) cat")
    fresh, layers_run = load_clip(folder, ADAPTER, family=SD15), []

    def stop():
        layers_run.append(1)
        comfy.model_management.interrupt_current_processing()

    with monkeypatch.context() as patch:
        stop_in_layer_1(fresh, patch, stop)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            fresh.encode(", ".join(["a (big:1.2) cat"] * 2000))
    assert len(layers_run) == 1, "the batches behind it were encoded all the same"
    assert not any(layer._forward_hooks for layer in fresh.cond_stage_model.internvl.transformer.model.layers)
    assert torch.equal(fresh.encode("a (big:1.2) cat"), wanted)


def test_weights_in_main_memory_are_the_file_s_own(folder, tmp_path):
    """Nothing is copied, so loaders of one file share its pages: a change in the file shows in the loaded weights."""
    path = one_file(folder, tmp_path / "half.safetensors", lambda name, tensor: {name: tensor.half()})
    weight = load_clip(path, ADAPTER, family=SD15).cond_stage_model.internvl.transformer.model.norm.weight
    before = weight.clone()
    data = path.read_bytes()
    with open(path, "r+b") as file:
        file.seek(8 + int.from_bytes(data[:8], "little"))
        file.write(bytes(len(data) - file.tell()))
    assert before.ne(0).all() and weight.eq(0).all()
