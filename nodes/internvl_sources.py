"""Where the InternVL nodes get their images: connected batches or a folder, checked, fingerprinted and embedded."""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import folder_paths
import torch

from ..mulan.boundary.interrupts import interruptible
from ..mulan.boundary.limits import MAX_RESULT_PIXELS
from ..mulan.images.image_files import UnreadableImageError, read_image
from ..mulan.internvl.image_folder import ImageFolder, UnreadableImage, embed_folder, open_image_folder
from .common import with_field_name
from .internvl_inputs import ABSENT, unwrap_single
from .readable_folders import check_readable

CACHE_FOLDER = "internvl"  # in ComfyUI's output folder, for the embeddings of folders


def check_source(image, folder: str | None, **others) -> ImageFolder | None:
    """Return the folder, if that is what is given.

    Raises ValueError unless exactly one of image, folder and `others` is given (ABSENT: it is not), or if the folder
    has no images.
    """
    named = folder is None or folder.strip() != ""
    given = (image is not ABSENT) + named + sum(other is not ABSENT for other in others.values())
    if given != 1:
        fields = f"{', '.join(('image', *others))} or folder"
        raise ValueError(
            f"{fields}: {'more than one is' if given else 'none of them is'} given. Give exactly one of them."
        )
    return with_field_name("folder", _open, folder) if folder and named else None


def _open(name: str) -> ImageFolder:
    folder = resolve_folder(name)
    check_readable([folder])
    opened = open_image_folder(folder)
    check_readable(opened.files)
    return opened


def resolve_folder(name: str) -> Path:
    """Return the folder of an absolute path, or of one in ComfyUI's input or output folder.

    Raises ValueError that says where it was looked for.
    """
    name = name.strip().strip('"')
    if Path(name).is_absolute():
        candidates, places = [Path(name)], ""
    else:
        roots = Path(folder_paths.get_input_directory()), Path(folder_paths.get_output_directory())
        candidates, places = [root / name for root in roots], f" in {roots[0]} or in {roots[1]}"
    for folder in candidates:
        if os.path.isdir(folder):  # unlike Path's, also False for what no path can be
            return folder
    raise ValueError(
        f"{reprlib.repr(name)} was not found{places}. Enter an absolute path, or a folder inside ComfyUI's input or "
        "output folder."
    )


def fingerprint_folder(folder) -> str:
    """Return a text that changes with the images in a folder; empty if there is no such folder."""
    try:
        files = open_image_folder(resolve_folder(unwrap_single(folder) or "")).files
        stats = [
            (file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file in files for stat in [file.stat()]
        ]
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(repr(stats).encode("utf-8", "replace")).hexdigest()


@dataclass(frozen=True)
class ImageEmbeddings:
    """Images as `vectors` [N, E] with their names.

    `image` returns an image itself, where it is at hand; `unreadable` are the files of a folder that could not be read.
    `read`: whether images come from files.
    """

    vectors: torch.Tensor
    names: tuple[str, ...]
    image: Callable[[int], torch.Tensor] | None  # index -> [1, H, W, 3]
    unreadable: Sequence[UnreadableImage] = field(default_factory=list)
    read: bool = False

    def images(self, order: Sequence[int]) -> list[torch.Tensor]:
        """Return the images in this order, [1, H, W, 3] each; none where they are not at hand.

        Raises ValueError where one cannot be read any more, and where all that are read are too large together.
        """
        if self.image is None:
            return []
        images, pixels = [], 0
        for index in interruptible(order):
            try:
                images.append(self.image(index))
            except UnreadableImageError as error:
                raise ValueError(f"{self.names[index]} could not be read again: {error}") from error
            pixels += images[-1][0, :, :, 0].numel() if self.read else 0
            if pixels > MAX_RESULT_PIXELS:
                raise ValueError(
                    f"top_k: the first {len(images)} of {len(order)} images have {pixels // 2**20} million pixels, and "
                    f"at most {MAX_RESULT_PIXELS // 2**20} million are loaded at a time. Lower top_k"
                )
        return images


def embed_images(
    internvl, images: Iterable[torch.Tensor] | None, folder: ImageFolder | None, framing: str
) -> ImageEmbeddings:
    """Embed the images of batches [B, H, W, 3], or else of a folder."""
    if folder is not None:
        cache = Path(folder_paths.get_output_directory(), CACHE_FOLDER)
        embedded = embed_folder(internvl, folder, framing, cache)
        return ImageEmbeddings(
            embedded.vectors,
            embedded.names,
            lambda index: read_image(embedded.files[index])[None],
            embedded.unreadable,
            read=True,
        )
    batch = [image[..., :3] for images_of_one_size in images or () for image in images_of_one_size]
    names = tuple(f"picture {number}" for number in range(1, len(batch) + 1))
    return ImageEmbeddings(internvl.embed_images(batch, framing), names, lambda index: batch[index][None])
