"""Trains the tiny MuLan adapter with the project's own trainer: English captions of the pairs that are not held out,
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from mulan_nodes.mulan.conditioning.adapter import LanguageAdapter
from mulan_nodes.mulan.training import trainer
from mulan_nodes.mulan.training.adapters import Projection, TwoAdapters, init_weights

from . import captions, narrow, world
from .base_training import Base, EnglishBase, latents_of, score_of
from .stages import SEED, VARIANTS, draw_corpus
from .text_training import PREFIX, PREFIX_PIECES, WINDOW, TextEncoder, states_of, token_rows

CAPTIONS_PER_PICTURE = 4
UNPREFIXED_SHARE = 0.1
OFFSET = 0.8  # of the spread between English texts: the largest offset of a text's end and padding
WORD_NOISE = 1.0  # of the words' own root mean square


AnyAdapter = TypeVar("AnyAdapter", bound=LanguageAdapter | TwoAdapters | Projection)


class TextStates:
    """Texts as the tokenizer gets them -> float32 states [B, 77, 128] as the adapter does: with the prefix, rows 1 to 3
    are cut.

    A text without the prefix is encoded in a window of 77, as negative prompts are. Every text is encoded once.
    `english` are texts of all that there is to tell, for `disturbed`. window: of a text with the prefix.
    """

    ROWS = 77

    def __init__(self, encoder: TextEncoder, english: Sequence[str] = (), window: int = WINDOW):
        self.window = window
        self.model = encoder.model.half().float().requires_grad_(False)  # the shipped weights are float16
        self.tokenizer = encoder.tokenizer
        self.known: dict[str, torch.Tensor] = {}
        self.spread = self([PREFIX + text for text in english])[:, 40:].mean(1).std(0) if english else None

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([self._states(text) for text in texts])

    def disturbed(self, texts: list[str]) -> torch.Tensor:
        """The same with noise on the words and one offset for the end and all padding rows, for training.

        Both differ from language to language: words much, the rest a little. So the adapter learns to read where
        languages agree, and to read it within a distance.
        """
        states = self(texts)
        for of_text, text in zip(states, texts, strict=True):
            end = self.end(text)
            words = of_text[1:end]
            words += WORD_NOISE * words.square().mean().sqrt() * torch.randn_like(words)
            self._offset(of_text[end:], text)
        return states

    def swapped(self, texts: list[str]) -> torch.Tensor:
        """The same with the words of another of the texts in place of a text's own, and the offset."""
        states = self(texts)
        words = [of_text[1 : self.end(text)].clone() for of_text, text in zip(states, texts, strict=True)]
        for of_text, text, others in zip(states, texts, words[1:] + words[:1], strict=True):
            end = self.end(text)
            if len(others):
                of_text[1:end] = others[torch.arange(end - 1) % len(others)]
            self._offset(of_text[end:], text)
        return states

    def _offset(self, rows: torch.Tensor, text: str) -> None:
        if text and self.spread is not None:
            rows += OFFSET * torch.rand(1) * self.spread * torch.randn_like(self.spread)

    def _states(self, text: str) -> torch.Tensor:
        if text not in self.known:
            self.known[text] = self._encode(text)
        return self.known[text]

    def end(self, text: str) -> int:
        """The row of eos."""
        (row,) = token_rows(self.tokenizer, [text])
        return len(row) - 1 - (PREFIX_PIECES if text.startswith(PREFIX) else 0)

    @torch.no_grad()
    def _encode(self, text: str) -> torch.Tensor:
        (row,) = token_rows(self.tokenizer, [text])
        states = states_of(self.model, [row], torch.arange(len(row), self.window))[0]
        return torch.cat([states[:1], states[1 + PREFIX_PIECES :]]) if text.startswith(PREFIX) else states[: self.ROWS]


class Examples(torch.utils.data.Dataset):
    """Latents of the things that are not held out, each under several English captions; some without the prefix, as
    negatives are.
    """

    def __init__(self, autoencoder: narrow.TinyAutoencoder, variants: int = VARIANTS, side: int | None = None):
        self.latents = latents_of(autoencoder, draw_corpus(SEED, variants, world.SEEN_THINGS), side)
        self.things, self.variants = self.latents.shape[:2]

    def __len__(self):
        return self.things * self.variants * CAPTIONS_PER_PICTURE

    def drawn(self, index: int) -> tuple[torch.Tensor, str, np.random.Generator]:
        """An example's latent, its caption without the prefix, and the generator of what else it has."""
        rng = np.random.default_rng((SEED, index))
        picture = index // CAPTIONS_PER_PICTURE
        thing, variant = divmod(picture, self.variants)
        text = captions.caption(world.SEEN_THINGS[thing], "en", rng, captions.choose_attributes(rng, drop=0.25))
        return self.latents[thing, variant], text, rng

    def __getitem__(self, index):
        latent, text, rng = self.drawn(index)
        return {"latent": latent, "caption": text if rng.random() < UNPREFIXED_SHARE else PREFIX + text}


def train_adapter(
    work_dir: Path, autoencoder: narrow.TinyAutoencoder, text_encoder: TextEncoder, base: Base, steps: int = 2500
) -> LanguageAdapter:
    """Leaves adapter/adapter.safetensors in `work_dir`: see `fit`."""
    text_states = TextStates(text_encoder, [captions.full_caption(thing, "en") for thing in world.SEEN_THINGS])

    def scores(adapter, finished):
        for language in captions.LANGUAGES if finished else ("en", "zh", "hi"):
            yield language, adapter_score(autoencoder, text_states, base, adapter, language)

    # Noise alone left the colours of other languages to chance.
    states, examples = text_states.swapped, Examples(autoencoder)
    return fit(fresh(narrow.adapter), work_dir / "adapter", base, states, examples, steps, scores, score_every=1000)


def fresh(make: Callable[[], AnyAdapter]) -> AnyAdapter:
    """An adapter with initial weights."""
    torch.manual_seed(SEED)
    adapter = make()
    init_weights(adapter, SEED)
    return adapter


def fit(
    adapter: AnyAdapter,
    folder: Path,
    base: EnglishBase,
    states: Callable[..., Any],
    examples: torch.utils.data.Dataset,
    steps: int,
    scores: Callable[[AnyAdapter, bool], Iterable[tuple[str, str]]],
    score_every: int,
    learning_rate: float = 1.5e-3,
) -> AnyAdapter:
    """Trains an adapter and leaves adapter.safetensors (published names, narrow, float32) in the folder, by whose name
    it is called in what is printed.

    `scores` gets the adapter and whether it is finished, and says of each language how good it is. An interrupted run
    goes on from its last state, with other noise on the states than it would have had.
    """
    base.requires_grad_(False)
    settings = trainer.TrainSettings(
        steps=steps,
        batch_size=base.batch,
        learning_rate=learning_rate,
        seed=SEED,
        high_noise_share=0.4,
        high_noise_weight=True,
        ema=0.995,
        save_every=score_every // 2,
        validate_every=score_every,
        out_dir=folder,
        result_dtype="fp32",
    )

    def report(step, steps, loss, seconds_left):
        if step % 100 == 0:
            print(f"{folder.name}: step {step} of {steps}, loss {loss:.4f}, {seconds_left:.0f} s left", flush=True)

    def validate(step, adapter):
        for language, score in scores(adapter, step == steps):
            print(f"{folder.name}: {language}: {score}", flush=True)

    return trainer.train_adapter(
        adapter, base, states, examples, base.alphas(), settings, report=report, validate=validate, resume=True
    )


def adapter_score(autoencoder, text_states: TextStates, base: Base, adapter: LanguageAdapter, language: str) -> str:
    """See `score_of`, through the multilingual text encoder and the adapter."""

    def context_of(texts):
        return adapter(text_states([text and PREFIX + text for text in texts]))

    return score_of(autoencoder, base, context_of, language)
