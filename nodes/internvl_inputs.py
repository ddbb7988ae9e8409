"""What the InternVL nodes are asked through: their types and inputs, and the pictures of batches or a folder as vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..mulan.images.image_files import list_images, read_image
from ..mulan.internvl.image_folder import UnreadableImage, embed_folder
from ..mulan.internvl.labels import Labels, read_labels
from ..mulan.internvl.preprocessing import FRAMINGS
from ..mulan.internvl.zeroshot import BUILT_IN, LABEL_MARK, NO_TEMPLATES, read_templates
from .common import for_field

INTERNVL, EMBEDDINGS = io.Custom("INTERNVL"), io.Custom("INTERNVL_EMBEDDINGS")
CATEGORY = "image/classification"
CROP, WHOLE = FRAMINGS
NONE, OWN = "none", "own"
TEMPLATE_CHOICES = [NONE, *(templates.name for templates in BUILT_IN.values()), OWN]
SOFTMAX, INDEPENDENT = SCORES = ("softmax", "independent")
ABSENT = object()  # in validate_inputs: an input with nothing connected, while a connected one is None
CACHE_FOLDER = "internvl"  # the folder in ComfyUI's output folder for embeddings of folders


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
                f"Your templates, used when templates is own: one sentence per line, with {LABEL_MARK} where the label goes."
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
    """In `execute`, where an input with nothing connected is None."""
    return ABSENT if value is None else value


def first(values):
    """The value of an input that is no list, in a node that takes lists."""
    return values[0] if isinstance(values, (list, tuple)) else values


def labels_of(labels: str | Sequence[str]) -> Labels:
    """Of a text, or of a list of them. Raises ValueError that begins with the field."""
    return for_field("labels", read_labels, _joined(labels))


def templates_of(choice: str, own: str | Sequence[str]) -> tuple[str, ...]:
    """The sentences of a choice. Raises ValueError that begins with the field."""
    if choice == OWN:
        return for_field("own_templates", read_templates, _joined(own))
    named = {NONE: NO_TEMPLATES, **{templates.name: templates.sentences for templates in BUILT_IN.values()}}
    if choice not in named:
        raise ValueError(f"templates: {choice!r} is none of {', '.join(TEMPLATE_CHOICES)}")
    return named[choice]


def check_label_inputs(labels, templates, own_templates) -> None:
    """For `validate_inputs`. Raises ValueError; what is connected (None) is checked later."""
    if _is_there(labels):
        labels_of(labels)
    if _is_there(templates) and (first(templates) != OWN or _is_there(own_templates)):
        templates_of(first(templates), own_templates)


def check_source(image, folder: str | None, **others) -> None:
    """Raises ValueError unless exactly one is given of the input image, a folder that has pictures, and the others (ABSENT: nothing connected)."""
    named = folder is None or folder.strip() != ""
    given = (image is not ABSENT) + named + sum(other is not ABSENT for other in others.values())
    if given != 1:
        raise ValueError(
            f"{', '.join(('image', *others))} or folder: {'none' if not given else 'more than one'} of them is given, and one is needed"
        )
    if folder and named:
        for_field("folder", list_images, folder_of(folder))


def folder_of(name: str) -> Path:
    """The folder of a whole path, or one in the input or the output folder. Raises ValueError that says where it was looked for."""
    name = name.strip().strip('"')
    roots = [Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory())]
    found = next(
        (
            folder
            for folder in ([Path(name)] if Path(name).is_absolute() else [root / name for root in roots])
            if folder.is_dir()
        ),
        None,
    )
    if found is None:
        raise ValueError(
            f"folder: {name!r} is no folder"
            + ("" if Path(name).is_absolute() else f" in {roots[0]} or in {roots[1]}")
            + ". Write a whole path, or one below them."
        )
    return found


def stamp_of(folder) -> str:
    """For `fingerprint_inputs`: changes with the pictures in a folder."""
    try:
        files = list_images(folder_of(first(folder) or ""))
        stamps = [
            (file.name, told.st_size, told.st_mtime_ns, told.st_ctime_ns) for file in files for told in [file.stat()]
        ]
        return hashlib.sha256(repr(stamps).encode("utf-8", "replace")).hexdigest()
    except (OSError, ValueError):
        return ""


@dataclass(frozen=True)
class Seen:
    """Pictures as `vectors` [N, E], with their names, how to get at each itself where it is at hand, and those of a folder that could not be read."""

    vectors: torch.Tensor
    names: tuple[str, ...]
    picture: Callable[[int], torch.Tensor] | None  # number -> [1, H, W, 3]
    unreadable: Sequence[UnreadableImage] = field(default_factory=list)


def look(internvl, images: Iterable[torch.Tensor] | None, folder: str, framing: str) -> Seen:
    """Embeds the pictures of batches [B, H, W, 3], or else of a folder."""
    if images is None:
        found = embed_folder(
            internvl, folder_of(folder), framing, Path(folder_paths.get_output_directory(), CACHE_FOLDER)
        )
        return Seen(found.vectors, found.names, lambda number: read_image(found.files[number])[None], found.unreadable)
    pictures = [picture[..., :3] for batch in images for picture in batch]
    if not pictures:
        raise ValueError("image: there is no picture in the batch")
    names = tuple(f"picture {number}" for number in range(1, len(pictures) + 1))
    return Seen(internvl.embed_images(pictures, framing), names, lambda number: pictures[number][None])


def _joined(texts: str | Sequence[str]) -> str:
    return texts if isinstance(texts, str) else "\n".join(texts)


def _is_there(values) -> bool:
    return values is not None and (isinstance(values, str) or None not in values)
