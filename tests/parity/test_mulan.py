"""Every number of upstream MuLan that the goldens hold, against ours: ids, text states, contexts, layer by layer, full size."""
from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mulan.adapter import AdapterShape, LanguageAdapter, from_published, to_published
from mulan.clip import load_clip, negative_view
from mulan.families import SD15, SD21, family_of
from mulan.files import TextConfig, open_text_encoder
from mulan.text_encoder import InternVLEncoder
from mulan.tokenizer import InternVLTokenizer

HERE = Path(__file__).parent
FAMILIES = {"sd15": SD15, "sd21": SD21}
CASES = ("sd15", "sd15_direct", "sd21")


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def recipe():
    spec = importlib.util.spec_from_file_location("mulan_recipe", HERE / "mulan_recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tensors(goldens):
    """tensors("file.safetensors#key[:n]") -> the golden tensor."""
    files = {}

    def get(reference: str) -> torch.Tensor:
        file, key, rows = re.fullmatch(r"([^#]+)#([^\[]+)(?:\[:(\d+)\])?", reference).groups()
        files.setdefault(file, load_file(goldens / file))
        return files[file][key][:int(rows) if rows else None]
    return get


@pytest.fixture(scope="session")
def checkpoint(goldens, tmp_path_factory) -> Path:
    """The tiny text encoder as a published folder: config, weights under upstream's names, tokenizer."""
    folder = tmp_path_factory.mktemp("published") / "InternVL-tiny"
    shutil.copytree(goldens / "text_encoder", folder)
    shutil.copy(goldens / "tokenizer" / "tokenizer.model", folder)
    return folder


@pytest.fixture(scope="session")
def clips(goldens, checkpoint, tmp_path_factory):
    """clips(case, style) -> (CLIP, CLIP for negatives), loaded from files as the node loads them."""
    made = {}

    def get(case: str, style: str = "upstream"):
        if (case, style) not in made:
            facts = read_json(goldens / f"cases_{case}.json")
            names = facts["adapter_weights"] if isinstance(facts["adapter_weights"], list) else [facts["adapter_weights"]]
            weights = {}
            for name in names:
                weights |= load_file(goldens / name.split(" ")[0])
            path = tmp_path_factory.mktemp("adapter") / f"{case}.safetensors"
            save_file(weights, path)
            clip = load_clip(checkpoint, path, style, family=FAMILIES[facts["family"]])
            made[case, style] = clip, negative_view(clip)
        return made[case, style]
    return get


def sides(facts):
    return [("positive", c) for c in facts["positives"]] + [("negative", c) for c in facts["negatives"]]


def tokenizers(goldens: Path):
    """(sentencepiece file, cases): the tiny tokenizer's, and the real InternVL's where its file is found near the goldens or the repository."""
    found = [(goldens / "tokenizer" / "tokenizer.model", read_json(goldens / "tokenizer_cases.json")["cases"])]
    for data in (goldens.parents[1] / "data", HERE.parents[2] / "shared" / "data"):
        real = data / "internvl_tokenizer" / "tokenizer.model"
        if real.is_file():
            found.append((real, read_json(goldens / "realtok_cases.json")["cases"]))
            break
    return found


def test_every_tokenizer_case_has_upstreams_ids(goldens):
    for file, cases in tokenizers(goldens):
        tokenizer = InternVLTokenizer(file.read_bytes())
        for case in cases:
            plain = [1] + [p.id for p in tokenizer.encode(case["text"])] + [2]
            assert plain == case.get("ids", case.get("ids_without_prefix")), (file, case["text"])
            if "ids_with_prefix" in case:
                prefixed = [1] + [p.id for p in tokenizer.encode_prefixed(case["text"], keep_first=False)] + [2]
                assert prefixed == case["ids_with_prefix"], (file, case["text"])


def test_text_kept_from_the_colon_changes_nothing_elsewhere(goldens):
    """The default style's one change of ids: prompts that do not merge with the colon keep upstream's, all keep the prefix whole."""
    for file, cases in tokenizers(goldens):
        tokenizer = InternVLTokenizer(file.read_bytes())
        for case in cases:
            ours = [p.id for p in tokenizer.encode_prefixed(case["text"], keep_first=True)]
            upstream = [p.id for p in tokenizer.encode_prefixed(case["text"], keep_first=False)]
            prefix = [p.id for p in tokenizer.prefix]
            assert ours[:3] == prefix, case["text"]
            assert ours == upstream or upstream[:3] != prefix, case["text"]
        whole = "".join(p.text for p in tokenizer.encode_prefixed("//example.org", keep_first=True)[3:])
        assert whole == "//example.org"


@pytest.mark.parametrize("case", CASES)
def test_windows_have_upstreams_ids(case, goldens, clips):
    clip, negative = clips(case)
    facts = read_json(goldens / f"cases_{case}.json")
    for side, entry in sides(facts):
        tokens = (clip if side == "positive" else negative).tokenize(entry["prompt"])
        (windows,) = tokens.values()
        assert [[id for id, _ in window] for window in windows] == [entry["input_ids"]], entry["id"]


@pytest.mark.parametrize("case", CASES)
def test_text_states(case, goldens, clips, tensors, close):
    clip, _ = clips(case)
    facts = read_json(goldens / f"cases_{case}.json")
    encoder = clip.cond_stage_model.internvl
    clip.load_model()
    for _, entry in sides(facts):
        states = encoder([entry["input_ids"]])[0][0]
        close(states, tensors(entry["text_encoder_output"]), "text.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_contexts(case, goldens, clips, tensors, close):
    clip, negative = clips(case)
    facts = read_json(goldens / f"cases_{case}.json")
    for side, entry in sides(facts):
        view = clip if side == "positive" else negative
        context, pooled = view.encode_from_tokens(view.tokenize(entry["prompt"]), return_pooled=True)
        assert pooled is None
        reference = entry["cross_attention_input"]
        close(context[0], tensors(reference), reference.split("#")[0] + (" (direct)" if "direct" in case else ""))


def test_default_style_is_upstream_where_no_deviation_applies(goldens, clips):
    """Plain prompts, and the empty negative through the very same CLIP."""
    facts = read_json(goldens / "cases_sd15.json")
    upstream, upstream_negative = clips("sd15")
    ours, _ = clips("sd15", "default")
    same = [e["prompt"] for e in facts["positives"]
            if e["prompt"] and not e["truncated"] and not re.search(r"[()\\]|embedding:", e["prompt"])
            and e["input_ids"][1:4] == [p.id for p in ours.tokenizer.tokenizer.prefix]]
    assert len(same) >= 5
    for prompt in same:
        assert torch.equal(ours.encode(prompt), upstream.encode(prompt)), prompt
    assert torch.equal(ours.encode(""), upstream_negative.encode(""))


def test_layer_by_layer(goldens, clips, close):
    """debug_p01_sd15: every stage of the first English case, so that a mistake is found where it is made."""
    debug = load_file(goldens / "debug_p01_sd15.safetensors")
    entry = next(e for e in read_json(goldens / "cases_sd15.json")["positives"] if e["id"] == "p01")
    clip, _ = clips("sd15")
    clip.load_model()
    encoder, seen = clip.cond_stage_model.internvl, {}

    def keep(name):
        def hook(module, inputs, output):
            seen[name] = (output[0] if isinstance(output, tuple) else output)[0].detach().clone()
        return hook

    llama, adapter = encoder.transformer.model, encoder.adapter
    stages = {"text.0_embedding": llama.embed_tokens, "text.1_layer0_self_attn_out": llama.layers[0].self_attn,
              "adapter.1_proj": adapter.proj, "adapter.2_encoder_layer": adapter.transformer["encoder"].layers[0],
              "adapter.3_encoder_after_norm": adapter.transformer["encoder"], "adapter.4_decoder_layer": adapter.transformer["decoder"].layers[0]}
    stages |= {f"text.{i + 1}_layer{i}_out": layer for i, layer in enumerate(llama.layers)}
    assert stages.keys() == debug.keys()
    hooks = [module.register_forward_hook(keep(name)) for name, module in stages.items()]
    try:
        clip.encode(entry["prompt"])
    finally:
        for hook in hooks:
            hook.remove()
    for name in stages:
        close(seen[name], debug[name], "debug_p01_sd15.safetensors")


def test_full_size_adapter(goldens, close):
    """The published size (4096 -> 768, 20.4M parameters) with the recipe's weights."""
    facts = next(c for c in read_json(goldens / "realdims.json")["cases"] if c["adapter"] == "sd15")
    make = recipe()
    manifest = read_json(HERE / "manifests" / "mulan" / "adapter_sd15.json")["tensors"]
    published = {name: torch.from_numpy(make.tensor(facts["seed"], facts["recipe_component"], name, t["shape"])) for name, t in manifest.items()}
    adapter = LanguageAdapter(AdapterShape.of(published))
    adapter.load_state_dict(from_published(published))
    component, name, shape = re.search(r"\('([^']+)', '([^']+)', (\[[^\]]+\])\)", facts["input"]).groups()
    states = torch.from_numpy(make.tensor(facts["seed"], component, name, json.loads(shape)))
    with torch.no_grad():
        context = adapter(states)[0]
    rows = facts["output"]["stored_rows"]
    file, key = facts["output"]["stored"].split("#")
    close(context[rows], load_file(goldens / file)[key], file)
    for name, value in make.digest(context.numpy()).items():
        assert torch.allclose(torch.tensor(value), torch.tensor(facts["output"]["digest"][name]), atol=1e-3, rtol=1e-4), name


@pytest.mark.parametrize("name", ("adapter_sd15", "adapter_sd15_direct", "adapter_sd21", "adapter_sd21_direct"))
def test_every_tensor_of_the_published_adapters_has_its_place(name):
    manifest = {n: tuple(t["shape"]) for n, t in read_json(HERE / "manifests" / "mulan" / f"{name}.json")["tensors"].items()}
    shape = AdapterShape.of({n: torch.empty(s, device="meta") for n, s in manifest.items()})
    with torch.device("meta"):
        adapter = LanguageAdapter(shape)
    assert {n: tuple(t.shape) for n, t in to_published(adapter.state_dict()).items()} == manifest
    assert family_of(shape).name == name.split("_")[1]


@pytest.mark.parametrize("names", (["internvl_text_14b_224px"], ["internvl_text_14b_224px", "internvl_14b_full_checkpoint"]), ids=("text", "whole"))
def test_every_tensor_that_text_needs_of_the_full_size_checkpoint_has_its_place(names, goldens, tmp_path):
    """The published names and shapes, found by the reader and equal to the module's: nothing missing, nothing unexpected."""
    manifests = [read_json(HERE / "manifests" / "mulan" / f"{name}.json")["tensors"] for name in names]
    shapes = {n: tuple(t["shape"]) for manifest in manifests for n, t in manifest.items()}
    folder = tmp_path / "InternVL-14B-224px"
    folder.mkdir()
    torch.save({n: torch.empty(s, device="meta") for n, s in shapes.items()}, folder / "pytorch_model.bin")
    shutil.copy(goldens / "tokenizer" / "tokenizer.model", folder)
    found = open_text_encoder(folder)
    assert found.config == TextConfig(vocabulary=49954, width=4096, feed_forward=11008, layers=32, heads=32, norm_eps=1e-6)
    module = InternVLEncoder(found.config, None, [0, 0, 0], 80, dtype=torch.float16, device="meta")
    wanted = {n: tuple(t.shape) for n, t in module.transformer.state_dict().items()}
    assert {n: shapes[source] for n, source in found.names.items()} == wanted
    dropped = [n for n in shapes if n not in found.names.values()]
    assert not [n for n in dropped if n.startswith("qllama.model.") and ".cross_attn." not in n]
