"""Every number of upstream MuLan that the goldens hold, against ours: ids, text states, contexts, layer by layer, full
size.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mulan_nodes.mulan.checkpoints.tensor_files import TensorFile
from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, from_published, to_published
from mulan_nodes.mulan.conditioning.adapter_sdxl import AdapterShapeXL, LanguageAdapterXL
from mulan_nodes.mulan.conditioning.clip import load_clip, negative_view
from mulan_nodes.mulan.conditioning.families import PIXART, SD15, SD21, SDXL
from mulan_nodes.mulan.conditioning.internvl_llama import InternVLEncoder
from mulan_nodes.mulan.conditioning.model_files import TextConfig, adapter_from_tensors, text_encoder_from_tensors
from mulan_nodes.mulan.conditioning.tokenizer import InternVLTokenizer

HERE = Path(__file__).parent
FAMILIES = {family.name: family for family in (SD15, SD21, SDXL, PIXART)}
SOME_ADAPTER = "sdxl_noembed_textproj"  # where a test is about text alone
IN_THE_CLIP = ("sd15", "sd21")  # the context is the CLIP's output as it is
PUBLISHED = "internvl_text_14b_224px", "internvl_14b_full_checkpoint"  # manifests of the one published text encoder


@pytest.fixture(scope="session")
def clips(checkpoint, adapter_files, family_of):
    """clips(case, style) -> (CLIP, CLIP for negatives), loaded from files as the node loads them."""
    made = {}

    def get(case: str, style: str = "upstream"):
        if (case, style) not in made:
            family = family_of(case)
            adapter = adapter_files(case, SOME_ADAPTER if family is SDXL else None)
            clip = load_clip(checkpoint, adapter, style, family=family)
            made[case, style] = clip, negative_view(clip)
        return made[case, style]

    return get


@pytest.fixture(scope="session")
def family_of(folder):
    """family_of("sd15_direct") -> SD15."""
    return lambda case: FAMILIES[folder.mulan_cases[case]["family"]]


def sides(facts):
    return [("positive", c) for c in facts["positives"]] + [("negative", c) for c in facts["negatives"]]


@pytest.fixture(scope="session")
def tokenizers(goldens, folder, facts):
    """(tokenizer, cases): the tiny one's, and the real InternVL's where its file is found near the goldens or the
    repository.
    """
    found = []
    if not folder.lacks("mulan", "tokenizer_cases.json"):
        found.append((goldens / "tokenizer" / "tokenizer.model", facts("tokenizer_cases")["cases"]))
    for data in (goldens.parents[1] / "data", HERE.parents[2] / "shared" / "data"):
        real = data / "internvl_tokenizer" / "tokenizer.model"
        if real.is_file() and not folder.lacks("mulan", "realtok_cases.json"):
            found.append((real, facts("realtok_cases")["cases"]))
            break
    return [(InternVLTokenizer(file.read_bytes()), cases) for file, cases in found]


@pytest.mark.needs("mulan", "tokenizer/tokenizer.model")
def test_every_tokenizer_case_has_upstreams_ids(tokenizers):
    for tokenizer, cases in tokenizers:
        for case in cases:
            plain = [1] + [p.id for p in tokenizer.encode(case["text"])] + [2]
            assert plain == case.get("ids", case.get("ids_without_prefix")), case["text"]
            if "ids_with_prefix" in case:
                prefixed = [1] + [p.id for p in tokenizer.encode_prefixed(case["text"], keep_merged=False)] + [2]
                assert prefixed == case["ids_with_prefix"], case["text"]


@pytest.mark.needs("mulan", "tokenizer/tokenizer.model")
def test_text_kept_from_the_colon_changes_nothing_elsewhere(tokenizers):
    """The default style's one change of ids: prompts that do not merge with the colon keep upstream's, all keep the
    prefix whole.
    """
    for tokenizer, cases in tokenizers:
        prefix = [p.id for p in tokenizer.prefix]
        for case in cases:
            ours = [p.id for p in tokenizer.encode_prefixed(case["text"], keep_merged=True)]
            upstream = [p.id for p in tokenizer.encode_prefixed(case["text"], keep_merged=False)]
            assert ours[: len(prefix)] == prefix, case["text"]
            assert ours == upstream or upstream[: len(prefix)] != prefix, case["text"]
        whole = "".join(p.text for p in tokenizer.encode_prefixed("//example.org", keep_merged=True)[len(prefix) :])
        assert whole == "//example.org" or "<0x" in whole  # a tokenizer may lack these letters


@pytest.mark.cases(*FAMILIES)
def test_windows_have_upstreams_ids(case, facts, clips, family_of):
    clip, negative = clips(case)
    for side, entry in sides(facts(f"cases_{case}")):
        tokens = (clip if side == "positive" else negative).tokenize(entry["prompt"])
        for key in family_of(case).token_keys:
            assert [[id for id, _ in window] for window in tokens[key]] == [entry["input_ids"]], entry["id"]


@pytest.mark.cases(*FAMILIES, keys=("text_encoder_output",))
def test_text_states(case, facts, clips, tensors, close):
    clip, _ = clips(case)
    clip.load_model()
    for _, entry in sides(facts(f"cases_{case}")):
        (states,) = clip.cond_stage_model.internvl.hidden_states([entry["input_ids"]])
        close(states, tensors(entry["text_encoder_output"]), "text.safetensors")


@pytest.mark.cases(*IN_THE_CLIP, keys=("cross_attention_input",))
def test_contexts(case, facts, clips, tensors, close):
    clip, negative = clips(case)
    for side, entry in sides(facts(f"cases_{case}")):
        view = clip if side == "positive" else negative
        context, pooled = view.encode_from_tokens(view.tokenize(entry["prompt"]), return_pooled=True)
        assert pooled.shape == (1, context.shape[-1]) and not pooled.any(), "as CLIP's, and no UNet reads it"
        reference = entry["cross_attention_input"]
        close(context[0], tensors(reference), reference.split("#")[0] + (" (direct)" if "direct" in case else ""))


@pytest.mark.cases(*IN_THE_CLIP)
def test_default_style_is_upstream_where_no_deviation_applies(case, facts, clips):
    """Plain prompts, and the empty negative through the very same CLIP."""
    upstream, upstream_negative = clips(case)
    ours, _ = clips(case, "default")
    same = [
        e["prompt"]
        for e in facts(f"cases_{case}")["positives"]
        if e["prompt"].strip()
        and not e["truncated"]
        and not re.search(r"[()\\]|embedding:|BREAK|^\s|\s$|\s\s|[^\S ]|\ufeff", e["prompt"])
        and e["input_ids"][1:4] == [p.id for p in ours.tokenizer.tokenizer.prefix]
    ]
    for prompt in same:
        assert torch.equal(ours.encode(prompt), upstream.encode(prompt)), prompt
    assert torch.equal(ours.encode(""), upstream_negative.encode(""))


@pytest.mark.cases(*IN_THE_CLIP)
def test_layer_by_layer(case, folder, goldens, facts, clips, close):
    """debug_p01_sd15: every stage of the first English case, so that a mistake is found where it is made."""
    clip, _ = clips(case)
    clip.load_model()
    for entry in facts(f"cases_{case}")["positives"]:
        file = f"debug_{entry['id']}_{case}.safetensors"
        if not (goldens / file).is_file():
            continue
        debug, seen = load_file(goldens / file), stages_of(clip, entry["prompt"])
        folder.absent |= {f"mulan/{file}#{name}": "no stage of ours" for name in debug.keys() - seen.keys()}
        for name in debug.keys() & seen.keys():
            close(seen[name], debug[name], file)


def stages_of(clip, prompt: str) -> dict[str, torch.Tensor]:
    """What each stage of text encoder and adapter makes of a prompt, by upstream's names."""
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
    hooks = [module.register_forward_hook(keep(name)) for name, module in stages.items()]
    try:
        clip.encode(prompt)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@pytest.mark.full_size(*IN_THE_CLIP)
def test_full_size_adapter(full, full_size, whole):
    """The published size (4096 -> 768, 20.4M parameters) with the recipe's weights."""
    entry, published, given = full_size(full)
    adapter = LanguageAdapter(AdapterShape.from_state_dict(published))
    adapter.load_state_dict(from_published(published))
    with torch.no_grad():
        whole(adapter(given("input")), entry["output"])


def unread(shapes: dict[str, tuple[int, ...]], folder: Path) -> TensorFile:
    """A file of these names and shapes, values on "meta"."""
    return TensorFile(folder, shapes, lambda name: torch.empty(shapes[name], device="meta"), {})


@pytest.mark.manifests("mulan", "adapter_")
def test_every_tensor_of_the_published_adapters_has_its_place(manifest_name, manifest, tmp_path):
    """In the module behind the text encoder or in the MODEL: nothing missing, nothing unexpected, and the family is
    found.
    """
    published = manifest(manifest_name)
    file = adapter_from_tensors(unread(published, tmp_path))
    assert file.family.name == manifest_name.split("_")[1]
    module = {AdapterShape: LanguageAdapter, AdapterShapeXL: LanguageAdapterXL}.get(type(file.shape))
    with torch.device("meta"):
        ours = to_published(module(file.shape).state_dict()) if module else {}
    assert {n: tuple(t.shape) for n, t in ours.items()} == {
        n: tuple(t.shape) for n, t in to_published(file.state_dict()).items()
    }
    patch = {tuple(tensor.shape) for tensor in file.model_patch().values()}
    assert len(file.state_dict()) + len(file.model_patch()) == len(published)
    for_model = {shape for name, shape in published.items() if name.startswith("add_embedding.") or module is None}
    assert patch == for_model and bool(patch) == ("_embed" in manifest_name or file.family is PIXART)


@pytest.mark.manifests("mulan", "internvl_text")
@pytest.mark.parametrize("whole", (False, True), ids=("text", "whole"))
def test_every_tensor_that_text_needs_of_the_full_size_checkpoint_has_its_place(
    manifest_name, whole, manifest, folder, tmp_path
):
    """The published names and shapes, found by the reader and equal to the module's: nothing missing, nothing
    unexpected.
    """
    rest = PUBLISHED[1] if manifest_name == PUBLISHED[0] else manifest_name.replace("_text", "_full")
    shapes = manifest(manifest_name)
    if whole and folder.manifest_file("mulan", rest) is not None:
        shapes = shapes | manifest(rest)
    (tmp_path / "tokenizer.model").touch()
    found = text_encoder_from_tensors(unread(shapes, tmp_path))
    module = InternVLEncoder(found.config, dtype=torch.float16, device="meta")
    wanted = {n: tuple(t.shape) for n, t in module.transformer.state_dict().items()}
    assert {n: shapes[source] for n, source in found.names.items()} == wanted
    dropped = [n for n in shapes if n not in found.names.values()]
    assert not [n for n in dropped if n.startswith("qllama.model.") and ".cross_attn." not in n]
    if "text_projection" in shapes:
        assert found.projection_dim == shapes["text_projection"][1]
    if manifest_name == PUBLISHED[0]:
        assert found.config == TextConfig(49954, 4096, 11008, 32, 32, rms_norm_eps=1e-6) and found.projection_dim == 768
