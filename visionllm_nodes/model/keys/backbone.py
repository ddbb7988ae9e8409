"""A decoder's backbone, below its prefix: InternImage, or Swin in either of two namings.

Our Swin has Microsoft's names, as the pose decoder's checkpoint has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import nn

from ....mulan.checkpoints.config import Config
from ....mulan.checkpoints.weight_check import count_layers, shape_of
from ....mulan.checkpoints.weight_source import WeightSource
from ..internimage import InternImage, InternImageConfig
from ..swin import Swin, SwinConfig
from . import Rename, rename, sources_of

STAGES = 4  # whose maps a decoder reads
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


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Config) -> SwinConfig | InternImageConfig:
    """Return the sizes, from the tensors' shapes.

    `config` is upstream's dict of the backbone, where there is one: which blocks have a post norm follows from nothing
    else (`level2_post_norm_block_ids`; the published ones where it is missing). Raises KeyError where a tensor is
    missing, ValueError for shapes that no backbone has, WrongFileError for `config`.
    """
    if "patch_embed.conv1.weight" in shapes:
        return _internimage(shapes, config)
    return _swin(shapes)


def _internimage(shapes: Mapping[str, tuple[int, ...]], config: Config) -> InternImageConfig:
    levels = _stages(shapes, "levels.")
    depths = tuple(count_layers(shapes, f"levels.{level}.blocks.") for level in levels)
    post_norms = count_layers(shapes, "levels.2.post_norms.")
    embed_dim = shape_of(shapes, "patch_embed.conv2.weight", 4)[0]
    return InternImageConfig(
        embed_dim=embed_dim,
        depths=depths,
        groups=tuple(
            _divisor(shapes, f"levels.{level}.blocks.0.dcn.center_feature_scale_proj_weight", 0, embed_dim << level)
            for level in levels
        ),
        intermediate_size=shape_of(shapes, "levels.0.blocks.0.mlp.fc1.weight", 2)[0],
        post_norm_blocks=config.indices(
            "level2_post_norm_block_ids",
            range(POST_NORM_EVERY - 1, POST_NORM_EVERY * post_norms, POST_NORM_EVERY),
            count=post_norms,
            below=depths[2],
        ),
    )


def _swin(shapes: Mapping[str, tuple[int, ...]]) -> SwinConfig:
    names = HUGGING_FACE if "embeddings.patch_embeddings.projection.weight" in shapes else ()
    stages = _stages(shapes, rename("layers.", names))
    tables = [rename(f"layers.{stage}.blocks.0.attn.relative_position_bias_table", names) for stage in stages]
    embed_dim = shape_of(shapes, rename("patch_embed.proj.weight", names), 4)[0]
    return SwinConfig(
        embed_dim=embed_dim,
        depths=tuple(count_layers(shapes, rename(f"layers.{stage}.blocks.", names)) for stage in stages),
        num_heads=tuple(_divisor(shapes, table, 1, embed_dim << stage) for stage, table in enumerate(tables)),
        window_size=(isqrt(shape_of(shapes, tables[0], 2)[0]) + 1) // 2,
        intermediate_size=shape_of(shapes, rename("layers.0.blocks.0.mlp.fc1.weight", names), 2)[0],
        normed=tuple(rename(f"norm{stage}.weight", names) in shapes for stage in stages),
    )


def _stages(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> range:
    stages = count_layers(shapes, prefix)
    if stages != STAGES:
        raise ValueError(f"its backbone has {stages} stages ({prefix}), expected {STAGES}")
    return range(stages)


def _divisor(shapes: Mapping[str, tuple[int, ...]], name: str, axis: int, channels: int) -> int:
    """Return the length of an axis (heads, groups) that channels are divided by."""
    parts = shape_of(shapes, name, 2)[axis]
    if channels % parts:
        raise ValueError(f"{name} is for {parts} parts, which its {channels} channels cannot be divided into")
    return parts


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
