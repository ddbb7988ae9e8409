"""A chat model's sizes, and where each of its tensors comes from."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

from torch import nn

from ..checkpoints.chat_names import PROJECTOR, VISION
from ..checkpoints.config import Config
from ..checkpoints.language_model import language_config, language_section, language_sources
from ..checkpoints.weight_check import shape_of
from ..checkpoints.weight_source import WeightSource
from ..internvl import intern_vit_keys
from ..internvl.intern_vit import InternViTConfig
from .chat_model import COARSER, ChatConfig, InternVLChat
from .chat_router import NUM_HEADS, UNREAD, RouterConfig

POOLING = "pooling_before_gating."  # of the Flash models
VISION_HEADS = 16  # where config.json names none: transformers' default
TEMPLATE = "internvl2_5"

Shapes = Mapping[str, tuple[int, ...]]


def configuration(shapes: Shapes, config: Config) -> ChatConfig:
    """Return the sizes, from the tensors' shapes and else from `config` (config.json).

    Raises KeyError where a tensor is missing, ValueError for other models, WrongFileError for `config`.
    """
    language = language_section(config)  # the first: a model that fails here differs elsewhere too, and this names it
    config.choice("template", (TEMPLATE,), TEMPLATE, advice="Choose InternVL 2.5, 3 or 3.5.")
    tower = {name.removeprefix(VISION): shape for name, shape in shapes.items() if name.startswith(VISION)}
    heads = {"num_attention_heads": VISION_HEADS}
    vision = intern_vit_keys.configuration(tower, config.section("vision_config").with_defaults(heads))
    merge_size = isqrt(shape_of(shapes, f"{PROJECTOR}0.weight", 1)[0] // vision.hidden_size)
    if not merge_size or vision.image_size // vision.patch_size % merge_size:
        raise ValueError(
            f"its projector reads {shapes[f'{PROJECTOR}0.weight'][0]} channels, which squares of patches of "
            f"{vision.hidden_size} channels in an image of {vision.image_size // vision.patch_size} patches do not give"
        )
    return ChatConfig(vision, language_config(shapes, language), merge_size, _router(config, vision, merge_size))


def sources(config: ChatConfig, shapes: Shapes) -> dict[str, WeightSource]:
    """Return the published tensors of each of ours: the same name, but where ComfyUI's LLaMA or InternLM2 differ."""
    names = InternVLChat(config, operations=nn, device="meta").state_dict()
    found = {name: WeightSource((name,)) for name in names}
    for name in found:
        if name.startswith(POOLING):
            found[name] = WeightSource((name.replace(".in_proj.", ".in_proj_"),))
    return found | language_sources(config.language, shapes)


def unused(name: str) -> bool:
    """Return whether a tensor of the file is known and not needed."""
    if name.startswith(POOLING):
        return name.removeprefix(POOLING).startswith(UNREAD)
    return name.endswith("rotary_emb.inv_freq")  # some files keep it; it follows from the size of a head


def _router(config: Config, vision: InternViTConfig, merge_size: int) -> RouterConfig | None:
    """Return the router of a Flash model, None for others."""
    if not config.flag("flash_mode", False):
        return None
    side, merged = vision.image_size // vision.patch_size, COARSER * merge_size
    if side % merged or vision.hidden_size % NUM_HEADS:
        raise ValueError(
            f"it is a Flash model, whose vision tower must have rows of patches divided by {merged} and a width that "
            f"{NUM_HEADS} divides, not {side} and {vision.hidden_size}"
        )
    relative, absolute = (config.number(f"flash_{kind}_threshold", low=0, high=1) for kind in ("relative", "absolute"))
    return RouterConfig(relative, absolute)
