"""Trains the tiny diffusion base: a UNet and its own English CLIP together, on the latents of the tiny autoencoder."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from mulan_nodes.mulan.training import diffusion
from mulan_nodes.mulan.training.run import TrainSettings

from . import captions, narrow, world
from .stages import SEED, VARIANTS, as_input, as_pictures, draw_corpus, is_finished, train_stage

CLIP_ROWS = 77
STEPS, CFG = 20, 4.0  # of the pictures that scores are taken from
SETTINGS = TrainSettings(steps=1, batch_size=1, learning_rate=1.0, high_noise_share=0.4, high_noise_weight=True)


def alphas_cumprod() -> torch.Tensor:
    """SD1.5's noise schedule ("scaled_linear"), float32 [1000]."""
    return (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0).float()


def clip_tokens(texts: Sequence[str]) -> torch.Tensor:
    """Texts -> their 77 ids each in CLIP's own vocabulary, padded as SD1.5 pads. Needs ComfyUI's folder on the path."""
    comfy = importlib.util.find_spec("comfy")
    if comfy is None or not comfy.submodule_search_locations:
        raise ModuleNotFoundError(
            "the tiny base needs CLIP's vocabulary from ComfyUI, but sys.path has no module `comfy`: add ComfyUI's "
            "folder"
        )
    tokenizer = CLIPTokenizer.from_pretrained(Path(comfy.submodule_search_locations[0]) / "sd1_tokenizer")
    return torch.tensor(tokenizer(list(texts), padding="max_length", max_length=CLIP_ROWS)["input_ids"])


def english_texts() -> list[str]:
    """Every English caption, and ""."""
    return captions.all_captions(world.THINGS, "en")


class EnglishBase(nn.Module, ABC):
    """A denoiser with its own text encoders over only the tokens of some texts, and the table from texts to those.

    Its pictures are the world's, enlarged to `side` pixels; it learns from so many `variants` of each, so many in a
    batch.
    """

    side, variants, batch, learning_rate = world.PICTURE_SIZE, VARIANTS, 32, 2e-3

    def __init__(self, texts: Sequence[str]):
        super().__init__()
        ids = clip_tokens(texts)
        self.token_ids: torch.Tensor  # index in the narrow vocabulary -> id in CLIP's
        self.register_buffer("token_ids", ids.unique())
        self.places = dict(zip(texts, torch.searchsorted(self.token_ids, ids), strict=True))

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts -> ids in the narrow vocabulary [B, 77]."""
        return torch.stack([self.places[text] for text in texts])

    @staticmethod
    def alphas() -> torch.Tensor:
        """The noise schedule, float32 [1000]."""
        return alphas_cumprod()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return 4, self.side // 8, self.side // 8

    @abstractmethod
    def context(self, texts: Sequence[str]) -> Any:
        """Texts -> what the denoiser reads."""

    def telling_loss(self, context: Any, things: np.ndarray, said: torch.Tensor) -> torch.Tensor | float:
        """What is added to the loss so that a context tells the thing that is said (bool [B]) in it."""
        return 0.0


AnyBase = TypeVar("AnyBase", bound=EnglishBase)


class Base(EnglishBase):
    """The UNet and its CLIP. heads, levels: the UNet's."""

    def __init__(self, texts: Sequence[str], heads: int = 8, levels: int = 1):
        super().__init__(texts)
        self.clip = narrow.clip(len(self.token_ids))
        self.unet = narrow.denoiser(heads, levels)

    def context(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts -> [B, 77, 96]."""
        return self.clip(self.tokens(texts)).last_hidden_state

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.unet(x, timesteps, context).sample


def latents_of(autoencoder: narrow.TinyAutoencoder, pictures: torch.Tensor, side: int | None = None) -> torch.Tensor:
    """uint8 pictures [things, variants, 3, S, S] -> latents [things, variants, 4, S / 8, S / 8]. side: enlarged to."""
    with torch.no_grad():
        return torch.stack([autoencoder.taesd_encoder(resized(as_input(part), side)) for part in pictures])


def resized(images: torch.Tensor, side: int | None) -> torch.Tensor:
    """Float images [B, 3, S, S] of another size; None: as they are."""
    if side in (None, images.shape[-1]):
        return images
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


def denoising_loss(
    model: diffusion.Denoiser,
    clean: torch.Tensor,
    context: diffusion.Context | torch.Tensor,
    alphas: torch.Tensor,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Latents [B, 4, h, w] under contexts -> the loss, much noise more often than little."""
    timesteps = torch.from_numpy(rng.integers(np.where(rng.random(len(clean)) < 0.4, 600, 0), 1000))
    noise, alphas = torch.randn_like(clean), alphas[timesteps]
    predicted = model(diffusion.add_noise(clean, noise, alphas), timesteps, context)
    return diffusion.diffusion_loss(predicted, clean, noise, alphas, SETTINGS.prediction, SETTINGS.high_noise_weight)


def train_base(work_dir: Path, autoencoder: narrow.TinyAutoencoder, steps: int = 3500) -> Base:
    """See `fit_base`."""
    torch.manual_seed(SEED)
    return fit_base("base", Base(english_texts()), work_dir, autoencoder, steps)


def fit_base(
    stage: str, model: AnyBase, work_dir: Path, autoencoder: narrow.TinyAutoencoder, steps: int, cfg: float = CFG
) -> AnyBase:
    """Learns all things, the held-out pairs too, under English captions only. cfg: of the pictures that score it."""
    if is_finished(stage, work_dir):
        model.load_state_dict(load_file(work_dir / f"{stage}.safetensors"))
        return model
    latents = latents_of(autoencoder, draw_corpus(SEED, model.variants), model.side)
    alphas = model.alphas()

    def loss_of(rng):
        things = rng.integers(len(latents), size=model.batch)
        clean = latents[things, rng.integers(latents.shape[1], size=model.batch)]
        texts = [
            captions.caption(world.THINGS[i], "en", rng, captions.choose_attributes(rng, drop=0.1)) for i in things
        ]
        texts = ["" if empty else text for empty, text in zip(rng.random(model.batch) < 0.1, texts, strict=True)]
        context, said = model.context(texts), torch.tensor([bool(text) for text in texts])
        return denoising_loss(model, clean, context, alphas, rng) + model.telling_loss(context, things, said)

    def score(copied):
        return score_of(autoencoder, copied, copied.context, cfg=cfg)

    rate = model.learning_rate
    train_stage(stage, work_dir, model, loss_of, steps=steps, learning_rate=rate, average=0.995, score=score)
    return model


@torch.no_grad()
def score_of(
    autoencoder, denoiser: EnglishBase, context_of, language: str = "en", empty: str = "", cfg: float = CFG
) -> str:
    """One picture of every thing (DDIM, 20 steps), prompted in `language`, read back."""
    texts = [captions.full_caption(thing, language, i) for i, thing in enumerate(world.THINGS)]
    latents = diffusion.sample(
        denoiser, context_of(texts), context_of([empty]), denoiser.alphas(), STEPS, cfg, SEED, denoiser.latent_shape
    )
    images = resized(autoencoder.taesd_decoder(latents).clamp(0, 1), world.PICTURE_SIZE)
    readings = list(map(world.read, as_pictures(images)))

    def share(holds, things=world.THINGS):
        return np.mean(
            [holds(reading, thing) for reading, thing in zip(readings, world.THINGS, strict=True) if thing in things]
        )

    held_out = [thing for thing in world.THINGS if thing.held_out]
    return (
        f"colour and shape {share(world.Reading.agrees):.2f} (held-out pairs "
        f"{share(world.Reading.agrees, held_out):.2f}), "
        f"strictly {share(world.Reading.agrees_strictly):.2f}, colour {share(lambda r, t: r.colour == t.colour):.2f}, "
        f"shape {share(lambda r, t: r.shape == t.shape):.2f}, size {share(lambda r, t: r.size == t.size):.2f}"
    )
