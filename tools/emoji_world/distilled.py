"""Distills the text encoder with the library's own command, and draws with the adapter that never saw the student.

    python -m mulan_nodes.tools.emoji_world.distilled FOLDER

It needs no training before: the shipped models are the teacher and what draws. Writes distilled.md into the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..comfyui import open_comfyui
from ..tinyworld import captions as shape_captions
from ..tinyworld import world as shapes
from ..tinyworld.stages import SEED
from . import captions, sentences
from .concepts import CHARACTERS, languages, trained_languages
from .pictures import BACKGROUNDS
from .shares import HEAD, read_shipped, row_of, shares_right
from .smaller import INTERMEDIATE, LAYERS, WIDTH
from .standing_in import parameters, read_text_encoder, write_text_encoder

NAMES = 4  # how often all names come in the texts
CAPTIONS, SENTENCES, SHAPES = 800, 200, 300  # lines of each
BACKGROUND_SHARE = 0.12
BATCH, LEARNING_RATE, STEPS = 192, "2e-3", 8000


def write_translations(folder: Path) -> None:
    """Writes a text file for each language: line by line its names, captions, sentences, and captions of shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    things = [*range(len(CHARACTERS))] * NAMES
    captioned = rng.integers(len(CHARACTERS), size=CAPTIONS).tolist()
    behind = [str(rng.choice(list(BACKGROUNDS))) if rng.random() < BACKGROUND_SHARE else "" for _ in captioned]
    spoken = rng.integers(len(CHARACTERS), size=SENTENCES).tolist()
    shaped = [
        (shapes.SEEN_THINGS[thing], shape_captions.choose_attributes(rng, drop=0.25))
        for thing in rng.integers(len(shapes.SEEN_THINGS), size=SHAPES).tolist()
    ]
    order = rng.permutation(len(things) + CAPTIONS + SENTENCES + SHAPES)
    for number, code in enumerate(trained_languages()):
        rng, names = np.random.default_rng((SEED, number)), languages()[code].names
        lines = [names[thing] or "" for thing in things]
        lines += [captions.caption(thing, code, rng, on) or "" for thing, on in zip(captioned, behind, strict=True)]
        lines += [sentences.sentence(str(names[thing]), code, rng) if names[thing] else "" for thing in spoken]
        speaks = code in shape_captions.TRAINED
        lines += [
            shape_captions.caption(thing, code, rng, attributes) if speaks else "" for thing, attributes in shaped
        ]
        lines = [" ".join(line.split()) for line in lines]
        (folder / f"{code}.txt").write_text("\n".join(lines[place] for place in order) + "\n", "utf-8")


def distill(teacher: Path, texts: Path, out: Path, steps: int = STEPS, more: Sequence[str] = ()) -> Path:
    """Runs what is not finished of `mulan.training encoder`; returns the student's file."""
    from mulan_nodes.mulan.training.__main__ import main
    from mulan_nodes.mulan.training.encoder_training import FILE

    arguments = ["encoder", "--teacher", str(teacher), "--texts", str(texts), "--translations", "--out", str(out)]
    arguments += ["--layers", str(LAYERS), "--hidden-size", str(WIDTH), "--intermediate-size", str(INTERMEDIATE)]
    arguments += ["--steps", str(steps), "--batch-size", str(BATCH), "--accumulate", "1", "--resume"]
    arguments += ["--learning-rate", LEARNING_RATE, "--warmup", "100", "--precision", "fp32", "--ema", "0.99"]
    arguments += ["--held-out", "40", "--validate-every", "0", "--save-every", "500", *more]
    if main(arguments):
        raise RuntimeError(f"{out}: the student was not trained, see above")
    return out / FILE


def main(work_dir: Path) -> None:
    open_comfyui("--cpu")
    autoencoder, whole, base, adapter = read_shipped()
    texts = work_dir / "prompts"
    write_translations(texts)
    teacher = write_text_encoder(work_dir / "teacher.safetensors", whole)
    student = read_text_encoder(distill(teacher, texts, work_dir / "student"), whole.tokenizer)
    lines = [HEAD]
    for name, encoder in (("whole", whole), ("student", student)):
        lines.append(row_of(name, parameters(encoder.model), shares_right(autoencoder, encoder, base, adapter)))
        print(lines[-1], flush=True)
    (work_dir / "distilled.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
