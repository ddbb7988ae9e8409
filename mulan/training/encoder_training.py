"""What `python -m custom_nodes.<folder>.mulan.training encoder` does: it trains a smaller text encoder."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..boundary.files import write_text
from ..checkpoints.tensor_files import CONFIG
from ..conditioning.encoder_kinds import TEACHER_KEY
from ..conditioning.families import PIXART, SD15
from ..conditioning.model_files import TextEncoderFile
from ..conditioning.text_config import llama_shapes
from .arguments import MODULE, add_run_arguments, add_setting, make_run_settings
from .distillation import Likeness, compare, row_loss
from .prompt_lists import PromptList, PromptStream, read_prompts, read_translations
from .run import RESULT_DTYPES, Product, TrainingRun
from .students import Student, new_narrow_student, new_student, open_student, published_tensors
from .teacher import Teacher
from .trainer import compute_beside, find_devices, run_to_end

FILE, LIKENESS_FILE = "text_encoder.safetensors", "likeness.json"
PADDING_ROWS = 8  # of a batch, in a step
ENGLISH_SHARE = 0.2  # of the prompts, where the others translate English ones
FAMILIES = {"sd": SD15, "pixart": PIXART}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE} encoder",
        description="Train a smaller text encoder that gives the states of a larger one, so that the adapters of the "
        "larger one read it. It needs text alone, in any languages. Run it in ComfyUI's folder with ComfyUI's "
        f"Python; it also needs accelerate. On several GPUs: accelerate launch -m {MODULE} encoder ...",
    )
    add = parser.add_argument
    add("--teacher", type=Path, required=True, help="InternVL's text encoder: one .safetensors or the published folder")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--layers",
        type=int,
        default=8,
        help="layers of the teacher that the student begins with, spread over all (default: 8)",
    )
    start.add_argument("--student", type=Path, help="begin with this text encoder instead, such as an earlier result")
    add(
        "--intermediate-size",
        type=int,
        help="channels of each layer's MLP that the student begins with, those of the largest weights (default: all; "
        "beside --hidden-size: in the teacher's ratio)",
    )
    add(
        "--hidden-size",
        type=int,
        help="a narrow student instead: --layers fresh layers of so many channels, an embedding table as narrow, and a "
        "linear layer to the teacher's width",
    )
    add("--texts", type=Path, required=True, help="folder of en.txt, zh.txt ... (a language's code), one prompt a line")
    add(
        "--translations",
        action="store_true",
        help="a line of each file says what the same line of en.txt says (empty: no translation): the student then has "
        "for it what the teacher has for the English one",
    )
    add("--out", type=Path, required=True, help="folder for the text encoder, the state and the table of likeness")
    add(
        "--family",
        choices=FAMILIES,
        default="sd",
        help="whose windows it learns: of the adapters for SD1.5, SD2.1 and "
        "SDXL (sd), or of PixArt's, which are longer and have no padding that is read (default: sd)",
    )
    add_setting(parser, "--batch-size", 16, "prompts per batch")
    add_setting(parser, "--seed", 0, "of the order of the prompts")
    add_setting(parser, "--empty-share", 0.02, "share of prompts left empty, as negatives are")
    add_setting(parser, "--held-out", 50, "prompts of each language that only judge, the last of its file")
    add_setting(parser, "--validate-every", 1000, "steps between tables of likeness")
    add_run_arguments(parser, "the student", "the file")
    return parser


def train(options: argparse.Namespace) -> None:
    """Train as the arguments say. Raises ValueError, OSError, FloatingPointError, ImportError for what cannot be
    trained, KeyboardInterrupt after Ctrl-C.
    """
    settings = make_run_settings(options)
    for setting in ("intermediate_size", "hidden_size"):
        if options.student is not None and getattr(options, setting) is not None:
            raise ValueError(f"--{setting.replace('_', '-')} is for a new student: leave it out beside --student")
    prompts = (read_translations if options.translations else read_prompts)(options.texts, options.held_out)
    accelerator = find_devices()
    compute_beside(accelerator)
    from ..conditioning.internvl_llama import INTERNVL_FRAME  # imports ComfyUI

    file, pad = _open(options.teacher), INTERNVL_FRAME.pad
    if options.student is not None:
        student = open_student(_open(options.student), file, pad)
    elif options.hidden_size is not None:
        student = new_narrow_student(file, options.layers, pad, options.hidden_size, options.intermediate_size)
    else:
        student = new_student(file, options.layers, pad, options.intermediate_size)
    teacher = Teacher(file, FAMILIES[options.family])
    product = Product("text encoder", FILE, partial(_published, student, file, RESULT_DTYPES[settings.result_dtype]))
    run = TrainingRun(student.to(accelerator.device), settings, accelerator, _metadata(file, student, prompts), product)
    if run.state_exists():
        run.load()
    if accelerator.is_main_process:
        print(_describe(student, file, prompts))
    english_share = ENGLISH_SHARE if options.translations else 0.0
    stream = PromptStream(prompts, settings.seed, settings.empty_share, english_share)

    def compute_loss(indices: range) -> torch.Tensor:
        texts, meant = zip(*(stream.prompt(index) for index in indices), strict=True)
        encoded = teacher.encode(meant, PADDING_ROWS, indices.start, translations=texts)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            states = run.wrapped(encoded.ids.to(run.device), encoded.positions.to(run.device))
        return row_loss(states, encoded)

    run_to_end(run, compute_loss, validate=_judge(teacher, prompts, options.out))
    if accelerator.is_main_process:
        print(f"The text encoder is {options.out / FILE}: copy it into models/text_encoders.")


def _open(path: Path) -> TextEncoderFile:
    """Recognize InternVL's text encoder. Raises ValueError for that of a chat file, whose rows are other tokens'."""
    from ..conditioning.encoder_files import open_prompt_encoder  # imports ComfyUI

    file = open_prompt_encoder(path)
    if not isinstance(file, TextEncoderFile):
        raise ValueError(
            f"{path} is the language model of a chat file: its tokens are not those of InternVL's text encoder, so no "
            "row of one stands for a row of the other. Take InternVL's text encoder, of which --layers are kept"
        )
    return file


def _published(
    student: Student, teacher: TextEncoderFile, dtype: torch.dtype, weights: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    return {**published_tensors(student, teacher, dtype), **weights}


def _metadata(teacher: TextEncoderFile, student: Student, prompts: dict[str, PromptList]) -> dict[str, str]:
    """Return what the text encoder's file says of its making."""
    return {
        "title": "A smaller text encoder for MuLan",
        "teacher": teacher.file.path.name,
        TEACHER_KEY: teacher.fingerprint(),
        "languages": " ".join(prompts),
        "prompts": str(sum(len(each.learned) for each in prompts.values())),
        CONFIG: student.sizes.to_json(),
    }


def _describe(student: Student, teacher: TextEncoderFile, prompts: dict[str, PromptList]) -> str:
    count = sum(len(each.learned) for each in prompts.values())
    ours, theirs = student.sizes, teacher.config
    own, whole = (sum(math.prod(shape) for shape in llama_shapes(each).values()) for each in (ours, theirs))
    width = "" if ours.output_size is None else f"{ours.hidden_size} of {theirs.states_size} channels, "
    return (
        f"{ours.num_hidden_layers} of {theirs.num_hidden_layers} layers, {width}{ours.intermediate_size} of "
        f"{theirs.intermediate_size} channels in MLPs: {own / 1e6:.1f} million parameters, {own / whole:.2f} of the "
        f"teacher's. {count} prompts in {len(prompts)} languages."
    )


def _judge(teacher: Teacher, prompts: dict[str, PromptList], out: Path) -> Callable[[int, Any], None]:
    """Return what prints how like the teacher a student is in each language, and keeps it in `LIKENESS_FILE`."""

    def validate(step: int, student: Any) -> None:
        found = {code: compare(student, teacher, each.held_out) for code, each in prompts.items()}
        print(f"\n{table(found)}", flush=True)
        kept = json.dumps({"step": step, "languages": {code: asdict(of) for code, of in found.items()}}, indent=1)
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / LIKENESS_FILE, kept)

    return validate


def table(found: dict[str, Likeness]) -> str:
    """Return a table of likenesses, the least like language first."""
    lines = ["language  cosine of words  of padding  squared distance left"]
    for code, of in sorted(found.items(), key=lambda item: -item[1].left):
        padding = "" if of.padding is None else f"{of.padding:.3f}"
        lines.append(f"{code:8}  {of.words:15.3f}  {padding:>10}  {of.left:21.3f}")
    return "\n".join(lines)
