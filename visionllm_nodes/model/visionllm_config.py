"""What config.json says of the model as a whole, and whether its parts fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...mulan.checkpoints.config import Config
from ...mulan.internvl.intern_vit import InternViTConfig
from .image_inputs import ImageSettings

MAX_TILES = 64
MAX_SIDE = 8192  # pixels of a decoder's image
DEFAULT_LAYERS = {True: -1, False: -2}  # whose hidden states the bridge reads: InternViT's, CLIP's


def tower_layer(config: Config, tower: Any) -> int:
    """Return which of the tower's layers the bridge reads. Raises WrongFileError."""
    count = tower.num_hidden_layers
    default = DEFAULT_LAYERS[isinstance(tower, InternViTConfig)]
    return config.integer("vis_output_layer", default, low=-count - 1, high=count)


def image_settings(config: Config, parts: Mapping[str, Any]) -> ImageSettings:
    """Return the sizes of images, upstream's where `config` (`picture_settings`) has none. Raises WrongFileError.

    parts: the configs of the model's parts. CLIP sees up to 4 tiles, InternViT up to 6.
    """
    tower, told = parts["tower"], config.section("picture_settings")
    tiles = 6 if isinstance(tower, InternViTConfig) else ImageSettings.tiles
    sides = {
        name: told.integer(name, getattr(ImageSettings, name), low=ImageSettings.multiple, high=MAX_SIDE)
        for name in ("short", "long", "semantic_short", "semantic_long")
    }
    for short, long in (("short", "long"), ("semantic_short", "semantic_long")):
        if sides[short] > sides[long]:
            raise told.wrong(short, f"at most {sides[long]}, which {long} is")
    multiple = told.integer("multiple", ImageSettings.multiple, low=ImageSettings.multiple, high=min(sides.values()))
    if multiple % ImageSettings.multiple:
        raise told.wrong("multiple", f"a multiple of {ImageSettings.multiple}")
    for decoder in ("grounding", "pose"):
        if decoder in parts:
            _check_cells(told, sides, parts[decoder], ("short",) if decoder == "pose" else ("short", "semantic_short"))
    mean, std = {"low": -10.0, "high": 10.0}, {"low": 1e-4, "high": 10.0}
    return ImageSettings(
        tower=told.integer("tower", tower.image_size, low=tower.image_size, high=tower.image_size),
        tiles=told.integer("tiles", tiles, high=MAX_TILES),
        tower_mean=told.rgb("tower_mean", ImageSettings.tower_mean, **mean),
        tower_std=told.rgb("tower_std", ImageSettings.tower_std, **std),
        multiple=multiple,
        mean=told.rgb("mean", ImageSettings.mean, **mean),
        std=told.rgb("std", ImageSettings.std, **std),
        **sides,
    )


def check_widths(parts: Mapping[str, Any]) -> None:
    """Raise ValueError where one part does not read what another gives: they are of two checkpoints."""
    width, tower_width = parts["language"].hidden_size, parts["tower"].hidden_size
    widths = {
        "bridge": lambda part: part.out_features,
        "super_link": lambda part: part.hidden_size,
        "region_encoder": lambda part: part.hidden_size,
        "grounding": lambda part: part.query_hidden_size,
        "pose": lambda part: part.query_hidden_size,
        "generate": lambda part: part.text_hidden_size,
        "edit": lambda part: part.text_hidden_size,
    }
    for name, width_of in widths.items():
        if name in parts and width_of(parts[name]) != width:
            raise ValueError(
                f"its {name.replace('_', ' ')} is for hidden states of width {width_of(parts[name])}, but its language "
                f"model has {width}"
            )
    patches = parts["tower"].image_size // parts["tower"].patch_size
    shuffled = parts["bridge"].in_features == 4 * tower_width and patches % 2 == 0
    if parts["bridge"].in_features != tower_width and not shuffled:
        raise ValueError(
            f"its bridge reads {parts['bridge'].in_features} channels, but its tower gives {patches} x {patches} "
            f"patches of {tower_width}"
        )
    regions = parts.get("region_encoder")
    if regions is not None and regions.vision_hidden_size != tower_width:
        raise ValueError(
            f"its region encoder reads {regions.vision_hidden_size} channels, but its tower gives {tower_width}"
        )


def _check_cells(told: Config, sides: Mapping[str, int], decoder: Any, names: tuple[str, ...]) -> None:
    """Raise WrongFileError where the smallest image of a decoder has fewer cells than it finds boxes."""
    for name in names:
        cells = sum((-(-sides[name] // (8 << level))) ** 2 for level in range(decoder.encoder.num_levels))
        if cells < decoder.num_queries:
            raise told.wrong(name, f"a size of images that gives {decoder.num_queries} boxes, not only {cells}")
