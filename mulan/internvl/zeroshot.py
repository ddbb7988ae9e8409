"""Zero-shot classification: which of some words fits a picture best.

As in CLIP (Radford et al. 2021, section 3.1.4) and InternVL (Chen et al. 2023, section 4.3; its clip_benchmark): a label is put into many sentences
(templates), and the mean of their unit vectors, of unit length again, stands for it. templates.json holds, by language code, the sentences that
InternVL's authors took for ImageNet-1K, as they wrote them, and a single plain one for languages they did not try.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from .internvl_model import LoadedInternVL

PLACE = "{c}"  # where the label goes in a template


class Templates(NamedTuple):
    name: str
    sentences: tuple[str, ...]


BUILT_IN: dict[str, Templates] = {
    code: Templates(told["name"], tuple(told["templates"]))
    for code, told in json.loads(Path(__file__).with_name("templates.json").read_text("utf-8")).items()
}
NO_TEMPLATES = (PLACE,)  # the bare label


class Scores(NamedTuple):
    """Of each picture with each label, [N, L] float32 each."""

    softmax: torch.Tensor  # shares of each picture, which sum up to 1: which of these labels
    cosine: torch.Tensor  # likeness -1..1, the same whatever other labels there are: whether at all


def read_templates(text: str) -> tuple[str, ...]:
    """One template per line, with {c} or {} where the label goes. Raises ValueError for one without it, or for none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(
            f"there is no template: write one per line, with {PLACE} where the label goes, such as a photo of a {PLACE}"
        )
    templates = tuple(line.replace("{}", PLACE) for line in lines)
    without = next((line for line in templates if PLACE not in line), None)
    if without is not None:
        raise ValueError(
            f"the template {without!r} has no {PLACE}: write {PLACE} where the label goes, such as a photo of a {PLACE}"
        )
    return templates


def embed_labels(
    loaded: LoadedInternVL, labels: Sequence[str], templates: Sequence[str] = NO_TEMPLATES
) -> torch.Tensor:
    """-> [L, E] float32 of unit length. Each different sentence is encoded once; a template that stands twice counts twice, as upstream.

    `loaded` keeps the last labels' vectors: with many templates they take far longer than a picture.
    """
    asked = tuple(labels), tuple(templates)
    if loaded.labels is None or loaded.labels[0] != asked:
        loaded.labels = asked, _embed_labels(loaded, *asked)
    return loaded.labels[1]


def _embed_labels(loaded: LoadedInternVL, labels: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    sentences = [[template.replace(PLACE, label) for template in templates] for label in labels]
    different = list(dict.fromkeys(sentence for of_label in sentences for sentence in of_label))
    vectors = loaded.embed_texts(different)
    row = {sentence: number for number, sentence in enumerate(different)}
    return torch.stack(
        [F.normalize(vectors[[row[sentence] for sentence in of_label]].mean(dim=0), dim=0) for of_label in sentences]
    )


def classify(pictures: torch.Tensor, labels: torch.Tensor, logit_scale: float) -> Scores:
    """Unit vectors of pictures [N, E] and labels [L, E] -> their scores."""
    cosine = pictures @ labels.T
    return Scores((logit_scale * cosine).softmax(dim=1), cosine)
