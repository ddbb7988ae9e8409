"""The inputs that the InternVL nodes share: their types, and how labels and templates are read."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

from ..mulan.internvl.internvl_model import LoadedInternVL
from ..mulan.internvl.preprocessing import FRAMINGS
from ..mulan.internvl.ranking import Embeddings
from ..mulan.internvl.zeroshot import (
    BUILT_IN,
    LABEL_MARK,
    NO_TEMPLATES,
    Labels,
    check_sentences,
    read_labels,
    read_templates,
)
from .checked_node import CheckedNode, instance_of
from .common import with_field_name

INTERNVL, EMBEDDINGS = io.Custom("INTERNVL"), io.Custom("INTERNVL_EMBEDDINGS")
CROP, WHOLE = FRAMINGS
NONE, OWN = "none", "own"
TEMPLATE_CHOICES = [NONE, *(templates.name for templates in BUILT_IN.values()), OWN]
SOFTMAX, INDEPENDENT = SCORES = ("softmax", "independent")
ABSENT = object()  # in validate_inputs: an input with nothing connected, while a connected one is None


class InternVLNode(CheckedNode):
    checks = CheckedNode.checks | {
        INTERNVL.io_type: instance_of(LoadedInternVL, "the model from InternVL Loader"),
        EMBEDDINGS.io_type: instance_of(Embeddings, "embeddings from InternVL Embed"),
    }


def model_input() -> io.Input:
    return INTERNVL.Input("internvl", tooltip="The model from InternVL Loader.")


def image_input() -> io.Input:
    return io.Image.Input(
        "image",
        optional=True,
        tooltip="The images: a batch, or a list of batches of any sizes. Connect this, or enter a folder.",
    )


def folder_input() -> io.Input:
    return io.String.Input(
        "folder",
        default="",
        optional=True,
        tooltip=(
            "A folder of images, instead of image: an absolute path, or a folder in ComfyUI's input or "
            "output folder. Its embeddings are cached in output/internvl, so the next run only encodes "
            "new and changed images."
        ),
    )


def framing_input(default: str) -> io.Input:
    return io.Combo.Input(
        "framing",
        options=[CROP, WHOLE],
        default=default,
        optional=True,
        advanced=True,
        tooltip=(
            "crop: the center square of each image, the authors' setting for classification. whole: the "
            "whole image, squeezed into a square, their setting for retrieval."
        ),
    )


def label_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "labels",
            multiline=True,
            default="a person\nan animal\na landscape",
            tooltip="Candidate labels, one per line, in any language. A label may be a word or a sentence.",
        ),
        io.Combo.Input(
            "templates",
            options=TEMPLATE_CHOICES,
            default=NONE,
            optional=True,
            tooltip=(
                "Prompt templates: sentences that each label is put into; the embeddings are averaged. "
                "none: the label alone. (paper): the templates of InternVL's authors. Other languages: "
                "one plain sentence. own: the sentences in own_templates."
            ),
        ),
        io.String.Input(
            "own_templates",
            multiline=True,
            default=f"a photo of {LABEL_MARK}\na drawing of {LABEL_MARK}",
            optional=True,
            tooltip=(
                "Your templates, used when templates is own: one sentence per line, with "
                f"{LABEL_MARK} where the label goes."
            ),
        ),
        io.Combo.Input(
            "scores",
            options=list(SCORES),
            default=SOFTMAX,
            optional=True,
            tooltip=(
                "softmax: how likely each label is among these labels; sums to 1. independent: how well "
                "each label fits on its own (cosine similarity), whatever the other labels are. The JSON "
                "has both."
            ),
        ),
        io.Int.Input(
            "top_k",
            default=5,
            min=1,
            max=10000,
            optional=True,
            tooltip="The number of best labels to report per image or video.",
        ),
    ]


def or_absent(value):
    """Return ABSENT for what `execute` gets from an input with nothing connected, None, and for an empty list."""
    return ABSENT if value is None or (isinstance(value, list) and not value) else value


def unwrap_single(values):
    """Return the one value of an input in a node that takes lists."""
    return values[0] if isinstance(values, (list, tuple)) else values


def parse_labels(labels: str | Sequence[str]) -> Labels:
    """Read the labels of a text, or of a list of texts. Raises ValueError that begins with the field."""
    return with_field_name("labels", read_labels, _joined(labels))


def parse_templates(choice: str, own: str | Sequence[str]) -> tuple[str, ...]:
    """Return the sentences of a choice of `templates`. Raises ValueError that begins with the field."""
    if choice == OWN:
        return with_field_name("own_templates", read_templates, _joined(own))
    named = {NONE: NO_TEMPLATES, **{templates.name: templates.sentences for templates in BUILT_IN.values()}}
    if choice not in named:
        raise ValueError(f"templates: {choice!r} is not one of {', '.join(TEMPLATE_CHOICES)}")
    return named[choice]


def check_label_inputs(labels, templates, own_templates) -> None:
    """Raise ValueError if labels or templates cannot be read; connected ones (None) are checked later."""
    if _is_known(labels):
        parse_labels(labels)
    if _is_known(templates) and (unwrap_single(templates) != OWN or _is_known(own_templates)):
        sentences = parse_templates(unwrap_single(templates), own_templates)
        if _is_known(labels):
            with_field_name("labels", check_sentences, parse_labels(labels).names, sentences)


def _joined(texts: str | Sequence[str]) -> str:
    return texts if isinstance(texts, str) else "\n".join(texts)


def _is_known(values) -> bool:
    return values is not None and not (isinstance(values, (list, tuple)) and None in values)
