"""PixArt: the rows handed to the transformer, and its caption projection with the adapter's weights."""

from __future__ import annotations

import pytest
import torch
from comfy.ldm.modules.diffusionmodules.mmdit import Mlp

from mulan_nodes.mulan.conditioning.clip import load_clip, negative_view
from mulan_nodes.mulan.conditioning.families import PIXART
from mulan_nodes.mulan.conditioning.model_files import open_adapter
from mulan_nodes.tests.parity.golden_folder import adapters


@pytest.fixture(scope="module")
def clip(case, checkpoint, adapter_files):
    return load_clip(checkpoint, adapter_files(case), "upstream", family=PIXART)


def projection(patch: dict[str, torch.Tensor]) -> torch.nn.Module:
    """ComfyUI's y_proj with an adapter's weights."""
    weights = {name.removeprefix("diffusion_model.y_embedder.y_proj."): tensor for name, tensor in patch.items()}
    hidden, text = weights["fc1.weight"].shape
    module = Mlp(
        text,
        hidden,
        hidden,
        act_layer=lambda: torch.nn.GELU(approximate="tanh"),
        dtype=torch.float32,
        operations=torch.nn,
    )
    module.load_state_dict(weights)
    return module


def sides(clip, cases):
    return [(clip, entry) for entry in cases["positives"]] + [
        (negative_view(clip), entry) for entry in cases["negatives"]
    ]


@pytest.mark.cases("pixart", keys=("text_encoder_output",))
def test_the_rows_that_are_no_padding(case, facts, clip, tensors, close):
    """Upstream masks padding in the transformer; ComfyUI has no such mask, so the CLIP leaves those rows out."""
    for side, entry in sides(clip, facts(f"cases_{case}")):
        context, pooled = side.encode_from_tokens(side.tokenize(entry["prompt"]), return_pooled=True)
        assert pooled is None
        states = tensors(entry["text_encoder_output"])
        if side is clip:
            states = torch.cat((states[:1], states[4:]))
        kept = torch.tensor(entry["attention_mask"]).bool()
        assert not kept[kept.sum() :].any()
        close(context[0], states[kept], "text.safetensors (pixart)")


@pytest.mark.cases("pixart", keys=("caption_projection_output",))
def test_caption_projection(case, facts, clip, adapter_files, tensors, close):
    module = projection(open_adapter(adapter_files(case), PIXART).model_patch())
    for side, entry in sides(clip, facts(f"cases_{case}")):
        context = side.encode_from_tokens(side.tokenize(entry["prompt"]))
        golden = tensors(entry["caption_projection_output"])[: context.shape[1]]
        with torch.no_grad():
            close(module(context)[0], golden, "pixart.safetensors")


@pytest.mark.cases("pixart")
def test_the_published_pth_is_the_same_adapter(case, folder, goldens, adapter_files):
    for name in (name for name in adapters(folder.mulan_cases[case]) if name.endswith(".pth")):
        if folder.lacks("mulan", name):
            continue
        published, ours = open_adapter(goldens / name, PIXART), open_adapter(adapter_files(case), PIXART)
        assert published.state_dict() == {} and published.family is PIXART
        for key, tensor in published.model_patch().items():
            assert torch.equal(tensor, ours.model_patch()[key])


@pytest.mark.full_size("pixart")
def test_full_size(full, full_size, whole):
    entry, published, given = full_size(full)
    patch = {
        name.replace("linear_", "diffusion_model.y_embedder.y_proj.fc"): tensor for name, tensor in published.items()
    }
    with torch.no_grad():
        whole(projection(patch)(given("input")), entry["output"])
