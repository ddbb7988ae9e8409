"""Teaches the text encoder to find what is named in any sentence, without moving what adapters and InternVL read.

The encoder as it was is the teacher: whatever a caption says, its states should be those that the teacher has for the
bare English words. So adapters and image towers that were trained on the teacher's states can read the pupil's.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaModel

from ..tinyworld import captions as shape_captions
from ..tinyworld import world as shapes
from ..tinyworld.pack import TEXT_STAGE
from ..tinyworld.stages import is_finished, train_stage
from ..tinyworld.text_training import PREFIX, TextEncoder, states_of, token_rows, typed
from . import captions, sentences
from .concepts import CHARACTERS, english, languages, trained_languages
from .pictures import BACKGROUNDS
from .text_training import (
    agreement,
    name_ratios,
    near_and_ratio,
    padding_rows,
    shares_of,
    states_at,
    train_text_encoder,
)


@dataclass(frozen=True)
class Round:
    """A stage of the training; sentences, noise: shares of the captions of things; by_name: names that lie far from the
    English ones come more often, not languages. speakers: how many times as often the twelve languages come that have
    sentences.
    """

    stage: str
    steps: int
    learning_rate: float
    sentences: float
    noise: float
    by_name: bool = False
    speakers: float = 1.0


# The later ones bring the bare names back.
ROUNDS = (
    Round("text_encoder_sentences_first", 2400, 1e-3, 0.3, 0.2),
    Round("text_encoder_sentences_second", 1400, 8e-4, 0.2, 0.08),
    Round("text_encoder_sentences_third", 1500, 8e-4, 0.25, 0.04),
)
# With the result of those as the teacher
LATER_ROUNDS = (
    Round("text_encoder_names", 1300, 8e-4, 0.15, 0.02, by_name=True),
    Round("text_encoder_names_in_sentences", 1000, 8e-4, 0.4, 0.02, by_name=True, speakers=4.0),
)
ENGLISH_SHARE = 0.2
TEACHER_SHARE = 0.15  # of the weights, in the end
THINGS, SHAPES, LANGUAGES = 44, 20, 3  # captions of each world in a batch, in each of so many languages
NEGATIVES = 6
LONGEST = 64  # tokens of a caption
BACKGROUND_SHARE = 0.12
MIXED_SHARE = 0.5  # of the captions of shapes
LARGEST_RATIO = 2.0  # that is remembered


@dataclass(frozen=True)
class Batch:
    """The ids of N bare texts, of negatives, which have no prefix, of N captions in each of the languages, what each of
    the N names, and the languages of the captions of things: [languages, things], as numbers.
    """

    bare: list[list[int]]
    negatives: list[list[int]]
    said: list[list[int]]
    named: list[tuple]
    spoken: np.ndarray


class Batches:
    """Captions with the bare English words that say the same."""

    def __init__(self, tokenizer, one: Round):
        self.tokenizer, self.round = tokenizer, one
        self.codes = trained_languages()
        speakers = [one.speakers if code in captions.COLOURED else 1.0 for code in self.codes[1:]]
        self.often = np.array(speakers)[:, None]

    def draw(self, ratios: torch.Tensor, rng: np.random.Generator) -> Batch:
        """ratios [languages, things]: those that are large come more often."""
        shares = shares_by_name(ratios) if self.round.by_name else shares_of(ratios.mean(1))[:, None]
        shares = shares * self.often / (shares * self.often).sum(0)
        shares = np.concatenate([np.full((1, shares.shape[1]), ENGLISH_SHARE), (1 - ENGLISH_SHARE) * shares])
        bare, said, named, spoken = [], [], [], []
        for thing in rng.permutation(len(CHARACTERS))[:THINGS].tolist():
            background = str(rng.choice(list(BACKGROUNDS))) if rng.random() < BACKGROUND_SHARE else ""
            bare.append(captions.coloured(english(thing), "en", background) if background else english(thing))
            chosen = rng.choice(len(shares), LANGUAGES, replace=False, p=shares[:, thing % shares.shape[1]])
            said.append([self._of_thing(thing, self.codes[each], background, rng) or bare[-1] for each in chosen])
            spoken.append(chosen)
            named.append((thing, background))
        for _ in range(SHAPES):
            thing = shapes.SEEN_THINGS[rng.integers(len(shapes.SEEN_THINGS))]
            attributes = shape_captions.choose_attributes(rng, drop=0.25)
            bare.append(shape_captions.TRAINED["en"].noun_phrase(thing, attributes))
            codes = ["en", *rng.choice(list(shape_captions.TRAINED)[1:], LANGUAGES - 1, replace=False)]
            said.append([self._of_shape(thing, str(code), attributes, rng) for code in codes])
            named.append(
                tuple((name, getattr(thing, name)) for name in shape_captions.ATTRIBUTES if name in attributes)
            )
        in_order = [typed(text, rng) for of_language in zip(*said, strict=True) for text in of_language]
        short = token_rows(self.tokenizer, [PREFIX + text for text in bare])
        rows = token_rows(self.tokenizer, in_order)
        # a name behind many letters of noise might be cut off
        rows = [row if len(row) <= LONGEST else short[place % len(short)] for place, row in enumerate(rows)]
        negatives = token_rows(self.tokenizer, ["", *rng.choice(bare, NEGATIVES - 1, replace=False).tolist()])
        return Batch(short, negatives, rows, named, np.array(spoken).T)

    def _of_thing(self, thing: int, code: str, background: str, rng: np.random.Generator) -> str | None:
        name, kind = languages()[code].names[thing], rng.random()
        if background or name is None or kind > self.round.sentences + self.round.noise:
            return captions.caption(thing, code, rng, background)
        return (
            sentences.sentence(name, code, rng) if kind < self.round.sentences else sentences.in_noise(name, code, rng)
        )

    @staticmethod
    def _of_shape(thing, code: str, attributes: frozenset[str], rng: np.random.Generator) -> str:
        """A caption; half of them with the colour, the noun or the sentence around in another language."""
        words = shape_captions.TRAINED[code]
        if rng.random() >= MIXED_SHARE:
            return shape_captions.caption(thing, code, rng, attributes)
        other = shape_captions.TRAINED[str(rng.choice(list(shape_captions.TRAINED)))]
        kind = rng.random()
        if kind < 0.25:
            return other.templates[rng.integers(len(other.templates))].format(words.noun_phrase(thing, attributes))
        mixed = replace(words, **({"colours": other.colours} if kind < 0.8 else {"nouns": other.nouns}))
        return words.templates[rng.integers(len(words.templates))].format(mixed.noun_phrase(thing, attributes))


def shares_by_name(ratios: torch.Tensor) -> np.ndarray:
    """How often each language but English comes for each thing: a third evenly, the rest by its distance."""
    share = ratios[1:].numpy().astype(float)
    return 2 / 3 * share / share.sum(0) + 1 / 3 / len(share)


class Pupil(nn.Module):
    """A text encoder and the teacher, which does not change and is not saved.

    student: what learns, with the encoder as its teacher; None: the encoder itself.
    """

    def __init__(self, encoder: TextEncoder, student: nn.Module | None = None):
        super().__init__()
        self.llama = student or encoder.model
        self.ratios: torch.Tensor  # how far each name's states are from the teacher's, over the spread of these
        self.register_buffer("ratios", torch.ones(len(trained_languages()), len(CHARACTERS)))
        self._teacher = [copy.deepcopy(encoder.model).requires_grad_(False)]  # in a list: no part of the module

    @property
    def teacher(self) -> LlamaModel:
        return self._teacher[0]

    def loss(self, batch: Batch, rng: np.random.Generator) -> torch.Tensor:
        """How far the captions' states lie from the teacher's of the bare texts."""
        bare, said, named = batch.bare, batch.said, batch.named
        padding = padding_rows(max(map(len, [*bare, *said])), rng)
        alike = torch.tensor([[one == other for other in named] for one in named])
        with torch.no_grad():
            ends, paddings = states_at(self.teacher, bare, padding)
            whole = states_of(self.teacher, bare, padding)
            negatives = states_of(self.teacher, batch.negatives, padding)
        own_ends, own_paddings = states_at(self.llama, said, padding)
        near_ends, end_ratios = near_and_ratio(torch.cat([ends, own_ends]), alike)
        near, ratios = near_and_ratio(torch.cat([paddings, own_paddings]), alike)
        for chosen, column in zip(batch.spoken, ratios, strict=True):
            for language, ratio, (thing, *_) in zip(chosen, column, named, strict=False):
                self.ratios[language, thing].lerp_(ratio.detach().clamp(max=LARGEST_RATIO), 0.2)
        # What the bare words' own rows say stays as well, for prompt weights act on them; and the empty text, by which
        # every image is guided.
        kept = (states_of(self.llama, bare, padding) - whole).square().mean() / whole.var()
        kept = kept + (states_of(self.llama, batch.negatives, padding) - negatives).square().mean() / whole.var()
        return 0.25 * (near_ends + near) + end_ratios.log1p().mean() + ratios.log1p().mean() + kept


def train_whole_text_encoder(work_dir: Path) -> TextEncoder:
    """Runs what is not finished of all rounds, these sentences' last, and returns what is packed."""
    return train_sentences(work_dir, train_text_encoder(work_dir))


def train_sentences(work_dir: Path, encoder: TextEncoder) -> TextEncoder:
    """Writes text_encoder_sentences.safetensors, the encoder under `llama.`, and returns it."""
    model, path, tokenizer = Pupil(encoder), work_dir / f"{TEXT_STAGE}.safetensors", encoder.tokenizer
    if path.exists():
        model.load_state_dict(load_file(path), strict=False)
        return encoder
    teach(work_dir, model, tokenizer, ROUNDS)
    # Part of the teacher in every weight: alone, the pupil lost a name (pencil 0.93 -> 0.30) in most languages.
    with torch.no_grad():
        for weight, teacher in zip(encoder.model.parameters(), model.teacher.parameters(), strict=True):
            weight.lerp_(teacher, TEACHER_SHARE)
    model = Pupil(encoder)
    model.ratios.copy_(name_ratios(encoder.model, tokenizer).clamp(max=LARGEST_RATIO))
    teach(work_dir, model, tokenizer, LATER_ROUNDS)
    # The mean of both: the second alone finds more names in sentences of other languages (0.32 -> 0.40) and fewer bare
    # ones (0.971 -> 0.956); half way, it finds both (0.38, 0.969).
    first = load_file(work_dir / f"{LATER_ROUNDS[0].stage}.safetensors")
    with torch.no_grad():
        for name, weight in encoder.model.named_parameters():
            weight.lerp_(first[f"llama.{name}"], 0.5)
    save_file({f"llama.{name}": tensor for name, tensor in encoder.model.state_dict().items()}, path)
    return encoder


def teach(work_dir: Path, model: Pupil, tokenizer, rounds: tuple[Round, ...]) -> None:
    """Runs what is not finished of the rounds."""
    for one in rounds:
        batches = Batches(tokenizer, one)

        def loss_of(rng, batches=batches):
            return model.loss(batches.draw(model.ratios, rng), rng)

        def score(copied):
            return agreement(copied.llama, tokenizer)

        if is_finished(one.stage, work_dir):
            model.load_state_dict(load_file(work_dir / f"{one.stage}.safetensors"))
            continue
        steps, rate = one.steps, one.learning_rate
        train_stage(one.stage, work_dir, model, loss_of, steps=steps, learning_rate=rate, score=score, score_every=350)
