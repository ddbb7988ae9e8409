"""Every number of upstream MuLan that the goldens hold, against ours: ids, text states, contexts, layer by layer, full
size.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, from_published, to_published
from mulan_nodes.mulan.conditioning.adapter_sdxl import AdapterShapeXL, LanguageAdapterXL
from mulan_nodes.mulan.conditioning.clip import load_clip, negative_view
from mulan_nodes.mulan.conditioning.families import PIXART, SD15, SD21, SDXL
from mulan_nodes.mulan.conditioning.internvl_llama import InternVLEncoder
from mulan_nodes.mulan.conditioning.model_files import TextConfig, open_adapter, open_text_encoder
from mulan_nodes.mulan.conditioning.tokenizer import InternVLTokenizer

HERE = Path(__file__).parent
FAMILIES = {"sd15": SD15, "sd15_direct": SD15, "sd21": SD21, "sdxl": SDXL, "pixart": PIXART}
SOME_ADAPTER = {"sdxl": "sdxl_noembed_textproj"}  # where a test is about text alone
IN_THE_CLIP = ("sd15", "sd15_direct", "sd21")  # the context is the CLIP's output as it is


@pytest.fixture(scope="session")
def clips(checkpoint, adapter_files):
    """clips(case, style) -> (CLIP, CLIP for negatives), loaded from files as the node loads them."""
    made = {}

    def get(case: str, style: str = "upstream"):
        if (case, style) not in made:
            clip = load_clip(checkpoint, adapter_files(SOME_ADAPTER.get(case, case)), style, family=FAMILIES[case])
            made[case, style] = clip, negative_view(clip)
        return made[case, style]

    return get


def sides(facts):
    return [("positive", c) for c in facts["positives"]] + [("negative", c) for c in facts["negatives"]]


@pytest.fixture(scope="session")
def tokenizers(goldens, facts):
    """(tokenizer, cases): the tiny one's, and the real InternVL's where its file is found near the goldens or the
    repository.
    """
    found = [(goldens / "tokenizer" / "tokenizer.model", facts("tokenizer_cases")["cases"])]
    for data in (goldens.parents[1] / "data", HERE.parents[2] / "shared" / "data"):
        real = data / "internvl_tokenizer" / "tokenizer.model"
        if real.is_file():
            found.append((real, facts("realtok_cases")["cases"]))
            break
    return [(InternVLTokenizer(file.read_bytes()), cases) for file, cases in found]


def test_every_tokenizer_case_has_upstreams_ids(tokenizers):
    for tokenizer, cases in tokenizers:
        for case in cases:
            plain = [1] + [p.id for p in tokenizer.encode(case["text"])] + [2]
            assert plain == case.get("ids", case.get("ids_without_prefix")), case["text"]
            if "ids_with_prefix" in case:
                prefixed = [1] + [p.id for p in tokenizer.encode_prefixed(case["text"], keep_merged=False)] + [2]
                assert prefixed == case["ids_with_prefix"], case["text"]


def test_text_kept_from_the_colon_changes_nothing_elsewhere(tokenizers):
    """The default style's one change of ids: prompts that do not merge with the colon keep upstream's, all keep the
    prefix whole.
    """
    for tokenizer, cases in tokenizers:
        for case in cases:
            ours = [p.id for p in tokenizer.encode_prefixed(case["text"], keep_merged=True)]
            upstream = [p.id for p in tokenizer.encode_prefixed(case["text"], keep_merged=False)]
            prefix = [p.id for p in tokenizer.prefix]
            assert ours[:3] == prefix, case["text"]
            assert ours == upstream or upstream[:3] != prefix, case["text"]
        whole = "".join(p.text for p in tokenizer.encode_prefixed("//example.org", keep_merged=True)[3:])
        assert whole == "//example.org"


@pytest.mark.parametrize("case", FAMILIES)
def test_windows_have_upstreams_ids(case, facts, clips):
    clip, negative = clips(case)
    for side, entry in sides(facts(f"cases_{case}")):
        tokens = (clip if side == "positive" else negative).tokenize(entry["prompt"])
        for key in FAMILIES[case].token_keys:
            assert [[id for id, _ in window] for window in tokens[key]] == [entry["input_ids"]], entry["id"]


@pytest.mark.parametrize("case", FAMILIES)
def test_text_states(case, facts, clips, tensors, close):
    clip, _ = clips(case)
    clip.load_model()
    for _, entry in sides(facts(f"cases_{case}")):
        (states,) = clip.cond_stage_model.internvl.hidden_states([entry["input_ids"]])
        close(states, tensors(entry["text_encoder_output"]), "text.safetensors")


@pytest.mark.parametrize("case", IN_THE_CLIP)
def test_contexts(case, facts, clips, tensors, close):
    clip, negative = clips(case)
    for side, entry in sides(facts(f"cases_{case}")):
        view = clip if side == "positive" else negative
        context, pooled = view.encode_from_tokens(view.tokenize(entry["prompt"]), return_pooled=True)
        assert pooled is None
        reference = entry["cross_attention_input"]
        close(context[0], tensors(reference), reference.split("#")[0] + (" (direct)" if "direct" in case else ""))


def test_default_style_is_upstream_where_no_deviation_applies(facts, clips):
    """Plain prompts, and the empty negative through the very same CLIP."""
    upstream, upstream_negative = clips("sd15")
    ours, _ = clips("sd15", "default")
    same = [
        e["prompt"]
        for e in facts("cases_sd15")["positives"]
        if e["prompt"]
        and not e["truncated"]
        and not re.search(r"[()\\]|embedding:", e["prompt"])
        and e["input_ids"][1:4] == [p.id for p in ours.tokenizer.tokenizer.prefix]
    ]
    assert len(same) >= 5
    for prompt in same:
        assert torch.equal(ours.encode(prompt), upstream.encode(prompt)), prompt
    assert torch.equal(ours.encode(""), upstream_negative.encode(""))


def test_layer_by_layer(goldens, facts, clips, close):
    """debug_p01_sd15: every stage of the first English case, so that a mistake is found where it is made."""
    debug = load_file(goldens / "debug_p01_sd15.safetensors")
    entry = next(e for e in facts("cases_sd15")["positives"] if e["id"] == "p01")
    clip, _ = clips("sd15")
    clip.load_model()
    encoder, seen = clip.cond_stage_model.internvl, {}

    def keep(name):
        def hook(module, inputs, output):
            seen[name] = (output[0] if isinstance(output, tuple) else output)[0].detach().clone()

        return hook

    llama, adapter = encoder.transformer.model, encoder.adapter
    stages = {
        "text.0_embedding": llama.embed_tokens,
        "text.1_layer0_self_attn_out": llama.layers[0].self_attn,
        "adapter.1_proj": adapter.proj,
        "adapter.2_encoder_layer": adapter.transformer["encoder"].layers[0],
        "adapter.3_encoder_after_norm": adapter.transformer["encoder"],
        "adapter.4_decoder_layer": adapter.transformer["decoder"].layers[0],
    }
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


def test_full_size_adapter(full_size, whole):
    """The published size (4096 -> 768, 20.4M parameters) with the recipe's weights."""
    entry, published, given = full_size("sd15")
    adapter = LanguageAdapter(AdapterShape.from_state_dict(published))
    adapter.load_state_dict(from_published(published))
    with torch.no_grad():
        whole(adapter(given("input")), entry["output"])


@pytest.mark.parametrize("name", [path.stem for path in sorted((HERE / "manifests" / "mulan").glob("adapter_*.json"))])
def test_every_tensor_of_the_published_adapters_has_its_place(name, manifest, tmp_path):
    """In the module behind the text encoder or in the MODEL: nothing missing, nothing unexpected, and the family is
    found.
    """
    published = manifest(name)
    torch.save({n: torch.empty(shape, device="meta") for n, shape in published.items()}, tmp_path / "adapter.pth")
    file = open_adapter(tmp_path / "adapter.pth")
    assert file.family.name == name.split("_")[1]
    module = {AdapterShape: LanguageAdapter, AdapterShapeXL: LanguageAdapterXL}.get(type(file.shape))
    with torch.device("meta"):
        ours = to_published(module(file.shape).state_dict()) if module else {}
    assert {n: tuple(t.shape) for n, t in ours.items()} == {
        n: tuple(t.shape) for n, t in to_published(file.state_dict()).items()
    }
    assert len(file.state_dict()) + len(file.model_patch()) == len(published)
    width = {"sdxl": 2816, "pixart": 4096}.get(file.family.name)
    assert {tuple(t.shape) for n, t in file.model_patch().items() if n.endswith(("0.0.weight", "fc1.weight"))} <= {
        (1280, width),
        (1152, width),
    }
    assert bool(file.model_patch()) == ("_embed" in name or "pixart" in name)


@pytest.mark.parametrize(
    "names",
    (["internvl_text_14b_224px"], ["internvl_text_14b_224px", "internvl_14b_full_checkpoint"]),
    ids=("text", "whole"),
)
def test_every_tensor_that_text_needs_of_the_full_size_checkpoint_has_its_place(names, manifest, goldens, tmp_path):
    """The published names and shapes, found by the reader and equal to the module's: nothing missing, nothing
    unexpected.
    """
    shapes = {n: shape for name in names for n, shape in manifest(name).items()}
    folder = tmp_path / "InternVL-14B-224px"
    folder.mkdir()
    torch.save({n: torch.empty(s, device="meta") for n, s in shapes.items()}, folder / "pytorch_model.bin")
    shutil.copy(goldens / "tokenizer" / "tokenizer.model", folder)
    found = open_text_encoder(folder)
    assert found.config == TextConfig(
        vocab_size=49954,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        rms_norm_eps=1e-6,
    )
    module = InternVLEncoder(found.config, dtype=torch.float16, device="meta")
    wanted = {n: tuple(t.shape) for n, t in module.transformer.state_dict().items()}
    assert {n: shapes[source] for n, source in found.names.items()} == wanted
    assert found.projection_dim == 768
    dropped = [n for n in shapes if n not in found.names.values()]
    assert not [n for n in dropped if n.startswith("qllama.model.") and ".cross_attn." not in n]
