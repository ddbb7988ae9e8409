"""Labels for every picture of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mulan_nodes.mulan.internvl.image_folder import FolderEmbeddings, embed_folder, open_image_folder
from mulan_nodes.mulan.internvl.zeroshot import BUILT_IN, NO_TEMPLATES, embed_labels

from .dataset import Dataset

if TYPE_CHECKING:
    from mulan_nodes.mulan.internvl.internvl_model import LoadedInternVL

FRAMING = "crop"  # as the authors classify


@dataclass(frozen=True)
class Vectors:
    """The pictures of a data set: vectors [N, E] and the class of each [N]; what could not be read, a line each."""

    embeddings: torch.Tensor
    classes: torch.Tensor
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scores:
    """Of one language: whether each picture's class is its best label, and among its five best; the labels and the
    sentences they stood in.
    """

    first: torch.Tensor
    among_five: torch.Tensor
    labels: tuple[str, ...]
    templates: str

    def of_class(self, vectors: Vectors, number: int) -> float:
        return self.first[vectors.classes == number].float().mean().item()


def embed(
    loaded: LoadedInternVL, dataset: Dataset, cache_folder: Path, on_class: Callable[[int], None] = lambda number: None
) -> Vectors:
    """Looks at the pictures that are new since the last time. Raises ValueError where no picture of the data set can be
    read.
    """
    embeddings, classes, problems = [], [], []
    for number, name in enumerate(dataset.classes):
        on_class(number)
        try:
            found = embed_folder(loaded, open_image_folder(dataset.folder / name), FRAMING, cache_folder)
        except ValueError as error:
            problems.append(str(error))
            continue
        embeddings.append(found.vectors)
        classes.append(torch.full((len(found.vectors),), number))
        problems += _problems(name, found)
    if not embeddings:
        raise ValueError(f"there is no picture in {dataset.folder} that can be read; {problems[0]}")
    return Vectors(torch.cat(embeddings), torch.cat(classes), problems)


def classify(loaded: LoadedInternVL, vectors: Vectors, labels: tuple[str, ...], language: str) -> Scores:
    """With the sentences that there are for the language."""
    templates = BUILT_IN.get(language)
    of_labels = embed_labels(loaded, labels, templates.sentences if templates else NO_TEMPLATES)
    best = (vectors.embeddings @ of_labels.T).topk(min(5, len(labels)), dim=1).indices
    right = best == vectors.classes[:, None]
    return Scores(right[:, 0], right.any(dim=1), labels, templates.name if templates else "none")


def _problems(name: str, found: FolderEmbeddings) -> list[str]:
    return [f"{name}/{file}: {reason}" for file, reason in found.unreadable]
