"""Small files as version 0.4 wrote them: names, shapes, dtypes and metadata of its own files, with random values.

written_by_0_4.json holds the headers. Nothing here comes from today's writer.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file

FILES = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
DTYPES = {"F32": torch.float32, "F16": torch.float16}
MARKS = {"I8": b'{"format": "int8_tensorwise"}', "F8_E4M3": b'{"format": "float8_e4m3fn"}'}


def write(name: str, path: Path, files: dict[str, bytes]) -> Path:
    """Write the file `name` of written_by_0_4.json; `files` are its tensors of bytes, such as the tokenizer's."""
    tensors = {key: text.split(" ") for key, text in FILES[name]["tensors"].items()}
    values = {}
    for key, (dtype, *sizes) in tensors.items():
        if key in files:
            values[key] = torch.frombuffer(bytearray(files[key]), dtype=torch.uint8)
        elif key.endswith(".comfy_quant"):
            mark = MARKS[tensors[key.replace(".comfy_quant", ".weight")][0]]
            values[key] = torch.frombuffer(bytearray(mark), dtype=torch.uint8)
        else:
            values[key] = random(key, dtype, tuple(map(int, sizes)))
    save_file(values, path, metadata=FILES[name]["metadata"])
    return path


def random(key: str, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return values that depend on the name alone: 8-bit weights, their scales, norms around one, others around 0."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    if dtype == "I8":
        return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
    normal = torch.randn(shape, generator=generator)
    if dtype == "F8_E4M3":
        return (normal * 100).to(torch.float8_e4m3fn)
    if key.endswith(".weight_scale"):
        per_step = 0.1 / 100 if not shape else 0.1 / 127
        return (1 + 0.2 * normal.clamp(-2, 2)) * per_step
    center = 1.0 if len(shape) == 1 and key.endswith(".weight") else 0.0
    return (center + 0.1 * normal).to(DTYPES[dtype])


def digest(hidden_states: torch.Tensor) -> list[float]:
    """Return a few numbers that another order, scale or row of weights would change: the first six and the norm."""
    row = hidden_states.detach().float().flatten(0, -2)[-1]
    return [round(value, 4) for value in [*row[:6].tolist(), row.norm().item()]]
