"""Swin's tensors under upstream's two namings: Hugging Face's (grounding decoder) and Microsoft's (pose decoder).

Names are relative to the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

from ....mulan.checkpoints.weight_source import WeightSource
from ..swin import SwinConfig


@dataclass(frozen=True)
class Naming:
    """Published names; `block` holds those within a block by ours, `stage` and `norm` are formats."""

    patch: str
    patch_norm: str
    stage: str
    norm: str
    first_norm: int  # number of the first stage in `norm`
    block: Mapping[str, tuple[str, ...]]

    def stages(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Blocks per stage."""
        depths = []
        while f"{self.stage.format(len(depths))}.blocks.0.{self.block['norm1'][0]}.weight" in shapes:
            at = self.stage.format(len(depths)) + ".blocks."
            depths.append(1 + max(int(name[len(at) :].split(".")[0]) for name in shapes if name.startswith(at)))
        return tuple(depths)


HUGGING_FACE = Naming(
    patch="embeddings.patch_embeddings.projection",
    patch_norm="embeddings.norm",
    stage="encoder.layers.{}",
    norm="hidden_states_norms.stage{}",
    first_norm=1,
    block={
        "norm1": ("layernorm_before",),
        "norm2": ("layernorm_after",),
        "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.out": ("attention.output.dense",),
        "attention.bias_table": ("attention.self.relative_position_bias_table",),
        "feed_forward.up": ("intermediate.dense",),
        "feed_forward.down": ("output.dense",),
    },
)
MICROSOFT = Naming(
    patch="patch_embed.proj",
    patch_norm="patch_embed.norm",
    stage="layers.{}",
    norm="norm{}",
    first_norm=0,
    block={
        "norm1": ("norm1",),
        "norm2": ("norm2",),
        "attention.qkv": ("attn.qkv",),
        "attention.out": ("attn.proj",),
        "attention.bias_table": ("attn.relative_position_bias_table",),
        "feed_forward.up": ("mlp.fc1",),
        "feed_forward.down": ("mlp.fc2",),
    },
)


def naming(shapes: Mapping[str, tuple[int, ...]]) -> Naming:
    return HUGGING_FACE if f"{HUGGING_FACE.patch}.weight" in shapes else MICROSOFT


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> SwinConfig:
    """All from the tensors. Raises KeyError where one is missing."""
    names = naming(shapes)
    depths = names.stages(shapes)
    tables = [
        shapes[f"{names.stage.format(stage)}.blocks.0.{names.block['attention.bias_table'][0]}"]
        for stage in range(len(depths))
    ]
    return SwinConfig(
        width=shapes[f"{names.patch}.weight"][0],
        depths=depths,
        heads=tuple(table[1] for table in tables),
        window=(isqrt(tables[0][0]) + 1) // 2,
        hidden=shapes[f"{names.stage.format(0)}.blocks.0.{names.block['feed_forward.up'][0]}.weight"][0],
        normed=tuple(f"{names.norm.format(names.first_norm + stage)}.weight" in shapes for stage in range(len(depths))),
    )


def sources(config: SwinConfig, names: Naming) -> dict[str, WeightSource]:
    found = {}

    def both(ours: str, *published: str):
        for kind in ("weight", "bias"):
            found[f"{ours}.{kind}"] = WeightSource(tuple(f"{name}.{kind}" for name in published))

    both("patch", names.patch)
    both("patch_norm", names.patch_norm)
    for stage, depth in enumerate(config.depths):
        at = names.stage.format(stage)
        for block in range(depth):
            for ours, published in names.block.items():
                target, origin = (
                    f"stages.{stage}.blocks.{block}.{ours}",
                    tuple(f"{at}.blocks.{block}.{name}" for name in published),
                )
                if ours == "attention.bias_table":
                    found[target] = WeightSource(origin)
                else:
                    both(target, *origin)
        if stage + 1 < len(config.depths):
            both(f"merges.{stage}.norm", f"{at}.downsample.norm")
            found[f"merges.{stage}.reduce.weight"] = WeightSource((f"{at}.downsample.reduction.weight",))
        if config.normed[stage]:
            both(f"norms.{stage}", names.norm.format(names.first_norm + stage))
    return found


def unused(name: str) -> bool:
    """The index of relative positions is recomputed."""
    return name.endswith(".relative_position_index")
