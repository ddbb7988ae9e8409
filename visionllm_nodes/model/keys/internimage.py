"""InternImage's tensors under upstream's names, relative to the backbone."""

from __future__ import annotations

from collections.abc import Mapping

from ....mulan.checkpoints.weight_source import WeightSource
from ..internimage import InternImageConfig

BLOCK = {
    "norm1": "norm1.0",
    "out_norm1": "res_post_norm1.0",
    "norm2": "norm2.0",
    "out_norm2": "res_post_norm2.0",
    "convolution.value": "dcn.input_proj",
    "convolution.depthwise": "dcn.dw_conv.0",
    "convolution.norm": "dcn.dw_conv.1.1",
    "convolution.offsets": "dcn.offset",
    "convolution.weights": "dcn.mask",
    "convolution.out": "dcn.output_proj",
    "feed_forward.up": "mlp.fc1",
    "feed_forward.down": "mlp.fc2",
}
POST_NORM_EVERY = 6  # InternImage-H: behind blocks 5, 11, 17, 23, 29


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> InternImageConfig:
    """From the tensors, but which blocks have a post norm is told (`level2_post_norm_block_ids`; the published ones when not). Raises KeyError."""
    levels = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("levels."))
    post_norms = sum(f"levels.2.post_norms.{index}.0.weight" in shapes for index in range(len(shapes)))
    blocks = told.get("level2_post_norm_block_ids") or range(
        POST_NORM_EVERY - 1, POST_NORM_EVERY * post_norms, POST_NORM_EVERY
    )
    return InternImageConfig(
        width=shapes["patch_embed.conv2.weight"][0],
        depths=tuple(
            1 + max(int(name.split(".")[3]) for name in shapes if name.startswith(f"levels.{level}.blocks."))
            for level in range(levels)
        ),
        groups=tuple(
            shapes[f"levels.{level}.blocks.0.dcn.center_feature_scale_proj_weight"][0] for level in range(levels)
        ),
        hidden=shapes["levels.0.blocks.0.mlp.fc1.weight"][0],
        post_norms=tuple(blocks),
    )


def sources(config: InternImageConfig) -> dict[str, WeightSource]:
    found = {}

    def one(ours: str, published: str, joint: str = "."):
        for kind in ("weight", "bias"):
            found[f"{ours}.{kind}"] = WeightSource((f"{published}{joint}{kind}",))

    for index in range(2):
        one(f"stem.{index}.conv", f"patch_embed.conv{index + 1}")
        one(f"stem.{index}.norm", f"patch_embed.norm{index + 1}.1")
    for level, depth in enumerate(config.depths):
        at = f"levels.{level}"
        for block in range(depth):
            for ours, published in BLOCK.items():
                one(f"{at}.blocks.{block}.{ours}", f"{at}.blocks.{block}.{published}")
            one(f"{at}.blocks.{block}.convolution.gate", f"{at}.blocks.{block}.dcn.center_feature_scale_proj", "_")
        one(f"{at}.norm", f"{at}.norm.0")
        if level + 1 < len(config.depths):
            found[f"halves.{level}.conv.weight"] = WeightSource((f"{at}.downsample.conv.weight",))
            one(f"halves.{level}.norm", f"{at}.downsample.norm.1")
    for index, block in enumerate(config.post_norms):
        one(f"levels.2.post_norms.{block}", f"levels.2.post_norms.{index}.0")
    return found
