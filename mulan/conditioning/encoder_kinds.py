"""Kinds of text encoders, and the fingerprint of one: what an adapter's file says of the encoder it was trained with.

A trainer writes both into the adapter's metadata, beside `family`, `base` and `text_encoder`. An adapter without
`KIND_KEY`, as all published ones are, was trained with InternVL's LLaMA.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

import torch

from ..boundary.files import parse_json
from ..checkpoints.tensor_files import TensorFile, WrongFileError
from .text_config import SAVED_CONFIG

KIND_KEY, FINGERPRINT_KEY = "text_encoder_kind", "text_encoder_fingerprint"
TEACHER_KEY = "stands_for_text_encoder"  # in a text encoder's metadata: the fingerprint of the one that taught it
INTERNVL_LLAMA = "internvl_llama"
KINDS = {
    INTERNVL_LLAMA: "InternVL's text encoder of 7 billion parameters (InternVL-14B-224px)",
    "qwen2": "the language model of an InternVL chat file of 2.5 or 3 (Qwen2)",
    "qwen3": "the language model of an InternVL 3.5 chat file (Qwen3)",
    "internlm2": "the language model of an InternVL 2.5 chat file (InternLM2)",
}
# model_type in config.json -> kind; -hf calls InternLM2 a LLaMA
MODEL_KINDS = {"qwen2": "qwen2", "qwen3": "qwen3", "internlm2": "internlm2", "llama": "internlm2"}
SAVED_PREFIX = "internvl.transformer."  # before the names of a file of the stock CLIPSave


def trained_kind(metadata: Mapping[str, str], where: str) -> str:
    """Return the kind of text encoder that an adapter's metadata names.

    Raises WrongFileError, which begins with `where`, for a kind that is not known here.
    """
    kind = metadata.get(KIND_KEY) or INTERNVL_LLAMA
    if kind not in KINDS:
        raise WrongFileError(
            f"{where} was trained with a text encoder of the kind {kind!r:.60}, and this MuLan Nodes knows "
            f"{', '.join(KINDS)}: update MuLan Nodes."
        )
    return kind


def fingerprint_of(kind: str, sizes: tuple[int, int, int], read: Callable[[str], torch.Tensor]) -> str:
    """Return what tells one text encoder from others of its kind: the same for its float16, int8, int4 and fp8 files.

    sizes: of vocabulary and states, and the number of layers. read: gives a tensor by its key in ComfyUI's LLaMA. It is
    made of the sizes and of norms' weights, which no format quantizes: a few hundred kilobytes are read. Of a fine-tune
    that left these norms alone it is the same as of its source.
    """
    digest = hashlib.sha256(json.dumps([kind, *sizes]).encode())
    for name in (*(f"layers.{layer}.input_layernorm.weight" for layer in range(sizes[2])), "norm.weight"):
        norm = read(f"model.{name}").to(torch.float16).contiguous()
        digest.update(norm.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def saved_kind(file: TensorFile) -> str | None:
    """Return the kind of a small text encoder that CLIPSave wrote; None for all other files."""
    saved = saved_config(file)
    return MODEL_KINDS.get(parse_json(saved.encode())["llm_config"].get("model_type")) if saved else None


def saved_config(file: TensorFile) -> str:
    """Return the configuration that CLIPSave kept of a small text encoder; empty for all other files."""
    if SAVED_CONFIG not in file.shapes or f"{SAVED_PREFIX}model.embed_tokens.weight" not in file.shapes:
        return ""
    content = file.read_bytes(SAVED_CONFIG)
    try:
        entries = parse_json(content)
    except ValueError:
        return ""
    return content.decode() if isinstance(entries, dict) and isinstance(entries.get("llm_config"), dict) else ""
