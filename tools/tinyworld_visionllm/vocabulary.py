"""The tiny VisionLLM's tokenizer: a sentencepiece model of LLaMA's kind that knows the words of its questions."""

from __future__ import annotations

import io

import numpy as np
import sentencepiece

from mulan_nodes.visionllm_nodes.model.llama_tokenizer import VisionTokenizer
from mulan_nodes.visionllm_nodes.model.prompt_templates import VICUNA
from mulan_nodes.visionllm_nodes.model.special_tokens import ADDED

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
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        split_digits=True,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
    )
    return model.getvalue()


def tokenizer_of(model: bytes) -> VisionTokenizer:
    return VisionTokenizer(model, legacy=False)
