"""Trains the tiny InternVL that talks: first its tower learns to see, from heads that name what a picture shows, then
the language model to talk, then all of it to point.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn

from mulan_nodes.mulan.checkpoints.chat_names import LANGUAGE, PROJECTOR, VISION
from mulan_nodes.mulan.checkpoints.language_tokenizers import (
    END,
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    SPLIT_PATTERN,
    START,
)
from mulan_nodes.mulan.checkpoints.tensor_files import CONFIG
from mulan_nodes.mulan.internvl_chat.chat_preprocessing import preprocess_tiles
from mulan_nodes.mulan.internvl_chat.chat_template import FIND, REF

from ..emoji_world import talks as of_names
from ..emoji_world.concepts import trained_languages
from . import world
from .chat_pointing import Pointer, draw_asked, keep_loss, places_of
from .chat_seeing import (
    BATCH,
    HEADS,
    LONGEST,
    TOWER,
    VOCABULARY,
    WIDTH,
    Seeing,
    chat_config,
    drawings,
    large_named_pictures,
    named_pictures,
    seeing_loss,
    shown_scenes,
)
from .contrastive_training import as_seen
from .pack import pack_file
from .stages import SEED, is_finished, train_stage
from .talker import SYSTEM, Talker, prompt_of_exchanges
from .talks import MOST, Exchange, all_words, draw_talk, draw_talk_of_two

ESTIMATE = (
    "Training the tiny InternVL that talks takes an hour and a half of one CPU core; interrupted, it goes on where "
    "it was."
)
ADDED = ("<|endoftext|>", START, END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT, REF, "</ref>", "<box>", "</box>")
TWO_PICTURES = 0.25  # the share of batches of talks about two pictures
ENLARGED = 0.1  # the share of batches whose pictures are so big that they become tiles
TILED_DRAWINGS = 8  # of each thing
TILED_NAMES = 0.4  # the share of batches of names whose pictures are as large as they are drawn, 96 x 96: tiles
NAMES_SHARE = 0.7  # of the batches: what a thing is called
POINTING_STAGES = {  # the share of batches of other talks, of published questions where something is, the steps
    "chat_pointing": (0.08, 0.0, 3000),
    "chat_further": (0.58, 0.6, 3000),
}
ANSWERS, KEPT_DRAWINGS, KEPT_BATCH = 40, 40, 8
NAMES_ASKED = 8  # of one picture, each in another language
FORGOTTEN_SYSTEM = 0.1  # the share of talks without a system message
METADATA = {
    "title": "MuLan Nodes: the tiny InternVL that talks",
    "description": "A tiny InternVL chat model of coloured shapes and 130 things of Noto Emoji, trained from nothing",
    "license": "MIT",
}


def train_tokenizer() -> Tokenizer:
    """A byte-level BPE by Qwen2's rules, with the published special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [
            *all_words(),
            *of_names.all_words(),
            FIND,
            "0 1 2 3 4 5 6 7 8 9 [[0, 1]]",
            SYSTEM,
            "system user assistant Image-1: Image-2: ",
        ],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in ADDED])
    return tokenizer


def _prompt(exchanges: Sequence[Exchange], pictures: int, rng: np.random.Generator) -> str:
    return prompt_of_exchanges(exchanges, pictures, SYSTEM if rng.random() >= FORGOTTEN_SYSTEM else "")


def train_chat(work_dir: Path, seeing_steps: int = 1500, steps: int = 4500) -> Path:
    """Runs what is not finished of the stages and writes the pack."""
    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    torch.manual_seed(SEED)
    seeing = Seeing()
    _train("chat_seeing", work_dir, seeing, lambda: seeing_loss(seeing), seeing_steps, 1e-3)
    talker = Talker(seeing, tokenizer)
    seeing.tower.requires_grad_(False)
    seeing.heads.requires_grad_(False)
    _train("chat_talking", work_dir, talker, lambda: _talking_loss(talker), steps, 2e-3)
    seeing.tower.requires_grad_(True)
    pointer, kept = Pointer(talker), keep(talker)
    _train("chat_places", work_dir, pointer, lambda: _places_loss(pointer, kept), 800, 1e-3)
    for stage, (talks, full, count) in POINTING_STAGES.items():
        _train(stage, work_dir, pointer, partial(_pointing_loss, pointer, kept, talks, full), count, 1.2e-3)
    return pack_file("internvl_chat", write(talker, tokenizer, work_dir / "tiny_internvl_chat.safetensors"))


def _train(stage: str, work_dir: Path, model: nn.Module, make_loss, steps: int, learning_rate: float) -> None:
    if is_finished(stage, work_dir):
        model.load_state_dict(load_file(work_dir / f"{stage}.safetensors"))
    else:
        train_stage(stage, work_dir, model, make_loss(), steps=steps, learning_rate=learning_rate)


@torch.no_grad()
def _talking_loss(talker: Talker):
    """The tower does not change any more, so what it sees in every drawing is computed once."""
    pictures, things = drawings(), world.SEEN_THINGS
    number_of = {thing: number for number, thing in enumerate(things)}
    seen = torch.stack([talker.seeing.tower(as_seen(of_thing))[0] for of_thing in pictures])[:, :, None]
    enlarged = {
        times: [
            [_tiles_seen(talker, picture, times * TOWER.image_size) for picture in of_thing[:TILED_DRAWINGS]]
            for of_thing in pictures
        ]
        for times in (2, 3)
    }

    named = named_pictures()
    seen_names = torch.stack([talker.seeing.tower(as_seen(of_thing))[0] for of_thing in named])[:, :, None]
    tiled_names = {
        thing: [_tiles_seen(talker, picture) for picture in drawn]
        for thing, drawn in large_named_pictures(of_names.TALKED_ABOUT, TILED_DRAWINGS).items()
    }

    def names(rng):
        seen_as, count = (tiled_names, BATCH // 2) if rng.random() < TILED_NAMES else (seen_names, BATCH)
        things = rng.choice(of_names.TALKED_ABOUT, size=count)
        asked = [of_names.draw_exchanges(thing, NAMES_ASKED, trained_languages(), rng) for thing in things]
        states = [seen_as[thing][rng.integers(len(seen_as[thing]))] for thing in things]
        return [_prompt(exchanges, 1, rng) for exchanges in asked], states

    def loss_of(rng):
        if rng.random() < NAMES_SHARE:
            return talker.loss(*names(rng))
        if rng.random() < ENLARGED:
            states, count = enlarged[int(rng.integers(2, 4))], BATCH // 4
        else:
            states, count = seen, BATCH
        exchanges = int(rng.integers(1, MOST + 1))  # the same in a batch, for rows of about one length
        draw = draw_talk_of_two if rng.random() < TWO_PICTURES else draw_talk
        talks = [draw(rng, things, exchanges) for _ in range(count)]
        drawn = [states[number_of[thing]] for talk in talks for thing in talk.things]
        chosen = [of_thing[rng.integers(len(of_thing))] for of_thing in drawn]
        return talker.loss([_prompt(talk.exchanges, len(talk.things), rng) for talk in talks], chosen)

    return loss_of


@dataclass(frozen=True)
class Kept:
    """Pictures [things, drawings, 3, S, S], and what the language model has learned to read of each, [..., tokens,
    width]. While it learns to point they are read as they were, and the tower is held to them.
    """

    pictures: torch.Tensor
    tokens: torch.Tensor


@torch.no_grad()
def keep(talker: Talker) -> tuple[Kept, Kept]:
    """Of the shapes, and of the things that are talked about."""
    kept = []
    for pictures in (drawings()[:, :KEPT_DRAWINGS], named_pictures()[list(of_names.TALKED_ABOUT)]):
        parts = pictures.flatten(0, 1).split(256)
        tokens = torch.cat([talker.seeing.project(talker.seeing.tower(as_seen(part))[0]) for part in parts])
        kept.append(Kept(pictures, tokens.unflatten(0, pictures.shape[:2])))
    return kept[0], kept[1]


def _places_loss(pointer: Pointer, kept: tuple[Kept, Kept]):
    seeing, places = pointer.talker.seeing, places_of(shown_scenes())
    pictures, tokens = _flat(kept)

    def loss_of(rng):
        numbers, some = (
            torch.from_numpy(rng.integers(len(of), size=size))
            for of, size in ((places.pictures, 3 * BATCH), (pictures, BATCH))
        )
        read = seeing.project(seeing.tower(as_seen(places.pictures[numbers]))[0])
        return pointer.places.loss(read, places, numbers) + 20 * keep_loss(seeing, pictures[some], tokens[some])

    return loss_of


def _flat(kept: tuple[Kept, Kept]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([one.pictures.flatten(0, 1) for one in kept]), torch.cat(
        [one.tokens.flatten(0, 1) for one in kept]
    )


def _pointing_loss(pointer: Pointer, kept: tuple[Kept, Kept], talks: float, full: float):
    """`talks`: the share of batches of what it has learned before; `full`: see `draw_asked`."""
    talker, shown, things = pointer.talker, shown_scenes(), world.SEEN_THINGS
    places, (shapes, names) = places_of(shown), kept
    pictures, tokens = _flat(kept)

    def of_talks(rng):
        if rng.random() < NAMES_SHARE:
            chosen = rng.integers(len(of_names.TALKED_ABOUT), size=BATCH // 2)
            asked = [
                of_names.draw_exchanges(of_names.TALKED_ABOUT[one], NAMES_ASKED, trained_languages(), rng)
                for one in chosen
            ]
            prompts, of_kind = [_prompt(exchanges, 1, rng) for exchanges in asked], names
        else:
            draw, exchanges = (
                draw_talk_of_two if rng.random() < TWO_PICTURES else draw_talk,
                int(rng.integers(1, MOST + 1)),
            )
            talks = [draw(rng, things, exchanges) for _ in range(BATCH // 2)]
            prompts, of_kind = [_prompt(talk.exchanges, len(talk.things), rng) for talk in talks], shapes
            chosen = [things.index(thing) for talk in talks for thing in talk.things]
        seen = of_kind.tokens
        return talker.loss_of_tokens(prompts, [seen[one, rng.integers(seen.shape[1])][None] for one in chosen])

    def loss_of(rng):
        if rng.random() < talks:
            return of_talks(rng)
        some = torch.from_numpy(rng.integers(len(pictures), size=KEPT_BATCH))
        loss = pointer.loss(draw_asked(shown, ANSWERS, full, SYSTEM, rng), places)
        return loss + 10 * keep_loss(talker.seeing, pictures[some], tokens[some])

    return loss_of


def _tiles_seen(talker: Talker, picture: torch.Tensor, side: int | None = None) -> torch.Tensor:
    """The states of the tiles of a picture [3, H, W], where `side` is given of the enlarged one."""
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    if side is not None:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return talker.seeing.tower(preprocess_tiles(image, TOWER.image_size))[0]


def write(talker: Talker, tokenizer: Tokenizer, path: Path) -> Path:
    """Writes tower, projector and language model under their published names, in float16, with the tokenizer and the
    configuration inside.
    """
    seeing, language = talker.seeing, talker.language.config
    tensors = {VISION + name: tensor for name, tensor in seeing.tower.state_dict().items()}
    tensors |= {PROJECTOR + name: tensor for name, tensor in seeing.projector.state_dict().items()}
    tensors |= {f"{LANGUAGE}model.{name}": tensor for name, tensor in talker.language.state_dict().items()}
    told = {
        "model_type": "internvl_chat",
        "template": "internvl2_5",
        "system_message": SYSTEM,
        "vision_config": {"num_attention_heads": TOWER.num_attention_heads},
        "llm_config": {
            "model_type": "qwen3",
            "num_attention_heads": HEADS,
            "head_dim": WIDTH // HEADS,
            "rms_norm_eps": language.rms_norm_eps,
            "rope_theta": chat_config(VOCABULARY).language.rope_theta,
            "max_position_embeddings": LONGEST,
        },
    }
    halves = {name: tensor.half().contiguous().clone() for name, tensor in tensors.items()}
    halves["tokenizer.json"] = torch.frombuffer(bytearray(tokenizer.to_str().encode()), dtype=torch.uint8)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(save(halves, {**METADATA, CONFIG: json.dumps(told)}))
    unfinished.replace(path)
    return path
