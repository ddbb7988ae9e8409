"""InternVL's vision side -> one .safetensors: all but the LLaMA, under the published names.

Its matrices are quantized or float16. With the text encoder's file, which MuLan shares, it is InternVL-C or -G again.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..checkpoints.quantization import FORMATS
from ..checkpoints.tensor_files import CONFIG, TensorFile
from ..internvl import internvl_keys
from ..internvl.internvl_files import SOURCE, internvl_from_tensors
from .output_files import Output, Target, make_metadata, plan_output, plan_precisions

# The layers worth quantizing. The poolings are 1 in 80 of the weights, and everything goes through them.
_MATRICES = tuple(
    f".{layer}.weight"
    for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", *(f"cross_attn.{part}_proj" for part in "qkvo"))
)


def has_vision_side(source: TensorFile) -> bool:
    """Return whether a source of InternVL-C or -G holds more than its text encoder."""
    return internvl_keys.POOLED in source.shapes


def plan_vision(source: TensorFile, text_path: Path, target: Target, weight_format: str) -> Output:
    """Plan the vision side's file, beside the text encoder's at `text_path`."""
    stem = text_path.stem.removesuffix(f"_text_{weight_format}")
    path = target.checked(text_path.with_name(f"{stem}_vision_{weight_format}.safetensors"))
    opened = internvl_from_tensors(source)
    wanted = [
        name
        for part in opened.parts(opened.modes[-1])
        for weight_source in part.sources.values()
        for name in weight_source.names
    ]
    matrices = {name for name in wanted if name.endswith(_MATRICES)}
    precisions = plan_precisions(opened.file, wanted, matrices, FORMATS[weight_format])
    tower, modes = opened.model.config.vision, " and ".join(f"InternVL-{mode}" for mode in opened.modes)
    title = f"The vision side of {modes}"
    metadata = make_metadata(
        title,
        source.path,
        SOURCE,
        license="MIT, as InternVL's repository states it",
        weight_format=weight_format,
        **{CONFIG: json.dumps(opened.config_json)},
    )
    title = f"{title} ({tower.num_hidden_layers} layers, width {tower.hidden_size}) in {weight_format}"
    return plan_output(path, title, "internvl", metadata, opened.file, {name: name for name in wanted}, precisions)
