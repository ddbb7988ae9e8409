"""Trains the tiny text encoder of both worlds: names of 130 things in 110 languages, and shapes in twelve.

Every caption has a meaning: the normed sum of vectors of what it names (a thing, a background; a colour, a shape, a
size). The contrast is between captions and meanings. That alone tells captions apart and still leaves the hidden
states of one thing far apart in two languages, and the adapter, which saw English alone, reads hidden states. So the
states themselves, padding rows too, are drawn towards the English ones: by a second contrast on their distances, and by
their spread within a thing over that between things. Languages in which that ratio is large come more often.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import LlamaModel

from ..sentencepiece_training import train_bpe
from ..tinyworld import captions as shape_captions
from ..tinyworld import world as shapes
from ..tinyworld.stages import SEED, is_finished, train_stage
from ..tinyworld.text_training import PREFIX, WIDTH, WINDOW, TextEncoder, llama, states_of, token_rows, typed
from .captions import caption, vocabulary
from .concepts import CHARACTERS, languages, trained_languages
from .pictures import BACKGROUNDS, picture_vectors

STAGE = "text_encoder"
# Each with a learning rate that falls to nothing; the second halves what is left of the distances.
ROUNDS = (("text_encoder_first", 6000, 2e-3), (STAGE, 2400, 1.5e-3))
VOCABULARY = 4000
EMBEDDING = 64
THINGS, SHAPES = 56, 14  # captions of each world in a batch, in each of the languages
LANGUAGES = 3  # English and two others
PADDING_ROWS = 4
LONGEST = 44  # tokens of a caption in training
BACKGROUND_SHARE = 0.15
APART = 300  # steps of the contrast alone
PARTS = 5  # of a batch, by length: less padding to compute


def train_tokenizer() -> bytes:
    """A sentencepiece BPE model in which the prefix is always the same three pieces, whatever follows it."""
    shape_words = [word for code in shape_captions.TRAINED for word in shape_captions.vocabulary(code)]
    return train_bpe([*shape_words * 3, *vocabulary()], VOCABULARY, user_defined_symbols=["\u2581summar", "ize", ":"])


class Meanings(nn.Module):
    """A vector for whatever a caption can name. Those of the things are what the things look like, and stay."""

    def __init__(self):
        super().__init__()
        self.things: torch.Tensor
        self.register_buffer("things", picture_vectors(EMBEDDING))
        names = (*BACKGROUNDS, *shapes.PALETTE, *shapes.SHAPES, *shapes.SIZES)
        self.others = nn.Parameter(F.normalize(torch.randn(len(names), EMBEDDING), dim=-1))

    def forward(self, named: torch.Tensor) -> torch.Tensor:
        """named [N, 150], 1 where a caption names it -> unit vectors [N, 64]."""
        return F.normalize(named @ torch.cat([self.things, self.others]), dim=-1)

    def columns(self, first: str, name: str) -> int:
        """The column of a background ("on"), colour, shape or size."""
        groups = {"on": BACKGROUNDS, "colour": shapes.PALETTE, "shape": shapes.SHAPES, "size": shapes.SIZES}
        before = 0
        for group, names in groups.items():
            if group == first:
                return len(self.things) + before + list(names).index(name)
            before += len(names)
        raise KeyError(first)


class Contrast(nn.Module):
    """The text encoder with what only its training needs."""

    def __init__(self):
        super().__init__()
        self.llama = llama(VOCABULARY)
        self.meanings = Meanings()
        self.word_head = nn.Linear(WIDTH, EMBEDDING)
        self.padding_head = nn.Linear(WIDTH, EMBEDDING)
        self.log_scale = nn.Parameter(torch.tensor(2.7))
        self.ratios: torch.Tensor  # spread of each language's states around the English ones
        self.register_buffer("ratios", torch.ones(len(trained_languages())))
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, rows, named: torch.Tensor, spoken: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """rows: captions of N things in English, then in the next language...; named [N, 150] -> loss.

        spoken [languages, N]: which language each caption is in.
        """
        ends, paddings = ends_and_padding(self.llama, rows, rng)
        meanings = self.meanings(named)
        alike = (named @ named.T == named.sum(1)) & (named.sum(1)[:, None] == named.sum(1))
        contrast = self._contrast(self.word_head(ends)[:, None], meanings, alike)
        contrast = contrast + self._contrast(self.padding_head(paddings), meanings, alike)
        (near_ends, end_ratios), (near, ratios) = near_and_ratio(ends, alike), near_and_ratio(paddings, alike)
        remember_ratios(self.ratios, ratios, spoken[1:])
        self.steps += 1
        # The states of two things must differ before one can ask which lies nearest.
        weight = min(1.0, max(0.0, (self.steps.item() - APART) / APART))
        agreement = 0.5 * (near_ends + near) + end_ratios.log1p().mean() + ratios.log1p().mean()
        return 0.5 * contrast + (weight * agreement if weight else 0.0)

    def _contrast(self, texts, meanings, alike):
        """texts [languages * N, R, 64], meanings [N, 64], alike [N, N] -> the loss both ways."""
        texts = F.normalize(texts, dim=-1).unflatten(0, (-1, len(meanings))).permute(0, 2, 1, 3).flatten(0, 1)
        logits = self.log_scale.exp().clamp(max=100) * texts @ meanings.T
        shares = alike / alike.sum(-1, keepdim=True)
        return -0.5 * ((logits.log_softmax(-1) * shares).sum(-1) + (logits.mT.log_softmax(-1) * shares).sum(-1)).mean()


def ends_and_padding(
    model: LlamaModel, rows: list[list[int]], rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids -> the states of their ends [N, 128] and of padding rows [N, 4, 128], drawn by `rng` for all."""
    return states_at(model, rows, padding_rows(max(map(len, rows)), rng))


def padding_rows(longest: int, rng: np.random.Generator) -> torch.Tensor:
    """Rows behind captions of at most `longest` tokens, drawn by `rng`, in order."""
    return torch.from_numpy(np.sort(rng.choice(np.arange(longest, WINDOW), PADDING_ROWS, replace=False)))


def states_at(model: nn.Module, rows: list[list[int]], padding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids -> the states of their ends [N, 128] and of the padding rows asked for."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    ends, paddings = [], []
    for part in np.array_split(order, PARTS):
        some = [rows[place] for place in part]
        states = states_of(model, some, padding)
        ends.append(states[torch.arange(len(some)), torch.tensor([len(row) - 1 for row in some])])
        paddings.append(states[:, -len(padding) :])
    back = torch.empty(len(rows), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(rows))
    return torch.cat(ends)[back], torch.cat(paddings)[back]


def near_and_ratio(states: torch.Tensor, alike: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """states [languages * N, ...] -> how well each finds its English one among all, and its squared distance from it
    over the spread of the English ones, [languages - 1, N].
    """
    flat = states.flatten(1).unflatten(0, (-1, len(alike)))
    english = flat[0]
    between = (english - english.mean(0)).square().mean()
    distances = torch.cdist(flat[1:], english.expand(len(flat) - 1, -1, -1)).square() / flat.shape[-1]
    logits = (-distances / (0.2 * between.detach())).masked_fill(alike & ~torch.eye(len(alike), dtype=torch.bool), -1e4)
    target = torch.arange(len(alike)).expand(len(flat) - 1, -1)
    return F.cross_entropy(logits.mT, target), (flat[1:] - english).square().mean(-1) / between


@torch.no_grad()
def remember_ratios(remembered: torch.Tensor, ratios: torch.Tensor, spoken: np.ndarray) -> None:
    """Let what is remembered of each language follow the ratios of captions in `spoken`."""
    for language, ratio in zip(spoken.ravel(), ratios.ravel(), strict=True):
        remembered[language].lerp_(ratio.clamp(max=2), 0.02)


def shares_of(ratios: torch.Tensor) -> np.ndarray:
    """How often each language but English comes: half of the captions evenly, half of them more often where it is far
    from English.
    """
    share = ratios[1:].sqrt().numpy().astype(float)
    return 0.5 * share / share.sum() + 0.5 / len(share)


class Batches:
    """Captions of both worlds, drawn by a step's own random generator."""

    def __init__(self, model: Contrast, tokenizer: sentencepiece.SentencePieceProcessor):
        self.model, self.tokenizer = model, tokenizer
        self.codes = list(trained_languages())
        self.with_shapes = [self.codes.index(code) for code in shape_captions.TRAINED]

    def draw(self, rng: np.random.Generator):
        """Rows of ids, what they name, and their languages: see `Contrast.forward`."""
        share = shares_of(self.model.ratios)
        things = rng.permutation(len(CHARACTERS))[:THINGS]
        texts, spoken, named = [], [], torch.zeros(THINGS + SHAPES, len(CHARACTERS) + self._others())
        for row, thing in enumerate(things):
            background = str(rng.choice(list(BACKGROUNDS))) if rng.random() < BACKGROUND_SHARE else ""
            chosen = [0, *(1 + rng.choice(len(share), LANGUAGES - 1, replace=False, p=share))]
            said = [caption(thing, self.codes[language], rng, background) for language in chosen]
            texts.append([text or said[0] for text in said])
            spoken.append(chosen)
            named[row, thing] = 1
            if background:
                named[row, self.model.meanings.columns("on", background)] = 1
        for row in range(THINGS, THINGS + SHAPES):
            thing = shapes.SEEN_THINGS[rng.integers(len(shapes.SEEN_THINGS))]
            attributes = shape_captions.choose_attributes(rng, drop=0.25)
            chosen = [0, *rng.choice(self.with_shapes[1:], LANGUAGES - 1, replace=False)]
            texts.append([self._of_shape(thing, self.codes[language], rng, attributes) for language in chosen])
            spoken.append(chosen)
            for attribute in attributes:
                named[row, self.model.meanings.columns(attribute, getattr(thing, attribute))] = 1
        in_order = [typed(text, rng) for of_language in zip(*texts, strict=True) for text in of_language]
        return token_rows(self.tokenizer, in_order, LONGEST), named, np.array(spoken).T

    @staticmethod
    def _of_shape(thing, code: str, rng: np.random.Generator, attributes: frozenset[str]) -> str:
        """A caption of a shape; now and then a word of another language is in it, or a language's sentence around."""
        words = shape_captions.TRAINED[code]
        if rng.random() < 0.25:
            other = shape_captions.TRAINED[str(rng.choice(list(shape_captions.TRAINED)))]
            if rng.random() < 0.5:
                return _mixed(words, other, thing, attributes)
            return other.templates[rng.integers(len(other.templates))].format(words.noun_phrase(thing, attributes))
        return shape_captions.caption(thing, code, rng, attributes)

    def _others(self) -> int:
        return len(self.model.meanings.others)


def _mixed(words, other, thing, attributes: frozenset[str]) -> str:
    """A phrase of one language with the colour in another's word."""
    if "colour" not in attributes:
        return words.bare_phrase(thing, attributes)
    rest = words.noun_phrase(thing, attributes - {"colour"})
    colour = dict(zip(shapes.PALETTE, other.colours.split(), strict=True))[thing.colour].split("/")[0]
    return f"{colour} {rest}"


def train_text_encoder(work_dir: Path) -> TextEncoder:
    """Writes text_encoder.safetensors, the encoder under `llama.`, and tokenizer.model beside it."""
    work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = Contrast()
    tokenizer_path = work_dir / "tokenizer.model"
    if not tokenizer_path.exists():
        tokenizer_path.write_bytes(train_tokenizer())
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    batches = Batches(model, tokenizer)

    def loss_of(rng):
        rows, named, spoken = batches.draw(rng)
        return model(rows, named, spoken, rng)

    def score(copied):
        return agreement(copied.llama, tokenizer)

    for stage, steps, rate in ROUNDS:
        if is_finished(stage, work_dir):
            model.load_state_dict(load_file(work_dir / f"{stage}.safetensors"))
        else:
            train_stage(stage, work_dir, model, loss_of, steps=steps, learning_rate=rate, score=score, score_every=500)
    return TextEncoder(model.llama, tokenizer)


@torch.no_grad()
def name_states(model: LlamaModel, tokenizer, code: str) -> torch.Tensor:
    """The padding rows of a language's names (NaN where it has none): [130, 4 * 128]."""
    names = languages()[code].names
    rows = token_rows(tokenizer, [PREFIX + (name or "") for name in names])
    states = states_of(model, rows, torch.arange(60, 76, 4))[:, -4:].flatten(1)
    states[[name is None for name in names]] = torch.nan
    return states


@torch.no_grad()
def name_ratios(model: LlamaModel, tokenizer) -> torch.Tensor:
    """How far each name's padding rows are from the English ones, squared, over the spread of these; 0 where a language
    has no name: [languages, 130].
    """
    english = name_states(model, tokenizer, "en")
    between = (english - english.mean(0)).square().mean()
    apart = [(name_states(model, tokenizer, code) - english).square().mean(1) for code in trained_languages()]
    return (torch.stack(apart) / between).nan_to_num(0.0)


@torch.no_grad()
def agreement(model: LlamaModel, tokenizer) -> str:
    """How often a name's padding rows lie nearest to the English ones, and how far from them: mean and worst."""
    english = name_states(model, tokenizer, "en")
    between = (english - english.mean(0)).square().mean()
    nearest, ratios = {}, {}
    for code in trained_languages()[1:]:
        states = name_states(model, tokenizer, code)
        there = ~states.isnan().any(1)
        found = torch.cdist(states[there], english).argmin(1)
        nearest[code] = (found == torch.arange(len(english))[there]).float().mean().item()
        ratios[code] = ((states - english)[there].square().mean() / between).item()
    worst = sorted(ratios, key=lambda code: -ratios[code])[:8]
    lines = ", ".join(f"{code} {nearest[code]:.2f} {ratios[code]:.2f}" for code in worst)
    return (
        f"nearest to English {np.mean(list(nearest.values())):.3f} (worst {min(nearest.values()):.2f}), "
        f"distance {np.mean(list(ratios.values())):.3f}; {lines}"
    )
