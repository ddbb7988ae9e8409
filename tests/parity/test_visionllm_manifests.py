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


MODEL = pytest.mark.manifests_of("llm.", "vl_bridge.")
PUBLISHED = pytest.mark.manifests("visionllm", "visionllmv2_")
FOUND_BY = {
    "vis_encoder.": "tower",
    "vl_bridge.": "bridge",
    "llm.": "language",
    "emb_embeddings_": "super_link",
    "region_encoder.": "region_encoder",
    "gdino.": "grounding",
    "unipose.": "pose",
    "sd.": "generate",
    "ip2p.": "edit",
}
READ_FIRST = {  # the language model's states
    "gdino.": "gdino.patch2query.layers.0.weight",
    "unipose.": "unipose.projection_llava.layers.0.weight",
}
WIDTHS = {"visionllmv2_7b_swin_t": 4096, "visionllmv2_26b_swin_t": 6144}


def whole(opened, manifests):
    """No tensor is missing (opening would fail) and none is left over."""
    names = opened.file.shapes
    assert opened.parts.keys() == {part for mark, part in FOUND_BY.items() if any(n.startswith(mark) for n in names)}
    assert unused_tensors(opened) == []
    aliases = {alias for manifest in manifests for alias in manifest["aliases"]}
    used = {name for source in opened.sources().values() for name in source.names}
    assert not used & aliases, "a tensor is read under its second name, which a converted file lacks"


@MODEL
def test_nothing_is_missing_and_nothing_unexpected(manifest_name, opened_manifest, vision_manifest):
    opened = opened_manifest(manifest_name)
    whole(opened, [vision_manifest(manifest_name)])
    width = opened.parts["language"].config.hidden_size
    assert width == WIDTHS.get(manifest_name, width)
    for part in opened.parts.keys() & {"grounding", "pose"}:
        assert type(opened.parts[part].config.backbone) is SwinConfig or "swin" not in manifest_name


@MODEL
def test_other_decoders_in_a_model(manifest_name, opened_manifest, vision_manifest, folder):
    """Each manifest of a decoder alone, in the place of the model's own, where they fit its width."""
    for other in folder.manifest_names("visionllm"):
        prefix = vision_manifest(other).get("prefix")
        first = READ_FIRST.get(prefix)
        widths = {vision_manifest(name)["tensors"].get(first, [0, 0])[1] for name in (manifest_name, other)}
        if not first or len(widths) > 1:
            continue
        changed, part = opened_manifest(manifest_name, other), FOUND_BY[prefix]
        whole(changed, map(vision_manifest, (manifest_name, other)))
        if "internimage" in other:
            assert type(changed.parts[part].config.backbone) is InternImageConfig


@PUBLISHED
def test_modules_have_the_published_names(manifest_name, opened_manifest):
    """A key map holds only what differs: these parts have none, and no part's map changes most of its names."""
    parts = opened_manifest(manifest_name).parts
    for part in ("tower", "bridge", "super_link", "region_encoder"):
        assert all(source.names == (parts[part].prefix + key,) for key, source in parts[part].sources().items()), part
    sources = parts["grounding"].sources()
    kept = [key for key, source in sources.items() if source.names[0] in (f"gdino.{key}", f"gdino.model.{key}")]
    own = [key for key in sources if not key.startswith("backbone.")]
    assert len(kept) > 0.85 * len(own)


@MODEL
def test_the_unet_that_edits_is_comfyui_s(manifest_name, opened_manifest):
    file = opened_manifest(manifest_name).file
    names = convert.comfy_unet(file)
    assert len(names) == sum(name.startswith("ip2p.sd_unet.") for name in file.shapes) and all(
        stored.startswith("ip2p.sd_unet.") for stored in names.values()
    )


@pytest.mark.parametrize("format", ["int8", "fp8"])
@MODEL
def test_in_8_bits_the_scales_fit_the_weights(manifest_name, format, opened_manifest, tmp_path):
    """Those of InternLM2's packed queries, keys and values too, of which the model takes rows apart."""
    published = opened_manifest(manifest_name)
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
