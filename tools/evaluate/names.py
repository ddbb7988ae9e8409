"""`dev.py eval names`: what the tiny InternVL calls 130 things in 113 languages, by labels and in talk."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np

from ..comfyui import open_comfyui
from ..emoji_world.concepts import HELD_OUT_LANGUAGES, languages
from .telling import Ticker, located, table, tell, tiny_internvl

FILE = "names.md"
SPOKEN = 12  # things that are asked about in talk, of each language
HEADINGS = ("C, labels", "C, recall@1", "G, labels", "G, recall@1", "in talk")


def evaluation(comfyui: Path, cpu: bool, output: Path, options: Namespace) -> None:
    """Write output/names.md."""
    open_comfyui(*(["--cpu"] if cpu else []))
    from mulan_nodes.mulan.internvl_chat.chat_loader import load_chat
    from mulan_nodes.mulan.tiny_models.unpacking import CHAT

    from ..emoji_world.naming import examine, examine_talk, look

    codes, ticker = options.language or list(languages()), Ticker()
    found: dict[str, list[float]] = {code: [] for code in codes}
    for mode in "CG":
        loaded = tiny_internvl(comfyui, mode)
        pictures = look(loaded)
        for code in codes:
            ticker.show(f"InternVL-{mode}, {languages()[code].name}")
            found[code] += examine(loaded, pictures, code)
    clip = load_chat(located(comfyui, CHAT))
    for code in codes:
        ticker.show(f"in talk, {languages()[code].name}")
        found[code].append(examine_talk(clip, code, SPOKEN))
    ticker.end()
    tell(as_table(found), output / FILE)


def as_table(found: dict[str, list[float]]) -> str:
    """A line per language, and the means of those that were trained."""
    lines = {
        languages()[code].name + " (never trained)" * (code in HELD_OUT_LANGUAGES): values
        for code, values in found.items()
    }
    trained = [values for code, values in found.items() if code not in HELD_OUT_LANGUAGES]
    if trained:
        lines[f"mean of {len(trained)} trained"] = np.mean(trained, 0).tolist()
        lines["lowest of them"] = np.min(trained, 0).tolist()
    return table(
        ("language", *HEADINGS), [[name, *(f"{value:.2f}" for value in values)] for name, values in lines.items()]
    )
