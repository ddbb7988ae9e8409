"""What `dev.py bench --encoders` does: MuLan's text encoders, counted at full size and timed at full width.

Sizes are those of the published config.json files. A few layers of random weights are timed and scaled to all of them:
layers of one model cost the same, and what does not grow with them (looking tokens up, one norm) is below a hundredth.
The adapter is not in these figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .run import machine
from .sections import Rounds, Say, parser_of, run
from .worker import timed

if TYPE_CHECKING:
    from mulan_nodes.mulan.checkpoints.language_model import LanguageConfig

LAYERS = 4  # that are timed
PROMPTS, ROWS = 12, 80  # at once, and of a window
FORMATS_SHOWN = ("fp16", "int8", "int4", "fp8")
FORMATS_TIMED = ("fp16", "int8")
TABLE = 512  # rows of the embedding table that are made to time: one is looked up per token


@dataclass(frozen=True)
class Model:
    """A language model. used_by: the published models that have it; sizes: of `LanguageConfig`; head_norm: whether each
    head of queries and keys has a norm.
    """

    used_by: str
    kind: str
    sizes: dict[str, Any]
    head_norm: bool = False


_LLAMA = {"vocab_size": 49954, "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
_LLAMA |= {"num_key_value_heads": 32, "head_dim": 128}
_QWEN3 = {"vocab_size": 151936, "num_hidden_layers": 28, "num_attention_heads": 16}
_QWEN3 |= {"num_key_value_heads": 8, "head_dim": 128}
_QWEN2 = {"vocab_size": 151674, "num_key_value_heads": 2, "qkv_bias": True}
_INTERNLM2 = {"vocab_size": 92553, "num_key_value_heads": 8, "head_dim": 128}
MODELS = {
    "7B": Model("InternVL-14B-224px (MuLan's own)", "LLaMA", {**_LLAMA, "num_hidden_layers": 32}),
    "7B, 8 of its layers": Model("what mulan.training encoder makes", "LLaMA", {**_LLAMA, "num_hidden_layers": 8}),
    "2B, InternLM2": Model(
        "InternVL2_5-2B",
        "InternLM2-1.8B",
        {
            **_INTERNLM2,
            **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16},
        },
    ),
    "2B, Qwen3": Model(
        "InternVL3_5-2B", "Qwen3-1.7B", {**_QWEN3, "hidden_size": 2048, "intermediate_size": 6144}, head_norm=True
    ),
    "2B, Qwen2.5": Model(
        "InternVL3-2B",
        "Qwen2.5-1.5B",
        {
            **_QWEN2,
            **{"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28},
            **{"num_attention_heads": 12, "head_dim": 128},
        },
    ),
    "1B, Qwen3": Model(
        "InternVL3_5-1B", "Qwen3-0.6B", {**_QWEN3, "hidden_size": 1024, "intermediate_size": 3072}, head_norm=True
    ),
    "1B, Qwen2.5": Model(
        "InternVL2_5-1B, InternVL3-1B",
        "Qwen2.5-0.5B",
        {
            **_QWEN2,
            **{"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24},
            **{"num_attention_heads": 14, "head_dim": 64},
        },
    ),
}


def main(arguments: list[str], comfyui: Path, cache: Path, output: Path) -> int:
    return run("encoders", parse(arguments), measure, markdown, comfyui, cache, output)


def parse(arguments: list[str]) -> argparse.Namespace:
    return parser_of("encoders", "the text encoders that MuLan reads", tuple(MODELS)).parse_args(arguments)


def measure(options: argparse.Namespace, cache: Path, known: dict, say: Say) -> Iterator[dict]:
    results = {**known, "machine": machine(), "threads": options.threads}
    models: dict[str, dict] = results.setdefault("models", {})
    per_layer: dict[str, dict[str, dict[str, float]]] = {}
    for name, model in MODELS.items():
        if options.only and name not in options.only:
            continue
        say(name)
        config = _config(model)
        models[name] = {
            **{"used_by": model.used_by, "kind": model.kind},
            **{"width": config.hidden_size, "layers": config.num_hidden_layers},
            **{"parameters": sum(count for _, count in _tensors(config)), "bytes": _bytes(config)},
        }
        layers = replace(config, num_hidden_layers=LAYERS)
        key = str(layers)  # two models may differ in the number of layers alone
        if key not in per_layer:
            per_layer[key] = {each: _seconds_per_layer(layers, each, options) for each in FORMATS_TIMED}
        for weight_format, seconds in per_layer[key].items():
            models[name][weight_format] = {what: of * config.num_hidden_layers for what, of in seconds.items()}
        yield results


def _seconds_per_layer(config: LanguageConfig, weight_format: str, options: argparse.Namespace) -> dict[str, float]:
    """Return CPU seconds of a layer for a prompt alone ("one") and for each of several at once ("each")."""
    prompts = 2 if options.quick else PROMPTS
    encoder, rounds = _encoder(config, weight_format), Rounds()
    windows = [[1, *range(5 + index, ROWS + 3 + index), 2] for index in range(prompts)]
    works = {"all": partial(encoder.hidden_states, windows), "one": partial(encoder.hidden_states, windows[:1])}
    works["one"]()
    for _ in range(1 if options.quick else options.repeat):
        for what, work in works.items():
            rounds.note(what, times=timed(work)[0])
    all_at_once, one = (rounds.median(what)["cpu"] / config.num_hidden_layers for what in ("all", "one"))
    return {"one": one, "each": all_at_once / prompts}


def _config(model: Model) -> LanguageConfig:
    from mulan_nodes.mulan.checkpoints.language_model import HEAD_NORM, LanguageConfig

    norm = HEAD_NORM if model.head_norm else None
    return LanguageConfig(**model.sizes, q_norm=norm, k_norm=norm)


def _tensors(config: LanguageConfig) -> list[tuple[str, int]]:
    """Return name and number of values of each tensor."""
    return [(name, shape.numel()) for name, shape in _shapes(config).items()]


def _shapes(config: LanguageConfig) -> dict[str, torch.Size]:
    from comfy.text_encoders import llama

    module = llama.Llama2_(config, device="meta", ops=torch.nn)
    return {f"model.{name}": tensor.shape for name, tensor in module.state_dict().items()}


def _bytes(config: LanguageConfig) -> dict[str, int]:
    """Return the bytes of the tensors that encode text, in each format. What sees and what writes is not read."""
    from mulan_nodes.mulan.checkpoints.quantization import FORMATS, tensor_layout

    found = {}
    for weight_format in FORMATS_SHOWN:
        quantization, total = FORMATS[weight_format], 0
        for name, shape in _shapes(config).items():
            applies = quantization is not None and quantization.applies_to(name)
            for spec in tensor_layout(name, tuple(shape), quantization if applies else None).values():
                total += torch.Size(spec.shape).numel() * spec.dtype.itemsize
        found[weight_format] = total
    return found


def _encoder(config: LanguageConfig, weight_format: str) -> Any:
    """Return an encoder of random weights with a short embedding table."""
    from mulan_nodes.mulan.checkpoints.quantization import FORMATS, quantize_chunks
    from mulan_nodes.mulan.conditioning.internvl_llama import InternVLEncoder

    quantization = FORMATS[weight_format]
    config = replace(config, vocab_size=TABLE)
    encoder = InternVLEncoder(config, dtype=torch.float16, device="cpu", is_quantized=quantization is not None)
    state_dict: dict[str, torch.Tensor] = {}
    for name, shape in _shapes(config).items():
        if len(shape) == 1:
            state_dict[name] = torch.full(shape, 1.0 if "norm" in name else 0.0, dtype=torch.float16)
            continue
        values = (torch.randn(shape) * shape[-1] ** -0.5).half()
        applies = quantization is not None and quantization.applies_to(name)
        parts: dict[str, list[torch.Tensor]] = {}
        for part, rows, _ in quantize_chunks(name, values, quantization if applies else None):
            parts.setdefault(part, []).append(rows)
        state_dict |= {part: rows[0] if len(rows) == 1 else torch.cat(rows) for part, rows in parts.items()}
    encoder.transformer.load_state_dict(state_dict, strict=False, assign=True)
    return encoder.requires_grad_(False)


def markdown(results: dict) -> str:
    where, models = results["machine"], results["models"]
    lines = [
        f"Measured on {where['processor']}, {results['threads']} thread, torch {where['torch']}: {LAYERS} layers of "
        "random weights at real width, scaled to all layers. Parameters and bytes are counted, of what encodes text.",
        "",
        "| text encoder | language model | width | layers | parameters | of 7B | "
        + " | ".join(f"{name}, GB" for name in FORMATS_SHOWN)
        + " | "
        + " | ".join(f"one prompt, {name}, s | prompts per s, {name}" for name in FORMATS_TIMED)
        + " |",
        "| --- | --- |" + " --: |" * (4 + len(FORMATS_SHOWN) + 2 * len(FORMATS_TIMED)),
    ]
    whole = models.get("7B", {}).get("parameters")
    for name, model in models.items():
        share = f"{model['parameters'] / whole:.2f}" if whole else ""
        sizes = " | ".join(f"{model['bytes'][name] / 1e9:.2f}" for name in FORMATS_SHOWN)
        times = " | ".join(f"{model[name]['one']:.2f} | {1 / model[name]['each']:.2f}" for name in FORMATS_TIMED)
        lines.append(
            f"| {name} ({model['used_by']}) | {model['kind']} | {model['width']} | {model['layers']} | "
            f"{model['parameters'] / 1e9:.2f} B | {share} | {sizes} | {times} |"
        )
    return "\n".join(lines) + "\n"
