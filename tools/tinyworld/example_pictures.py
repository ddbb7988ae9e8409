"""A folder of pictures for examples that label, sort and search one. Names of files do not tell what they show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from . import world

FOLDER = "tiny_pictures"  # in ComfyUI's input folder
SEED = 6
ORDER = (10, 4, 8, 2, 11, 6, 3, 9, 0, 5, 7, 1)  # of no meaning


def things() -> dict[str, world.Thing]:
    """File name -> what it shows: twelve things, every colour twice and every shape three times, in no order."""
    colours, sizes = list(world.PALETTE), list(world.SIZES)
    chosen = [world.Thing(colours[i % 6], world.SHAPES[i % 4], sizes[i % 5 % 2]) for i in ORDER]
    return {f"{number:02}.png": thing for number, thing in enumerate(chosen, 1)}


def write(folder: Path) -> list[Path]:
    """Draws them, the same on every machine, and gives the files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, files = np.random.default_rng(SEED), []
    for name, thing in things().items():
        files.append(folder / name)
        Image.fromarray(world.draw(thing, rng)).save(files[-1])
    return files
