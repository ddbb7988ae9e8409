"""MuLan's text encoder at full size, with random weights: fp16, int8, int4, fp8; 1, 2, 12 and 16 prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.ops
import torch

from mulan_nodes.mulan.checkpoints.quantization import FORMATS, Quantization, quantize_chunks
from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter
from mulan_nodes.mulan.conditioning.internvl_llama import InternVLEncoder
from mulan_nodes.mulan.conditioning.model_files import TextConfig

from .measuring import GIB, Section, measured, relative_error, release, seconds

BANDWIDTH = 3.3e12  # bytes per second of an H100: the least time to read the weights once
BATCHES = ((1, 80), (2, 80), (12, 80), (16, 83))  # prompts, tokens
TABLE_ROWS = 20000  # of a table with more, the first 16 rows are quantized and repeated


def mulan(section: Section) -> None:
    config = TextConfig(1000, 256, 512, 2, 2, 1e-6) if section.quick else TextConfig(49954, 4096, 11008, 32, 32, 1e-6)
    for weight_format, quantization in FORMATS.items():
        made: dict[str, InternVLEncoder] = {}

        def build(quantization=quantization, made=made) -> dict[str, float]:
            made["encoder"] = random_encoder(config, quantization, section.device)
            return {"GiB": section.held()}

        if not section.case(f"{weight_format} build", build):
            continue
        encoder = made.pop("encoder")
        weight_bytes = 1 if quantization else 2
        floor = sum(parameter.numel() for parameter in encoder.transformer.parameters()) * weight_bytes / BANDWIDTH
        with torch.no_grad():
            for count, length in BATCHES:
                windows = [[1, *range(5, length - 3), 2, 0][:length]] * count

                def encode(encoder=encoder, windows=windows, rows=count * length, floor=floor) -> dict[str, Any]:
                    finite = bool(torch.stack(encoder.hidden_states(windows)).isfinite().all())
                    figures = measured(lambda: encoder.hidden_states(windows))
                    required = encoder.memory_required(rows) / GIB
                    return {**figures, "memory_required_GiB": required, "floor_s": floor, "finite": finite}

                section.case(f"{weight_format} encode {count} x {length}", encode)
            if weight_format == "fp16":
                _half_precision(section, encoder, config)
        del encoder, build
        release()


def _half_precision(section: Section, encoder: InternVLEncoder, config: TextConfig) -> None:
    """What computing in half precision would give, which the pack does not do."""
    embeddings = torch.randn(12, 80, config.hidden_size, device=section.device) * 0.05
    mask = torch.ones(12, 80, dtype=torch.long, device=section.device)

    def compute(dtype: torch.dtype) -> torch.Tensor:
        of_mask = mask if dtype == torch.float32 else mask.to(dtype)
        transformer: Any = encoder.transformer
        return transformer(None, of_mask, embeds=embeddings.to(dtype), num_tokens=[80] * 12, dtype=dtype)[0]

    full = compute(torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        section.case(
            f"12 prompts computed in {str(dtype)[6:]} (not what the pack does)",
            lambda dtype=dtype: {
                "s": seconds(lambda: compute(dtype)),
                "relative": relative_error(compute(dtype), full),
            },
        )


@torch.no_grad()
def random_encoder(config: TextConfig, quantization: Quantization | None, device: torch.device) -> InternVLEncoder:
    shape = AdapterShape(config.hidden_size, 768, 120, 3072)
    adapter = LanguageAdapter(shape, dtype=torch.float32, device=device, operations=comfy.ops.manual_cast)
    placed: Any = device  # ComfyUI says "cpu" is a str, and takes any device
    encoder = InternVLEncoder(
        config, adapter, None, dtype=torch.float16, device=placed, is_quantized=quantization is not None
    )
    if quantization is None:
        for parameter in encoder.parameters():
            parameter.data.normal_(0, 0.02)
    else:
        state_dict = _quantized_weights(config, quantization, device)
        encoder.transformer.load_state_dict(state_dict, strict=False, assign=True)
        for parameter in adapter.parameters():
            parameter.data.normal_(0, 0.02)
    encoder.set_clip_options({"execution_device": device})
    encoder.requires_grad_(False)
    return encoder


def _quantized_weights(config: TextConfig, quantization: Quantization, device: torch.device) -> dict[str, torch.Tensor]:
    """All weights; matrices of one shape hold the same values."""
    state_dict: dict[str, torch.Tensor] = {}
    by_shape: dict[tuple[int, ...], dict[str, torch.Tensor]] = {}
    for name, shape in _llama_shapes(config):
        if len(shape) == 1:
            state_dict[name] = torch.ones(shape, dtype=torch.float16, device=device)
            continue
        if not quantization.applies_to(name):
            state_dict[name] = (torch.randn(shape) * 0.02).half().to(device)
            continue
        if shape not in by_shape:
            by_shape[shape] = _quantized(name, shape, quantization)
        for part, tensor in by_shape[shape].items():
            copy = tensor if part == "comfy_quant" else tensor.to(device).clone()
            state_dict[name.removesuffix("weight") + part] = copy
    return state_dict


def _quantized(name: str, shape: tuple[int, ...], quantization: Quantization) -> dict[str, torch.Tensor]:
    layer = name.removesuffix("weight")
    height, width = shape
    values = (torch.randn(height if height < TABLE_ROWS else 16, width) * 0.02).half()
    chunks: dict[str, list[torch.Tensor]] = {}
    for part, chunk, _ in quantize_chunks(name, values, quantization):
        chunks.setdefault(part.removeprefix(layer), []).append(chunk)
    parts = {name: of_part[0] if len(of_part) == 1 else torch.cat(of_part) for name, of_part in chunks.items()}
    return {
        name: tensor.repeat(-(-height // len(tensor)), 1)[:height]
        if name != "comfy_quant" and tensor.dim() and len(tensor) != height
        else tensor
        for name, tensor in parts.items()
    }


def _llama_shapes(config: TextConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    size, intermediate_size = config.hidden_size, config.intermediate_size
    yield "model.embed_tokens.weight", (config.vocab_size, size)
    yield "model.norm.weight", (size,)
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        for part in "qkvo":
            yield f"{layer}.self_attn.{part}_proj.weight", (size, size)
        for part in ("gate", "up"):
            yield f"{layer}.mlp.{part}_proj.weight", (intermediate_size, size)
        yield f"{layer}.mlp.down_proj.weight", (size, intermediate_size)
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{part}.weight", (size,)
