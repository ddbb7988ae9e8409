"""The command lines' arguments, and the settings that they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from .adapters import LAYOUTS
from .diffusion import PREDICTIONS
from .run import PRECISIONS, RESULT_DTYPES, TRAINING_PACKAGES, TrainSettings

SERVER = "http://127.0.0.1:8188"  # ComfyUI's own address
PROMPTS = ("a red car on a beach", "海滩上的一辆红色汽车", "красная машина на пляже", "سيارة حمراء على الشاطئ")
# The package as it is run: "custom_nodes.<folder>.mulan.training"
_FOLDER = Path(__file__).resolve().parents[2].name
MODULE = __package__ if (__package__ or "").startswith("custom_nodes.") else f"custom_nodes.{_FOLDER}.mulan.training"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description="Train a MuLan adapter for an SD1.5, SD2.1, SDXL or PixArt base on images with captions. "
        f"Run it in ComfyUI's folder with ComfyUI's Python; it also needs {', '.join(TRAINING_PACKAGES)}. "
        "One step sees batch size x accumulation x processes images. "
        f"On several GPUs: accelerate launch -m {MODULE} ... "
        f"Another command trains a smaller text encoder for adapters that exist: python -m {MODULE} encoder --help",
    )
    add = parser.add_argument
    add("--base", type=Path, required=True, help="diffusers folder or single-file checkpoint (.safetensors)")
    add("--vae", type=Path, help="autoencoder in place of the base's own: file or diffusers folder")
    add(
        "--text-encoder",
        type=Path,
        required=True,
        help="InternVL text encoder: one .safetensors or the published folder",
    )
    add(
        "--data",
        type=Path,
        required=True,
        help="folder of images, each with a caption in a .txt of its name or in metadata.jsonl",
    )
    add(
        "--language",
        nargs="+",
        default=[],
        metavar="xx",
        help="train each image with its captions in these languages as well, from .xx.txt files",
    )
    add(
        "--out",
        type=Path,
        required=True,
        help="folder for the adapter, the state, the latents and the validation images",
    )
    add(
        "--encode-while-training",
        action="store_true",
        help="keep the text encoder in memory, and its states off the disk",
    )
    add("--estimate", action="store_true", help="say what memory, time and disk the run takes, and stop")
    add("--adapter", type=Path, help="start from this adapter's weights instead of fresh ones")
    add(
        "--queries",
        type=int,
        choices=(120, 77),
        default=120,
        help="rows of context a fresh adapter gives (default: 120; not for PixArt)",
    )
    add(
        "--layout",
        choices=LAYOUTS,
        default=LAYOUTS[0],
        help="of a fresh SDXL adapter: with a size embedding of its own or the base's, and a pooled vector from the "
        "context or from the text encoder's (default: %(default)s)",
    )
    add_setting(parser, "--batch-size", 8, "images per batch")
    add_setting(parser, "--seed", 0, "of weights, order, noise, timesteps")
    add_setting(parser, "--empty-share", 0.1, "share of captions left out, for classifier-free guidance")
    add_setting(parser, "--high-noise-share", 0.0, "share of timesteps drawn from the noisiest 40%% only")
    add("--high-noise-weight", action="store_true", help="give noisy samples more weight in the loss")
    add_setting(
        parser, "--min-snr", 0.0, "largest signal-to-noise ratio that counts in the loss, such as 5; 0: all count alike"
    )
    add("--gradient-checkpointing", action="store_true", help="less memory, more time")
    add("--prediction", choices=PREDICTIONS, help="what the base predicts, where its files do not say it")
    add("--size", type=int, help="side of the images in pixels (default: what the base was trained with)")
    add("--buckets", action="store_true", help="keep the images' aspect ratios, in batches of one size")
    add_setting(parser, "--validate-every", 500, "steps between validation images")
    add(
        "--prompt",
        action="append",
        help=f"prompt of a validation image, may be repeated (default: {'; '.join(PROMPTS)}; with --graph: its own)",
    )
    add(
        "--graph",
        type=Path,
        metavar="FILE",
        help="draw the validation images by this workflow (exported for the API) in a running ComfyUI",
    )
    add("--server", default=SERVER, metavar="URL", help="of that ComfyUI (default: %(default)s)")
    add(
        "--adapters",
        type=Path,
        default=Path("models", "mulan"),
        metavar="FOLDER",
        help="where that ComfyUI finds adapters (default: %(default)s)",
    )
    add_run_arguments(parser, "base and adapter", "the adapter's file")
    return parser


def add_setting(parser: argparse.ArgumentParser, name: str, default: int | float, meaning: str) -> None:
    """Add a number with its default."""
    parser.add_argument(name, type=type(default), default=default, help=f"{meaning} (default: {default})")


def add_run_arguments(parser: argparse.ArgumentParser, computed: str, file: str) -> None:
    """Add what every training has. computed: what `--precision` is of; file: what `--result-dtype` is of."""
    add = parser.add_argument
    add("--resume", action="store_true", help="continue from the state in --out, if there is one")
    add_setting(parser, "--steps", 20000, "steps of the optimizer")
    add_setting(parser, "--accumulate", 4, "batches per step")
    add_setting(parser, "--learning-rate", 1e-4, "after the warm-up; it falls to zero along half a cosine")
    add_setting(parser, "--warmup", 500, "steps")
    add_setting(parser, "--weight-decay", 0.01, "of AdamW")
    add_setting(parser, "--clip-norm", 1.0, "largest norm of a step's gradient")
    add_setting(parser, "--ema", 0.0, "decay of averaged weights, such as 0.999; 0: no average")
    add(
        "--precision",
        choices=PRECISIONS,
        default="bf16" if torch.cuda.is_available() else "fp32",
        help=f"of {computed} while training (default here: %(default)s)",
    )
    add_setting(parser, "--save-every", 500, "steps between saved states")
    add("--result-dtype", choices=RESULT_DTYPES, default="fp16", help=f"of {file} (default: fp16)")


def make_settings(options: argparse.Namespace, prediction: str) -> TrainSettings:
    """Return the settings of an adapter's training. Raises ValueError for what makes no sense."""
    return make_run_settings(
        options,
        prediction=prediction,
        high_noise_share=options.high_noise_share,
        high_noise_weight=options.high_noise_weight,
        min_snr=options.min_snr,
        buckets=options.buckets,
    )


def make_run_settings(options: argparse.Namespace, **more: Any) -> TrainSettings:
    """Return the settings that every training has, and `more`. Raises ValueError for what makes no sense."""
    return TrainSettings(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        gradient_accumulation=options.accumulate,
        clip_norm=options.clip_norm,
        seed=options.seed,
        empty_share=options.empty_share,
        precision=options.precision,
        ema=options.ema,
        save_every=options.save_every,
        validate_every=options.validate_every,
        out_dir=options.out,
        result_dtype=options.result_dtype,
        **more,
    )
