"""The tiny VisionLLM's tokenizer: a sentencepiece model of LLaMA's kind that knows the words of its questions."""

from __future__ import annotations

import numpy as np

from mulan_nodes.visionllm_nodes.model.llama_tokenizer import VisionTokenizer
from mulan_nodes.visionllm_nodes.model.prompt_templates import VICUNA
from mulan_nodes.visionllm_nodes.model.special_tokens import ADDED

from ..sentencepiece_training import train_bpe
from . import scenes
from .questions import TASKS

PIECES = 700
_SCENES = 600


def train_tokenizer(seed: int = 20) -> bytes:
    """A sentencepiece BPE model, as `tokenizer.model` holds it: byte fallback, <unk> <s> </s> as 0 1 2, leading space,
    as LLaMA's.
    """
    rng = np.random.default_rng(seed)
    lines = [VICUNA.system.strip()] * 50
    for _ in range(_SCENES):
        scene = scenes.draw_scene(rng, scenes.SEEN)
        for ask in TASKS.values():
            turn = ask(scene, rng).turn
            text = VICUNA.prompt([turn]).removeprefix(VICUNA.system)
            for name in (*ADDED, "</s>"):
                text = text.replace(name, "\n")
            lines += [line.strip() for line in text.split("\n") if line.strip()]
    return train_bpe(lines, PIECES, split_digits=True, hard_vocab_limit=False)


def tokenizer_of(model: bytes) -> VisionTokenizer:
    return VisionTokenizer(model, legacy=False)
