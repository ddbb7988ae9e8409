"""InternVL's vision side -> one .safetensors: all but the LLaMA, under the published names, its matrices in 8 bits or float16.

With the text encoder's file, which MuLan shares, it is InternVL-C or -G again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..checkpoints.quantization import FORMATS
from ..checkpoints.tensor_files import CONFIG, TensorFile, open_tensors
from ..internvl import internvl_keys as names
from ..internvl.internvl_files import SOURCE, as_published, open_internvl
from .output_files import Output, plain_forms, plan_output, source_notes, target_path

# The layers worth 8 bits. The poolings are 1 in 80 of the weights, and everything goes through them.
_MATRICES = tuple(
    f".{layer}.weight"
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", *(f"cross_attn.{part}_proj" for part in "qkvo"))
)


def is_one(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a source has a vision side."""
    return names.POOLED in shapes


def output(source: Path, text_path: Path, format: str, overwrite: bool) -> Output:
    """The vision side's file, beside the text encoder's at `text_path`. Raises WrongFile, CannotWrite, NotFinite.

    Values that are not quantised are read for their dtype, before anything is written.
    """
    opened, quantization = open_internvl(source), FORMATS[format]
    path = text_path.with_name(f"{text_path.stem.removesuffix(f'_text_{format}')}_vision_{format}.safetensors")
    target_path(source, path, "", overwrite)
    wanted = [
        name for part in opened.parts(opened.modes[-1]) for of_ours in part.sources.values() for name in of_ours.names
    ]

    def again() -> TensorFile:
        return as_published(open_tensors(source))

    matrices = {name for name in wanted if name.endswith(_MATRICES)} if quantization else set()
    forms = dict.fromkeys(matrices, quantization) | plain_forms(
        again, (name for name in wanted if name not in matrices)
    )
    tower, modes = opened.model.config.tower, " and ".join(f"InternVL-{mode}" for mode in opened.modes)
    metadata = {
        **source_notes(f"The vision side of {modes}", source, SOURCE),
        CONFIG: json.dumps(opened.told),
        "quantization": quantization.format if quantization else "none",
        "license": "MIT, as InternVL's repository states it",
    }
    title = f"The vision side of {modes} ({tower.layers} layers, width {tower.width}) in {format}"
    return plan_output(path, title, "internvl", metadata, again, {name: name for name in wanted}, forms)
