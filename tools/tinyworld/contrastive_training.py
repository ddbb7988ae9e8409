"""Trains the tiny InternVL's vision side, modes C and G together, against the tiny text encoder that MuLan has, which
stays as it is.

A batch is one drawing of every shape that is not held out. Its texts name each one in one wording after another: a
language, a set of attributes, a sentence. Where attributes are left out, things share a text, and all of them are right
answers to it. Every other batch is of the emoji world, with names in a few of 110 languages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from mulan_nodes.mulan.checkpoints.tensor_files import CONFIG
from mulan_nodes.mulan.conditioning.clip import load_text_encoder
from mulan_nodes.mulan.conditioning.internvl_llama import last_token_state
from mulan_nodes.mulan.conditioning.model_files import open_text_encoder
from mulan_nodes.mulan.internvl import internvl_keys as published
from mulan_nodes.mulan.internvl.contrastive import (
    ContrastiveConfig,
    ContrastiveModel,
    CrossAttention,
    QueryReader,
    ReaderConfig,
)
from mulan_nodes.mulan.internvl.intern_vit import InternViT, InternViTConfig, Layer
from mulan_nodes.mulan.internvl.internvl_model import text_ids
from mulan_nodes.mulan.internvl.preprocessing import MEAN, STD
from mulan_nodes.mulan.tiny_models.unpacking import TEXT_ENCODER, write_tiny_models

from ..emoji_world.contrastive_batches import NameBatches, own_sentences
from . import captions, pack, scenes, world
from .stages import SEED, draw_corpus, is_finished, train_stage

ESTIMATE = (
    "Training the tiny InternVL takes about twenty minutes of one CPU core; interrupted, it goes on where it was."
)
STAGE = "internvl"
EMBEDDING = 64
POOL_HEADS = 4
TOWER = InternViTConfig(
    hidden_size=96,
    intermediate_size=384,
    num_hidden_layers=3,
    num_attention_heads=6,
    patch_size=8,
    image_size=world.PICTURE_SIZE,
)
QUERIES = 16
READ_IN = (0, 2)  # every other layer of the LLaMA, as published
BRANCH_SCALE = 0.5  # at the beginning
NAMES_SHARE = 0.5  # of the batches: those of the emoji world
BARE, OWN = 0.4, 0.25  # the shares of phrases without article and sentence, and of those in InternVL's own sentences
METADATA = {
    "title": "MuLan Nodes: the tiny InternVL",
    "description": "A tiny InternVL-C and -G of coloured shapes and 130 things of Noto Emoji, without its text "
    "encoder, trained from nothing",
    "license": "MIT",
}


class Pair(nn.Module):
    """The vision side with its reader. The LLaMA, which both texts and queries go through, is no part of it."""

    def __init__(self, text_width: int, text_heads: int, norm_eps: float):
        super().__init__()
        self.model = ContrastiveModel(ContrastiveConfig(TOWER, text_width, EMBEDDING, POOL_HEADS), operations=nn)
        self.reader = QueryReader(
            ReaderConfig(
                hidden_size=text_width,
                vision_hidden_size=TOWER.hidden_size,
                num_queries=QUERIES,
                num_attention_heads=text_heads,
                layers=READ_IN,
                embedding_size=EMBEDDING,
                pool_num_heads=POOL_HEADS,
                rms_norm_eps=norm_eps,
            ),
            operations=nn,
        )
        _begin(self)

    def loss(self, images: torch.Tensor, rows: torch.Tensor, alike: torch.Tensor, llama: Any) -> torch.Tensor:
        """images [N, 3, S, S], normed; rows [W, N, text width] of the N things' texts in W wordings; alike [W, N, N]:
        which texts are the same.
        """
        states = self.model.encode_images(images)
        texts = self.model.project_texts(rows)
        scale = self.model.logit_scale.exp().clamp(max=100)
        seen = self.model.pool_images(states), self.reader(states, llama)
        return torch.stack([_contrast(scale * texts @ images.T, alike) for images in seen]).mean()


def _contrast(logits: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """Logits [W, texts N, pictures N] -> the mean of both directions; the right answers to a text, or a picture, have
    equal shares.
    """
    shares = alike / alike.sum(dim=-1, keepdim=True)
    return -0.5 * ((logits.log_softmax(-1) * shares).sum(-1) + (logits.mT.log_softmax(-1) * shares).sum(-1)).mean()


def begin_tower(tower: InternViT) -> None:
    """The values of the bare parameters that training begins from; the layers have torch's own."""
    nn.init.normal_(tower.embeddings.class_embedding, std=0.02)
    nn.init.normal_(tower.embeddings.position_embedding, std=0.02)
    for layer in tower.layers:
        assert isinstance(layer, Layer)
        nn.init.constant_(layer.ls1, BRANCH_SCALE)
        nn.init.constant_(layer.ls2, BRANCH_SCALE)


@torch.no_grad()
def _begin(pair: Pair) -> None:
    begin_tower(pair.model.vision_model)
    for attention in pair.reader.layers.values():
        assert isinstance(attention, CrossAttention)
        attention.o_proj.weight.mul_(BRANCH_SCALE)
    nn.init.normal_(pair.reader.query_tokens, std=0.5)
    nn.init.normal_(pair.model.text_projection, std=pair.model.config.text_hidden_size**-0.5)
    nn.init.constant_(pair.model.logit_scale, math.log(1 / 0.07))


class FrozenText:
    """The shipped text encoder: rows of texts, and its LLaMA for the reader."""

    def __init__(self, path: Path):
        self.file = open_text_encoder(path)
        clip = load_text_encoder(self.file, "cpu")
        self.tokenizer = clip.tokenizer.tokenizer
        self.encoder = clip.cond_stage_model.float().requires_grad_(False).internvl

    @property
    def llama(self) -> nn.Module:
        return self.encoder.transformer.model

    @torch.no_grad()
    def rows(self, texts: list[str]) -> torch.Tensor:
        """[N, width] as `ContrastiveModel.project_texts` takes them; every text is encoded once, with those of its
        length.
        """
        ids = {text: text_ids(self.tokenizer, text) for text in texts}
        rows = {}
        for _, alike in groupby(sorted(set(ids.values()), key=len), key=len):
            alike = list(alike)
            rows |= {
                of_text: last_token_state(of_text, states)
                for of_text, states in zip(alike, self.encoder.hidden_states(alike), strict=True)
            }
        return torch.stack([rows[ids[text]] for text in texts])


def wordings(things) -> Iterator[tuple[list[list[str]], int]]:
    """For every trained language and every choice of attributes: the texts of all things without article, then in each
    sentence, and without article in InternVL's own sentences; and how many are those last ones.
    """
    for code, language in captions.TRAINED.items():
        for named in captions.CHOICES:
            bare, own = [language.bare_phrase(thing, named) for thing in things], own_sentences(code)
            phrases = [language.noun_phrase(thing, named) for thing in things]
            texts = [
                bare,
                *([template.format(phrase) for phrase in phrases] for template in language.templates),
                *([sentence.format(label) for label in bare] for sentence in own),
            ]
            yield texts, len(own)


def draw_anywhere(thing: world.Thing, rng: np.random.Generator) -> np.ndarray:
    """The thing somewhere in a picture, about as big as ever."""
    radius = world.SIZES[thing.size] * rng.uniform(0.9, 1.1)
    margin = radius + scenes.MARGIN
    x, y = rng.uniform(margin, world.PICTURE_SIZE - margin, 2)
    return scenes.Place(x, y, radius).draw(thing.colour, thing.shape, rng)


def as_seen(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 3, S, S] -> as the tower takes them."""
    return (pictures.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def write_text_encoder(folder: Path) -> Path:
    """The tiny text encoder alone, as a file."""
    path = folder / TEXT_ENCODER.name
    write_tiny_models({TEXT_ENCODER: path})
    return path


def train_internvl(work_dir: Path, steps: int = 5000) -> Path:
    """Trains what is not finished and writes the pack."""
    text = FrozenText(write_text_encoder(work_dir))
    torch.manual_seed(SEED)
    pair = Pair(text.file.config.hidden_size, text.file.config.num_attention_heads, text.file.config.rms_norm_eps)
    if is_finished(STAGE, work_dir):
        pair.load_state_dict(load_file(work_dir / f"{STAGE}.safetensors"))
    else:
        _train(work_dir, pair, text, steps)
    return pack.pack_file("internvl", write(pair, text, work_dir / "tiny_internvl.safetensors"))


def _train(work_dir: Path, pair: Pair, text: FrozenText, steps: int) -> None:
    things = world.SEEN_THINGS
    pictures = torch.cat(
        (draw_corpus(SEED, things=things), draw_corpus(SEED + 1, things=things, draw=draw_anywhere)), dim=1
    )
    all_texts, own = zip(*wordings(things), strict=True)
    alike = torch.tensor([[[one == other for other in texts] for one in texts] for texts, *_ in all_texts]).float()
    flat = text.rows([caption for texts in all_texts for of_wording in texts for caption in of_wording])
    rows = [
        of_choice.unflatten(0, (-1, len(things)))
        for of_choice in flat.split([len(texts) * len(things) for texts in all_texts])
    ]

    names = NameBatches(text.rows, world.PICTURE_SIZE)

    def loss_of(rng):
        if rng.random() < NAMES_SHARE:
            drawn, rows_of_names, same = names.draw(rng)
            return pair.loss(as_seen(drawn), rows_of_names, same, text.llama)
        chosen = pictures[
            torch.arange(len(things)), torch.from_numpy(rng.integers(pictures.shape[1], size=len(things)))
        ]
        picked = [of_choice[_wording(len(of_choice), count, rng)] for of_choice, count in zip(rows, own, strict=True)]
        return pair.loss(as_seen(chosen), torch.stack(picked), alike, text.llama)

    train_stage(STAGE, work_dir, pair, loss_of, steps=steps, learning_rate=1e-3)


def _wording(count: int, own: int, rng: np.random.Generator) -> int:
    """Which of so many wordings is taken: the first is bare, the last ones are InternVL's own sentences."""
    kind = rng.random()
    if kind < BARE:
        return 0
    return int(rng.integers(count - own, count) if own and kind < BARE + OWN else rng.integers(1, count))


def write(pair: Pair, text: FrozenText, path: Path) -> Path:
    """Writes the vision side under its published names, in float16, as `dev.py convert` would."""
    told = {
        "attn_pool_num_heads": POOL_HEADS,
        "vision_config": {"num_attention_heads": TOWER.num_attention_heads},
        "qllama_config": {
            "num_attention_heads": text.file.config.num_attention_heads,
            "rms_norm_eps": text.file.config.rms_norm_eps,
        },
    }
    tensors = {}
    for part, sources in (
        (pair.model, published.model_sources(pair.model.config)),
        (pair.reader, published.reader_sources(pair.reader.config)),
    ):
        values = part.state_dict()
        tensors |= {name: values[ours].half() for ours, source in sources.items() for name in source.names}
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(save(tensors, {**METADATA, CONFIG: json.dumps(told)}))
    unfinished.replace(path)
    return path
