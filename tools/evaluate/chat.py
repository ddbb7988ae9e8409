"""`dev.py eval chat`: what the tiny InternVL Chat answers about images of shapes, and where it finds them."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np

from ..comfyui import open_comfyui
from .telling import Ticker, located, table, tell

FILE = "chat.md"
POINTING = "find"


def evaluation(comfyui: Path, cpu: bool, output: Path, options: Namespace) -> None:
    """Write output/chat.md: `options.pictures` answers of each kind, in each language."""
    open_comfyui(*(["--cpu"] if cpu else []))
    from mulan_nodes.mulan.internvl_chat.chat_loader import load_chat
    from mulan_nodes.mulan.tiny_models.unpacking import CHAT

    from ..tinyworld import world
    from ..tinyworld.captions import LANGUAGES
    from ..tinyworld.chat_examination import examine, examine_pointing
    from ..tinyworld.talks import QUESTIONS
    from ..tinyworld_visionllm import scenes

    clip, ticker = load_chat(located(comfyui, CHAT)), Ticker()
    count, codes = options.pictures, options.language or list(QUESTIONS)
    kinds = {
        "Of things in training": (world.SEEN_THINGS, scenes.SEEN),
        "Of pairs never trained": (tuple(thing for thing in world.THINGS if thing.held_out), scenes.UNSEEN),
    }
    parts = []
    for heading, (things, shown) in kinds.items():
        found, pointed = {}, []
        for code in codes:
            name = LANGUAGES[code].name
            ticker.show(f"{heading}: {name}")
            found[name] = examine(clip, [code], things, count)[code]
            of_language = examine_pointing(clip, code, count, shown)
            found[name][POINTING] = float(np.mean([right for _, right in of_language]))
            pointed += of_language
        rows = [[name, *(f"{share:.2f}" for share in shares.values())] for name, shares in found.items()]
        parts.append(f"{heading}:\n\n{table(('language', *next(iter(found.values()))), rows)}")
        parts.append(_by_things(pointed))
    ticker.end()
    tell("\n".join(parts), output / FILE)


def _by_things(pointed: list[tuple[int, bool]]) -> str:
    """What was found by how many things the image shows."""
    counts = sorted({things for things, _ in pointed})
    hits = [[right for things, right in pointed if things == count] for count in counts]
    rows = [[str(count), str(len(of)), f"{np.mean(of):.2f}"] for count, of in zip(counts, hits, strict=True)]
    return table(("things in the image", "asked for", "found"), rows)
