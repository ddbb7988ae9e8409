"""Trains a language adapter between a frozen multilingual text encoder and a frozen diffusion base, on English captions.

The recipe is MuLan's: the plain diffusion loss, only the adapter learns. Every sample of a run (its picture, its noise, its timestep,
whether its caption is dropped) is a function of the seed and of the sample's number alone. So a resumed run, a run on more processes and
a run that accumulates gradients all see the same samples at the same step.
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

import torch

from ..conditioning.adapter import FEED_FORWARD_RATIO, AdapterShape, LanguageAdapter
from ..conditioning.model_files import open_adapter
from .base_models import Base, load_base
from .dataset import PictureFolder, SampleStream, cache_latents
from .diffusion import PREDICTIONS, Denoiser, add_noise, diffusion_loss, sample
from .run import PRECISIONS, RESULT_DTYPES, STATE_FILE, Run, TrainSettings

PROMPTS = ("a red car on a beach", "海滩上的一辆红色汽车", "красная машина на пляже", "سيارة حمراء على الشاطئ")
VALIDATION_STEPS = 30
VALIDATION_CFG = 7.5


def initialise(adapter: LanguageAdapter, seed: int) -> None:
    """Fresh weights in place, as `torch.nn.Transformer` starts: Xavier-uniform matrices, zero biases, identity norms; normal queries."""
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
    text_states: Callable[[list[str]], torch.Tensor],
    examples,
    alphas_cumprod: torch.Tensor,
    settings: TrainSettings,
    *,
    report: Callable[[int, int, float, float], None] | None = None,
    validate: Callable[[int, LanguageAdapter], None] | None = None,
    resume: bool = False,
    metadata: dict[str, str] | None = None,
) -> LanguageAdapter:
    """Trains the adapter in place, on the device it lies on, and returns it.

    denoiser(x_t [B, C, h, w], t [B] long, context [B, Q, D]) -> prediction [B, C, h, w], differentiable in the context, its weights frozen.
    text_states(captions) -> [B, T, text_width]. examples: a map-style data set of {"latent": [C, h, w], "caption": str}, the latents
    scaled for the denoiser. alphas_cumprod [timesteps]. report(step, steps, loss, seconds left) is called after every step,
    validate(step, adapter) every `validate_every` steps and at the end, both in the main process only. metadata is written into the result.

    With an out_dir, `state.safetensors` (all that resuming needs) and `adapter.safetensors` (published names) are written every
    `save_every` steps, at the end, and when Ctrl-C is pressed. resume goes on from that state where there is one.
    Raises FileExistsError for an out_dir that holds a run nobody asked to resume, ValueError for a state of other settings,
    FloatingPointError for a loss that is no number.
    """
    if not resume:
        _check_unused(settings.out_dir)
    run = Run(adapter, settings, _accelerator(), metadata or {})
    if run.state_exists():
        run.load()
    stream = SampleStream(examples, len(alphas_cumprod), settings.seed, settings.empty_share, settings.high_noise_share)
    alphas_cumprod = alphas_cumprod.to(run.device, torch.float32)
    report = report or print_progress
    started, first = time.monotonic(), run.step

    def loss_of(numbers: range) -> torch.Tensor:
        latents, noise, timesteps, captions = stream.batch(numbers)
        latents, noise, timesteps = latents.to(run.device), noise.to(run.device), timesteps.to(run.device)
        alpha = alphas_cumprod[timesteps]
        with torch.no_grad():
            states = text_states(captions).to(run.device)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            predicted = denoiser(add_noise(latents, noise, alpha), timesteps, run.wrapped(states))
        return diffusion_loss(predicted, latents, noise, alpha, settings.prediction, settings.high_noise_weight)

    with _interrupt_deferred() as interrupted:
        while run.step < settings.steps:
            loss, stop = run.advance(loss_of, interrupted.is_set())
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
    """Finds the devices and the other processes. Precision and placement stay with this module: accelerate's are fixed once per process."""
    from accelerate import Accelerator

    return Accelerator(mixed_precision="no", device_placement=False)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def print_progress(step: int, steps: int, loss: float, seconds_left: float) -> None:
    """The default report: one line that is overwritten by the next."""
    minutes, seconds = divmod(int(seconds_left), 60)
    print(
        f"\rstep {step} of {steps}, loss {loss:.4f}, {minutes} min {seconds:02d} s left  ",
        end="\n" if step == steps else "",
        flush=True,
    )


@contextmanager
def _interrupt_deferred():
    """The first Ctrl-C sets the event that this gives, because a step cut short could not be resumed; a second one ends all at once.

    Only a main thread receives signals; in any other nothing is deferred.
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
    """The command line. Returns 0, 1 with a message for what cannot be trained, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        _train(options)
    except (ValueError, FileExistsError, FloatingPointError) as error:
        print(f"Training failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'Stopped before the first step'}. Go on with --resume.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python dev.py train",
        description="Trains a MuLan adapter for an SD1.5 or SD2.1 base on pictures with English captions. One step sees batch size x "
        "accumulation x processes pictures. More than one GPU: accelerate launch dev.py train ...",
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
        help="folder of pictures, each with a caption in a .txt of its name or in metadata.jsonl",
    )
    add(
        "--out",
        type=Path,
        required=True,
        help="folder for the adapter, the state, the latents and the validation pictures",
    )
    add("--resume", action="store_true", help="go on from the state in --out, if there is one")
    add("--adapter", type=Path, help="begin with this adapter's weights instead of fresh ones")
    add(
        "--queries",
        type=int,
        choices=(120, 77),
        default=120,
        help="rows of context a fresh adapter gives (default: 120)",
    )
    setting("--steps", 20000, "steps of the optimizer")
    setting("--batch-size", 8, "pictures a batch")
    setting("--accumulate", 4, "batches a step")
    setting("--learning-rate", 1e-4, "after the warm-up; it falls to zero along half a cosine")
    setting("--warmup", 500, "steps")
    setting("--weight-decay", 0.01, "of AdamW")
    setting("--clip-norm", 1.0, "largest norm of a step's gradient")
    setting("--seed", 0, "of weights, order, noise, timesteps")
    setting("--empty-share", 0.1, "share of captions left out, for classifier-free guidance")
    setting("--high-noise-share", 0.0, "share of timesteps drawn from the noisiest 40%% only")
    add("--high-noise-weight", action="store_true", help="weigh the loss of noisy samples more")
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
    add("--size", type=int, help="pixels of the pictures' sides (default: 512, for v_prediction 768)")
    setting("--save-every", 500, "steps between saved states")
    setting("--validate-every", 500, "steps between validation pictures")
    add(
        "--prompt",
        action="append",
        help=f"prompt of a validation picture, may be repeated (default: {'; '.join(PROMPTS)})",
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
    if size % base.reduction:
        raise ValueError(f"--size {size} is no multiple of {base.reduction}, by which the autoencoder shrinks pictures")
    pictures = PictureFolder(options.data, size)
    examples = cache_latents(pictures, base.encode_pictures, base.encoder_mark, options.out, accelerator, _print_cached)

    from ..conditioning.clip import load_text_states  # brings the host along, which nothing else here needs

    text_states = load_text_states(options.text_encoder)
    adapter = _adapter(options, base, text_states(["a"]).shape[-1]).to(device)
    train_adapter(
        adapter,
        base.denoiser,
        text_states,
        examples,
        base.alphas_cumprod,
        settings,
        resume=options.resume,
        validate=_validation(base, text_states, options.prompt or PROMPTS, size, settings),
        metadata={"family": base.family.name, "base": options.base.name, "text_encoder": options.text_encoder.name},
    )
    if accelerator.is_main_process:
        print(f"The adapter is in {options.out}.")


def _print_cached(done: int, count: int) -> None:
    print(f"\rlatents {done} of {count}  ", end="\n" if done == count else "", flush=True)


def _adapter(options: argparse.Namespace, base: Base, text_width: int) -> LanguageAdapter:
    """A fresh adapter of the sizes that text encoder and base ask for, or the one named by --adapter."""
    if options.adapter is None:
        adapter = LanguageAdapter(
            AdapterShape(text_width, base.context_width, options.queries, FEED_FORWARD_RATIO * base.context_width)
        )
        initialise(adapter, options.seed)
        return adapter
    file = open_adapter(options.adapter)
    if (file.shape.text_width, file.shape.width) != (text_width, base.context_width):
        raise ValueError(
            f"{options.adapter} turns states of width {file.shape.text_width} into contexts of width {file.shape.width}, "
            f"but the text encoder gives {text_width} and the base reads {base.context_width}"
        )
    adapter = LanguageAdapter(file.shape)
    adapter.load_state_dict(file.state_dict())
    return adapter


def _validation(
    base: Base, text_states, prompts, size: int, settings: TrainSettings
) -> Callable[[int, LanguageAdapter], None]:
    """-> a `validate` that draws the prompts, always from the same noise, into one picture in the run's folder."""

    def draw(step: int, adapter: LanguageAdapter) -> None:
        with torch.no_grad():
            device = adapter.queries.device
            context, empty = adapter(text_states(list(prompts)).to(device)), adapter(text_states([""]).to(device))
        shape = (base.latent_channels, size // base.reduction, size // base.reduction)
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
        save_row(
            torch.cat([base.decode(latent[None]) for latent in latents]),
            Path(settings.out_dir) / f"validation-{step:06d}.png",
        )

    return draw


def save_row(pictures: torch.Tensor, path: Path) -> None:
    """Writes pictures [B, 3, H, W] in -1..1 side by side."""
    from PIL import Image

    row = torch.cat(list(pictures.cpu()), dim=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(((row + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(path)
