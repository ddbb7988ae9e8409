"""Train an adapter between a frozen text encoder and a frozen diffusion base.

The recipe is MuLan's: the plain diffusion loss, only the adapter learns. Every sample of a run (its image, its noise,
its timestep, whether its caption is dropped) is a function of the seed and of the sample's index alone. So a resumed
run, a run on more processes and a run that accumulates gradients all see the same samples at the same step.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from .diffusion import Denoiser, add_noise, diffusion_loss
from .run import STATE_FILE, TrainingRun, TrainSettings, import_training_package
from .samples import Batch, SampleStream

Adapter = TypeVar("Adapter", bound=nn.Module)


def train_adapter(
    adapter: Adapter,
    denoiser: Denoiser,
    encode_text: Callable[..., Any],
    examples,
    alphas_cumprod: torch.Tensor,
    settings: TrainSettings,
    *,
    report: Callable[[int, int, float, float], None] | None = None,
    validate: Callable[[int, Any], None] | None = None,
    resume: bool = False,
    metadata: dict[str, str] | None = None,
) -> Adapter:
    """Train the adapter in place, on the device it is on, and return it.

    encode_text(captions) -> what the adapter reads, with `to(device)`: states [B, T, text_hidden_size], or
    `TextStates`; where the examples have sizes, encode_text(captions, sizes [B, 6]). denoiser(x_t [B, C, h, w], t [B]
    long, what the adapter gives) -> prediction [B, C, h, w], differentiable in the context, its weights frozen.
    examples: a map-style data set of {"latent": [C, h, w], "caption": str} and perhaps "sizes", the latents scaled for
    the denoiser; with `settings.buckets` it has `groups`, the bucket of each. alphas_cumprod [timesteps]. report(step,
    steps, loss, seconds left) is called after every step, validate(step, adapter) every `validate_every` steps and at
    the end, both in the main process only. metadata is written into the result.

    With an out_dir, `state.safetensors` (all that resuming needs) and `adapter.safetensors` (published names) are
    written every `save_every` steps, at the end, and when Ctrl-C is pressed. resume goes on from that state where there
    is one. Raises FileExistsError for an out_dir that holds a run nobody asked to resume, ValueError for a state of
    other settings, FloatingPointError for a loss that is not finite.
    """
    if not resume:
        check_unused(settings.out_dir)
    run = TrainingRun(adapter, settings, find_devices(), metadata or {})
    if run.state_exists():
        run.load()
    stream = SampleStream(
        examples,
        len(alphas_cumprod),
        settings.seed,
        settings.empty_share,
        settings.high_noise_share,
        examples.groups if settings.buckets else None,
        settings.batch_size,
    )
    alphas_cumprod = alphas_cumprod.to(run.device, torch.float32)

    def compute_loss(indices: range) -> torch.Tensor:
        return batch_loss(run.wrapped, denoiser, encode_text, stream.batch(indices), alphas_cumprod, settings)

    run_to_end(run, compute_loss, report, validate)
    adapter.load_state_dict(run.result.state_dict())
    return adapter


def run_to_end(
    run: TrainingRun,
    compute_loss: Callable[[range], torch.Tensor],
    report: Callable[[int, int, float, float], None] | None = None,
    validate: Callable[[int, Any], None] | None = None,
) -> None:
    """Take the steps that are left, write what is due, and say how far it is; see `train_adapter`.

    Raises KeyboardInterrupt after the step in which Ctrl-C was pressed.
    """
    report, settings = report or print_progress, run.settings
    started, first = time.monotonic(), run.step
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


def batch_loss(
    adapter: Callable[[Any], Any],
    denoiser: Denoiser,
    encode_text: Callable[..., Any],
    batch: Batch,
    alphas_cumprod: torch.Tensor,
    settings: TrainSettings,
) -> torch.Tensor:
    """Return the loss of one batch, on the device of alphas_cumprod; the adapter's weights get gradients from it."""
    device = alphas_cumprod.device
    latents, noise, timesteps = (tensor.to(device) for tensor in batch[:3])
    captions, sizes = batch[3:]
    alpha = alphas_cumprod[timesteps]
    with torch.no_grad():
        states = (encode_text(captions) if sizes is None else encode_text(captions, sizes)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        predicted = denoiser(add_noise(latents, noise, alpha), timesteps, adapter(states))
    return diffusion_loss(
        predicted, latents, noise, alpha, settings.prediction, settings.high_noise_weight, settings.min_snr
    )


def check_unused(out_dir: Path | None) -> None:
    """Raise FileExistsError where a folder already holds a training run."""
    if out_dir is not None and (Path(out_dir) / STATE_FILE).is_file():
        raise FileExistsError(
            f"{out_dir} already holds a training run ({STATE_FILE}): resume it, or name another folder"
        )


def find_devices():
    """Find the devices and the other processes.

    Precision and placement stay with this module: accelerate's are fixed once per process.
    """
    accelerate: Any = import_training_package("accelerate")
    return accelerate.Accelerator(mixed_precision="no", device_placement=False)


def compute_beside(accelerator) -> None:
    """Let ComfyUI compute where the training does: on a CPU, else it takes a GPU that is not there."""
    from comfy.cli_args import args  # ComfyUI, which --help does not need

    args.cpu = args.cpu or accelerator.device.type == "cpu"


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
