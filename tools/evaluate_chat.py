"""`dev.py eval chat`: what the tiny InternVL Chat answers about images of shapes, and where it finds them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .comfyui import open_comfyui

FILE = "chat.md"
CHECKPOINT = "tiny_internvl_chat.safetensors"
POINTING = "find"


def evaluation(comfyui: Path, cpu: bool, output: Path, count: int, codes: Sequence[str] = ()) -> None:
    """Write output/chat.md: `count` answers of each kind and language."""
    open_comfyui(*(["--cpu"] if cpu else []))
    from mulan_nodes.mulan.internvl_chat.chat_loader import load_chat

    from .evaluate_zeroshot import Ticker
    from .tinyworld import world
    from .tinyworld.captions import LANGUAGES
    from .tinyworld.chat_examination import examine, examine_pointing
    from .tinyworld.talks import QUESTIONS
    from .tinyworld_visionllm import scenes

    clip, ticker, codes = load_chat(comfyui / "models" / "internvl_chat" / CHECKPOINT), Ticker(), codes or [*QUESTIONS]
    kinds = {
        "Of things in training": (world.SEEN_THINGS, scenes.SEEN),
        "Of pairs never trained": (tuple(thing for thing in world.THINGS if thing.held_out), scenes.UNSEEN),
    }
    parts = []
    for heading, (things, shown) in kinds.items():
        found = {}
        for code in codes:
            name = LANGUAGES[code].name
            ticker.show(f"{heading}: {name}")
            found[name] = examine(clip, [code], things, count)[code]
            found[name][POINTING] = examine_pointing(clip, code, count, shown)
        parts.append(f"{heading}:\n\n{as_table(found)}")
    ticker.end()
    output.mkdir(exist_ok=True)
    (output / FILE).write_text("\n".join(parts), "utf-8")
    print(*parts, f"The table: {os.path.relpath(output / FILE)}", sep="\n")


def as_table(found: dict[str, dict[str, float]]) -> str:
    """A line per language, a column per kind of question."""
    heads = next(iter(found.values()))
    lines = [f"| language | {' | '.join(heads)} |", "| --- |" + " --: |" * len(heads)]
    lines += [
        f"| {name} | " + " | ".join(f"{share:.2f}" for share in shares.values()) + " |"
        for name, shares in found.items()
    ]
    return "\n".join(lines) + "\n"
