"""Distills the text encoder with the library's own command, and draws with the adapter that never saw the students.

    python -m mulan_nodes.tools.emoji_world.distilled FOLDER TEXTS

The folders are those of the finished stages and of the text encoder. Writes distilled.md into the first.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaModel

from mulan_nodes.mulan.checkpoints.tensor_files import CONFIG
from mulan_nodes.mulan.conditioning.model_files import SPIECE

from ..comfyui import open_comfyui
from ..tinyworld import captions as shape_captions
from ..tinyworld import world as shapes
from ..tinyworld.stages import SEED
from ..tinyworld.text_training import TextEncoder
from . import captions, sentences
from .concepts import CHARACTERS, languages, trained_languages
from .pictures import BACKGROUNDS
from .smaller import adapted, parameters, row_of, shares_right

PROMPTS, PROMPTS_OF_SHAPES = 1500, 500  # of a language, beside its names; of one with shapes
KINDS = (0.6, 0.9)  # of the prompts of things: captions, then sentences, then names among letters
BATCH, LEARNING_RATE = 64, "2e-3"
STEPS = 12000


@dataclass(frozen=True)
class Kept:
    """What a student has of the three layers and of the 320 channels of their MLPs."""

    layers: int
    channels: int

    @property
    def name(self) -> str:
        return f"{self.layers} layers, {self.channels} channels"


STUDENTS = (Kept(2, 320), Kept(2, 48), Kept(1, 320))


def write_prompts(folder: Path) -> None:
    """Writes a text file of prompts for each language: its names, captions, sentences, and captions of shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, code in enumerate(trained_languages()):
        rng, names = np.random.default_rng((SEED, number)), languages()[code].names
        lines = [name for name in names if name]
        for thing in rng.integers(len(CHARACTERS), size=PROMPTS).tolist():
            if names[thing]:
                lines.append(_prompt(thing, names[thing], code, rng))
        if code in shape_captions.TRAINED:
            for thing in rng.integers(len(shapes.SEEN_THINGS), size=PROMPTS_OF_SHAPES).tolist():
                attributes = shape_captions.choose_attributes(rng, drop=0.25)
                lines.append(shape_captions.caption(shapes.SEEN_THINGS[thing], code, rng, attributes))
        lines = [*dict.fromkeys(" ".join(line.split()) for line in lines)]
        (folder / f"{code}.txt").write_text("\n".join(lines[place] for place in rng.permutation(len(lines))), "utf-8")


def _prompt(thing: int, name: str, code: str, rng: np.random.Generator) -> str:
    kind = rng.random()
    if kind < KINDS[0]:
        background = str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.12 else ""
        return captions.caption(thing, code, rng, background) or name
    return sentences.sentence(name, code, rng) if kind < KINDS[1] else sentences.in_noise(name, code, rng)


def write_teacher(path: Path, encoder: TextEncoder) -> Path:
    """Writes a narrow text encoder in the layout of InternVL's."""
    tensors = {f"model.{name}": tensor.half().contiguous() for name, tensor in encoder.model.state_dict().items()}
    tensors[SPIECE] = torch.frombuffer(bytearray(encoder.tokenizer.serialized_model_proto()), dtype=torch.uint8)
    sizes = {name: getattr(encoder.model.config, name) for name in ("num_attention_heads", "rms_norm_eps")}
    save_file(tensors, path, {CONFIG: json.dumps(sizes)})
    return path


def distill(teacher: Path, texts: Path, out: Path, kept: Kept, steps: int = STEPS) -> Path:
    """Runs what is not finished of `mulan.training encoder`; returns the student's file."""
    from mulan_nodes.mulan.training.__main__ import main
    from mulan_nodes.mulan.training.encoder_training import FILE

    arguments = ["encoder", "--teacher", str(teacher), "--texts", str(texts), "--out", str(out), "--resume"]
    arguments += ["--layers", str(kept.layers), "--intermediate-size", str(kept.channels), "--steps", str(steps)]
    arguments += ["--batch-size", str(BATCH), "--accumulate", "1", "--learning-rate", LEARNING_RATE, "--warmup", "100"]
    arguments += ["--precision", "fp32", "--held-out", "4", "--validate-every", "0", "--save-every", "500"]
    if main(arguments):
        raise RuntimeError(f"{out}: the student was not trained, see above")
    return out / FILE


def read_student(path: Path, encoder: TextEncoder) -> TextEncoder:
    """A student's file, narrow again."""
    weights = {name.removeprefix("model."): tensor.float() for name, tensor in load_file(path).items()}
    layers = {name.split(".")[1] for name in weights if name.startswith("layers.")}
    config = copy.deepcopy(encoder.model.config)
    config.num_hidden_layers, config.intermediate_size = len(layers), len(weights["layers.0.mlp.up_proj.weight"])
    model = LlamaModel(config)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return TextEncoder(model, encoder.tokenizer)


def main(work_dir: Path, text_dir: Path) -> None:
    open_comfyui("--cpu")
    autoencoder, whole, base, adapter = adapted(work_dir, text_dir)
    texts = work_dir / "prompts"
    write_prompts(texts)
    teacher = write_teacher(work_dir / "teacher.safetensors", whole)
    lines = ["| text encoder | parameters | English | mean of the others | lowest |", "| --- | --: | --: | --: | --: |"]
    for kept in (None, *STUDENTS):
        if kept is None:
            encoder = whole
        else:
            out = work_dir / f"student_of_{kept.layers}_layers_and_{kept.channels}_channels"
            encoder = read_student(distill(teacher, texts, out, kept), whole)
        found = shares_right(autoencoder, encoder, base, adapter)
        lines.append(row_of(kept.name if kept else "whole", parameters(encoder.model), found))
        print(lines[-1], flush=True)
    (work_dir / "distilled.md").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
