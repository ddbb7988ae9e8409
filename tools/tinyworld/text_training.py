"""Trains the tiny multilingual text encoder against pictures, as InternVL-C's was: contrastively, with the prefix, in
twelve languages.

Two things are not InternVL's; both are there because the adapter reads every row, and learns from English alone. Half
of the contrastive loss is on the states of padding rows, which a loss on the last row alone would leave untrained. And
captions of one thing in several languages are pulled together, because a few dozen words a language are too few for
that to happen by itself.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel

from . import captions, world
from .stages import SEED, as_input, draw_corpus, is_finished, train_stage

WINDOW = 80
PREFIX = "summarize:"
PREFIX_PIECES = 3
VOCABULARY = 1200
BOS, EOS, PAD = 1, 2, 0
HEADS = 4
LANGUAGES_PER_THING = 3
PADDING_ROWS = 16
EMBEDDING = 64


def train_tokenizer() -> bytes:
    """A sentencepiece BPE model in which the prefix is always the same three pieces, whatever follows it."""
    words = sorted({word for language in captions.TRAINED for word in captions.vocabulary(language)})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        unk_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        user_defined_symbols=["\u2581summar", "ize", ":"],
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def token_rows(tokenizer: sentencepiece.SentencePieceProcessor, texts: list[str]) -> list[list[int]]:
    """Texts, with their prefix where they have one -> ids with bos and eos, not padded."""
    return [[BOS, *tokenizer.encode(text)[: WINDOW - 2], EOS] for text in texts]


def llama() -> LlamaModel:
    """The text encoder: LLaMA with full attention, without the language-model head."""
    return LlamaModel(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=3,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            rms_norm_eps=1e-6,
            max_position_embeddings=WINDOW,
            pad_token_id=None,
            use_cache=False,
        )
    )


def states_of(model: LlamaModel, rows: list[list[int]], padding: torch.Tensor) -> torch.Tensor:
    """Ids -> states [B, longest + len(padding), width]; the rows past the words are those of the padding positions
    asked for.

    Padding is never attended to, so leaving some of it out changes no other row.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest + len(padding) - len(row)) for row in rows])
    positions = torch.cat([torch.arange(longest), padding])
    return model(ids, attention_mask=(ids > PAD).long(), position_ids=positions.expand(len(rows), -1)).last_hidden_state


class Contrast(nn.Module):
    """The text encoder with what only its training needs: a small picture encoder, a head for each kind of row, a
    temperature.
    """

    def __init__(self):
        super().__init__()
        self.llama = llama()
        channels = (3, 32, 64, 96, 128)
        self.picture_encoder = nn.Sequential(
            *[
                layer
                for before, after in zip(channels, channels[1:], strict=False)
                for layer in (nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GroupNorm(8, after), nn.ReLU())
            ],
            nn.Flatten(),
            nn.Linear(channels[-1] * 16, EMBEDDING),
        )
        self.word_head = nn.Linear(self.llama.config.hidden_size, EMBEDDING)
        self.padding_head = nn.Linear(self.llama.config.hidden_size, EMBEDDING)
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, images: torch.Tensor, rows: list[list[int]], padding: torch.Tensor) -> torch.Tensor:
        """images [N, 3, 64, 64]; rows: captions of those N things in one language, then in the next... -> loss."""
        states = states_of(self.llama, rows, padding)
        last_words = states[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
        of_padding = states[:, -len(padding) :]
        pictures = F.normalize(self.picture_encoder(images), dim=-1)
        word_loss = self._contrast(pictures, self.word_head(last_words)[:, None])
        padding_loss = self._contrast(pictures, self.padding_head(of_padding))
        return 0.5 * (word_loss + padding_loss) + _spread(last_words, len(images)) + _spread(of_padding, len(images))

    def _contrast(self, pictures, texts):
        """pictures [N, E], texts [languages * N, R, E] -> the symmetric contrastive loss, a mean over languages and
        rows R.
        """
        texts = F.normalize(texts, dim=-1).unflatten(0, (-1, len(pictures))).permute(0, 2, 1, 3).flatten(0, 1)
        logits = self.log_scale.exp().clamp(max=100) * texts @ pictures.T
        target = torch.arange(len(pictures)).expand(len(logits), -1)
        return 0.5 * (F.cross_entropy(logits.mT, target) + F.cross_entropy(logits, target))


def _spread(states: torch.Tensor, things: int) -> torch.Tensor:
    """The variance of a thing's states [languages * things, ...] over its languages."""
    return states.unflatten(0, (-1, things)).var(dim=0, unbiased=False).mean()


def typed(text: str, rng: np.random.Generator) -> str:
    """A caption as people type it: sometimes with a capital or a full stop; sometimes without the prefix, as negatives
    are encoded.
    """
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.1:
        text += "."
    return text if rng.random() < 0.1 else PREFIX + text


def train_text_encoder(work_dir: Path, steps: int = 1500) -> LlamaModel:
    """Writes text_encoder.safetensors: the encoder under `model.`, and the tokenizer as `spiece_model` (uint8)."""
    torch.manual_seed(SEED)
    model = Contrast()
    tokenizer_path = work_dir / "tokenizer.model"
    if not tokenizer_path.exists():
        tokenizer_path.write_bytes(train_tokenizer())
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    if is_finished("text_encoder", work_dir):
        model.load_state_dict(load_file(work_dir / "text_encoder.safetensors"))
        return model.llama
    pictures = draw_corpus(SEED, things=world.SEEN_THINGS)
    languages = list(captions.TRAINED)

    def loss_of(rng):
        images = as_input(
            pictures[torch.arange(len(pictures)), torch.from_numpy(rng.integers(pictures.shape[1], size=len(pictures)))]
        )
        texts = []
        for thing in world.SEEN_THINGS:
            named = captions.choose_attributes(rng, drop=0.25)
            chosen = rng.choice(languages, LANGUAGES_PER_THING, replace=False)
            texts.append([typed(captions.caption(thing, language, rng, named), rng) for language in chosen])
        rows = token_rows(tokenizer, [text for of_language in zip(*texts, strict=True) for text in of_language])
        longest = max(map(len, rows))
        padding = torch.from_numpy(np.sort(rng.choice(np.arange(longest, WINDOW), PADDING_ROWS, replace=False)))
        return model(images, rows, padding)

    train_stage("text_encoder", work_dir, model, loss_of, steps=steps, learning_rate=2e-3)
    for line in agreement_with_english(model.llama, tokenizer):
        print(f"text_encoder: {line}", flush=True)
    return model.llama


@torch.no_grad()
def agreement_with_english(model: LlamaModel, tokenizer) -> list[str]:
    """Per language: how often a caption's padding rows are nearest to the English caption of its colour and shape."""
    padding = torch.arange(40, WINDOW)

    def states(language, template):
        texts = [PREFIX + captions.full_caption(thing, language, template) for thing in world.THINGS]
        return states_of(model, token_rows(tokenizer, texts), padding)[:, -len(padding) :].flatten(1)

    english = states("en", 0)
    held_out = torch.tensor([thing.held_out for thing in world.THINGS])
    lines = []
    for language in captions.LANGUAGES:
        nearest = torch.cdist(states(language, 1), english).argmin(dim=1).tolist()
        found = [world.THINGS[index] for index in nearest]
        right = torch.tensor(
            [(a.colour, a.shape) == (b.colour, b.shape) for a, b in zip(found, world.THINGS, strict=True)]
        ).float()
        lines.append(
            f"{language}: {right[~held_out].mean():.2f} of seen pairs, {right[held_out].mean():.2f} of held-out ones"
        )
    return lines
