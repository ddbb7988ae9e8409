"""InternVL-C's single .pth (internvl_c_13b_224px.pth) under the names of the other files: its vision side and its text
encoder.

Source: OpenGVLab/InternVL, clip_benchmark/clip_benchmark/models: internvl_c_pytorch/internvl_c.py (the names),
internvl_clip.py (how its LoRA was trained), build_model.py (how the authors made the published folder of it).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..checkpoints.tensor_files import TensorFile, WrongFileError, describe_path
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
    return TensorFile(
        file.path, {name: file.shapes[own] for name, own in stored.items()}, lambda name: file.read(stored[name]), {}
    )


def as_published(file: TensorFile) -> TensorFile:
    """Return its text part under the names of our own files, with the sentencepiece model that lies beside it.

    The file may hold the LoRA of q_proj and v_proj apart, as its training does. Then it is merged, as the authors did
    for the published folder: W + alpha / r * B A. Raises WrongFileError where there is no sentencepiece model.
    """
    folder = file.path.parent
    candidates = folder / TOKENIZER_NAME, folder / TOKENIZER_FOLDER / TOKENIZER_NAME
    tokenizer = next((path for path in candidates if path.is_file()), None)
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

    def read(name: str) -> torch.Tensor:
        if name == SPIECE:
            return torch.frombuffer(bytearray(tokenizer.read_bytes()), dtype=torch.uint8)
        weight = file.read(stored[name])
        lora_a, lora_b = (f"{stored[name].removesuffix('.weight')}.lora_{side}.default.weight" for side in "AB")
        if lora_a not in file.shapes:
            return weight
        down, up = file.read(lora_a).float(), file.read(lora_b).float()
        return weight.float() + LORA_ALPHA / len(down) * (up @ down)

    shapes = {name: file.shapes[own] for name, own in stored.items()} | {SPIECE: (tokenizer.stat().st_size,)}
    return TensorFile(file.path, shapes, read, {})


def _published(name: str) -> str:
    for own, published in NAMES.items():
        if name.startswith(own):
            return f"{VISION}{published}{name.removeprefix(own).removesuffix('.gamma')}"
    return name
