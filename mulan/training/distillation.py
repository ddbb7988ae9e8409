"""How far a text encoder is from the larger one that it learns to stand for: the loss, and what tables tell.

It learns on text alone to give its teacher's states row by row, so that adapters read the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .prompt_lists import Prompt
from .teacher import EncodedPrompts, Teacher
from .text_states import ENCODE_BATCH


def row_loss(states: torch.Tensor, teacher: EncodedPrompts) -> torch.Tensor:
    """Return how far states [B, T, states_size] are from the teacher's: the squared distance over the teacher's
    variance, and 1 - cosine; means over the rows that an adapter reads, those of words and of padding alike.
    """
    losses = []
    for rows in (teacher.is_read & ~teacher.is_padding, teacher.is_padding):
        if rows.any():
            ours, theirs = states[rows], teacher.states[rows]
            distance = F.mse_loss(ours, theirs) / teacher.states[teacher.is_read].var()
            losses.append(distance + 1 - F.cosine_similarity(ours, theirs, dim=-1).mean())
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class Likeness:
    """How like the teacher's a student's rows are: mean cosine of rows of words and of padding, and the share of the
    squared distance of the teacher's rows from their mean that the student leaves.
    """

    words: float
    padding: float | None  # None: no family of this one reads padding
    left: float


@torch.no_grad()
def compare(student: nn.Module, teacher: Teacher, prompts: Sequence[Prompt]) -> Likeness:
    """Measure a student on prompts of one language."""
    words, padding, ours, theirs = [], [], [], []
    for start in range(0, len(prompts), ENCODE_BATCH):
        texts, meant = zip(*prompts[start : start + ENCODE_BATCH], strict=True)
        encoded = teacher.encode(meant, translations=texts)
        states = student(encoded.ids, encoded.positions)
        cosine = F.cosine_similarity(states, encoded.states, dim=-1)
        words.append(cosine[encoded.is_read & ~encoded.is_padding].cpu())
        padding.append(cosine[encoded.is_padding].cpu())
        ours.append(states[encoded.is_read].cpu())
        theirs.append(encoded.states[encoded.is_read].cpu())
    own, wanted, of_padding = torch.cat(ours), torch.cat(theirs), torch.cat(padding)
    spread = (wanted - wanted.mean(0)).square().sum()
    return Likeness(
        torch.cat(words).mean().item(),
        of_padding.mean().item() if len(of_padding) else None,
        ((own - wanted).square().sum() / spread).item(),
    )
