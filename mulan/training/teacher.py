"""What the text encoder that a smaller one stands for gives of prompts, and which of its rows count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..conditioning.families import PIXART, Family
from ..conditioning.model_files import TextEncoderFile
from .text_states import CaptionEncoder

if TYPE_CHECKING:
    from ..conditioning.token_windows import Window  # imports ComfyUI


@dataclass(frozen=True)
class EncodedPrompts:
    """What a text encoder gives of prompts: ids long [B, T] and the positions of these columns, long [T]; states [B, T,
    states_size]; is_read and is_padding bool [B, T]: the rows that an adapter reads, and those of them behind the last
    eos.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    states: torch.Tensor
    is_read: torch.Tensor
    is_padding: torch.Tensor


class Teacher:
    """The text encoder to match, with its weights in memory. Prompts go in as the nodes encode them in the style
    `upstream`: behind ``summarize:``, the empty one bare.
    """

    def __init__(self, file: TextEncoderFile, family: Family):
        self.file, self.family = file, family
        self._encoder = CaptionEncoder(file, family)

    def encode(
        self,
        prompts: Sequence[str],
        padding: int | None = None,
        seed: int = 0,
        translations: Sequence[str] | None = None,
    ) -> EncodedPrompts:
        """Encode prompts; of a long one the first window.

        padding: how many rows of padding behind the longest prompt, drawn by `seed`; None: all. No row reads another's
        padding, so the rest can be left out. translations: what a student reads in place of each prompt. Of one that
        differs only eos and padding behind both answer to those of the prompt, and no other row is read.
        """
        windows = self._encoder.windows(prompts)
        read = windows if translations is None else self._encoder.windows(translations)
        (_, end_of_prompt), (prefix, end) = _bounds(windows), _bounds(read)
        length = max(len(window.input_ids) for window in (*windows, *read))
        longest = int(torch.maximum(end, end_of_prompt).max())
        behind = torch.arange(longest, length)
        if padding is not None:
            kept = padding if self.family is not PIXART else 0  # whose padding no model reads
            order = torch.randperm(len(behind), generator=torch.Generator().manual_seed(seed))
            behind = behind[order[:kept].sort().values]
        positions = torch.cat([torch.arange(longest), behind])
        is_encoded = (positions < end_of_prompt.max()) | (positions >= longest) | (padding is None)
        encoded = positions[is_encoded]
        given = torch.stack(self._encoder.hidden_states(_ids(windows, length)[:, encoded].tolist(), encoded))
        states = given.new_zeros(len(read), len(positions), given.shape[-1])
        states[:, is_encoded.to(states.device)] = given
        is_padding = positions >= end
        is_read = ((positions == 0) | (positions > prefix)) & is_encoded
        if translations is not None:
            rows, said, meant = torch.arange(len(read)), end[:, 0] - 1, end_of_prompt[:, 0] - 1
            states[rows, said] = given[rows, meant]
            differs = torch.tensor([one != other for one, other in zip(prompts, translations, strict=True)])[:, None]
            is_eos, behind_both = positions == end - 1, is_padding & (positions >= end_of_prompt) & is_encoded
            is_read = torch.where(differs, is_eos | behind_both, is_read)
        if self.family is PIXART:
            is_read &= ~is_padding
        device, ids = states.device, _ids(read, length)[:, positions]
        is_read, is_padding = is_read.to(device), (is_padding & is_read).to(device)
        return EncodedPrompts(ids.to(device), positions.to(device), states, is_read, is_padding)


def _bounds(windows: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return of each window the last position of its prefix and the first behind its eos, long [B, 1]."""
    prefix = torch.tensor([[len(window.prefix_ids)] for window in windows])
    return prefix, prefix + torch.tensor([[window.num_rows] for window in windows])


def _ids(windows: Sequence[Window], length: int) -> torch.Tensor:
    """Return the ids of windows, padded to one length, long [B, length]."""
    ids = torch.full((len(windows), length), windows[0].frame.pad)
    for row, window in zip(ids, windows, strict=True):
        row[: len(window.input_ids)] = torch.tensor(window.input_ids)
    return ids
