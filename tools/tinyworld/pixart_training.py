"""Trains the tiny PixArt's base and its MuLan adapter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from mulan_nodes.mulan.training import text_states
from mulan_nodes.mulan.training.adapters import Projection
from mulan_nodes.mulan.training.diffusion import Context

from . import captions, narrow, pixart, world
from .adapter_training import Examples, TextStates, fit, fresh
from .base_training import EnglishBase, english_texts, fit_base, score_of
from .pack import METADATA, write_pack_file
from .stages import SEED
from .text_training import PREFIX, TextEncoder

NAMES = tuple(
    {"colour": world.PALETTE, "shape": world.SHAPES, "size": world.SIZES}[name] for name in captions.ATTRIBUTES
)


class Base(EnglishBase):
    """The transformer, and a narrow CLIP in place of T5, which attention alone was slow to teach."""

    side, variants, batch = pixart.SIDE, 30, 16

    def __init__(self, texts: Sequence[str]):
        super().__init__(texts)
        self.clip = narrow.clip(len(self.token_ids), pixart.CAPTIONS)
        self.transformer = pixart.Transformer()
        self.told = nn.Linear(pixart.WIDTH, sum(map(len, NAMES)))

    @staticmethod
    def alphas() -> torch.Tensor:
        return (1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)).cumprod(0).float()

    def context(self, texts: Sequence[str]) -> Context:
        """Texts -> rows [B, 77, 128]."""
        return Context(self.transformer.project(self.clip(self.tokens(texts)).last_hidden_state))

    def telling_loss(self, context: Context, things: np.ndarray, said: torch.Tensor) -> torch.Tensor:
        """How badly the mean of the rows tells colour, shape and size."""
        parts = self.told(context.rows.mean(1)[said]).split([len(names) for names in NAMES], dim=1)
        named = [world.THINGS[thing] for thing in things[said.numpy()]]
        losses = [
            F.cross_entropy(part, torch.tensor([list(names).index(getattr(thing, attribute)) for thing in named]))
            for part, names, attribute in zip(parts, NAMES, captions.ATTRIBUTES, strict=True)
        ]
        return 0.02 * torch.stack(losses).sum()

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: Context) -> torch.Tensor:
        return self.transformer(x, timesteps, context)


def train_base(work_dir: Path, autoencoder: narrow.TinyAutoencoder, steps: int = 3000) -> Base:
    """See `fit_base`."""
    torch.manual_seed(SEED)
    return fit_base("pixart_base", Base(english_texts()), work_dir, autoencoder, steps, pixart.CFG)


class MaskedStates:
    """Captions -> what PixArt's adapter reads: the rows up to the end."""

    def __init__(self, text_encoder: TextEncoder):
        self.states = TextStates(text_encoder, [captions.full_caption(thing, "en") for thing in world.SEEN_THINGS])

    def __call__(self, texts: list[str], swapped: bool = False) -> text_states.TextStates:
        rows = self.states.swapped(texts) if swapped else self.states(texts)
        ends = torch.tensor([self.states.end(text) for text in texts])
        mask = torch.arange(rows.shape[1]) <= ends[:, None]
        return text_states.TextStates(rows, torch.tensor([not text for text in texts]), mask=mask)


def train_adapter(
    work_dir: Path, autoencoder: narrow.TinyAutoencoder, text_encoder: TextEncoder, base: Base, steps: int = 1500
) -> Projection:
    """Trains the adapter with the library's trainer on English captions of the things that are not held out."""
    states = MaskedStates(text_encoder)

    def scores(adapter, finished):
        for language in captions.LANGUAGES if finished else ("en", "zh", "hi"):
            context_of = partial(_context, adapter, states)
            yield language, score_of(autoencoder, base, context_of, language, cfg=pixart.CFG)

    swapped, examples = partial(states, swapped=True), Examples(autoencoder, base.variants, base.side)
    return fit(
        fresh(pixart.adapter), work_dir / "pixart_adapter", base, swapped, examples, steps, scores, score_every=500
    )


def _context(adapter: Projection, states: MaskedStates, texts: Sequence[str]) -> Context:
    return adapter(states([PREFIX + text if text else text for text in texts]))


def build(work_dir: Path) -> Path:
    """Write the pack of transformer and adapter."""
    base = load_file(work_dir / "pixart_base.safetensors")
    prefix = "transformer."
    transformer = {name.removeprefix(prefix): tensor for name, tensor in base.items() if name.startswith(prefix)}
    trained = load_file(work_dir / "pixart_adapter" / "adapter.safetensors")
    return write_pack_file(pixart.PACK, pixart.gather(transformer, trained), METADATA)
