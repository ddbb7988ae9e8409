"""Every tensor of the full-size checkpoints by name and shape: none missing, none unexpected. No value is read."""

from __future__ import annotations

import json

import pytest
import torch

from mulan_nodes.mulan.checkpoints.tensor_files import TensorFile, WrongFileError
from mulan_nodes.mulan.conversion import visionllm as convert
from mulan_nodes.mulan.conversion.output_files import plan_output
from mulan_nodes.visionllm_nodes.model.internimage import InternImageConfig
from mulan_nodes.visionllm_nodes.model.swin import SwinConfig
from mulan_nodes.visionllm_nodes.model.visionllm_files import unused_tensors, visionllm_from_tensors

PARTS = {"tower", "bridge", "language", "super_link", "region_encoder", "grounding", "pose"}


@pytest.fixture
def opened_manifest(vision_manifest, tmp_path):
    """opened_manifest("visionllmv2_7b_swin_t") -> the checkpoint of these names and shapes.

    Further manifests replace the parts that they list.
    """

    def opened(name, *instead):
        tensors = vision_manifest(name)["tensors"]
        for manifest in map(vision_manifest, instead):
            tensors = {
                name: shape for name, shape in tensors.items() if not name.startswith(manifest["prefix"])
            } | manifest["tensors"]
        shapes = {name: tuple(shape) for name, shape in tensors.items()}
        return visionllm_from_tensors(
            TensorFile(tmp_path, shapes, lambda name: torch.empty(shapes[name], device="meta"), {})
        )

    return opened


@pytest.mark.parametrize(
    "manifests, parts, width, backbone",
    [
        (("visionllmv2_7b_swin_t",), PARTS | {"generate", "edit"}, 4096, SwinConfig),
        (
            ("visionllmv2_7b_swin_t", "gdino_internimage_h", "unipose_internimage_h"),
            PARTS | {"generate", "edit"},
            4096,
            InternImageConfig,
        ),
        (("visionllmv2_26b_swin_t",), PARTS, 6144, SwinConfig),
    ],
    ids=["7b", "7b internimage", "26b"],
)
def test_nothing_is_missing_and_nothing_unexpected(manifests, parts, width, backbone, opened_manifest, vision_manifest):
    opened = opened_manifest(*manifests)
    assert opened.parts.keys() == parts and unused_tensors(opened) == []
    assert opened.parts["language"].config.hidden_size == width
    assert type(opened.parts["grounding"].config.backbone) is type(opened.parts["pose"].config.backbone) is backbone
    aliases = {alias for manifest in map(vision_manifest, manifests) for alias in manifest["aliases"]}
    used = {name for source in opened.sources().values() for name in source.names}
    assert not used & aliases, "a tensor is read under its second name, which a converted file lacks"


@pytest.mark.parametrize("name", ["visionllmv2_7b_swin_t", "visionllmv2_26b_swin_t"])
def test_modules_have_the_published_names(name, opened_manifest):
    """A key map holds only what differs: these parts have none, and no part's map changes most of its names."""
    parts = opened_manifest(name).parts
    for part in ("tower", "bridge", "super_link", "region_encoder"):
        assert all(source.names == (parts[part].prefix + key,) for key, source in parts[part].sources().items()), part
    sources = parts["grounding"].sources()
    kept = [key for key, source in sources.items() if source.names[0] in (f"gdino.{key}", f"gdino.model.{key}")]
    own = [key for key in sources if not key.startswith("backbone.")]
    assert len(kept) > 0.85 * len(own)


@pytest.mark.parametrize("name, count", [("visionllmv2_7b_swin_t", 686), ("visionllmv2_26b_swin_t", 0)])
def test_the_unet_that_edits_is_the_host_s(name, count, opened_manifest):
    names = convert.comfy_unet(opened_manifest(name).file)
    assert len(names) == count and all(stored.startswith("ip2p.sd_unet.") for stored in names.values())


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["visionllmv2_7b_swin_t", "visionllmv2_26b_swin_t"])
def test_in_8_bits_the_scales_fit_the_weights(name, format, opened_manifest, tmp_path):
    """Those of InternLM2's packed queries, keys and values too, of which the model takes rows apart."""
    published = opened_manifest(name)
    form = convert.FORMATS[format]
    packed = convert.language_matrices(published, form)
    used = {name for source in published.sources().values() for name in source.names}
    forms = {name: form if name in packed else torch.float16 for name in used}
    slots = plan_output(tmp_path, "", "", {}, published.file, {name: name for name in used}, forms).layout
    shapes = {name: slot.shape for name, slot in slots.items()}
    converted = visionllm_from_tensors(
        TensorFile(
            tmp_path,
            shapes,
            lambda name: (
                form.mark()
                if name.endswith("comfy_quant")
                else torch.empty(slots[name].shape, dtype=slots[name].dtype, device="meta")
            ),
            {"config": json.dumps({})},
        )
    )
    assert unused_tensors(converted) == [] and converted.is_quantized
    values = dict(converted.tensors())
    layers = [
        name.removesuffix("weight")
        for name in values
        if name.startswith("language.layers.") and name.endswith("_proj.weight")
    ]
    assert len(layers) == 7 * converted.parts["language"].config.num_hidden_layers
    for layer in layers:
        rows = len(values[f"{layer}weight"])
        assert values[f"{layer}weight"].dtype == form.dtype and values[f"{layer}weight_scale"].shape == (
            (rows, 1) if format == "int8" else ()
        )
    assert "language.lm_head.weight_scale" not in values and ("language.embed_tokens.weight_scale" in values) == (
        format == "int8"
    )


@pytest.mark.parametrize(
    "lost, words",
    [
        (
            "llm.model.layers.31.mlp.up_proj.weight",
            "1 tensors are missing, the first is llm.model.layers.31.mlp.up_proj.weight",
        ),
        ("gdino.model.level_embed", "its grounding has no tensor gdino.model.level_embed. Download it again"),
        ("ip2p.llm2sd_mapper_queries", "its edit has no tensor ip2p.llm2sd_mapper_queries"),
        ("llm.model.embed_tokens.weight", "is not a VisionLLM v2 checkpoint: it has no language"),
        ("vl_bridge.2.weight", "1 tensors are missing, the first is vl_bridge.2.weight"),
    ],
)
def test_a_missing_tensor_is_named(lost, words, opened_manifest, tmp_path):
    file = opened_manifest("visionllmv2_7b_swin_t").file
    shapes = {name: shape for name, shape in file.shapes.items() if name != lost}
    with pytest.raises(WrongFileError, match=words):
        visionllm_from_tensors(TensorFile(tmp_path, shapes, file.read, {}))


def test_another_shape_is_named(opened_manifest, tmp_path):
    file = opened_manifest("visionllmv2_7b_swin_t").file
    shapes = {**file.shapes, "region_encoder.up_dim.bias": (4095,)}
    with pytest.raises(
        WrongFileError, match=r"region_encoder.up_dim.bias \[4095\] cannot be region_encoder.up_dim.bias \[4096\]"
    ):
        visionllm_from_tensors(TensorFile(tmp_path, shapes, file.read, {}))
