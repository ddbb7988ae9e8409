"""The arithmetic of diffusion that training and its validation images share: noising, the loss, a deterministic
sampler.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

PREDICTIONS = ("epsilon", "v_prediction")
WEIGHT_LIMIT = 30.0

# (x_t [B, C, h, w], t [B] long, context [B, Q, D]) -> the prediction [B, C, h, w]
Denoiser = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Add noise to latents, both [B, C, h, w], as the forward diffusion does; alpha (cumulative) [B] -> x_t."""
    alpha = alpha.view(-1, 1, 1, 1)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def diffusion_loss(predicted, latents, noise, alpha, prediction: str, high_noise_weight: bool = False) -> torch.Tensor:
    """Return the mean squared error of the prediction against the noise, or the velocity; a scalar in float32.

    weigh_high_noise multiplies each sample's error by sqrt(min(30, 1 / alpha)).
    """
    target = noise
    if prediction == "v_prediction":
        a = alpha.view(-1, 1, 1, 1)
        target = a.sqrt() * noise - (1 - a).sqrt() * latents
    loss = F.mse_loss(predicted.float(), target, reduction="none").mean(dim=(1, 2, 3))
    if high_noise_weight:
        loss = loss * (1 / alpha).clamp(max=WEIGHT_LIMIT).sqrt()
    return loss.mean()


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    context: torch.Tensor,
    empty_context: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    steps: int,
    cfg: float,
    seed: int,
    shape: tuple[int, int, int],
    prediction: str = "epsilon",
) -> torch.Tensor:
    """Sample with DDIM, without added noise: contexts [B, Q, D] and [1, Q, D], shape (C, h, w) -> latents [B, C, h, w].

    They are on the context's device. Image i starts from the noise of seed + i, whatever the size of the batch.
    """
    device = context.device
    x = torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(context))]
    ).to(device)
    both = torch.cat([empty_context.expand_as(context), context])
    timesteps = torch.linspace(len(alphas_cumprod) - 1, 0, steps + 1).round().long().tolist()[:-1]
    alphas = [float(alphas_cumprod[t]) for t in timesteps] + [1.0]
    for t, alpha, next_alpha in zip(timesteps, alphas, alphas[1:], strict=False):
        times = torch.full((len(both),), t, device=device)
        unconditional, conditional = denoiser(torch.cat([x, x]), times, both).float().chunk(2)
        predicted = unconditional + cfg * (conditional - unconditional)
        if prediction == "v_prediction":
            clean = alpha**0.5 * x - (1 - alpha) ** 0.5 * predicted
            noise = alpha**0.5 * predicted + (1 - alpha) ** 0.5 * x
        else:
            clean = (x - (1 - alpha) ** 0.5 * predicted) / alpha**0.5
            noise = predicted
        x = next_alpha**0.5 * clean + (1 - next_alpha) ** 0.5 * noise
    return x
