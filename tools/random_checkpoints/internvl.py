"""A small InternVL-C / -G with random weights as a published folder, or as the single .pth of InternVL-C."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from mulan_nodes.tests.parity import internvl_recipe as recipe

from ..comfyui import ROOT
from ..shards import save_shards

PARITY = ROOT / "tests" / "parity"
TOKENIZER = PARITY / "goldens" / "mulan" / "tokenizer" / "tokenizer.model"
PIECES = 1014


def tensors(reader: bool = True, **sizes) -> dict[str, torch.Tensor]:
    """Published names and values, of the recipe's first case but for `sizes`; without the `reader` those of InternVL-C
    alone.
    """
    sizes = {**recipe.CASES["one"], **sizes}
    return {
        name: torch.from_numpy(recipe.tensor(sizes["seed"], name, shape))
        for name, shape in recipe.shapes(sizes, PIECES).items()
        if reader
        or not (
            name.startswith(("query_tokens", "clip_projector2.", "itm_head."))
            or ".cross_attn." in name
            and "qllama." in name
        )
    }


def checkpoint(folder: Path, reader: bool = True, shards: str | None = None, **sizes) -> Path:
    """A published folder with one model.safetensors; `shards`: "bin" or "safetensors" for two of these with an index,
    as published.

    `sizes` as in the recipe's cases; `seed` too.
    """
    sizes = {**recipe.CASES["one"], **sizes}
    folder.mkdir(parents=True, exist_ok=True)
    values = tensors(reader, **sizes)
    if shards is None:
        save_file(values, folder / "model.safetensors")
    else:
        save_shards(folder, values, f".{shards}")
    (folder / "config.json").write_text(json.dumps(recipe.configuration(sizes, PIECES)), "utf-8")
    shutil.copy(TOKENIZER, folder / "tokenizer.model")
    return folder


def single(file: Path, **sizes) -> Path:
    """The same weights as internvl_c_13b_224px.pth has them, its sentencepiece model beside it. Only its tensors tell
    sizes: heads are upstream's.
    """
    begins = {
        "vision_model.embeddings.class_embedding": "cls_token",
        "vision_model.embeddings.position_embedding": "pos_embed",
        "vision_model.embeddings.patch_embedding.": "patch_embed.proj.",
        "vision_model.encoder.layers.": "blocks.",
        "qllama.model.": "transformer.",
    }

    def own(name: str) -> str:
        begin = next((published for published in begins if name.startswith(published)), "")
        name = begins.get(begin, "") + name.removeprefix(begin)
        return f"{name}.gamma" if name.endswith((".ls1", ".ls2")) else name

    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {own(name): value for name, value in tensors(reader=False, **sizes).items() if "lm_head" not in name}, file
    )
    shutil.copy(TOKENIZER, file.parent / "tokenizer.model")
    return file
