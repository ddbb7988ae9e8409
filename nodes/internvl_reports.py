"""What the InternVL nodes tell: one JSON document for programs, and a few lines for people.

{"format": "internvl-nodes/1", "task": "classify", "model": ..., "mode": "C", ...}; what else is in it each node's help page tells.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from ..mulan.internvl.image_folder import UnreadableImage
from ..mulan.internvl.labels import Labels
from ..mulan.internvl.zeroshot import Scores

FORMAT = "internvl-nodes/1"
JSON_TOOLTIP = f"All results as one JSON text ({FORMAT}). It is in the history too, for API clients."
LINES_SHOWN = 100


def document(task: str, **told) -> str:
    """One line of JSON; what is None is left out."""
    record = {"format": FORMAT, "task": task, **told}
    return json.dumps({name: value for name, value in record.items() if value is not None}, ensure_ascii=False)


def made_by(internvl) -> dict:
    """For the JSON."""
    return {"model": internvl.name, "mode": internvl.mode}


def rounded(score: float) -> float:
    """Six digits, which is what the numbers are worth."""
    return float(f"{score:.6g}")


def told_unreadable(unreadable: Sequence[UnreadableImage]) -> list[dict] | None:
    return [each._asdict() for each in unreadable] or None


def table(lines: Sequence[str], unreadable: Sequence[UnreadableImage] = ()) -> str:
    """For people: the first lines, and what could not be read."""
    more = len(lines) - LINES_SHOWN
    shown = [*lines[:LINES_SHOWN], *([f"... and {more} more"] if more > 0 else [])]
    return "\n".join([*shown, *(f"{each.name} could not be read: {each.reason}" for each in unreadable[:LINES_SHOWN])])


def told_labels(labels: Labels, scores: Scores, number: int, order: Sequence[int]) -> list[dict]:
    """For the JSON: what is told of a picture."""
    softmax, cosine = scores.softmax[number], scores.cosine[number]
    return [
        {
            "label": labels.names[label],
            "softmax": rounded(softmax[label].item()),
            "cosine": rounded(cosine[label].item()),
        }
        for label in order
    ]


def told_repeated(labels: Labels) -> list[str]:
    return [f"written more than once, counted once: {', '.join(labels.repeated)}"] if labels.repeated else []


def line(name: str, labels: Sequence[str], scores: torch.Tensor, order: Sequence[int]) -> str:
    """For people: a picture and its labels."""
    return f"{name}: " + ", ".join(f"{labels[label]} {scores[label].item():.3f}" for label in order)
