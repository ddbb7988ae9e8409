"""Trains a language adapter between a frozen multilingual text encoder and a frozen diffusion base, on English
captions.

The recipe is MuLan's: the plain diffusion loss, only the adapter learns. Every sample of a run (its image, its noise,
its timestep, whether its caption is dropped) is a function of the seed and of the sample's index alone. So a resumed
run, a run on more processes and a run that accumulates gradients all see the same samples at the same step.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..conditioning.adapter import MLP_RATIO, AdapterShape, LanguageAdapter
from ..conditioning.model_files import open_adapter
from .base_models import DiffusionBase, load_base
from .dataset import CaptionedImages, SampleStream, cache_latents
from .diffusion import PREDICTIONS, Denoiser, add_noise, diffusion_loss, sample
from .run import (
    PRECISIONS,
    RESULT_DTYPES,
    STATE_FILE,
    TRAINING_PACKAGES,
    TrainingRun,
    TrainSettings,
    import_training_package,
)

PROMPTS = ("a red car on a beach", "海滩上的一辆红色汽车", "красная машина на пляже", "سيارة حمراء على الشاطئ")
VALIDATION_STEPS = 30
VALIDATION_CFG = 7.5
# The trainer's module as ComfyUI's folder names it: "custom_nodes.<folder>.mulan.training"
MODULE = ".".join(("custom_nodes", Path(__file__).resolve().parents[2].name, "mulan", "training"))


def init_weights(adapter: LanguageAdapter, seed: int) -> None:
    """Initialize the weights in place as `torch.nn.Transformer` does; the queries are normal.

    Matrices are Xavier-uniform, biases zero, norms identities.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if name == "queries":
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim > 1:
                parameter.copy_(torch.nn.init.xavier_uniform_(torch.empty(parameter.shape), generator=generator))
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def train_adapter(
    adapter: LanguageAdapter,
    denoiser: Denoiser,
    encode_text: Callable[[list[str]], torch.Tensor],
    examples,
    alphas_cumprod: torch.Tensor,
    settings: TrainSettings,
    *,
    report: Callable[[int, int, float, float], None] | None = None,
    validate: Callable[[int, LanguageAdapter], None] | None = None,
    resume: bool = False,
    metadata: dict[str, str] | None = None,
) -> LanguageAdapter:
    """Train the adapter in place, on the device it is on, and return it.

    denoiser(x_t [B, C, h, w], t [B] long, context [B, Q, D]) -> prediction [B, C, h, w], differentiable in the context,
    its weights frozen. encode_text(captions) -> [B, T, text_hidden_size]. examples: a map-style data set of {"latent":
    [C, h, w], "caption": str}, the latents scaled for the denoiser. alphas_cumprod [timesteps]. report(step, steps,
    loss, seconds left) is called after every step, validate(step, adapter) every `validate_every` steps and at the end,
    both in the main process only. metadata is written into the result.

    With an out_dir, `state.safetensors` (all that resuming needs) and `adapter.safetensors` (published names) are
    written every `save_every` steps, at the end, and when Ctrl-C is pressed. resume goes on from that state where there
    is one. Raises FileExistsError for an out_dir that holds a run nobody asked to resume, ValueError for a state of
    other settings, FloatingPointError for a loss that is not finite.
    """
    if not resume:
        _check_unused(settings.out_dir)
    run = TrainingRun(adapter, settings, _accelerator(), metadata or {})
    if run.state_exists():
        run.load()
    stream = SampleStream(examples, len(alphas_cumprod), settings.seed, settings.empty_share, settings.high_noise_share)
    alphas_cumprod = alphas_cumprod.to(run.device, torch.float32)
    report = report or print_progress
    started, first = time.monotonic(), run.step

    def compute_loss(indices: range) -> torch.Tensor:
        latents, noise, timesteps, captions = stream.batch(indices)
        latents, noise, timesteps = latents.to(run.device), noise.to(run.device), timesteps.to(run.device)
        alpha = alphas_cumprod[timesteps]
        with torch.no_grad():
            states = encode_text(captions).to(run.device)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            predicted = denoiser(add_noise(latents, noise, alpha), timesteps, run.wrapped(states))
        return diffusion_loss(predicted, latents, noise, alpha, settings.prediction, settings.high_noise_weight)

    with _interrupt_deferred() as interrupted:
        while run.step < settings.steps:
            loss, stop = run.advance(compute_loss, interrupted.is_set())
            finished = run.step == settings.steps
            if stop or finished or _due(run.step, settings.save_every):
                run.save()
            if run.accelerator.is_main_process:
                left = (time.monotonic() - started) / (run.step - first) * (settings.steps - run.step)
                report(run.step, settings.steps, loss, left)
                if validate and (finished or _due(run.step, settings.validate_every)):
                    validate(run.step, run.result)
            if stop:
                raise KeyboardInterrupt(f"Training stopped after step {run.step} of {settings.steps}")
    adapter.load_state_dict(run.result.state_dict())
    return adapter


def _check_unused(out_dir: Path | None) -> None:
    if out_dir is not None and (Path(out_dir) / STATE_FILE).is_file():
        raise FileExistsError(
            f"{out_dir} already holds a training run ({STATE_FILE}): resume it, or name another folder"
        )


def _accelerator():
    """Find the devices and the other processes.

    Precision and placement stay with this module: accelerate's are fixed once per process.
    """
    accelerate: Any = import_training_package("accelerate")
    return accelerate.Accelerator(mixed_precision="no", device_placement=False)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def print_progress(step: int, steps: int, loss: float, seconds_left: float) -> None:
    """Print the default report: one line that the next one overwrites."""
    minutes, seconds = divmod(int(seconds_left), 60)
    print(
        f"\rstep {step} of {steps}, loss {loss:.4f}, {minutes} min {seconds:02d} s left  ",
        end="\n" if step == steps else "",
        flush=True,
    )


@contextmanager
def _interrupt_deferred():
    """Defer Ctrl-C: the first one sets the event that this yields, a second one ends all at once.

    A step cut short could not be resumed. Only a main thread receives signals; in any other nothing is deferred.
    """
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    before = signal.getsignal(signal.SIGINT)

    def remember(*_):
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, remember)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 with a message for what cannot be trained, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        _train(options)
    except (ValueError, FileExistsError, FloatingPointError, ImportError) as error:
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
        _check_unused(options.out)  # before all that takes minutes
    accelerator = _accelerator()
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
    images = CaptionedImages(options.data, size)
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
