"""Zero-shot classification: which of some labels fits an image best.

As in CLIP (Radford et al. 2021, section 3.1.4) and InternVL (Chen et al. 2023, section 4.3; its clip_benchmark): a
label is put into many sentences (templates), and the mean of their unit vectors, of unit length again, stands for it.
templates.json holds, by language code, the sentences that InternVL's authors took for ImageNet-1K, as they wrote them,
and a single plain one for languages they did not try.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..boundary.interrupts import interruptible
from ..boundary.limits import MAX_LABEL_SENTENCES, MAX_LABELS, MAX_SCORES
from .ranking import mean_embedding

if TYPE_CHECKING:
    from .internvl_model import LoadedInternVL

LABEL_MARK = "{c}"  # where the label goes in a template
MAX_SENTENCE = 5000  # characters: what is behind them is beyond the tokens that a text is cut at


class Labels(NamedTuple):
    """The labels of a text."""

    names: tuple[str, ...]  # each once, in the order of the text
    repeated: tuple[str, ...]  # those that appeared more than once


class Templates(NamedTuple):
    """Sentences with `LABEL_MARK` where a label goes."""

    name: str
    sentences: tuple[str, ...]


BUILT_IN: dict[str, Templates] = {
    code: Templates(entry["name"], tuple(entry["templates"]))
    for code, entry in json.loads(Path(__file__).with_name("templates.json").read_text("utf-8")).items()
}
NO_TEMPLATES = (LABEL_MARK,)  # the bare label


class Scores(NamedTuple):
    """The scores of each image with each label, [N, L] float32 each."""

    softmax: torch.Tensor  # probabilities that sum to 1 for each image: which of these labels
    cosine: torch.Tensor  # likeness -1..1, the same whatever other labels there are: whether at all


def read_labels(text: str) -> Labels:
    """Return the labels of a text, one per line since labels may hold commas, without outer space and empty lines.

    Raises ValueError where there is none, or too many.
    """
    counts = Counter(line.strip() for line in text.splitlines() if line.strip())
    if not counts:
        raise ValueError("there is no label: write one per line, such as a red circle")
    if len(counts) > MAX_LABELS:
        raise ValueError(f"there are {len(counts)} labels, and at most {MAX_LABELS} are compared")
    return Labels(tuple(counts), tuple(name for name, count in counts.items() if count > 1))


def read_templates(text: str) -> tuple[str, ...]:
    """Return the templates of a text, one per line, with {c} or {} where the label goes.

    Raises ValueError for one without it, or for none.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    example = f"such as a photo of a {LABEL_MARK}"
    if not lines:
        raise ValueError(f"there is no template: write one per line, with {LABEL_MARK} where the label goes, {example}")
    templates = tuple(line.replace("{}", LABEL_MARK) for line in lines)
    without = next((line for line in templates if LABEL_MARK not in line), None)
    if without is not None:
        raise ValueError(
            f"the template {without!r} has no {LABEL_MARK}: write {LABEL_MARK} where the label goes, {example}"
        )
    return templates


def embed_labels(
    loaded: LoadedInternVL, labels: Sequence[str], templates: Sequence[str] = NO_TEMPLATES
) -> torch.Tensor:
    """Return the vectors [L, E] of labels, float32 of unit length.

    Each different sentence is encoded once; a template that appears twice counts twice, as upstream. `loaded` keeps the
    last labels' vectors: with many templates they take far longer than an image. Raises ValueError for too many
    sentences.
    """
    check_sentences(labels, templates)
    key = tuple(labels), tuple(templates)
    if loaded.label_cache is None or loaded.label_cache[0] != key:
        loaded.label_cache = key, _embed_labels(loaded, *key)
    return loaded.label_cache[1]


def _embed_labels(loaded: LoadedInternVL, labels: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
    heads = [template[:MAX_SENTENCE] for template in templates]
    sentences = [
        [head.replace(LABEL_MARK, label[:MAX_SENTENCE])[:MAX_SENTENCE] for head in heads]
        for label in interruptible(labels)
    ]
    different = list(dict.fromkeys(sentence for of_label in sentences for sentence in of_label))
    vectors = loaded.embed_texts(different)
    row = {sentence: index for index, sentence in enumerate(different)}
    return torch.stack(
        [mean_embedding(vectors[[row[sentence] for sentence in of_label]]) for of_label in interruptible(sentences)]
    )


def check_sentences(labels: Sequence[str], templates: Sequence[str]) -> None:
    """Raise ValueError where the labels in all templates are more sentences than are encoded."""
    if len(labels) * len(templates) > MAX_LABEL_SENTENCES:
        raise ValueError(
            f"{len(labels)} labels in {len(templates)} templates are {len(labels) * len(templates)} sentences, and at "
            f"most {MAX_LABEL_SENTENCES} are encoded. Use fewer labels or templates"
        )


def classify(images: torch.Tensor, labels: torch.Tensor, logit_scale: float) -> Scores:
    """Return the scores of unit vectors of images [N, E] with those of labels [L, E].

    Raises ValueError for too many.
    """
    if len(images) * len(labels) > MAX_SCORES:
        raise ValueError(
            f"{len(images)} images with {len(labels)} labels are {len(images) * len(labels)} scores, and at most "
            f"{MAX_SCORES} are kept. Use fewer images or labels at a time"
        )
    cosine = images @ labels.T
    return Scores((logit_scale * cosine).softmax(dim=1), cosine)
