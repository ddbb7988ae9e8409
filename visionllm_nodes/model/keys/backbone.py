"""The backbone of a decoder, told from its tensors: Swin (two namings) or InternImage. Names are relative to the backbone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ....mulan.checkpoints.weight_source import WeightSource
from ..internimage import InternImage, InternImageConfig
from ..swin import Swin, SwinConfig
from . import internimage, swin


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> SwinConfig | InternImageConfig:
    """`told`: upstream's dict of the backbone, where there is one. Raises KeyError where a tensor is missing."""
    return (internimage if "patch_embed.conv1.weight" in shapes else swin).configuration(shapes, told)


def build(config: SwinConfig | InternImageConfig, *, operations, dtype=None, device=None) -> nn.Module:
    return (Swin if isinstance(config, SwinConfig) else InternImage)(
        config, operations=operations, dtype=dtype, device=device
    )


def sources(config: SwinConfig | InternImageConfig, swin_names: swin.Naming) -> dict[str, WeightSource]:
    """`swin_names`: how this decoder's Swin is named: swin.HUGGING_FACE (grounding) or swin.MICROSOFT (pose)."""
    return swin.sources(config, swin_names) if isinstance(config, SwinConfig) else internimage.sources(config)


def unused(name: str) -> bool:
    return swin.unused(name)
