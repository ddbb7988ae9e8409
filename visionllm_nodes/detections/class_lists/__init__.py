"""Lists of class names, in the words and the order of the model's training: one name per line of a file.

Source: the annotations of COCO 2017 (detection), ADE20K (SceneParse150) and LVIS v1. LVIS's names are cleaned as they
were for the model ("bow_(weapon)" is "bow weapon"); before each stands how many training images show it: f, more than
100; c, 11 to 100; r, up to 10.
"""

from __future__ import annotations

from pathlib import Path

COCO, ADE20K, LVIS = "COCO-80", "ADE20K-150", "LVIS-1203"
LISTS = {
    COCO: (COCO, ""),
    ADE20K: (ADE20K, ""),
    LVIS: (LVIS, "fcr"),
    "LVIS, the 405 frequent": (LVIS, "f"),
    "LVIS, the 461 common": (LVIS, "c"),
    "LVIS, the 337 rare": (LVIS, "r"),
}  # choice -> file, frequencies


def class_names(choice: str) -> list[str]:
    """Return the names of one of LISTS."""
    name, frequencies = LISTS[choice]
    lines = Path(__file__).with_name(f"{name}.txt").read_text("utf-8").splitlines()
    return [line[2:] for line in lines if line[0] in frequencies] if frequencies else lines
