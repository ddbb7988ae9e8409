"""The arithmetic of diffusion that training and its validation images share: noising, the loss, a deterministic
sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.nn import functional as F

PREDICTIONS = ("epsilon", "v_prediction")
WEIGHT_LIMIT = 30.0


@dataclass(frozen=True)
class Context:
    """What an adapter gives of a batch and a denoiser reads.

    rows [B, Q, D]; mask bool [B, Q], for PixArt (True: read); for SDXL vector [B, 2816], the pooled vector and the
    sizes, and embedding [B, 1280], what an adapter's own size embedding makes of it in place of the base's.
    """

    rows: torch.Tensor
    mask: torch.Tensor | None = None
    vector: torch.Tensor | None = None
    embedding: torch.Tensor | None = None


# (x_t [B, C, h, w], t [B] long, context: a Context or its rows alone) -> the prediction [B, C, h, w]
Denoiser = Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]


def as_context(context: Context | torch.Tensor) -> Context:
    """Return a context; rows alone become one."""
    return Context(context) if isinstance(context, torch.Tensor) else context


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Add noise to latents, both [B, C, h, w], as the forward diffusion does; alpha (cumulative) [B] -> x_t."""
    alpha = alpha.view(-1, 1, 1, 1)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def diffusion_loss(
    predicted, latents, noise, alpha, prediction: str, high_noise_weight: bool = False, min_snr: float = 0.0
) -> torch.Tensor:
    """Return the mean squared error of the prediction against the noise, or the velocity; a scalar in float32.

    high_noise_weight multiplies each sample's error by sqrt(min(30, 1 / alpha)). min_snr, where it is not 0, weighs the
    error of the clean latents by min(snr, min_snr), as in arXiv 2303.09556: samples with little noise count less.
    """
    target = noise
    if prediction == "v_prediction":
        a = alpha.view(-1, 1, 1, 1)
        target = a.sqrt() * noise - (1 - a).sqrt() * latents
    loss = F.mse_loss(predicted.float(), target, reduction="none").mean(dim=(1, 2, 3))
    if high_noise_weight:
        loss = loss * (1 / alpha).clamp(max=WEIGHT_LIMIT).sqrt()
    if min_snr:
        loss = loss * min_snr_weight(alpha, prediction, min_snr)
    return loss.mean()


def min_snr_weight(alpha: torch.Tensor, prediction: str, limit: float) -> torch.Tensor:
    """Return the weight of each sample's error, of the noise or the velocity; alpha (cumulative) [B]."""
    clamped = torch.minimum(alpha, limit * (1 - alpha))  # (1 - alpha) * min(snr, limit): finite at both ends
    return clamped / (1 if prediction == "v_prediction" else alpha)


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    context: Context | torch.Tensor,
    empty_context: Context | torch.Tensor,
    alphas_cumprod: torch.Tensor,
    steps: int,
    cfg: float,
    seed: int,
    shape: tuple[int, int, int],
    prediction: str = "epsilon",
) -> torch.Tensor:
    """Sample with DDIM, without added noise: contexts of B and 1 prompts, shape (C, h, w) -> latents [B, C, h, w].

    They are on the context's device. Image i starts from the noise of seed + i, whatever the size of the batch.
    """
    both = _behind(as_context(empty_context), as_context(context))
    given = both.rows if isinstance(context, torch.Tensor) else both
    device, count = both.rows.device, len(both.rows) // 2
    x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)]).to(
        device
    )
    timesteps = torch.linspace(len(alphas_cumprod) - 1, 0, steps + 1).round().long().tolist()[:-1]
    alphas = [float(alphas_cumprod[t]) for t in timesteps] + [1.0]
    for t, alpha, next_alpha in zip(timesteps, alphas, alphas[1:], strict=False):
        times = torch.full((2 * count,), t, device=device)
        unconditional, conditional = denoiser(torch.cat([x, x]), times, given).float().chunk(2)
        predicted = unconditional + cfg * (conditional - unconditional)
        if prediction == "v_prediction":
            clean = alpha**0.5 * x - (1 - alpha) ** 0.5 * predicted
            noise = alpha**0.5 * predicted + (1 - alpha) ** 0.5 * x
        else:
            clean = (x - (1 - alpha) ** 0.5 * predicted) / alpha**0.5
            noise = predicted
        x = next_alpha**0.5 * clean + (1 - next_alpha) ** 0.5 * noise
    return x


def _behind(empty: Context, context: Context) -> Context:
    """Return the context of one prompt, repeated, and behind it the other's."""
    count = len(context.rows)
    pairs = {field.name: (getattr(empty, field.name), getattr(context, field.name)) for field in fields(Context)}
    return Context(
        **{
            name: torch.cat([one.expand(count, *one.shape[1:]), other])
            for name, (one, other) in pairs.items()
            if one is not None
        }
    )
