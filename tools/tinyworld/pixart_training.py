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

LATER_STEPS = 600  # of the base without rows of padding
LAST_STAGE, LAST_STEPS = "pixart_base_by_ends", 700
SWAPPED_SHARE = 0.5
BEGIN_RATE = 2e-3
NAMES = (world.PALETTE, world.SHAPES, world.SIZES)  # of captions.ATTRIBUTES


class Base(EnglishBase):
    """The transformer, and a narrow CLIP in place of T5, which attention alone was slow to teach."""

    side, variants, batch = pixart.SIDE, 30, 16
    hides_padding = False
    swapped_share = 0.0  # of the texts whose words give way to another's while it learns

    def __init__(self, texts: Sequence[str]):
        super().__init__(texts)
        self.clip = narrow.clip(len(self.token_ids), pixart.CAPTIONS)
        self.transformer = pixart.Transformer()
        self.told = nn.Linear(pixart.WIDTH, sum(map(len, NAMES)))

    @staticmethod
    def alphas() -> torch.Tensor:
        return (1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)).cumprod(0).float()

    def context(self, texts: Sequence[str]) -> Context:
        """Texts -> rows [B, 77, 128]; of those behind the end a mask, as T5's are hidden from PixArt."""
        ids = self.tokens(texts)
        rows = self.transformer.project(self.clip(ids).last_hidden_state)
        if not self.hides_padding:
            return Context(rows)
        is_end = ids == len(self.token_ids) - 1  # padding repeats it
        context = Context(rows, mask=is_end.cumsum(1) <= is_end)
        return self._swapped(context) if self.swapped_share and torch.is_grad_enabled() else context

    def _swapped(self, context: Context) -> Context:
        """The words of another text in place of some texts' own; where that has fewer, its first row."""
        assert context.mask is not None, "what `context` gives"
        is_end = torch.zeros_like(context.mask)
        is_end[torch.arange(len(is_end)), context.mask.sum(1) - 1] = True
        others, are_words = context.rows.roll(1, 0), (context.mask & ~is_end).roll(1, 0)
        others = torch.where(are_words[..., None], others, others[:, :1])
        swapped = (torch.rand(len(is_end)) < self.swapped_share)[:, None] & ~is_end
        return Context(torch.where(swapped[..., None], others, context.rows), mask=context.mask)

    def telling_loss(self, context: Context, things: np.ndarray, said: torch.Tensor) -> torch.Tensor:
        """How badly the mean of the rows tells colour, shape and size, where they are a text's own."""
        if self.swapped_share:
            return torch.zeros(())
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
    """See `fit_base`. Then without rows of padding, in the end with the words of other texts: so it reads a text from
    its end, which is the row that languages share.
    """
    torch.manual_seed(SEED)
    base = fit_base("pixart_base", Base(english_texts()), work_dir, autoencoder, steps, pixart.CFG)
    base.hides_padding, base.learning_rate = True, 8e-4
    base = fit_base("pixart_base_without_padding", base, work_dir, autoencoder, LATER_STEPS, pixart.CFG)
    base.swapped_share = SWAPPED_SHARE
    return fit_base(LAST_STAGE, base, work_dir, autoencoder, LAST_STEPS, pixart.CFG)


class MaskedStates:
    """Captions -> what PixArt's adapter reads: the rows up to the end."""

    def __init__(self, text_encoder: TextEncoder):
        self.states = TextStates(text_encoder, [captions.full_caption(thing, "en") for thing in world.SEEN_THINGS])

    def __call__(self, texts: list[str], swapped: bool = False) -> text_states.TextStates:
        rows = self.states.swapped(texts) if swapped else self.states(texts)
        ends = torch.tensor([self.states.end(text) for text in texts])
        mask = torch.arange(rows.shape[1]) <= ends[:, None]
        return text_states.TextStates(rows, torch.tensor([not text for text in texts]), mask=mask)


def begin(adapter: Projection, base: Base, states: MaskedStates, steps: int = 1500) -> Projection:
    """Let the row of a text's end give that of the base's own text encoder, and the words' rows the mean of its own.

    By the diffusion loss alone, one row among twenty learned nothing in 500 steps.
    """
    texts = captions.all_captions(world.SEEN_THINGS, "en")
    with torch.no_grad():
        parts = [_ends_and_words(base.context(texts[first : first + 64])) for first in range(0, len(texts), 64)]
    own, to_word = torch.cat([ends for ends, _ in parts]), torch.cat([words for _, words in parts]).mean(0)
    rng = np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=BEGIN_RATE)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = BEGIN_RATE * (1 - step / steps)
        chosen, number = rng.integers(len(texts), size=32), torch.arange(32)
        torch.manual_seed(SEED + step)
        read = states(_prefixed([texts[text] for text in chosen]), swapped=True)
        assert read.mask is not None, "what MaskedStates gives"
        rows, words = adapter(read).rows, read.mask.clone()
        ends = words.sum(1) - 1
        words[number, ends] = False
        loss = F.mse_loss(rows[number, ends], own[chosen]) + F.mse_loss(rows[words], to_word.expand_as(rows[words]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 500 == 0:
            print(f"pixart_adapter: begun, step {step + 1} of {steps}, loss {loss.item():.4f}", flush=True)
    return adapter


def _ends_and_words(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts -> the rows of the ends [B, 128], and those of the words [N, 128]."""
    assert context.mask is not None, "what the last stage leaves"
    ends, number = context.mask.sum(1) - 1, torch.arange(len(context.rows))
    words = context.mask.clone()
    words[number, ends] = False
    return context.rows[number, ends], context.rows[words]


def train_adapter(
    work_dir: Path, autoencoder: narrow.TinyAutoencoder, text_encoder: TextEncoder, base: Base, steps: int = 5000
) -> Projection:
    """Trains the adapter with the library's trainer on English captions of the things that are not held out."""
    states = MaskedStates(text_encoder)

    def scores(adapter, finished):
        for language in captions.LANGUAGES if finished else ("en", "zh", "hi"):
            context_of = partial(_context, adapter, states)
            yield language, score_of(autoencoder, base, context_of, language, cfg=pixart.CFG)

    swapped, examples = partial(states, swapped=True), Examples(autoencoder, base.variants, base.side)
    adapter = begin(fresh(pixart.adapter), base, states)
    return fit(adapter, work_dir / "pixart_adapter", base, swapped, examples, steps, scores, score_every=450)


def _context(adapter: Projection, states: MaskedStates, texts: Sequence[str]) -> Context:
    return adapter(states(_prefixed(texts)))


def _prefixed(texts: Sequence[str]) -> list[str]:
    """The texts as the nodes encode them; "" is the negative, which has no prefix."""
    return [PREFIX + text if text else text for text in texts]


def build(work_dir: Path) -> Path:
    """Write the pack of transformer and adapter."""
    base = load_file(work_dir / f"{LAST_STAGE}.safetensors")
    prefix = "transformer."
    transformer = {name.removeprefix(prefix): tensor for name, tensor in base.items() if name.startswith(prefix)}
    trained = load_file(work_dir / "pixart_adapter" / "adapter.safetensors")
    return write_pack_file(pixart.PACK, pixart.gather(transformer, trained), METADATA)
