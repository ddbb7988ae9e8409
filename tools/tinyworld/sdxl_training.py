"""Trains the tiny SDXL's base and its MuLan adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from mulan_nodes.mulan.training import text_states, trainer
from mulan_nodes.mulan.training.adapters import TwoAdapters, init_weights, size_vector
from mulan_nodes.mulan.training.diffusion import Context, as_context

from . import captions, narrow, sdxl, world
from .adapter_training import CAPTIONS_PER_PICTURE, TextStates
from .base_training import alphas_cumprod, clip_tokens, denoising_loss, english_texts, latents_of, score_of
from .pack import METADATA, write_pack_file
from .stages import SEED, draw_corpus, is_finished, train_stage
from .text_training import PREFIX, TextEncoder

WINDOW = 83
CLIP_L, CLIP_G = 96, sdxl.FIRST + sdxl.SECOND - 96  # widths of its own text encoders


class Base(nn.Module):
    """The UNet and its two CLIPs."""

    def __init__(self, texts: Sequence[str]):
        super().__init__()
        ids = clip_tokens(texts)
        self.places = dict(zip(texts, torch.searchsorted(ids.unique(), ids), strict=True))
        self.clips = nn.ModuleList(narrow.clip(len(ids.unique()), width) for width in (CLIP_L, CLIP_G))
        self.pooling = nn.Linear(CLIP_G, sdxl.POOLED)
        self.unet = sdxl.unet()

    def context(self, texts: Sequence[str]) -> Context:
        """Texts -> rows [B, 77, 240], and the vector of the pooled text, zeros for "", and of sizes of any image."""
        ids = torch.stack([self.places[text] for text in texts])
        first, second = (clip(ids) for clip in self.clips)
        said = torch.tensor([[bool(text)] for text in texts])
        pooled = self.pooling(second.pooler_output) * said
        vector = torch.cat([pooled, size_vector(torch.stack([any_sizes() for _ in texts]))], dim=1)
        return Context(torch.cat([first.last_hidden_state, second.last_hidden_state], dim=2), vector=vector)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: Context) -> torch.Tensor:
        given = as_context(context)
        return self.unet(x, timesteps, context=given.rows, y=given.vector)


def any_sizes(generator: torch.Generator | None = None) -> torch.Tensor:
    """SDXL's numbers of a whole square image of any side: the tiny world looks the same at each."""
    side = 64 * int(torch.randint(1, 17, (), generator=generator))
    return torch.tensor([side, side, 0, 0, side, side])


def train_base(work_dir: Path, autoencoder: narrow.TinyAutoencoder, steps: int = 1200) -> Base:
    """Learns all things, the held-out pairs too, under English captions only."""
    torch.manual_seed(SEED)
    model = Base(english_texts())
    if is_finished("sdxl_base", work_dir):
        model.load_state_dict(load_file(work_dir / "sdxl_base.safetensors"))
        return model
    latents, alphas = latents_of(autoencoder, draw_corpus(SEED)), alphas_cumprod()

    def loss_of(rng):
        things = rng.integers(len(latents), size=32)
        clean = latents[things, rng.integers(latents.shape[1], size=32)]
        texts = [
            captions.caption(world.THINGS[i], "en", rng, captions.choose_attributes(rng, drop=0.1)) for i in things
        ]
        texts = ["" if empty else text for empty, text in zip(rng.random(32) < 0.1, texts, strict=True)]
        return denoising_loss(model, clean, model.context(texts), alphas, rng)

    def score(copied):
        return score_of(autoencoder, copied, copied.context, cfg=sdxl.CFG)

    train_stage("sdxl_base", work_dir, model, loss_of, steps=steps, learning_rate=2e-3, average=0.995, score=score)
    return model


class Examples(torch.utils.data.Dataset):
    """Latents of the things that are not held out, each under several English captions."""

    def __init__(self, autoencoder: narrow.TinyAutoencoder):
        self.latents = latents_of(autoencoder, draw_corpus(SEED, things=world.SEEN_THINGS))

    def __len__(self):
        things, variants = self.latents.shape[:2]
        return things * variants * CAPTIONS_PER_PICTURE

    def __getitem__(self, index):
        rng = np.random.default_rng((SEED, index))
        thing, variant = divmod(index // CAPTIONS_PER_PICTURE, self.latents.shape[1])
        text = captions.caption(world.SEEN_THINGS[thing], "en", rng, captions.choose_attributes(rng, drop=0.25))
        sizes = any_sizes(torch.Generator().manual_seed(index))
        return {"latent": self.latents[thing, variant], "caption": text, "sizes": sizes}


class SizedStates:
    """Captions and sizes -> what SDXL's adapter reads: every text stands behind the prefix, the empty one too."""

    def __init__(self, text_encoder: TextEncoder):
        english = [captions.full_caption(thing, "en") for thing in world.SEEN_THINGS]
        self.states = TextStates(text_encoder, english, WINDOW)

    def __call__(self, texts: Sequence[str], sizes: torch.Tensor | None = None, swapped: bool = False):
        behind_prefix = [PREFIX + text for text in texts]
        rows = self.states.swapped(behind_prefix) if swapped else self.states(behind_prefix)
        if sizes is None:
            sizes = torch.stack([any_sizes() for _ in texts])
        return text_states.TextStates(rows, torch.tensor([not text for text in texts]), sizes=sizes)


def train_adapter(
    work_dir: Path, autoencoder: narrow.TinyAutoencoder, text_encoder: TextEncoder, base: Base, steps: int = 1400
) -> TwoAdapters:
    """Trains the adapter with the library's trainer on English captions of the things that are not held out."""
    base.requires_grad_(False)
    model, states = sdxl.adapter(), SizedStates(text_encoder)
    init_weights(model, SEED)
    settings = trainer.TrainSettings(
        steps=steps,
        batch_size=32,
        learning_rate=1.5e-3,
        seed=SEED,
        high_noise_share=0.4,
        high_noise_weight=True,
        ema=0.995,
        save_every=500,
        validate_every=500,
        out_dir=work_dir / "sdxl_adapter",
        result_dtype="fp32",
    )

    def report(step, steps, loss, seconds_left):
        if step % 100 == 0:
            print(f"sdxl_adapter: step {step} of {steps}, loss {loss:.4f}, {seconds_left:.0f} s left", flush=True)

    def validate(step, adapter):
        for language in captions.LANGUAGES if step == steps else ("en", "zh", "hi"):
            score = score_of(autoencoder, base, lambda texts: adapter(states(texts)), language, cfg=sdxl.CFG)
            print(f"sdxl_adapter: {language}: {score}", flush=True)

    return trainer.train_adapter(
        model,
        base,
        lambda texts, sizes: states(texts, sizes, swapped=True),
        Examples(autoencoder),
        alphas_cumprod(),
        settings,
        report=report,
        validate=validate,
        resume=True,
    )


def build(work_dir: Path) -> Path:
    """Write the pack of UNet and adapter."""
    base = load_file(work_dir / "sdxl_base.safetensors")
    unet_tensors = {name.removeprefix("unet."): tensor for name, tensor in base.items() if name.startswith("unet.")}
    trained = load_file(work_dir / "sdxl_adapter" / "adapter.safetensors")
    return write_pack_file(sdxl.PACK, sdxl.gather(unet_tensors, trained), METADATA)
