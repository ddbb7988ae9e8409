"""The text encoder's sizes: what its tensors and its configuration say, and whether the tensors have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..checkpoints.config import EPS_RANGE, Config
from ..checkpoints.tensor_files import CONFIG, TensorFile, WrongFileError, describe_path, read_beside, read_object
from ..checkpoints.weight_check import PACKED, check_weights, count_layers, layer_format, shape_of
from ..checkpoints.weight_source import MARK, WeightSource, with_scales

# What tensors cannot tell, as a tensor, for files that the stock CLIPSave wrote without metadata
SAVED_CONFIG = "text_config"
QUANTIZATION = "_quantization_metadata"  # in place of a mark per layer
OUTPUT = "output_projection."  # of a narrow text encoder: a linear layer behind the last norm


@dataclass(frozen=True)
class TextConfig:
    """The LLaMA's sizes. The tensors tell all but the number of heads and the norm's epsilon.

    output_size: the width of the states where a linear layer `OUTPUT` makes them of the LLaMA's own, so that a narrow
    one stands for a wider one; None: there is no such layer.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    rms_norm_eps: float
    output_size: int | None = None

    @property
    def states_size(self) -> int:
        """The width of the states that adapters read."""
        return self.output_size or self.hidden_size

    def to_json(self) -> str:
        """Return the sizes for a file's metadata, without what there is not."""
        return json.dumps({name: size for name, size in asdict(self).items() if size is not None})

    def to_tensor(self) -> torch.Tensor:
        """Return what tensors cannot tell, as JSON in a uint8 tensor, for `SAVED_CONFIG`."""
        config = {"num_attention_heads": self.num_attention_heads, "rms_norm_eps": self.rms_norm_eps}
        return torch.frombuffer(bytearray(json.dumps(config).encode()), dtype=torch.uint8)


def text_configuration(file: TensorFile, shapes: Mapping[str, tuple[int, ...]]) -> TextConfig:
    """Return the LLaMA's sizes.

    Raises KeyError where a tensor is missing, ValueError for shapes, WrongFileError for its configuration.
    """
    vocab_size, hidden_size = shape_of(shapes, "model.embed_tokens.weight", 2)
    config = _read_text_config(file)
    return TextConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=shape_of(shapes, "model.layers.0.mlp.up_proj.weight", 2)[0],
        num_hidden_layers=count_layers(shapes, "model.layers."),
        # LLaMA's heads have 128 channels
        num_attention_heads=config.heads("num_attention_heads", hidden_size, hidden_size // 128, even="size of a head"),
        rms_norm_eps=config.number("rms_norm_eps", 1e-6, **EPS_RANGE),
        output_size=shape_of(shapes, f"{OUTPUT}weight", 2)[0] if f"{OUTPUT}weight" in shapes else None,
    )


def _read_text_config(file: TensorFile) -> Config:
    """Return what says how many heads there are. Raises WrongFileError where it cannot be read."""
    content: str | bytes | None
    if CONFIG in file.metadata:
        where, content = f"its metadata `{CONFIG}`", file.metadata[CONFIG]
    elif SAVED_CONFIG in file.shapes:
        where, content = f"its tensor `{SAVED_CONFIG}`", file.read_bytes(SAVED_CONFIG)
    else:
        where, content = "its config.json", read_beside(file.path, "config.json")
    where = f"{describe_path(file.path)}: {where}"
    config = Config({} if content is None else read_object(content, where), where)
    return config.section("qllama_config") if where.endswith("config.json") else config


def check_llama(file: TensorFile, config: TextConfig, names: Mapping[str, str]) -> None:
    """Raise WrongFileError where a tensor of the LLaMA is missing, holds no weights, or has another shape.

    names: ComfyUI's key -> the name in the file.
    """
    expected = llama_shapes(config)
    sources = {key: WeightSource((names.get(key, key),)) for key in expected}
    marked = {key: f"{key.removesuffix('weight')}{MARK}" for key in expected}
    in_metadata = _layers_of_metadata(file)
    for key, mark in marked.items():  # of ComfyUI's other formats it knows the shapes alone
        is_packed = mark in names and layer_format(file, names[mark]) in PACKED
        if key in names and (is_packed or key.removesuffix(".weight") in in_metadata):
            del sources[key]
    kept = {key: shape for key, shape in expected.items() if key in sources}
    check_weights(file, with_scales(sources, file.shapes), kept)
    if "scaled_fp8" in names:
        for key, name in names.items():
            if key.endswith((".scale_weight", ".scale_input")) and file.shapes[name] not in ((), (1,)):
                raise WrongFileError(
                    f"{describe_path(file.path)}: {name} has the shape {list(file.shapes[name])}, expected one scale. "
                    f"Download it again."
                )


def _layers_of_metadata(file: TensorFile) -> Mapping[str, Any]:
    """Return the quantized layers that the metadata names, as some writers' do. Raises WrongFileError."""
    if QUANTIZATION not in file.metadata:
        return {}
    where = f"{describe_path(file.path)}: its metadata `{QUANTIZATION}`"
    layers = read_object(file.metadata[QUANTIZATION], where).get("layers")
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        raise WrongFileError(f"{where} names no layers. Download it again.")
    return layers


def llama_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of the LLaMA, and of the linear layer behind a narrow one."""
    width, inner = config.hidden_size, config.intermediate_size
    parts = {f"self_attn.{part}_proj": (width, width) for part in "qkvo"}
    parts |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    parts |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    layers = {
        f"model.layers.{layer}.{part}.weight": shape
        for layer in range(config.num_hidden_layers)
        for part, shape in parts.items()
    }
    shapes = {"model.embed_tokens.weight": (config.vocab_size, width), **layers, "model.norm.weight": (width,)}
    if config.output_size is not None:
        shapes |= {f"{OUTPUT}weight": (config.output_size, width), f"{OUTPUT}bias": (config.output_size,)}
    return shapes
