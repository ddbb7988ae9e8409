"""A decoder's backbone, below its prefix: InternImage, or Swin in either of two namings.

Our Swin has Microsoft's names, as the pose decoder's checkpoint has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import nn

from ....mulan.checkpoints.weight_source import WeightSource
from ..internimage import InternImage, InternImageConfig
from ..swin import Swin, SwinConfig
from . import Rename, count, rename, sources_of

POST_NORM_EVERY = 6  # InternImage-H: behind blocks 5, 11, 17, 23, 29

# InternImage keeps its gate's weight and bias as parameters of the convolution itself.
INTERNIMAGE: tuple[Rename, ...] = ((r"center_feature_scale_proj\.", "center_feature_scale_proj_"),)
# Hugging Face's names of Swin, the grounding decoder's; "qkv" stands for three tensors.
HUGGING_FACE: tuple[Rename, ...] = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^norm(\d)\.", lambda found: f"hidden_states_norms.stage{int(found[1]) + 1}."),
    (r"^layers\.", "encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_QKV = tuple(f".{part}." for part in ("query", "key", "value"))


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> SwinConfig | InternImageConfig:
    """Return the sizes, from the tensors' shapes.

    `config` is upstream's dict of the backbone, where there is one: which blocks have a post norm follows from nothing
    else (`level2_post_norm_block_ids`; the published ones where it is missing). Raises KeyError where a tensor is
    missing.
    """
    if "patch_embed.conv1.weight" in shapes:
        return _internimage(shapes, config)
    return _swin(shapes)


def _internimage(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> InternImageConfig:
    levels = range(count(shapes, "levels."))
    post_norms = count(shapes, "levels.2.post_norms.")
    blocks = config.get("level2_post_norm_block_ids") or range(
        POST_NORM_EVERY - 1, POST_NORM_EVERY * post_norms, POST_NORM_EVERY
    )
    return InternImageConfig(
        embed_dim=shapes["patch_embed.conv2.weight"][0],
        depths=tuple(count(shapes, f"levels.{level}.blocks.") for level in levels),
        groups=tuple(shapes[f"levels.{level}.blocks.0.dcn.center_feature_scale_proj_weight"][0] for level in levels),
        intermediate_size=shapes["levels.0.blocks.0.mlp.fc1.weight"][0],
        post_norm_blocks=tuple(blocks),
    )


def _swin(shapes: Mapping[str, tuple[int, ...]]) -> SwinConfig:
    names = HUGGING_FACE if "embeddings.patch_embeddings.projection.weight" in shapes else ()

    def shape(key: str) -> tuple[int, ...]:
        return shapes[rename(key, names)]

    stages = range(count(shapes, rename("layers.", names)))
    tables = [shape(f"layers.{stage}.blocks.0.attn.relative_position_bias_table") for stage in stages]
    return SwinConfig(
        embed_dim=shape("patch_embed.proj.weight")[0],
        depths=tuple(count(shapes, rename(f"layers.{stage}.blocks.", names)) for stage in stages),
        num_heads=tuple(table[1] for table in tables),
        window_size=(isqrt(tables[0][0]) + 1) // 2,
        intermediate_size=shape("layers.0.blocks.0.mlp.fc1.weight")[0],
        normed=tuple(rename(f"norm{stage}.weight", names) in shapes for stage in stages),
    )


def build(config: SwinConfig | InternImageConfig, *, operations: Any, dtype=None, device=None) -> Swin | InternImage:
    """Make the backbone, without values."""
    kw = dict(operations=operations, dtype=dtype, device=device)
    return Swin(config, **kw) if isinstance(config, SwinConfig) else InternImage(config, **kw)


def sources(config: SwinConfig | InternImageConfig, *, hugging_face: bool) -> dict[str, WeightSource]:
    """Return the published tensors of each of the backbone's. `hugging_face`: a Swin has Hugging Face's names."""
    module = build(config, operations=nn, device="meta")
    if isinstance(config, InternImageConfig):
        return sources_of(module, *INTERNIMAGE)
    if not hugging_face:
        return sources_of(module)
    found = {}
    for key, source in sources_of(module, *HUGGING_FACE).items():
        name = source.names[0]
        found[key] = WeightSource(tuple(re.sub(r"\.qkv\.", part, name) for part in _QKV)) if ".qkv." in name else source
    return found


def unused(name: str) -> bool:
    """Whether it is the index of relative positions, which is recomputed."""
    return name.endswith(".relative_position_index")
