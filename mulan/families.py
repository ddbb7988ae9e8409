"""The diffusion families MuLan has adapters for, and which one an adapter's tensors belong to."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .adapter import AdapterShape


@dataclass(frozen=True)
class Family:
    """What a family fixes about text.

    A window is a number of rows of the text encoder, padding included. The adapter was trained with exactly these, because it
    reads the padding too: a prompt behind ``summarize:`` has the longer window and loses the prefix's three rows afterwards.
    """

    name: str
    title: str
    context_width: int
    token_key: str  # the name stock nodes expect tokens under
    prefixed_window: int
    bare_window: int


SD15 = Family("sd15", "Stable Diffusion 1.5", context_width=768, token_key="l", prefixed_window=80, bare_window=77)
SD21 = Family("sd21", "Stable Diffusion 2.1", context_width=1024, token_key="h", prefixed_window=80, bare_window=77)
FAMILIES = (SD15, SD21)


def family_of(shape: AdapterShape) -> Family:
    """The family whose cross-attention reads contexts of this adapter's width. Raises ValueError where there is none."""
    for family in FAMILIES:
        if family.context_width == shape.width:
            return family
    known = ", ".join(f"{f.context_width} ({f.title})" for f in FAMILIES)
    raise ValueError(f"this adapter gives contexts of width {shape.width}; known are {known}")


def adapter_kind(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Which published adapter these tensors are: a family's name, ``sdxl`` or ``pixart``; None for anything else."""
    if "adapter1.queries" in shapes:
        return "sdxl"
    if len(shapes.get("linear_1.weight", ())) == 2 and "linear_2.weight" in shapes and len(shapes) == 4:
        return "pixart"
    if "queries" in shapes and "proj.0.weight" in shapes:
        return next((f.name for f in FAMILIES if f.context_width == shapes["queries"][-1]), "unknown")
    return None
