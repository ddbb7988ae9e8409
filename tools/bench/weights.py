"""Random weights of InternVL's text encoder at full width, in the layout of the published folder and in our own.

Written once and streamed tensor by tensor, so that the files may be larger than the memory.
"""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import sentencepiece
import torch

from mulan_nodes.mulan.checkpoints.quantization import FORMATS, quantize_chunks, tensor_layout
from mulan_nodes.mulan.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, to_published

OUTLIERS, OUTLIER_SIZE = (5, 77, 1000, 2000, 3000, 3500), 50.0  # channels of the states, as large ones of real LLaMAs
RECIPE = "1"  # part of the folder's name: raise it when what is written here changes
SHARD_BYTES = 2 * 10**9
TOKENIZER = Path(__file__).resolve().parents[2] / "tests" / "parity" / "goldens" / "mulan" / "tokenizer"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """InternVL-14B-224px's text encoder, with as many of its 32 layers as asked for."""

    layers: int
    width: int = 4096
    feed_forward: int = 11008
    vocabulary: int = 49954

    @property
    def heads(self) -> int:
        return self.width // 128

    @property
    def layer_parameters(self) -> int:
        """Of one decoder layer that text uses."""
        return 4 * self.width**2 + 3 * self.width * self.feed_forward + 2 * self.width

    @property
    def unused_parameters(self) -> int:
        """Of the cross-attention that text never uses, per decoder layer; every second one has it."""
        return (2 * self.width**2 + 2 * self.width * 3200 + self.width + 3200) // 2

    @property
    def matrix_flop_per_row(self) -> int:
        """Of the linear layers, all layers, one row."""
        return 2 * self.layers * (4 * self.width**2 + 3 * self.width * self.feed_forward)

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}x{self.feed_forward}x{self.vocabulary}-recipe{RECIPE}"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file to be: `make` is called when its bytes are due."""

    name: str
    slot: TensorSpec
    make: Callable[[], torch.Tensor]


def write_published(
    folder: Path, sizes: Sizes, dtype: torch.dtype, vision: bool, say: Say, outliers: bool = False
) -> Path:
    """The published folder: config, tokenizer, shards with an index. The values are those of float16 whatever the
    dtype.

    vision: with the vision tower's share of so many layers (zeros; nobody computes with them, but mulankit opens those
    shards too). outliers: a few channels of the states are far larger than the others, as in real LLaMAs.
    """

    def fill(partial: Path) -> None:
        config = {
            "model_type": "internvl",
            "architectures": ["InternVLModel"],
            "clip_embed_dim": 768,
            "num_query_token": 96,
            "cross_attention_frequency": 2,
            "use_qllama_lora": 0,
            "use_backbone_lora": 0,
            "qllama_config": {
                "model_type": "llama",
                "vocab_size": sizes.vocabulary,
                "hidden_size": sizes.width,
                "intermediate_size": sizes.feed_forward,
                "num_hidden_layers": sizes.layers,
                "num_attention_heads": sizes.heads,
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 2048,
                "hidden_act": "silu",
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
        }
        (partial / "config.json").write_text(json.dumps(config, indent=1), "utf-8")
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            shutil.copy(TOKENIZER / name, partial)
        (partial / "tokenizer.model").write_bytes(sentencepiece_model(sizes.vocabulary))
        tensors = [
            *(_with_outliers(tensor) if outliers else tensor for tensor in _text_tensors(sizes, dtype, "qllama.")),
            *_unused_text_tensors(sizes, dtype),
            *(_vision_tensors(sizes, dtype) if vision else ()),
        ]
        shards, weight_map = list(_shards(tensors)), {}
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            say(f"  {folder.name}/{name}, {sum(tensor.slot.size for tensor in shard) / 1e9:.1f} GB")
            with SafetensorsWriter(
                partial / name, {tensor.name: tensor.slot for tensor in shard}, {"format": "pt"}
            ) as file:
                for tensor in shard:
                    file.write(tensor.name, tensor.make())
            weight_map |= {tensor.name: name for tensor in shard}
        index = {"metadata": {"total_size": sum(tensor.slot.size for tensor in tensors)}, "weight_map": weight_map}
        (partial / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")

    return _once(folder, fill)


def write_adapter(folder: Path, sizes: Sizes) -> Path:
    """A random SD1.5 adapter as published: a flat state dict in a .pth. mulankit reads the family from its name."""

    def fill(partial: Path) -> None:
        torch.manual_seed(1)
        adapter = LanguageAdapter(
            AdapterShape(text_hidden_size=sizes.width, context_dim=768, num_queries=120, intermediate_size=3072)
        )
        torch.nn.init.normal_(adapter.queries)
        torch.save(
            {name: tensor.clone() for name, tensor in to_published(adapter.state_dict()).items()},
            partial / "sd15_adapter.pth",
        )

    return _once(folder, fill) / "sd15_adapter.pth"


def write_own(path: Path, sizes: Sizes, form: str, say: Say) -> Path:
    """One file as the converter writes it, `form` of its `FORMATS`, with random weights; all layers hold the same
    values.
    """
    if path.exists():
        return path
    quantization, stem, model = FORMATS[form], "model.layers.0.", sentencepiece_model(sizes.vocabulary)
    layout = {"spiece_model": TensorSpec(torch.uint8, (len(model),))}
    for tensor in _text_tensors(sizes, torch.float16, ""):
        layout |= tensor_layout(tensor.name, tensor.slot.shape, quantization if _is_matrix(tensor.name) else None)
    say(f"  {path.name}, {sum(slot.size for slot in layout.values()) / 1e9:.1f} GB")
    metadata = {"config": json.dumps({"num_attention_heads": sizes.heads, "rms_norm_eps": 1e-6})}
    with SafetensorsWriter(path, layout, metadata) as file:
        file.write("spiece_model", torch.frombuffer(bytearray(model), dtype=torch.uint8))
        for tensor in _text_tensors(replace(sizes, layers=1), torch.float16, ""):
            for name, rows, first in quantize_chunks(
                tensor.name, tensor.make(), quantization if _is_matrix(tensor.name) else None
            ):
                numbers = range(sizes.layers) if name.startswith(stem) else (0,)
                for number in numbers:
                    file.write(name.replace(stem, f"model.layers.{number}.", 1), rows, first)
    return path


def sentencepiece_model(vocabulary: int) -> bytes:
    """The tiny tokenizer of the goldens, lengthened to `vocabulary` pieces that no text has (private-use characters).

    Protocol buffers append repeated fields that follow: field 1 of the model is a piece, of which field 1 is its text
    and 2 its score.
    """
    model = (TOKENIZER / "tokenizer.model").read_bytes()
    known = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    score = b"\x15" + struct.pack("<f", -1e6)
    for number in range(known, vocabulary):
        text = (chr(0xE000 + number // 6000) + chr(0xE000 + number % 6000)).encode()
        piece = b"\x0a" + bytes([len(text)]) + text + score
        model += b"\x0a" + bytes([len(piece)]) + piece
    return model


def _once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """`folder`, filled under another name first: an interrupted run leaves nothing under the final one."""
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        partial.rename(folder)
    return folder


def _text_tensors(sizes: Sizes, dtype: torch.dtype, prefix: str) -> Iterator[Tensor]:
    """What text uses, under the names of the LLaMA."""
    yield _random(f"{prefix}model.embed_tokens.weight", (sizes.vocabulary, sizes.width), dtype, scale=0.05)
    for layer in range(sizes.layers):
        stem = f"{prefix}model.layers.{layer}"
        for part in "qkvo":
            yield _random(f"{stem}.self_attn.{part}_proj.weight", (sizes.width, sizes.width), dtype)
        yield _random(f"{stem}.mlp.gate_proj.weight", (sizes.feed_forward, sizes.width), dtype)
        yield _random(f"{stem}.mlp.up_proj.weight", (sizes.feed_forward, sizes.width), dtype)
        yield _random(f"{stem}.mlp.down_proj.weight", (sizes.width, sizes.feed_forward), dtype)
        for part in ("input_layernorm", "post_attention_layernorm"):
            yield _random(f"{stem}.{part}.weight", (sizes.width,), dtype, offset=1.0, scale=0.1)
    yield _random(f"{prefix}model.norm.weight", (sizes.width,), dtype, offset=1.0, scale=0.1)


def _with_outliers(tensor: Tensor) -> Tensor:
    """Make what writes the states write `OUTLIERS` larger."""
    if not tensor.name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
        return tensor

    def make() -> torch.Tensor:
        values = tensor.make()
        channels = [channel for channel in OUTLIERS if channel < min(values.shape)]
        (values.t() if "embed" in tensor.name else values)[channels] *= OUTLIER_SIZE
        return values

    return replace(tensor, make=make)


def _unused_text_tensors(sizes: Sizes, dtype: torch.dtype) -> Iterator[Tensor]:
    """What mulankit's text model loads and never uses for SD1.5."""
    yield _zeros("qllama.lm_head.weight", (sizes.vocabulary, sizes.width), dtype)
    yield _zeros("text_projection", (sizes.width, 768), dtype)
    for layer in range(0, sizes.layers, 2):
        stem = f"qllama.model.layers.{layer}.cross_attn"
        for part, inputs in (("q", sizes.width), ("k", 3200), ("v", 3200), ("o", sizes.width)):
            yield _zeros(f"{stem}.{part}_proj.weight", (sizes.width, inputs), dtype)
        yield _zeros(f"{stem}.norm1.weight", (sizes.width,), dtype)
        yield _zeros(f"{stem}.norm2.weight", (3200,), dtype)


def _vision_tensors(sizes: Sizes, dtype: torch.dtype) -> Iterator[Tensor]:
    """48 layers of vision belong to 32 layers of text."""
    for layer in range(sizes.layers * 48 // 32):
        stem = f"vision_model.encoder.layers.{layer}"
        yield _zeros(f"{stem}.attn.qkv.weight", (9600, 3200), dtype)
        yield _zeros(f"{stem}.attn.proj.weight", (3200, 3200), dtype)
        yield _zeros(f"{stem}.mlp.fc1.weight", (12800, 3200), dtype)
        yield _zeros(f"{stem}.mlp.fc2.weight", (3200, 12800), dtype)


def _random(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, offset: float = 0.0, scale: float | None = None
) -> Tensor:
    """Normal values; a matrix's keep the size of what goes through it."""

    def make() -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        values = torch.randn(shape, generator=generator).mul_(scale or shape[-1] ** -0.5).add_(offset)
        return values.half().to(dtype)

    return Tensor(name, TensorSpec(dtype, shape), make)


def _zeros(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return Tensor(name, TensorSpec(dtype, shape), lambda: torch.zeros(shape, dtype=dtype))


def _is_matrix(name: str) -> bool:
    return name.endswith("_proj.weight") or name == "model.embed_tokens.weight"


def _shards(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    shard: list[Tensor] = []
    for tensor in tensors:
        if shard and sum(other.slot.size for other in shard) + tensor.slot.size > SHARD_BYTES:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard
