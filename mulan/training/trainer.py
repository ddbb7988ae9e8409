"""Train a language adapter between a frozen text encoder and a frozen diffusion base, on English captions.

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
from typing import Any

import torch

from ..conditioning.adapter import LanguageAdapter
from .dataset import SampleStream
from .diffusion import Denoiser, add_noise, diffusion_loss
from .run import STATE_FILE, TrainingRun, TrainSettings, import_training_package


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
        check_unused(settings.out_dir)
    run = TrainingRun(adapter, settings, find_devices(), metadata or {})
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
