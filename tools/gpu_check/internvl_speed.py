"""InternVL's 6B tower and an 8B chat model at full size, with random weights."""

from __future__ import annotations

import time
from typing import Any

import comfy.ops
import numpy as np
import torch

from mulan_nodes.mulan.checkpoints.language_model import HEAD_NORM, LanguageConfig
from mulan_nodes.mulan.checkpoints.linear import operations_for
from mulan_nodes.mulan.checkpoints.quantization import INT8, quantize_chunks
from mulan_nodes.mulan.internvl.contrastive import ContrastiveConfig, ContrastiveModel
from mulan_nodes.mulan.internvl.intern_vit import InternViTConfig
from mulan_nodes.mulan.internvl.internvl_model import _memory
from mulan_nodes.mulan.internvl.preprocessing import preprocess
from mulan_nodes.mulan.internvl_chat.chat_model import ChatConfig, InternVLChat

from .measuring import GIB, Section, measured, peak, release, seconds, synchronize

ROWS = 64  # of random int8 weights, repeated


def internvl(section: Section) -> None:
    """Images a second; the time of preparing one on the CPU."""
    device, quick = section.device, section.quick
    vision = InternViTConfig(256, 512, 2, 2, 14, 224) if quick else InternViTConfig(3200, 12800, 48, 25, 14, 224)
    sizes = (256, 64, 2) if quick else (4096, 768, 16)
    dtype = torch.float32 if section.on_cpu else torch.float16
    config = ContrastiveConfig(vision, *sizes)
    model = ContrastiveModel(config, operations=comfy.ops.manual_cast, dtype=dtype, device=device)
    for parameter in model.requires_grad_(False).parameters():
        parameter.data.normal_(0, 0.01)
    with torch.no_grad():
        for count in (1, 16, 64):
            images = torch.randn(count, 3, 224, 224, device=device, dtype=dtype)

            def embed(images=images, count=count) -> dict[str, float]:
                figures = measured(lambda: model.pool_images(model.encode_images(images)))
                return {
                    "images/s": count / figures["s"],
                    "peak_GiB": figures["peak_GiB"],
                    "memory_required_GiB": _memory(vision, count, dtype) / GIB,
                }

            section.case(f"tower, {count} images", embed)
    photo = torch.from_numpy(np.random.default_rng(0).random((3000, 4000, 3), dtype=np.float32))
    section.case(
        "preparing an image of 12 megapixels on the CPU",
        lambda: {"s": seconds(lambda: preprocess(photo, 224, "crop"), 2, 0)},
    )


def chat(section: Section) -> None:
    """Tiles, prefill, tokens a second, in bfloat16 and int8."""
    device, quick = section.device, section.quick
    norms = dict(rms_norm=False, qk_norm=False, qkv_bias=True)
    if quick:
        vision = InternViTConfig(128, 256, 2, 2, 14, 448, **norms)
        language = _language_config(1000, 128, 256, 2, 4, 2, 32)
    else:
        vision = InternViTConfig(1024, 4096, 24, 16, 14, 448, **norms)
        language = _language_config(151936, 4096, 12288, 36, 32, 8, 128)
    dtype = torch.float32 if section.on_cpu else torch.bfloat16
    for weight_format in ("bf16", "int8"):
        made: dict[str, InternVLChat] = {}

        def build(weight_format=weight_format, made=made) -> dict[str, float]:
            made["model"] = _chat_model(ChatConfig(vision, language), dtype, device, weight_format == "int8")
            return {"GiB": section.held()}

        if not section.case(f"{weight_format} build", build):
            continue
        model = made.pop("model")
        tiles = torch.randn(13, 3, 448, 448, device=device, dtype=dtype)
        length = 64 if quick else 13 * 256 + 60
        prompt = torch.randn(1, length, language.hidden_size, device=device, dtype=dtype) * 0.02

        def generate(count: int, model=model, prompt=prompt) -> float:
            start = time.perf_counter()
            model.language_model.generate(
                prompt, do_sample=False, max_length=count, stop_tokens=[-1], execution_dtype=dtype
            )
            synchronize()
            return time.perf_counter() - start

        def speed(generate=generate) -> dict[str, float]:
            generate(2)
            one = generate(1)
            most, many = peak(lambda: generate(65))
            return {"prefill_s": one, "tokens/s": 64 / (many - one), "peak_GiB": most}

        with torch.no_grad():
            section.case(
                f"{weight_format} 13 tiles",
                lambda model=model, tiles=tiles: measured(lambda: model.encode_tiles(tiles)),
            )
            section.case(f"{weight_format} prefill {length}, 64 tokens", speed)
        del model, generate, speed, build
        release()


def _language_config(
    vocab_size: int, hidden_size: int, intermediate_size: int, layers: int, heads: int, kv_heads: int, head_dim: int
) -> LanguageConfig:
    return LanguageConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=32768,
        q_norm=HEAD_NORM,
        k_norm=HEAD_NORM,
    )


@torch.no_grad()
def _chat_model(config: ChatConfig, dtype: torch.dtype, device: torch.device, quantized: bool) -> InternVLChat:
    """As `load_chat` makes it, whose int8 files keep float16 beside the quantized matrices."""
    operations: Any = operations_for(torch.float16 if quantized else None)
    model = InternVLChat(
        config, operations=comfy.ops.manual_cast, language_operations=operations, dtype=dtype, device=device
    )
    for parameter in model.requires_grad_(False).parameters():
        parameter.data.normal_(0, 0.02)
    if quantized:
        for module in model.language_model.modules():
            if type(module).__name__ == "Linear":
                _fill_with_int8(module, device)
    return model


def _fill_with_int8(linear: Any, device: torch.device) -> None:
    height, width = linear._orig_shape
    rows = min(ROWS, height)
    parts: dict[str, list[torch.Tensor]] = {}
    for name, chunk, _ in quantize_chunks("x.weight", torch.randn(rows, width) * 0.02, INT8):
        parts.setdefault(name.removeprefix("x."), []).append(chunk)
    state_dict = {
        name: chunks[0]
        if name == "comfy_quant"
        else torch.cat(chunks).repeat(-(-height // rows), 1)[:height].to(device)
        for name, chunks in parts.items()
    }
    linear.load_state_dict(state_dict, assign=True, strict=False)
