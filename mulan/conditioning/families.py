"""The diffusion families MuLan has adapters for, and what each fixes about text."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoints.identify import ADAPTER_TITLES

PREFIX_ROWS = 3  # of InternVL's LLaMA, which the families' longer windows are given with


@dataclass(frozen=True)
class Family:
    """What a family fixes about text.

    A window is a number of rows of the text encoder, padding included. The adapter was trained with exactly these,
    because it reads the padding too. A prompt behind ``summarize:`` has the longer window and loses the prefix's three
    rows afterwards.
    """

    name: str
    title: str
    context_dim: int  # of the CONDITIONING; PixArt's is projected inside the MODEL
    token_keys: tuple[str, ...]  # the names stock nodes expect tokens under
    prefixed_window: int
    bare_window: int
    bare_negative: bool = True  # upstream encodes negatives without the prefix
    pooled_dim: int | None = None

    @property
    def adapter_rows(self) -> int:
        """The rows of a prompt that the adapter reads, behind any prefix."""
        return self.prefixed_window - PREFIX_ROWS

    def windows(self, prefix_rows: int = PREFIX_ROWS) -> tuple[int, int]:
        """Return the rows of a window with a prefix of so many rows, and of one without."""
        return self.adapter_rows + prefix_rows, self.bare_window


SD15 = Family("sd15", ADAPTER_TITLES[768], context_dim=768, token_keys=("l",), prefixed_window=80, bare_window=77)
SD21 = Family("sd21", ADAPTER_TITLES[1024], context_dim=1024, token_keys=("h",), prefixed_window=80, bare_window=77)
SDXL = Family(
    "sdxl",
    ADAPTER_TITLES[2048],
    context_dim=2048,
    token_keys=("g", "l"),
    prefixed_window=83,
    bare_window=83,
    bare_negative=False,
    pooled_dim=1280,
)
PIXART = Family(
    "pixart", ADAPTER_TITLES[4096], context_dim=4096, token_keys=("t5xxl",), prefixed_window=83, bare_window=80
)
FAMILIES = (SD15, SD21, SDXL, PIXART)


@dataclass(frozen=True)
class Zeroing:
    """What is set to zero for SDXL, behind the adapter: upstream's ``force_sdxl_zero_*`` flags."""

    pooled: bool
    empty_negative: bool
    negative_pooled: bool


# mulankit's own default is all three; MuLan's SDXL examples, which its images are made with, turn two of them off.
ZEROING = {
    "negative pooled": Zeroing(pooled=False, empty_negative=False, negative_pooled=True),
    "all pooled, empty negative": Zeroing(pooled=True, empty_negative=True, negative_pooled=True),
    "nothing": Zeroing(pooled=False, empty_negative=False, negative_pooled=False),
}
DEFAULT_ZEROING = "negative pooled"
