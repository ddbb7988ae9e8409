"""Where in an image each word of its prompt acts: leave the word out, and see where cross-attention answers otherwise.

A prompt's words are mixed twice before the image reads them: later rows of the language model contain earlier words,
and each row of the adapter's context reads all of them. So the attention that an image pays to rows tells nothing of
words. Here the prompt is encoded again without the word, both contexts meet the same noisy image, and the difference
of what cross-attention returns is the word's map. It holds for any text encoder. Negative prompt and cfg take no part:
the guided difference is cfg times this one, everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch.nn import functional as F

from ..boundary.interrupts import interruptible

BATCH_SIZE = 8  # prompts that ComfyUI is given at once
# Shares of the noise schedule that are gone: in more noise the drawn image is not to be seen, and maps blur.
FIRST, LAST = 0.4, 1.0

Conditioning = list[list]


def map_words(
    model: ModelPatcher, latent: torch.Tensor, whole: Conditioning, without: Sequence[Conditioning], steps: int
) -> torch.Tensor:
    """Return the map of each word of the prompt `whole` in one image: float32 [N, h, w], of the latent's size.

    latent [1, C, h, w]. `without`: the prompt without each of the N words. A value is the length of the change of the
    cross-attention's output, as a share of the output's own, the mean over all layers and `steps` amounts of noise.
    Pooled vectors are those of the whole prompt. Raises ValueError where the MODEL does not report cross-attention.
    """
    # The pooled vector has no place in the image
    others = [
        [[context, entry] for (context, _), (_, entry) in zip(conds, whole * len(conds), strict=False)]
        for conds in without
    ]
    recorder = _Recorder(len(others), latent.shape[-2:])
    patched = model.clone()
    patched.set_model_attn2_output_patch(recorder)
    guider = _WordGuider(patched, recorder)
    guider.inner_set_conds({str(index): conds for index, conds in enumerate([whole, *others])})
    sampling: Any = model.get_model_object("model_sampling")
    shares = torch.linspace(FIRST, LAST, steps + 2)[1:-1].tolist()
    sigmas = torch.tensor([float(sampling.percent_to_sigma(share)) for share in shares])
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    guider.sample(noise, latent, _Noises(), sigmas, disable_pbar=True, seed=0)
    return recorder.mean()


class _Recorder:
    """What ComfyUI calls behind every cross-attention of the UNet. Holds one output per layer, and a map per word."""

    def __init__(self, num_words: int, size: torch.Size):
        self._sums, self._size = torch.zeros(num_words, *size), size
        self._count = 0
        self._whole: dict[tuple, torch.Tensor] = {}
        self.first: int | None = None  # word of the batch's first prompt; None for the whole prompt

    def __call__(self, out: torch.Tensor, extra_options: dict) -> torch.Tensor:
        """Take a block's output [prompts, tokens, D], and return it as it is."""
        layer = (*extra_options["block"], extra_options["block_index"])
        if self.first is None:
            self._whole[layer] = out
            self._count += 1
            return out
        whole = self._whole[layer].float()
        change = (out.float() - whole).norm(dim=-1) / whole.norm(dim=-1).mean().clamp_min(1e-12)
        height, width = extra_options["activations_shape"][-2:]
        maps = F.interpolate(change.reshape(len(change), 1, height, width), self._size, mode="bilinear")[:, 0].cpu()
        for index, of_word in zip(extra_options["cond_or_uncond"], maps, strict=True):
            self._sums[self.first + index] += of_word
        return out

    def mean(self) -> torch.Tensor:
        return self._sums / max(1, self._count)

    def forget(self) -> None:
        """Let go of the outputs of the whole prompt."""
        self._whole.clear()

    @property
    def has_seen(self) -> bool:
        return self._count > 0


class _WordGuider(comfy.samplers.CFGGuider):
    """Has the model predict with the whole prompt, then without each word; what it predicts is not used."""

    def __init__(self, model: ModelPatcher, recorder: _Recorder):
        super().__init__(model)
        self._recorder = recorder

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006, as in ComfyUI
        """Return the prediction with the whole prompt."""
        whole, *others = [self.conds[str(index)] for index in range(len(self.conds))]

        def predict(conds):
            return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)

        self._recorder.first = None
        (predicted,) = predict([whole])
        if not self._recorder.has_seen:
            raise ValueError(
                f"the connected MODEL is a {type(self.inner_model).__name__}, which does not tell what its "
                "cross-attention returns. Connect an SD1.5, SD2.1 or SDXL checkpoint"
            )
        for first in interruptible(range(0, len(others), BATCH_SIZE)):
            self._recorder.first = first
            predict(others[first : first + BATCH_SIZE])
        self._recorder.forget()
        return predicted


class _Noises(comfy.samplers.Sampler):
    """Calls the model once per amount of noise, each time with the image itself under that noise."""

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        """Return the image as it came."""
        sampling, progress = model_wrap.inner_model.model_sampling, comfy.utils.ProgressBar(len(sigmas))
        for sigma in sigmas:
            model_wrap(sampling.noise_scaling(sigma, noise, latent_image), sigma.expand(len(noise)), **extra_args)
            progress.update(1)
        return latent_image
