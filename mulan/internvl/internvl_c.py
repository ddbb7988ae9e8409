"""InternVL-C's single .pth (internvl_c_13b_224px.pth) under the names of the other files: its vision side and its text
encoder.

Source: OpenGVLab/InternVL, clip_benchmark/clip_benchmark/models: internvl_c_pytorch/internvl_c.py (the names),
internvl_clip.py (how its LoRA was trained), build_model.py (how the authors made the published folder of it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from ..checkpoints.tensor_files import TensorFile, WrongFileError, describe_path, read_beside
from ..checkpoints.weight_check import check_dtype
from ..conditioning.model_files import ENCODER_SOURCE, TEXT_PROJECTION, TOKENIZER_NAME

VISION = "vision_model."
NAMES = {  # the beginnings of its tower's names -> the published folder's, below VISION
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "blocks.": "encoder.layers.",
}
LLAMA = "transformer."  # the beginning of its LLaMA's names, in place of every other file's ``model.``
TOKENIZER_FOLDER = "chinese_alpaca_lora_7b"  # where InternVL's repository keeps the tokenizer
SPIECE = "spiece_model"  # the sentencepiece model among the tensors
LORA_ALPHA = 32  # the training code's; the file does not say


def is_internvl_c(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether tensors of these names are the single .pth's."""
    return f"{LLAMA}embed_tokens.weight" in shapes and f"{LLAMA}layers.0.self_attn.q_proj.weight" in shapes


def vision_as_published(file: TensorFile) -> TensorFile:
    """Return all but its LLaMA under the names of the published folder."""
    stored = {_published(name): name for name in file.shapes if not name.startswith(LLAMA)}
    return file.renamed(stored, {})


def as_published(file: TensorFile) -> TensorFile:
    """Return its text part under the names of our own files, with the sentencepiece model that lies beside it.

    The file may hold the LoRA of q_proj and v_proj apart, as its training does. Then it is merged, as the authors did
    for the published folder: W + alpha / r * B A. Raises WrongFileError where there is no sentencepiece model.
    """
    folder = file.path.parent
    places = (folder, folder / TOKENIZER_FOLDER)
    tokenizer = next((held for place in places if (held := read_beside(place, TOKENIZER_NAME)) is not None), None)
    if tokenizer is None:
        raise WrongFileError(
            f"{describe_path(file.path)} is InternVL-C, but its sentencepiece model is not beside it: put "
            f"{TOKENIZER_NAME} from "
            f"{ENCODER_SOURCE} into {folder}."
        )
    stored = {
        f"model.{name.removeprefix(LLAMA)}": name
        for name in file.shapes
        if name.startswith(LLAMA) and ".lora_" not in name
    }
    stored |= {TEXT_PROJECTION: TEXT_PROJECTION} if TEXT_PROJECTION in file.shapes else {}
    for own in stored.values():
        _check_lora(file, own)

    def read(name: str) -> torch.Tensor:
        if name == SPIECE:
            return torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)
        weight = file.read(stored[name])
        lora_a, lora_b = _lora(stored[name])
        if lora_a not in file.shapes:
            return weight
        down, up = file.read(lora_a).float(), file.read(lora_b).float()
        return weight.float() + LORA_ALPHA / len(down) * (up @ down)

    published = file.renamed(stored, {})
    return replace(
        published,
        shapes={**published.shapes, SPIECE: (len(tokenizer),)},
        dtypes={**published.dtypes, SPIECE: "uint8"},
        read=read,
    )


def _lora(name: str) -> tuple[str, str]:
    """Return the names of the two halves of a weight's LoRA."""
    a, b = (f"{name.removesuffix('.weight')}.lora_{side}.default.weight" for side in "AB")
    return a, b


def _check_lora(file: TensorFile, name: str) -> None:
    """Raise WrongFileError where a weight has a LoRA that cannot be merged into it."""
    a, b = _lora(name)
    if a not in file.shapes and b not in file.shapes:
        return
    down, up, weight = (file.shapes.get(part, ()) for part in (a, b, name))
    if not (len(down) == len(up) == 2 and down[0] == up[1] > 0 and (up[0], down[1]) == weight):
        raise WrongFileError(
            f"{describe_path(file.path)}: {a} {list(down)} and {b} {list(up)} are no LoRA of {name} {list(weight)}. "
            f"Download it again."
        )
    for part in (a, b):
        check_dtype(file, part)


def _published(name: str) -> str:
    for own, published in NAMES.items():
        if name.startswith(own):
            return f"{VISION}{published}{name.removeprefix(own).removesuffix('.gamma')}"
    return name
