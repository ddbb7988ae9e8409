"""What a training run will take: counted, and measured with one batch of random numbers before anything is encoded."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..boundary.values import format_size
from ..conditioning.families import PIXART
from .adapters import AdapterPlan
from .base_models import DiffusionBase
from .dataset import Size
from .run import TrainSettings
from .samples import Batch
from .text_states import TextStates
from .trainer import batch_loss

ADAM_COPIES = 4  # float32: weights, gradients, two of AdamW
QUICK = 10.0  # seconds; a first batch that took no longer is measured again, without what happens once


@dataclass(frozen=True)
class Estimate:
    """Bytes of memory and seconds. activations: what is kept for the gradients of one batch."""

    base_parameters: int
    base: int
    autoencoder: int
    adapter_parameters: int
    adapter: int
    activations: int
    batch_seconds: float
    free: int

    @property
    def total(self) -> int:
        return self.base + self.autoencoder + self.adapter + self.activations


def estimate_training(
    adapter: nn.Module,
    base: DiffusionBase,
    plan: AdapterPlan,
    size: Size,
    settings: TrainSettings,
    device: torch.device,
) -> Estimate:
    """Measure one batch, forward and backward, with images of `size` and random numbers. No weight changes.

    Raises ValueError that says what takes less where the memory does not suffice.
    """
    import comfy.model_management  # imports ComfyUI, which nothing else here needs

    weights = [*base.model.parameters(), *base.autoencoder.parameters(), *adapter.parameters()]
    batch, states = _random_batch(base, plan, size, settings.batch_size)
    alphas = base.alphas_cumprod.to(device, torch.float32)

    def run() -> tuple[int, float]:
        started = time.monotonic()
        saved = _SavedBytes(weights)
        with torch.autograd.graph.saved_tensors_hooks(saved.count, lambda tensor: tensor):
            loss = batch_loss(adapter, base.denoiser, lambda *_: states, batch, alphas, settings)
        loss.backward()
        loss.item()  # waits for the device
        return saved.total, time.monotonic() - started

    try:
        activations, seconds = run()
        if seconds < QUICK:
            seconds = run()[1]
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ValueError(
            f"one batch of {settings.batch_size} images of {size[1]} x {size[0]} does not fit into the memory: lower "
            f"--batch-size (and raise --accumulate), add --gradient-checkpointing, or take --precision bf16"
        ) from error
    finally:
        adapter.zero_grad(set_to_none=True)
    free: Any = comfy.model_management.get_free_memory(device)
    parameters = sum(parameter.numel() for parameter in adapter.parameters())
    copies = ADAM_COPIES + (settings.ema > 0)
    return Estimate(
        base_parameters=sum(parameter.numel() for parameter in base.model.parameters()),
        base=_bytes(base.model),
        autoencoder=_bytes(base.autoencoder),
        adapter_parameters=parameters,
        adapter=4 * copies * parameters,
        activations=activations,
        batch_seconds=seconds,
        free=int(free),
    )


def describe_estimate(estimate: Estimate, settings: TrainSettings, size: Size, processes: int, disk: int) -> str:
    """Return the estimate as lines for a terminal. disk: bytes that will be written."""
    step = estimate.batch_seconds * settings.gradient_accumulation
    images = settings.batch_size * settings.gradient_accumulation * processes
    more = estimate.adapter + estimate.activations
    return "\n".join(
        (
            "What this run takes, one batch measured with random numbers:",
            f"  base         {estimate.base_parameters / 1e6:,.1f} M parameters, {format_size(estimate.base)}; "
            f"autoencoder {format_size(estimate.autoencoder)}",
            f"  adapter      {estimate.adapter_parameters / 1e6:,.1f} M parameters, {format_size(estimate.adapter)} "
            f"with gradients and optimizer",
            f"  activations  {format_size(estimate.activations)} for {settings.batch_size} images of "
            f"{size[1]} x {size[0]}",
            f"  together     {format_size(estimate.total)}; {format_size(more)} of it are still to come, "
            f"{format_size(estimate.free)} are free",
            f"  time         {step:.2f} s a step of {images} images; {settings.steps:,} steps: "
            f"{_duration(step * settings.steps)}",
            f"  disk         up to {format_size(disk)} for latents and text states",
        )
    )


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _random_batch(base: DiffusionBase, plan: AdapterPlan, size: Size, count: int) -> tuple[Batch, TextStates]:
    generator = torch.Generator().manual_seed(0)
    height, width = (side // base.downscale_factor for side in size)
    latents, noise = torch.randn(2, count, base.latent_channels, height, width, generator=generator)
    timesteps = torch.randint(0, len(base.alphas_cumprod), (count,), generator=generator)
    sizes = torch.tensor([[*size, 0, 0, *size]]).expand(count, -1)
    rows = plan.family.adapter_rows
    pooled = None if plan.projection_dim is None else torch.randn(count, plan.projection_dim, generator=generator)
    states = TextStates(
        torch.randn(count, rows, plan.text_hidden_size, generator=generator),
        torch.zeros(count, dtype=torch.bool),
        pooled,
        torch.ones(count, rows, dtype=torch.bool) if plan.family is PIXART else None,
        sizes,
    )
    return (latents, noise, timesteps, [""] * count, sizes), states


class _SavedBytes:
    """Counts the memory of the tensors that are kept for a backward pass, those of weights left out."""

    def __init__(self, weights: Iterable[torch.Tensor]):
        self.total = 0
        self._seen = {weight.untyped_storage().data_ptr() for weight in weights}

    def count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage: Any = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor
