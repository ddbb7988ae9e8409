"""SDXL: contexts, pooled vectors in all four variants of the adapter, what upstream replaces by zeros, the size
embedding's weights.
"""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from mulan_nodes.mulan.conditioning.adapter import from_published
from mulan_nodes.mulan.conditioning.adapter_sdxl import AdapterShapeXL, LanguageAdapterXL
from mulan_nodes.mulan.conditioning.clip import load_clip, negative_view
from mulan_nodes.mulan.conditioning.families import SDXL, ZEROING, Zeroing
from mulan_nodes.mulan.conditioning.model_files import open_adapter

VARIANTS = ("sdxl_embed_attnpool", "sdxl_embed_textproj", "sdxl_noembed_attnpool", "sdxl_noembed_textproj")
CASES = pytest.mark.cases("sdxl", keys=("text_encoder_output", "text_embeds", "context", "pooled"))
NOTHING = ZEROING["nothing"]


def zeroing_of(flags: str) -> Zeroing:
    """What a golden says of upstream's flags: all are True but for those it sets."""
    flag = dict.fromkeys(
        ("zero_pool_prompt", "zero_empty_prompt", "zero_negative_pool_prompt"), "all three" not in flags
    )
    flag |= {name: value == "True" for name, value in re.findall(r"(zero_\w+)=(True|False)", flags)}
    return Zeroing(*flag.values())


@pytest.fixture(scope="module")
def clips(checkpoint, adapter_files):
    """clips(case, variant, zeroing) -> (CLIP, CLIP for negatives) in upstream's style."""
    made = {}

    def get(case: str, variant: str, zeroing: Zeroing):
        if (case, variant) not in made:
            clip = load_clip(checkpoint, adapter_files(case, variant), "upstream", family=SDXL)
            made[case, variant] = clip, negative_view(clip)
        made[case, variant][0].cond_stage_model.zeroing = zeroing
        return made[case, variant]

    return get


def encode(clip, text):
    return clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)


@CASES
@pytest.mark.parametrize("variant", VARIANTS)
def test_contexts_and_pooled_vectors(case, variant, facts, clips, tensors, close):
    clip, negative = clips(case, variant, NOTHING)
    cases = facts(f"cases_{case}")
    for side, entries in ((clip, cases["positives"]), (negative, cases["negatives"])):
        for entry in entries:
            context, pooled = encode(side, entry["prompt"])
            close(context[0], tensors(entry["context"]), "sdxl.safetensors")
            reference = tensors(
                entry["pooled"]["pooled_attnpool" if variant.endswith("attnpool") else "pooled_textproj"]
            )
            close(pooled[0], reference.reshape(-1), "sdxl.safetensors (pooled)")


@CASES
def test_text_embeds(case, facts, clips, tensors, close):
    clip, _ = clips(case, "sdxl_noembed_textproj", NOTHING)
    clip.load_model()
    encoder = clip.cond_stage_model.internvl
    for entry in facts(f"cases_{case}")["positives"]:
        (states,) = encoder.hidden_states([entry["input_ids"]])
        close(
            encoder.text_embeds(entry["input_ids"], states)[0],
            tensors(entry["text_embeds"]).reshape(-1),
            "text.safetensors",
        )


FLAG_SETS = {"default": "all pooled, empty negative", "examples_sdxl_py": "negative pooled", "all_off": "nothing"}


def test_the_flag_sets_are_settings_of_the_node(folder):
    for cases in folder.mulan_cases.values():
        for name, flags in cases.get("flag_sets", {}).items():
            assert name not in FLAG_SETS or zeroing_of(flags) == ZEROING[FLAG_SETS[name]], flags


@CASES
def test_upstreams_runs(case, facts, clips, tensors, close):
    """What calls of upstream's pipeline hand to the UNet, per setting of its zeroing flags."""
    cases = facts(f"cases_{case}")
    prompts = {entry["id"]: entry["prompt"] for entry in cases["positives"]}
    for run in cases.get("runs", ()):
        clip, negative = clips(case, run["adapter"], zeroing_of(cases["flag_sets"][run["flags"]]))
        names = "prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds"
        ours = dict(
            zip(
                names, (*encode(clip, prompts[run["positive"]]), *encode(negative, run["negative"] or "")), strict=False
            )
        )
        for name in names:
            if run[name].startswith("zeros"):
                assert not ours[name].any(), (run, name)
            elif run[name] == "not zero":
                assert ours[name].any(), (run, name)
            else:
                golden = tensors(run[name])
                close(ours[name].reshape(golden.shape), golden, "sdxl.safetensors (runs)")


@CASES
def test_the_whole_truth_table_of_upstreams_flags(case, facts, clips):
    for row in facts(f"cases_{case}").get("zeroing_truth_table", ()):
        zeroing = Zeroing(row["zero_pool_prompt"], row["zero_empty_prompt"], row["zero_negative_pool_prompt"])
        clip, negative = clips(case, "sdxl_noembed_textproj", zeroing)
        ours = zip(
            ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds"),
            (*encode(clip, "a cat"), *encode(negative, row["negative"] or "")),
            strict=False,
        )
        assert {name: not tensor.any() for name, tensor in ours} == row["zero"], row


def size_embedding(patch: dict[str, torch.Tensor]) -> nn.Module:
    """The UNet's label_emb with an adapter's weights, under ComfyUI's names."""
    prefix = "diffusion_model.label_emb.0."
    weights = {name.removeprefix(prefix): tensor for name, tensor in patch.items()}
    module = nn.Sequential(
        nn.Linear(*weights["0.weight"].shape[::-1]), nn.SiLU(), nn.Linear(*weights["2.weight"].shape[::-1])
    )
    module.load_state_dict(weights)
    return module


@pytest.mark.cases("sdxl", keys=("add_embedding_input", "add_embedding_output"))
def test_size_embedding(case, facts, adapter_files, tensors, close):
    module = size_embedding(open_adapter(adapter_files(case, "sdxl_embed_attnpool"), SDXL).model_patch())
    for entry in facts(f"cases_{case}").get("add_embedding", ()):
        golden = tensors(entry["add_embedding_output"])
        with torch.no_grad():
            close(
                module(tensors(entry["add_embedding_input"])).reshape(golden.shape),
                golden,
                "sdxl.safetensors (size embedding)",
            )


@pytest.mark.full_size("sdxl")
def test_full_size(full, full_size, whole):
    """The published sizes with the recipe's weights: context, pooled vector, and the size embedding where the adapter
    brings one.
    """
    entry, published, given = full_size(full)
    adapter = LanguageAdapterXL(AdapterShapeXL.from_state_dict(published))
    embedding = {n: t for n, t in published.items() if n.startswith("add_embedding.")}
    adapter.load_state_dict(from_published({n: t for n, t in published.items() if n not in embedding}))
    with torch.no_grad():
        context = adapter(given("input"))
        pooled = adapter.pool(context, given("text_embeds"))
        whole(context, entry["context"])
        whole(pooled, entry["pooled"])
        if embedding:
            renamed = {
                n.replace("add_embedding.linear_1", "diffusion_model.label_emb.0.0").replace(
                    "add_embedding.linear_2", "diffusion_model.label_emb.0.2"
                ): t
                for n, t in embedding.items()
            }
            sizes = torch.tensor(entry["time_ids"])[:, None] * torch.exp(
                -torch.arange(128) / 128 * torch.log(torch.tensor(1e4))
            )
            sinusoids = torch.cat((sizes.cos(), sizes.sin()), dim=-1).reshape(1, -1)
            whole(size_embedding(renamed)(torch.cat((pooled, sinusoids), dim=-1)), entry["add_embedding_output"])
