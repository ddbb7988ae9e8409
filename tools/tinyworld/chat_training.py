"""Trains the tiny InternVL that talks: first its tower learns to see, from heads that name what a picture shows, then
the language model to talk.

The language model is transformers' Qwen3, whose tensors have the published names; the tower and the projector are those
that ComfyUI will run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3Model

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
from mulan_nodes.mulan.internvl_chat.chat_template import FIND, REF, format_dialogue, insert_images

from ..emoji_world import talks as of_names
from ..emoji_world.concepts import trained_languages
from . import pointing, world
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
    scenes_and_places,
    seeing_loss,
    shown_scenes,
)
from .contrastive_training import as_seen
from .pack import pack_file
from .stages import SEED, is_finished, train_stage
from .talks import MOST, Exchange, Talk, all_words, draw_talk, draw_talk_of_two

ESTIMATE = (
    "Training the tiny InternVL that talks takes an hour and a half of one CPU core; interrupted, it goes on where "
    "it was."
)
ADDED = ("<|endoftext|>", START, END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT, REF, "</ref>", "<box>", "</box>")
SYSTEM = "You look at pictures of coloured shapes."
TWO_PICTURES = 0.25  # the share of batches of talks about two pictures
ENLARGED = 0.1  # the share of batches whose pictures are so big that they become tiles
TILED_DRAWINGS = 8  # of each thing
TILED_NAMES = 0.4  # the share of batches of names whose pictures are as large as they are drawn, 96 x 96: tiles
NAMES_SHARE, POINTING_SHARE = 0.55, 0.2  # of the batches: what a thing is called, and where something is
NAMES_ASKED = 8  # of one picture, each in another language
FORGOTTEN_SYSTEM = 0.1  # the share of talks without a system message
METADATA = {
    "title": "MuLan Nodes: the tiny InternVL that talks",
    "description": "A tiny InternVL chat model of coloured shapes and 130 things of Noto Emoji, trained from nothing",
    "license": "MIT",
}


def language_model(vocabulary: int) -> Qwen3Model:
    config = chat_config(vocabulary).language
    return Qwen3Model(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            max_position_embeddings=LONGEST,
            use_cache=False,
            rope_theta=config.rope_theta,  # pyright: ignore[reportCallIssue]  (read from **kwargs)
        )
    )


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


class Talker(nn.Module):
    """The language model and the projector before it. Words are read and written by one table."""

    def __init__(self, seeing: Seeing, tokenizer: Tokenizer):
        super().__init__()
        self.language = language_model(tokenizer.get_vocab_size())
        self.seeing = seeing
        self._tokenizer = tokenizer
        self._seen, self._end = tokenizer.token_to_id(IMAGE_CONTEXT), tokenizer.token_to_id(END)
        self._begin = tokenizer.encode(f"{START}assistant\n").ids

    def loss(self, prompts: Sequence[str], states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Whole talks, and the tower's states [tiles, patches, width] of each picture in their order -> the loss of the
        answers' tokens.
        """
        rows = iter(self.seeing.project(torch.cat(list(states))).split([len(tiles) for tiles in states]))
        embedded, targets = zip(
            *(self._embedded(self._tokenizer.encode(prompt).ids, rows) for prompt in prompts), strict=True
        )
        inputs = nn.utils.rnn.pad_sequence(list(embedded), batch_first=True)
        wanted = nn.utils.rnn.pad_sequence(list(targets), batch_first=True, padding_value=-100)[:, 1:]
        answering = wanted != -100  # nothing stands behind padding, so it needs no mask
        written = self.language(inputs_embeds=inputs).last_hidden_state[:, :-1][answering]
        return F.cross_entropy(F.linear(written, self.language.embed_tokens.weight), wanted[answering])

    def _embedded(self, ids: list[int], rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids -> what the model reads, with the pictures' rows in their places, and what it should answer, -100
        elsewhere.
        """
        answers, inside = [], False
        for number, id in enumerate(ids):
            answers.append(id if inside else -100)
            inside = (inside and id != self._end) or ids[number + 1 - len(self._begin) : number + 1] == self._begin
        words = self.language.embed_tokens(torch.tensor(ids))
        parts, wanted, begin = [], [], 0
        for place in [number for number, id in enumerate(ids) if id == self._seen]:
            of_picture = next(rows).flatten(0, 1)
            parts += [words[begin:place], of_picture]
            wanted += [*answers[begin:place], *[-100] * len(of_picture)]
            begin = place + 1
        return torch.cat([*parts, words[begin:]]), torch.tensor(wanted + answers[begin:])


def prompt_of(talk: Talk, system: str = SYSTEM) -> str:
    """The whole talk with all its answers, as the model reads it."""
    return prompt_of_exchanges(talk.exchanges, len(talk.things), system)


def prompt_of_exchanges(exchanges: Sequence[Exchange], pictures: int, system: str = SYSTEM) -> str:
    """Exchanges about so many pictures with all answers, as the model reads them."""
    *said, last = exchanges
    *before, question = insert_images([exchange.question for exchange in exchanges], pictures)
    history = [(asked, exchange.answer) for asked, exchange in zip(before, said, strict=True)]
    return f"{format_dialogue(question, history, system)}{last.answer}{END}"


def _prompt(exchanges: Sequence[Exchange], pictures: int, rng: np.random.Generator) -> str:
    return prompt_of_exchanges(exchanges, pictures, SYSTEM if rng.random() >= FORGOTTEN_SYSTEM else "")


def train_chat(work_dir: Path, seeing_steps: int = 1500, steps: int = 4500) -> Path:
    """Runs what is not finished of both stages and writes the pack."""
    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    torch.manual_seed(SEED)
    seeing = Seeing()
    _train("chat_seeing", work_dir, seeing, lambda: seeing_loss(seeing), seeing_steps, 1e-3)
    talker = Talker(seeing, tokenizer)
    seeing.tower.requires_grad_(False)
    seeing.heads.requires_grad_(False)
    _train("chat_talking", work_dir, talker, lambda: _talking_loss(talker), steps, 2e-3)
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
    shown, (scenes, here) = shown_scenes(), scenes_and_places()
    seen_scenes = torch.cat([talker.seeing.tower(as_seen(part))[0] for part in scenes.split(256)])[:, None]

    def names(rng):
        seen_as, count = (tiled_names, BATCH // 2) if rng.random() < TILED_NAMES else (seen_names, BATCH)
        things = rng.choice(of_names.TALKED_ABOUT, size=count)
        asked = [of_names.draw_exchanges(thing, NAMES_ASKED, trained_languages(), rng) for thing in things]
        states = [seen_as[thing][rng.integers(len(seen_as[thing]))] for thing in things]
        return [_prompt(exchanges, 1, rng) for exchanges in asked], states

    def loss_of_pointing(rng):
        drawn = [
            (number, pointing.draw_find(shown[number], rng)) for number in rng.integers(len(shown), size=2 * BATCH)
        ]
        asked = {number: exchange for number, exchange in drawn if exchange}
        numbers = list(asked)
        loss = talker.loss([_prompt([exchange], 1, rng) for exchange in asked.values()], list(seen_scenes[numbers]))
        # without it the projector forgets where things are before the language model has learned to ask
        return loss + talker.seeing.loss_of_places(seen_scenes[numbers, 0], here[numbers])

    def loss_of(rng):
        kind = rng.random()
        if kind < NAMES_SHARE:
            return talker.loss(*names(rng))
        if kind < NAMES_SHARE + POINTING_SHARE:
            return loss_of_pointing(rng)
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
