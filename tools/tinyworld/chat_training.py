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

from mulan_nodes.mulan.checkpoints.tensor_files import CONFIG
from mulan_nodes.mulan.internvl.intern_vit import InternViT, InternViTConfig
from mulan_nodes.mulan.internvl_chat.chat_keys import LANGUAGE, PROJECTOR, VISION
from mulan_nodes.mulan.internvl_chat.chat_language_model import HEAD_NORM, LanguageConfig
from mulan_nodes.mulan.internvl_chat.chat_model import ChatConfig, Projector
from mulan_nodes.mulan.internvl_chat.chat_preprocessing import preprocess_tiles
from mulan_nodes.mulan.internvl_chat.chat_template import (
    END,
    FIND,
    IMAGE_CONTEXT,
    IMAGE_END,
    IMAGE_START,
    REF,
    START,
    format_dialogue,
    insert_images,
)
from mulan_nodes.mulan.internvl_chat.chat_tokenizer import SPLIT_PATTERN

from ..emoji_world import talks as of_names
from ..emoji_world.concepts import CHARACTERS, trained_languages
from ..emoji_world.contrastive_batches import VARIANTS, small_pictures
from ..emoji_world.pictures import draw_corpus as draw_names
from . import pointing, world
from .contrastive_training import as_seen, begin_tower, draw_anywhere
from .pack import pack_file
from .stages import SEED, draw_corpus, is_finished, train_stage
from .talks import MOST, Exchange, Talk, all_words, draw_talk, draw_talk_of_two

ESTIMATE = (
    "Training the tiny InternVL that talks takes about twenty minutes of one CPU core; interrupted, it goes "
    "on where it was."
)
TOWER = InternViTConfig(
    hidden_size=96,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=6,
    patch_size=8,
    image_size=world.PICTURE_SIZE,
    rms_norm=False,
    qk_norm=False,
    qkv_bias=True,
)
VOCABULARY = 4000  # of the byte-level BPE; the added tokens follow
ADDED = ("<|endoftext|>", START, END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT, REF, "</ref>", "<box>", "</box>")
WIDTH, LAYERS, HEADS, KEY_VALUE_HEADS, FEED_FORWARD = 128, 4, 4, 2, 320
LONGEST = 1024  # tokens
SYSTEM = "You look at pictures of coloured shapes."
BATCH = 32
TWO_PICTURES = 0.25  # the share of batches of talks about two pictures
ENLARGED = 0.1  # the share of batches whose pictures are so big that they become tiles
TILED_DRAWINGS = 8  # of each thing
NAMES_SHARE, POINTING_SHARE = 0.45, 0.2  # of the batches: what a thing is called, and where something is
NAMES_ASKED = 8  # of one picture, each in another language
SCENES = 6000
FORGOTTEN_SYSTEM = 0.1  # the share of talks without a system message
METADATA = {
    "title": "MuLan Nodes: the tiny InternVL that talks",
    "description": "A tiny InternVL chat model of a world of coloured shapes, trained from nothing on pictures drawn "
    "by a program",
    "license": "MIT",
}


class Seeing(nn.Module):
    """Tower and projector, with a head for each attribute that only their own training needs."""

    def __init__(self):
        super().__init__()
        self.tower = InternViT(TOWER, operations=nn)
        self.projector = Projector(chat_config(VOCABULARY), operations=nn)
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(names)) for names in (world.PALETTE, world.SHAPES, world.SIZES))
        self.name = nn.Linear(WIDTH, len(CHARACTERS))
        self.here = nn.Linear(WIDTH, len(world.PALETTE) + len(world.SHAPES) + 4)
        begin_tower(self.tower)

    def loss(self, images: torch.Tensor, named: torch.Tensor) -> torch.Tensor:
        """images [N, 3, S, S], normed; named [N, 3]: the number of each one's colour, shape and size."""
        seen = self.project(self.tower(images)[0]).mean(dim=1)
        losses = [F.cross_entropy(head(seen), of_head) for head, of_head in zip(self.heads, named.T, strict=True)]
        return torch.stack(losses).sum()

    def loss_of_names(self, images: torch.Tensor, things: torch.Tensor) -> torch.Tensor:
        """images [N, 3, S, S], normed; things [N] of the emoji world."""
        return F.cross_entropy(self.name(self.project(self.tower(images)[0]).mean(dim=1)), things)

    def loss_of_places(self, images: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        """images [N, 3, S, S], normed; here [N, tokens, 6]: colour, shape and box of what each token's place shows,
        colour -100 where that is nothing.
        """
        told = self.here(self.project(self.tower(images)[0]))
        colours, shapes, boxes = told.split([len(world.PALETTE), len(world.SHAPES), 4], -1)
        there = here[..., 0] >= 0
        losses = [
            F.cross_entropy(of_all[there], here[..., n][there].long()) for n, of_all in ((0, colours), (1, shapes))
        ]
        return torch.stack(losses).sum() + 5 * (boxes - here[..., 2:])[there].abs().mean()

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """The tower's states of patches [N, patches, width] -> what the language model reads, [N, tokens, width]."""
        side = TOWER.image_size // TOWER.patch_size // 2
        grid = states.unflatten(1, (side, 2, side, 2)).permute(0, 1, 3, 2, 4, 5)
        return self.projector(grid.flatten(3).flatten(1, 2))


def chat_config(vocabulary: int) -> ChatConfig:
    return ChatConfig(
        TOWER,
        LanguageConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=FEED_FORWARD,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KEY_VALUE_HEADS,
            head_dim=WIDTH // HEADS,
            rms_norm_eps=1e-6,
            rope_theta=1e4,
            max_position_embeddings=LONGEST,
            q_norm=HEAD_NORM,
            k_norm=HEAD_NORM,
        ),
    )


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


def train_chat(work_dir: Path, seeing_steps: int = 1500, steps: int = 3000) -> Path:
    """Runs what is not finished of both stages and writes the pack."""
    work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    torch.manual_seed(SEED)
    seeing = Seeing()
    _train("chat_seeing", work_dir, seeing, lambda: _seeing_loss(seeing), seeing_steps, 1e-3)
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


def _drawings() -> torch.Tensor:
    """uint8 [things, drawings, 3, S, S]: in the middle, then anywhere."""
    return torch.cat(
        (
            draw_corpus(SEED, things=world.SEEN_THINGS),
            draw_corpus(SEED + 1, things=world.SEEN_THINGS, draw=draw_anywhere),
        ),
        dim=1,
    )


def _seeing_loss(seeing: Seeing):
    pictures, things = _drawings(), world.SEEN_THINGS
    numbers = {
        name: number for names in (world.PALETTE, world.SHAPES, world.SIZES) for number, name in enumerate(names)
    }
    named = torch.tensor([[numbers[thing.colour], numbers[thing.shape], numbers[thing.size]] for thing in things])

    named_pictures = small_pictures(draw_names(SEED, VARIANTS), TOWER.image_size)
    scenes, here = _scenes()

    def loss_of(rng):
        some = torch.from_numpy(rng.integers(named_pictures.shape[1], size=len(named_pictures)))
        every = torch.arange(len(named_pictures))
        places = torch.from_numpy(rng.integers(len(scenes), size=2 * BATCH))
        loss = seeing.loss_of_names(as_seen(named_pictures[every, some]), every)
        loss = loss + seeing.loss_of_places(as_seen(scenes[places]), here[places])
        chosen = torch.from_numpy(rng.integers(pictures.shape[1], size=len(things)))
        return loss + seeing.loss(as_seen(pictures[torch.arange(len(things)), chosen]), named)

    return loss_of


def _shown() -> list[pointing.Shown]:
    """Pictures of some shapes, anywhere."""
    rng = np.random.default_rng(SEED)
    return [pointing.show(rng) for _ in range(SCENES)]


def _scenes() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 [N, 3, S, S], and what is at the place of each token: see `Seeing.loss_of_places`."""
    shown, side = _shown(), TOWER.image_size // TOWER.patch_size // 2
    colours, shapes = list(world.PALETTE), list(world.SHAPES)
    edges = np.arange(side + 1) / side
    here = np.full((len(shown), side, side, 6), -100, np.float32)
    for number, one in enumerate(shown):
        covered = np.zeros((side, side))
        for thing, (x0, y0, x1, y1) in zip(one.things, one.boxes, strict=True):
            wide = (np.minimum(edges[1:], x1) - np.maximum(edges[:-1], x0)).clip(0)
            high = (np.minimum(edges[1:], y1) - np.maximum(edges[:-1], y0)).clip(0)
            area = high[:, None] * wide[None]
            more = area > np.maximum(covered, 0.1 / side**2)
            here[number][more] = [colours.index(thing.colour), shapes.index(thing.shape), x0, y0, x1, y1]
            covered = np.maximum(covered, area)
    pictures = torch.from_numpy(np.stack([one.picture for one in shown])).permute(0, 3, 1, 2).contiguous()
    return pictures, torch.from_numpy(here).flatten(1, 2)


@torch.no_grad()
def _talking_loss(talker: Talker):
    """The tower does not change any more, so what it sees in every drawing is computed once."""
    pictures, things = _drawings(), world.SEEN_THINGS
    number_of = {thing: number for number, thing in enumerate(things)}
    seen = torch.stack([talker.seeing.tower(as_seen(of_thing))[0] for of_thing in pictures])[:, :, None]
    enlarged = {
        times: torch.stack(
            [
                torch.stack([_tiles_seen(talker, picture, times) for picture in of_thing[:TILED_DRAWINGS]])
                for of_thing in pictures
            ]
        )
        for times in (2, 3)
    }

    named = small_pictures(draw_names(SEED, VARIANTS), TOWER.image_size)
    seen_names = torch.stack([talker.seeing.tower(as_seen(of_thing))[0] for of_thing in named])[:, :, None]
    shown, (scenes, _) = _shown(), _scenes()
    seen_scenes = torch.cat([talker.seeing.tower(as_seen(part))[0] for part in scenes.split(256)])[:, None]

    def names(rng):
        things = rng.integers(len(CHARACTERS), size=BATCH)
        asked = [of_names.draw_exchanges(thing, NAMES_ASKED, trained_languages(), rng) for thing in things]
        states = [seen_names[thing, rng.integers(seen_names.shape[1])] for thing in things]
        return [_prompt(exchanges, 1, rng) for exchanges in asked], states

    def places(rng):
        drawn = [
            (number, pointing.draw_find(shown[number], rng)) for number in rng.integers(len(shown), size=2 * BATCH)
        ]
        asked = [(number, exchange) for number, exchange in drawn if exchange]
        return [_prompt([exchange], 1, rng) for _, exchange in asked], [seen_scenes[number] for number, _ in asked]

    def loss_of(rng):
        kind = rng.random()
        if kind < NAMES_SHARE + POINTING_SHARE:
            return talker.loss(*(names(rng) if kind < NAMES_SHARE else places(rng)))
        if rng.random() < ENLARGED:
            states, count = enlarged[int(rng.integers(2, 4))], BATCH // 4
        else:
            states, count = seen, BATCH
        exchanges = int(rng.integers(1, MOST + 1))  # the same in a batch, for rows of about one length
        draw = draw_talk_of_two if rng.random() < TWO_PICTURES else draw_talk
        talks = [draw(rng, things, exchanges) for _ in range(count)]
        chosen = [states[number_of[thing], rng.integers(states.shape[1])] for talk in talks for thing in talk.things]
        return talker.loss([_prompt(talk.exchanges, len(talk.things), rng) for talk in talks], chosen)

    return loss_of


def _tiles_seen(talker: Talker, picture: torch.Tensor, times: int) -> torch.Tensor:
    """The states of the tiles of a picture [3, S, S] that is enlarged so many times."""
    side = times * TOWER.image_size
    image = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC)
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
