"""InternVL's vision side -> one .safetensors: all but the LLaMA, under the published names, its matrices in 8 bits or float16.

With the text encoder's file, which MuLan shares, it is InternVL-C or -G again.
"""
from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..conversion import Output, portions, source_notes, target_path
from ..quantise import FORMATS, as_it_is, pieces, plain_dtype, slots
from ..safetensors_stream import Slot
from ..tensor_files import CONFIG, open_tensors
from . import published_contrastive as names
from .checkpoint import SOURCE, as_published, open_internvl

# The layers worth 8 bits. The poolings are 1 in 80 of the weights, and everything goes through them.
_MATRICES = tuple(f".{layer}.weight" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", *(f"cross_attn.{part}_proj" for part in "qkvo")))


def is_one(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a source has a vision side."""
    return names.POOLED in shapes


def output(source: Path, text_path: Path, format: str, overwrite: bool) -> Output:
    """The vision side's file, beside the text encoder's at `text_path`. Raises WrongFile, CannotWrite, NotFinite.

    Values that are not quantised are read for their dtype, before anything is written.
    """
    opened, quantisation = open_internvl(source), FORMATS[format]
    path = text_path.with_name(f"{text_path.stem.removesuffix(f'_text_{format}')}_vision_{format}.safetensors")
    target_path(source, path, "", overwrite)
    wanted = [name for part in opened.parts(opened.modes[-1]) for of_ours in part.sources.values() for name in of_ours.names]
    shapes = {name: opened.file.shapes[name] for name in wanted}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    forms = {name: quantisation for name in shapes if quantisation and name.endswith(_MATRICES)}
    plain = {name: plain_dtype(name, value) for name, value in _values(source, {name: sizes[name] for name in shapes if name not in forms})}
    layout = {name: Slot(dtype, shapes[name]) for name, dtype in plain.items()}
    for name, form in forms.items():
        layout |= slots(name, shapes[name], form)

    def tensors():
        for name, value in _values(source, sizes):
            yield from pieces(name, value, forms[name]) if name in forms else as_it_is(name, value, plain[name])

    tower, modes = opened.model.config.tower, " and ".join(f"InternVL-{mode}" for mode in opened.modes)
    metadata = {
        **source_notes(f"The vision side of {modes}", source, SOURCE), CONFIG: json.dumps(opened.told),
        "quantization": quantisation.format if quantisation else "none", "license": "MIT, as InternVL's repository states it",
    }
    return Output(path, f"The vision side of {modes} ({tower.layers} layers, width {tower.width}) in {format}", "internvl", layout, metadata, tensors)


def _values(source: Path, sizes: Mapping[str, int]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, value) of each tensor; the source is opened anew now and then, which gives its pages back."""
    for some in portions(sizes):
        file = as_published(open_tensors(source))
        yield from ((name, file.read(name)) for name in some)
