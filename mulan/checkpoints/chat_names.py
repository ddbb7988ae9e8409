"""The names of a chat model's tensors: OpenGVLab's; transformers' own ("-hf" checkpoints) are read as those."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .tensor_files import TensorFile, WrongFileError, describe_path
from .weight_source import WeightSource

VISION, LANGUAGE, PROJECTOR = "vision_model.", "language_model.", "mlp1."

# The beginnings of transformers' names, and what follows them -> OpenGVLab's
_BEGINNINGS = {
    "model.vision_tower.": VISION,
    "vision_tower.": VISION,
    "model.multi_modal_projector.": PROJECTOR,
    "multi_modal_projector.": PROJECTOR,
    "model.language_model.": f"{LANGUAGE}model.",
    "lm_head.": f"{LANGUAGE}lm_head.",
}
_PARTS = {
    VISION: {
        "embeddings.cls_token": "embeddings.class_embedding",
        "embeddings.position_embeddings": "embeddings.position_embedding",
        "embeddings.patch_embeddings.projection.": "embeddings.patch_embedding.",
        "encoder.layer.": "encoder.layers.",
        ".lambda_": ".ls",
        ".layernorm_before.": ".norm1.",
        ".layernorm_after.": ".norm2.",
        ".attention.projection_layer.": ".attn.proj.",
        ".attention.q_norm.": ".attn.q_norm.",
        ".attention.k_norm.": ".attn.k_norm.",
        ".attention.q_proj.": ".attn.qkv.",
        ".attention.k_proj.": ".attn.qkv.",
        ".attention.v_proj.": ".attn.qkv.",
    },
    PROJECTOR: {"layer_norm.": "0.", "linear_1.": "1.", "linear_2.": "3."},
}


def as_published(file: TensorFile) -> TensorFile:
    """Return the same file with OpenGVLab's names.

    The tower's queries, keys and values, which transformers keeps apart, are one tensor.
    """
    stored: dict[str, list[str]] = {}
    for name in file.shapes:
        stored.setdefault(_published(name), []).append(name)
    for published, names in stored.items():
        if len(names) > 1:
            stored[published] = _in_order(file, names)
    first = file.renamed({name: parts[0] for name, parts in stored.items()})
    rows = {name: sum(file.shapes[part][0] for part in parts) for name, parts in stored.items() if len(parts) > 1}
    return replace(
        first,
        shapes={name: (rows[name], *shape[1:]) if name in rows else shape for name, shape in first.shapes.items()},
        read=lambda name: WeightSource(tuple(stored[name])).read(file.read),
    )


def _in_order(file: TensorFile, names: Sequence[str]) -> list[str]:
    """Return the names of queries, keys and values that are one tensor together.

    Raises WrongFileError where other names stand for one tensor, or the three differ in shape or dtype.
    """
    parts = {name.rsplit(".", 1)[0][-len("q_proj") :]: name for name in names}
    if parts.keys() != {"q_proj", "k_proj", "v_proj"} or len(names) > len(parts):
        raise WrongFileError(
            f"{describe_path(file.path)} holds one tensor under several names, {' and '.join(sorted(names)[:2])}: it "
            f"is damaged. Download it again."
        )
    forms = {(file.shapes[name], file.dtypes.get(name)) for name in names}
    if len(forms) > 1 or not file.shapes[names[0]]:
        found = " and ".join(f"{dtype} {list(shape)}" for shape, dtype in sorted(forms, key=str))
        raise WrongFileError(
            f"{describe_path(file.path)}: {sorted(names)[0]} and its like hold {found}, expected one dtype and one "
            f"shape for queries, keys and values. Download it again."
        )
    return [parts[f"{part}_proj"] for part in "qkv"]


def _published(name: str) -> str:
    for beginning, published in _BEGINNINGS.items():
        if name.startswith(beginning):
            rest = name.removeprefix(beginning)
            for part, instead in _PARTS.get(published, {}).items():
                rest = rest.replace(part, instead)
            return published + rest
    return name
