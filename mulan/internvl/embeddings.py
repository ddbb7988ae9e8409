"""Pictures or texts as vectors, with what must be known of them to compare them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PICTURE, TEXT = "picture", "text"


@dataclass(frozen=True)
class Embeddings:
    """`vectors` [N, E] float32 on the CPU, each of unit length; `names` of what they stand for; `kind`: PICTURE or TEXT; `identity`: that of the
    model which made them (`LoadedInternVL.identity`)."""

    vectors: torch.Tensor
    names: tuple[str, ...]
    kind: str
    identity: str

    def __len__(self) -> int:
        return len(self.names)


def check_same_model(field: str, identity: str, other: str, other_identity: str) -> None:
    """Raises ValueError where vectors of two models, modes or precisions would be compared: their numbers mean nothing to each other."""
    if identity != other_identity:
        raise ValueError(
            f"{field}: these embeddings were made by another model, mode or precision ({identity}) than {other} ({other_identity}). "
            f"Make both with the same InternVL Loader."
        )
