"""The diffusion families MuLan has adapters for, and what each fixes about text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """What a family fixes about text.

    A window is a number of rows of the text encoder, padding included. The adapter was trained with exactly these, because it
    reads the padding too: a prompt behind ``summarize:`` has the longer window and loses the prefix's three rows afterwards.
    """

    name: str
    title: str
    context_dim: int  # of the CONDITIONING; PixArt's is projected inside the MODEL
    token_keys: tuple[str, ...]  # the names stock nodes expect tokens under
    prefixed_window: int
    bare_window: int
    bare_negative: bool = True  # upstream encodes negatives without the prefix
    pooled_dim: int | None = None


SD15 = Family("sd15", "Stable Diffusion 1.5", context_dim=768, token_keys=("l",), prefixed_window=80, bare_window=77)
SD21 = Family("sd21", "Stable Diffusion 2.1", context_dim=1024, token_keys=("h",), prefixed_window=80, bare_window=77)
SDXL = Family(
    "sdxl",
    "SDXL",
    context_dim=2048,
    token_keys=("g", "l"),
    prefixed_window=83,
    bare_window=83,
    bare_negative=False,
    pooled_dim=1280,
)
PIXART = Family("pixart", "PixArt", context_dim=4096, token_keys=("t5xxl",), prefixed_window=83, bare_window=80)
FAMILIES = (SD15, SD21, SDXL, PIXART)


@dataclass(frozen=True)
class Zeroing:
    """What upstream replaces by zeros for SDXL (its ``force_sdxl_zero_*`` flags, after the adapter)."""

    pooled: bool
    empty_negative: bool
    negative_pooled: bool


# mulankit's own default is all three; MuLan's SDXL examples, with which its pictures are made, turn two of them off.
ZEROING = {
    "negative pooled": Zeroing(pooled=False, empty_negative=False, negative_pooled=True),
    "all pooled, empty negative": Zeroing(pooled=True, empty_negative=True, negative_pooled=True),
    "nothing": Zeroing(pooled=False, empty_negative=False, negative_pooled=False),
}
DEFAULT_ZEROING = "negative pooled"
