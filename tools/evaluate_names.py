"""`dev.py eval names`: what the tiny InternVL calls 130 things in 113 languages, by labels and in talk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .comfyui import open_comfyui
from .emoji_world.concepts import HELD_OUT_LANGUAGES, languages

FILE = "names.md"
CHAT = "tiny_internvl_chat.safetensors"
SPOKEN = 12  # things that are asked about in talk, of each language
HEADINGS = ("C, labels", "C, recall@1", "G, labels", "G, recall@1", "in talk")


def evaluation(comfyui: Path, cpu: bool, output: Path, codes: Sequence[str] = ()) -> None:
    """Write output/names.md."""
    open_comfyui(*(["--cpu"] if cpu else []))
    from mulan_nodes.mulan.internvl.internvl_loader import load_internvl
    from mulan_nodes.mulan.internvl_chat.chat_loader import load_chat

    from .emoji_world.naming import examine, examine_talk, look
    from .evaluate_zeroshot import CHECKPOINT, TEXT_ENCODER, Ticker

    models, codes, ticker = comfyui / "models", codes or list(languages()), Ticker()
    found: dict[str, list[float]] = {code: [] for code in codes}
    for mode in "CG":
        loaded = load_internvl(models / "internvl" / CHECKPOINT, mode, models / "text_encoders" / TEXT_ENCODER)
        pictures = look(loaded)
        for code in codes:
            ticker.show(f"InternVL-{mode}, {languages()[code].name}")
            found[code] += examine(loaded, pictures, code)
    clip = load_chat(models / "internvl_chat" / CHAT)
    for code in codes:
        ticker.show(f"in talk, {languages()[code].name}")
        found[code].append(examine_talk(clip, code, SPOKEN))
    ticker.end()
    output.mkdir(exist_ok=True)
    (output / FILE).write_text(as_table(found), "utf-8")
    print(as_table(found), f"The table: {os.path.relpath(output / FILE)}", sep="\n")


def as_table(found: dict[str, list[float]]) -> str:
    """A line per language, and the means of those that were trained."""

    def line(name: str, values: Sequence[float]) -> str:
        return f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |"

    trained = [values for code, values in found.items() if code not in HELD_OUT_LANGUAGES]
    table = [f"| language | {' | '.join(HEADINGS)} |", "| --- |" + " --: |" * len(HEADINGS)]
    for code, values in found.items():
        table.append(line(languages()[code].name + " (never trained)" * (code in HELD_OUT_LANGUAGES), values))
    if trained:
        table.append(line(f"mean of {len(trained)} trained", np.mean(trained, 0).tolist()))
        table.append(line("lowest of them", np.min(trained, 0).tolist()))
    return "\n".join(table) + "\n"
