"""Trains the tiny InternVL that talks: first its tower learns to see, from heads that name what a picture shows, then
the language model to talk, then all of it to point.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
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
from mulan_nodes.mulan.internvl_chat.chat_template import FIND, REF

from ..emoji_world import talks as of_names
from .chat_pointing import Kept, Pointer, draw_asked, places_of
from .chat_seeing import BATCH, HEADS, LONGEST, TOWER, VOCABULARY, WIDTH, Seeing, chat_config, seeing_loss, shown_scenes
from .chat_talks import Talks
from .pack import pack_file
from .stages import SEED, is_finished, train_stage
from .talker import SYSTEM, Talker
from .talks import all_words

ESTIMATE = (
    "Training the tiny InternVL that talks takes three hours of one CPU core; interrupted, it goes on where it was."
)
ADDED = ("<|endoftext|>", START, END, IMAGE_START, IMAGE_END, IMAGE_CONTEXT, REF, "</ref>", "<box>", "</box>")
NAMES = 0.7  # the share of batches of talks what a thing is called, before it points
ANSWERS, KEPT_BATCH = 40, 16


@dataclass(frozen=True)
class Stage:
    """One of those in which it learns to point. `images`: those that only the projector tells the places of; `talks`:
    the share of batches of talks, `names` the share of these about what a thing is called; `full`: see `draw_asked`;
    `keep`: the weight of what is read of other images.
    """

    name: str
    steps: int
    learning_rate: float
    images: int
    keep: float
    places_alone: bool = False
    talks: float = 0.0
    names: float = 0.8
    full: float = 0.0


POINTING_STAGES = (
    Stage("chat_places", 800, 1e-3, 96, 20.0, places_alone=True),
    Stage("chat_pointing", 2000, 1e-3, 0, 10.0, talks=0.08),
    Stage("chat_further", 543, 1e-3, 0, 10.0, talks=0.5, full=0.6),
    Stage("chat_places_further", 665, 1.5e-3, 96, 15.0, places_alone=True),
    Stage("chat_together", 2201, 1e-3, 32, 5.0, talks=0.5, full=0.6),
    # It had lost words for shapes, then some of the names.
    Stage("chat_talks", 880, 6e-4, 32, 3.0, talks=0.75, names=0.16, full=0.8),
    Stage("chat_names", 578, 6e-4, 32, 3.0, talks=0.78, names=0.54, full=0.8),
)
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
    talks = Talks()
    _train("chat_talking", work_dir, talker, lambda: partial(talks.loss, talker, BATCH, NAMES), steps, 2e-3)
    seeing.tower.requires_grad_(True)
    pointer = Pointer(talker)
    make_loss = _pointing_losses(pointer, talks)
    for stage in POINTING_STAGES:
        _train(stage.name, work_dir, pointer, partial(make_loss, stage), stage.steps, stage.learning_rate)
    return pack_file("internvl_chat", write(talker, tokenizer, work_dir / "tiny_internvl_chat.safetensors"))


def _train(stage: str, work_dir: Path, model: nn.Module, make_loss, steps: int, learning_rate: float) -> None:
    if is_finished(stage, work_dir):
        model.load_state_dict(load_file(work_dir / f"{stage}.safetensors"))
    else:
        train_stage(stage, work_dir, model, make_loss(), steps=steps, learning_rate=learning_rate)


def _pointing_losses(pointer: Pointer, talks: Talks):
    """Return what makes the loss of a stage; what the language model reads now of things it knows is to be kept."""
    talker, shown = pointer.talker, shown_scenes()
    seeing, places, kept = talker.seeing, places_of(shown), Kept.of(talker.seeing, talks)

    def of_places(stage: Stage, rng):
        numbers = torch.from_numpy(rng.integers(len(shown), size=stage.images))
        return pointer.loss_of_places(places, numbers) + stage.keep * kept.loss(seeing, KEPT_BATCH, rng)

    def of_pointing(stage: Stage, rng):
        if rng.random() < stage.talks:
            return talks.loss(talker, BATCH // 2, stage.names, rng)
        asked = draw_asked(shown, ANSWERS, stage.full, SYSTEM, rng)
        more = torch.from_numpy(rng.integers(len(shown), size=stage.images))
        return pointer.loss(asked, places, more) + stage.keep * kept.loss(seeing, KEPT_BATCH // 2, rng)

    return lambda stage: partial(of_places if stage.places_alone else of_pointing, stage)


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
