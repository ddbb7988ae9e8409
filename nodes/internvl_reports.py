"""What the InternVL nodes report: one JSON document for programs and a few lines for people.

{"format": "internvl-nodes/1", "task": "classify", "model": ..., "mode": "C", ...}; each node's help page has the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from ..mulan.internvl.image_folder import UnreadableImage
from ..mulan.internvl.zeroshot import Labels, Scores

FORMAT = "internvl-nodes/1"
JSON_TOOLTIP = f"All results as one JSON text ({FORMAT}). It is in the history too, for API clients."
LINES_SHOWN = 100


def document(task: str, **fields) -> str:
    """Return one line of JSON; fields that are None are left out."""
    record = {"format": FORMAT, "task": task, **fields}
    return json.dumps({name: value for name, value in record.items() if value is not None}, ensure_ascii=False)


def model_fields(internvl) -> dict:
    """Return the document's fields about the model."""
    return {"model": internvl.name, "mode": internvl.mode}


def round_score(score: float) -> float:
    """Return the score with six digits, which is its precision."""
    return float(f"{score:.6g}")


def unreadable_records(unreadable: Sequence[UnreadableImage]) -> list[dict] | None:
    """Return the document's field `unreadable`."""
    return [each._asdict() for each in unreadable] or None


def summary_text(lines: Sequence[str], unreadable: Sequence[UnreadableImage] = ()) -> str:
    """Return the first lines for people, and which files could not be read."""
    more = len(lines) - LINES_SHOWN
    shown = [*lines[:LINES_SHOWN], *([f"... and {more} more"] if more > 0 else [])]
    return "\n".join([*shown, *(f"{each.name} could not be read: {each.reason}" for each in unreadable[:LINES_SHOWN])])


def label_records(labels: Labels, scores: Scores, index: int, order: Sequence[int]) -> list[dict]:
    """Return the document's entries for the labels of image `index`, in `order`."""
    softmax, cosine = scores.softmax[index], scores.cosine[index]
    return [
        {
            "label": labels.names[label],
            "softmax": round_score(softmax[label].item()),
            "cosine": round_score(cosine[label].item()),
        }
        for label in order
    ]


def repeated_note(labels: Labels) -> list[str]:
    """Return a line for people about labels that appear more than once, if any do."""
    return [f"written more than once, counted once: {', '.join(labels.repeated)}"] if labels.repeated else []


def label_line(name: str, labels: Sequence[str], scores: torch.Tensor, order: Sequence[int]) -> str:
    """Return a line for people: an image and its labels."""
    return f"{name}: " + ", ".join(f"{labels[label]} {scores[label].item():.3f}" for label in order)
