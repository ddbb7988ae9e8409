"""Trains the tiny SDXL's base and its MuLan adapter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from mulan_nodes.mulan.conditioning.families import SDXL
from mulan_nodes.mulan.training import text_states
from mulan_nodes.mulan.training.adapters import TwoAdapters, size_vector
from mulan_nodes.mulan.training.diffusion import Context

from . import captions, narrow, sdxl, world
from .adapter_training import Examples, TextStates, fit, fresh
from .base_training import EnglishBase, english_texts, fit_base, score_of
from .pack import METADATA, write_pack_file
from .stages import SEED
from .text_training import PREFIX, TextEncoder


class Base(EnglishBase):
    """The UNet and its two CLIPs."""

    def __init__(self, texts: Sequence[str]):
        super().__init__(texts)
        self.clips = nn.ModuleList(narrow.clip(len(self.token_ids), width) for width in (sdxl.CLIP_L, sdxl.CLIP_G))
        self.pooling = nn.Linear(sdxl.CLIP_G, sdxl.POOLED)
        self.unet = sdxl.unet()

    def context(self, texts: Sequence[str]) -> Context:
        """Texts -> rows [B, 77, 240], and the vector of the pooled text, zeros for "", and of sizes of any image."""
        ids = self.tokens(texts)
        first, second = (clip(ids) for clip in self.clips)
        said = torch.tensor([[bool(text)] for text in texts])
        pooled = self.pooling(second.pooler_output) * said
        vector = torch.cat([pooled, size_vector(torch.stack([any_sizes() for _ in texts]))], dim=1)
        return Context(torch.cat([first.last_hidden_state, second.last_hidden_state], dim=2), vector=vector)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: Context) -> torch.Tensor:
        return self.unet(x, timesteps, context=context.rows, y=context.vector)


def any_sizes(generator: torch.Generator | None = None) -> torch.Tensor:
    """SDXL's numbers of a whole square image of any side: the tiny world looks the same at each."""
    side = 64 * int(torch.randint(1, 17, (), generator=generator))
    return torch.tensor([side, side, 0, 0, side, side])


def train_base(work_dir: Path, autoencoder: narrow.TinyAutoencoder, steps: int = 1200) -> Base:
    """See `fit_base`."""
    torch.manual_seed(SEED)
    return fit_base("sdxl_base", Base(english_texts()), work_dir, autoencoder, steps, sdxl.CFG)


class SizedExamples(Examples):
    """Each with sizes, its caption without the prefix."""

    def __getitem__(self, index):
        latent, text, _ = self.drawn(index)
        return {"latent": latent, "caption": text, "sizes": any_sizes(torch.Generator().manual_seed(index))}


class SizedStates:
    """Captions and sizes -> what SDXL's adapter reads: every text stands behind the prefix, the empty one too."""

    def __init__(self, text_encoder: TextEncoder):
        english = [captions.full_caption(thing, "en") for thing in world.SEEN_THINGS]
        self.states = TextStates(text_encoder, english, SDXL.prefixed_window)

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
    states = SizedStates(text_encoder)

    def scores(adapter, finished):
        for language in captions.LANGUAGES if finished else ("en", "zh", "hi"):
            context_of = partial(_context, adapter, states)
            yield language, score_of(autoencoder, base, context_of, language, cfg=sdxl.CFG)

    swapped, examples = partial(states, swapped=True), SizedExamples(autoencoder)
    return fit(fresh(sdxl.adapter), work_dir / "sdxl_adapter", base, swapped, examples, steps, scores, score_every=500)


def _context(adapter: TwoAdapters, states: SizedStates, texts: Sequence[str]) -> Context:
    return adapter(states(texts))


def build(work_dir: Path) -> Path:
    """Write the pack of UNet and adapter."""
    base = load_file(work_dir / "sdxl_base.safetensors")
    unet_tensors = {name.removeprefix("unet."): tensor for name, tensor in base.items() if name.startswith("unet.")}
    trained = load_file(work_dir / "sdxl_adapter" / "adapter.safetensors")
    return write_pack_file(sdxl.PACK, sdxl.gather(unet_tensors, trained), METADATA)
