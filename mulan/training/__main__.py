"""Train a MuLan adapter: `python -m custom_nodes.<folder>.mulan.training`, in ComfyUI's folder and Python."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ..conditioning.adapter import MLP_RATIO, AdapterShape, LanguageAdapter
from ..conditioning.model_files import open_adapter
from .base_models import DiffusionBase, load_base
from .dataset import CaptionedImages, cache_latents
from .diffusion import PREDICTIONS, sample
from .run import PRECISIONS, RESULT_DTYPES, TRAINING_PACKAGES, TrainSettings
from .trainer import check_unused, find_devices, init_weights, train_adapter

PROMPTS = ("a red car on a beach", "海滩上的一辆红色汽车", "красная машина на пляже", "سيارة حمراء على الشاطئ")
VALIDATION_STEPS = 30
VALIDATION_CFG = 7.5
# This module as it is run: "custom_nodes.<folder>.mulan.training"
_FOLDER = Path(__file__).resolve().parents[2].name
MODULE = __package__ if (__package__ or "").startswith("custom_nodes.") else f"custom_nodes.{_FOLDER}.mulan.training"


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 with a message for what cannot be trained, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        _train(options)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"Training failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'Stopped before the first step'}. Continue with --resume.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {MODULE}",
        description="Train a MuLan adapter for an SD1.5 or SD2.1 base on images with English captions. "
        f"Run it in ComfyUI's folder with ComfyUI's Python; it also needs {', '.join(TRAINING_PACKAGES)}. "
        "One step sees batch size x accumulation x processes images. "
        f"On several GPUs: accelerate launch -m {MODULE} ...",
    )
    add = parser.add_argument

    def setting(name: str, default: int | float, meaning: str) -> None:
        add(name, type=type(default), default=default, help=f"{meaning} (default: {default})")

    add("--base", type=Path, required=True, help="diffusers folder or single-file checkpoint (.safetensors)")
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
    add("--resume", action="store_true", help="continue from the state in --out, if there is one")
    add("--adapter", type=Path, help="start from this adapter's weights instead of fresh ones")
    add(
        "--queries",
        type=int,
        choices=(120, 77),
        default=120,
        help="rows of context a fresh adapter gives (default: 120)",
    )
    setting("--steps", 20000, "steps of the optimizer")
    setting("--batch-size", 8, "images per batch")
    setting("--accumulate", 4, "batches per step")
    setting("--learning-rate", 1e-4, "after the warm-up; it falls to zero along half a cosine")
    setting("--warmup", 500, "steps")
    setting("--weight-decay", 0.01, "of AdamW")
    setting("--clip-norm", 1.0, "largest norm of a step's gradient")
    setting("--seed", 0, "of weights, order, noise, timesteps")
    setting("--empty-share", 0.1, "share of captions left out, for classifier-free guidance")
    setting("--high-noise-share", 0.0, "share of timesteps drawn from the noisiest 40%% only")
    add("--high-noise-weight", action="store_true", help="give noisy samples more weight in the loss")
    setting("--ema", 0.0, "decay of averaged weights, such as 0.999; 0: no average")
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    add(
        "--precision",
        choices=PRECISIONS,
        default=precision,
        help="of base and adapter while training (default here: %(default)s)",
    )
    add("--gradient-checkpointing", action="store_true", help="less memory, more time")
    add("--prediction", choices=PREDICTIONS, help="what the base predicts, where its files do not say it")
    add("--size", type=int, help="side of the images in pixels (default: 512, for v_prediction 768)")
    setting("--save-every", 500, "steps between saved states")
    setting("--validate-every", 500, "steps between validation images")
    add(
        "--prompt",
        action="append",
        help=f"prompt of a validation image, may be repeated (default: {'; '.join(PROMPTS)})",
    )
    add("--result-dtype", choices=RESULT_DTYPES, default="fp16", help="of the adapter's file (default: fp16)")
    return parser


def _train(options: argparse.Namespace) -> None:
    if not options.resume:
        check_unused(options.out)  # before all that takes minutes
    accelerator = find_devices()
    device = accelerator.device
    base = load_base(
        options.base,
        device,
        torch.bfloat16 if options.precision == "bf16" else torch.float32,
        options.prediction,
        options.gradient_checkpointing,
    )
    settings = TrainSettings(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        gradient_accumulation=options.accumulate,
        clip_norm=options.clip_norm,
        seed=options.seed,
        empty_share=options.empty_share,
        prediction=base.prediction,
        high_noise_share=options.high_noise_share,
        high_noise_weight=options.high_noise_weight,
        precision=options.precision,
        ema=options.ema,
        save_every=options.save_every,
        validate_every=options.validate_every,
        out_dir=options.out,
        result_dtype=options.result_dtype,
    )
    size = options.size or (768 if base.prediction == "v_prediction" else 512)
    if size % base.downscale_factor:
        raise ValueError(
            f"--size {size} is not a multiple of {base.downscale_factor}, "
            f"the factor by which the autoencoder downscales images"
        )
    images = CaptionedImages(options.data, size, options.language)
    examples = cache_latents(
        images, base.encode_images, base.encoder_fingerprint, options.out, accelerator, _print_cached
    )

    from ..conditioning.clip import FrozenTextEncoder  # imports ComfyUI, which nothing else here needs

    encode_text = FrozenTextEncoder(options.text_encoder)
    adapter = _adapter(options, base, encode_text.hidden_size).to(device)
    train_adapter(
        adapter,
        base.denoiser,
        encode_text,
        examples,
        base.alphas_cumprod,
        settings,
        resume=options.resume,
        validate=_validation(base, encode_text, options.prompt or PROMPTS, size, settings),
        metadata={"family": base.family.name, "base": options.base.name, "text_encoder": options.text_encoder.name},
    )
    if accelerator.is_main_process:
        print(f"The adapter is in {options.out}.")


def _print_cached(done: int, count: int) -> None:
    print(f"\rlatents {done} of {count}  ", end="\n" if done == count else "", flush=True)


def _adapter(options: argparse.Namespace, base: DiffusionBase, text_hidden_size: int) -> LanguageAdapter:
    """Return a fresh adapter of the sizes that text encoder and base need, or the one named by --adapter."""
    if options.adapter is None:
        adapter = LanguageAdapter(
            AdapterShape(text_hidden_size, base.context_dim, options.queries, MLP_RATIO * base.context_dim)
        )
        init_weights(adapter, options.seed)
        return adapter
    file = open_adapter(options.adapter)
    shape = file.shape
    if not isinstance(shape, AdapterShape) or (shape.text_hidden_size, shape.context_dim) != (
        text_hidden_size,
        base.context_dim,
    ):
        raise ValueError(
            f"{options.adapter} turns states of width {shape.text_hidden_size} into contexts of width "
            f"{shape.context_dim}, "
            f"but the text encoder gives {text_hidden_size} and the base reads {base.context_dim}"
        )
    adapter = LanguageAdapter(shape)
    adapter.load_state_dict(file.state_dict())
    return adapter


def _validation(
    base: DiffusionBase, encode_text, prompts, size: int, settings: TrainSettings
) -> Callable[[int, LanguageAdapter], None]:
    """Return a `validate` that draws the prompts, always from the same noise, into one image in the run's folder."""
    folder = Path(settings.out_dir or ".")

    def draw(step: int, adapter: LanguageAdapter) -> None:
        with torch.no_grad():
            device = adapter.queries.device
            context, empty = adapter(encode_text(list(prompts)).to(device)), adapter(encode_text([""]).to(device))
        shape = (base.latent_channels, size // base.downscale_factor, size // base.downscale_factor)
        latents = sample(
            base.denoiser,
            context,
            empty,
            base.alphas_cumprod,
            VALIDATION_STEPS,
            VALIDATION_CFG,
            settings.seed,
            shape,
            base.prediction,
        )
        save_image_row(
            torch.cat([base.decode(latent[None]) for latent in latents]), folder / f"validation-{step:06d}.png"
        )

    return draw


def save_image_row(images: torch.Tensor, path: Path) -> None:
    """Write images [B, 3, H, W] in -1..1 side by side."""
    from PIL import Image

    row = torch.cat(list(images.cpu()), dim=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((row + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(path)


if __name__ == "__main__":
    sys.exit(main())
