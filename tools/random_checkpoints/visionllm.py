"""A VisionLLM v2 with random weights as a published folder: everything of the real one but its size and its wits."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

from mulan_nodes.tests.parity.visionllm_case import Case

from ..comfyui import ROOT
from ..sentencepiece_training import train_bpe

PARITY = ROOT / "tests" / "parity"
PIECES = 320
ADDED = 26
ADDED_NAMES = (
    "[PAD]",
    "<image>",
    "<im_patch>",
    "<region>",
    "<img>",
    "</img>",
    "<reg>",
    "</reg>",
    "<det>",
    "</det>",
    "<grd>",
    "</grd>",
    "[DET]",
    "[GRD]",
    "[SEG]",
    "[POSE]",
    "[GEN]",
    "[EDIT]",
)  # the [EMB]s follow
SETTINGS = {"tiles": 4, "short": 96, "long": 160, "semantic_short": 96, "semantic_long": 160}

WORDS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to "
    "the user's questions. USER: ASSISTANT: Can you analyze the image and identify the red circle, blue square "
    "present? Yes, here are the "
    "results for in the image. Where can we locate the"
)


def sentencepiece_model(pieces: int) -> bytes:
    """A LLaMA-like tokenizer model of exactly so many pieces (at least 300), with bytes for what its letters lack."""
    return train_bpe(WORDS.split() * 20, pieces, hard_vocab_limit=False)


def checkpoint(folder: Path, mappers: bool = False, writes: str | None = None, **told) -> Path:
    """A published folder with the golden model's sizes and recipe weights, but a vocabulary for a real tokenizer;
    `told` goes into config.json.

    `mappers`: also those to Stable Diffusion and InstructPix2Pix. `writes`: the added token that it answers everything
    with, again and again.
    """
    golden = Case(PARITY / "goldens" / "visionllm", "model")
    known, manifest = golden.facts["config"], dict(golden.facts["weights"])
    tokenizer = sentencepiece_model(PIECES)
    rows = sentencepiece.SentencePieceProcessor(model_proto=tokenizer).get_piece_size() + ADDED
    words = {
        name: [rows, shape[1]]
        for name, shape in manifest["tensors"].items()
        if name in ("llm.model.embed_tokens.weight", "llm.lm_head.weight")
    }
    manifest["tensors"] = {**manifest["tensors"], **words}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous().clone() for name, tensor in golden.weights(manifest).items()}
    if mappers:
        tensors |= {
            f"{part}.{name}": tensor
            for part in ("sd", "ip2p")
            for name, tensor in mapper(known["llm"]["hidden_size"]).items()
        }
    if writes:
        make_write(tensors, rows - ADDED + ADDED_NAMES.index(writes))
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps(
            {
                **known["model"],
                "llm_config": known["llm"],
                "vis_encoder_config": known["clip"],
                "unipose_config": known["unipose"],
                "gdino_config": {**known["gdino"], "backbone_config": known["gdino_backbone"]},
                "picture_settings": SETTINGS,
                **told,
            }
        ),
        "utf-8",
    )
    (folder / "tokenizer.model").write_bytes(tokenizer)
    return folder


def mapper(width: int) -> dict[str, torch.Tensor]:
    """Random tensors of a mapper from states of this width, under upstream's names."""
    from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, to_published

    made = to_published(
        LanguageAdapter(
            AdapterShape(text_hidden_size=width, context_dim=768, num_queries=77, intermediate_size=64)
        ).state_dict()
    )
    generator = torch.Generator().manual_seed(0)
    renamed = {
        name.replace("proj.", "emb_proj.", 1)
        if name.startswith("proj.")
        else name.replace("transformer.", "llm2sd_mapper.", 1): tensor
        for name, tensor in made.items()
    }
    renamed["llm2sd_mapper_queries"] = renamed.pop("queries")
    return {
        name: torch.randn(tensor.shape, generator=generator) * 0.05
        + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for name, tensor in renamed.items()
    }


def make_write(tensors: dict[str, torch.Tensor], id: int) -> None:
    """Every text token is large in the first channel, which adds to the logit of `id` and takes from all others."""
    for name, tensor in tensors.items():
        if name == "llm.model.embed_tokens.weight" or name.startswith("emb_embeddings_"):
            tensor[:, 0] = 100.0
    tensors["llm.model.norm.weight"].fill_(1.0)
    head = tensors["llm.lm_head.weight"]
    head[:, 0] = -10.0
    head[id, 0] = 10.0
