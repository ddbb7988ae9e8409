"""`dev.py eval retrieval`: how often InternVL finds an image by its caption, and a caption by its image (recall@k, as
clip_benchmark and InternVL's authors count it).
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..comfyui import open_comfyui
from .telling import table, tell

FILE, CACHE_FOLDER = "retrieval_scores.md", "retrieval"
RANKS = (1, 5, 10)


class Captioned(NamedTuple):
    """A folder's images with captions, and each caption with the index of its image."""

    files: list[Path]
    captions: list[str]
    owners: list[int]


def evaluation(comfyui: Path, cpu: bool, output: Path, options: Namespace) -> None:
    """Prints the table and writes it to output/retrieval_scores.md."""
    open_comfyui(*(["--cpu"] if cpu else []))
    from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError
    from mulan_nodes.mulan.internvl.image_folder import ImageFolder, embed_folder

    from .zeroshot import load

    output.mkdir(exist_ok=True)
    try:
        captioned = read_captions(options.dataset)
        rows = []
        for mode in options.mode or "CG":
            loaded = load(comfyui, options, mode)
            folder = ImageFolder(options.dataset, captioned.files)
            images = embed_folder(loaded, folder, "whole", output / CACHE_FOLDER)
            if images.unreadable:
                raise ValueError(f"{images.unreadable[0].name} could not be read: {images.unreadable[0].reason}")
            scores = loaded.embed_texts(captioned.captions) @ images.vectors.T
            for direction, found in zip(
                ("text to image", "image to text"), recalls(scores, captioned.owners), strict=True
            ):
                rows.append([f"{mode}, {direction}", *(f"{share:.3f}" for share in found)])
    except (WrongFileError, OSError, ValueError) as error:
        sys.exit(f"Nothing was measured: {str(error).removesuffix('.')}.")
    said = f"{len(captioned.files)} images with {len(captioned.captions)} captions in {options.dataset.name}."
    heads = ("mode and direction", *(f"recall@{rank}" for rank in RANKS))
    tell(f"{said}\n\n{table(heads, rows)}", output / FILE)


def read_captions(folder: Path) -> Captioned:
    """Read the captions of a folder's images: lines {"file_name", "text"} of metadata.jsonl, several for one image too,
    else the lines of the .txt beside each. Raises ValueError where an image has none, or a file cannot be read.
    """
    from mulan_nodes.mulan.images.image_files import list_images
    from mulan_nodes.mulan.training.dataset import CAPTION_LIST, listed_captions, text_beside

    files, listed = list_images(folder), listed_captions(folder)
    captions, owners = [], []
    for index, file in enumerate(files):
        of_image = listed.get(file) or text_beside(file).splitlines()
        found = [caption.strip() for caption in of_image if caption.strip()]
        if not found:
            raise ValueError(f"{file.name} in {folder} has no caption: write it into {file.stem}.txt or {CAPTION_LIST}")
        captions += found
        owners += [index] * len(found)
    return Captioned(files, captions, owners)


def recalls(
    scores: torch.Tensor, owners: Sequence[int], ranks: Sequence[int] = RANKS
) -> tuple[list[float], list[float]]:
    """Return recall@k of text to image and of image to text, from scores [captions, images].

    An image counts as found once any of its captions is among the k best.
    """
    right = torch.zeros_like(scores, dtype=torch.bool)
    right[torch.arange(len(owners)), torch.tensor(owners)] = True
    return tuple(
        [
            of_query.gather(1, matrix.topk(min(rank, matrix.shape[1]), dim=1).indices).any(dim=1).float().mean().item()
            for rank in ranks
        ]
        for matrix, of_query in ((scores, right), (scores.T, right.T))
    )  # pyright: ignore[reportReturnType]
