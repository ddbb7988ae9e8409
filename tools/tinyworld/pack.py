"""The tiny world's trained models -> packs, which mulan/tiny_models unpacks into the files that ComfyUI loads.

A pack holds only what was trained: the live channels of each tensor, under their final names (see `narrow.py` for why
the full-width result computes the same).
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Mapping
from pathlib import Path

import sentencepiece
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save

from mulan_nodes.mulan.tiny_models.full_width import AUTOENCODER, CLIP, CONTROL, TEXT, UNET, UNET_HEADS
from mulan_nodes.mulan.tiny_models.packs import STEPS, pack_path, read_pack

METADATA = {
    "title": "MuLan Nodes: tiny world",
    "description": "Tiny models of a world of coloured shapes, trained from nothing on pictures drawn by a program",
    "license": "MIT",
}
COMPANIONS_METADATA = {
    **METADATA,
    "title": "MuLan Nodes: companions of the tiny world",
    "description": "A style LoRA, an LCM LoRA and a ControlNet for the tiny SD1.5 checkpoint, trained on pictures "
    "drawn by a program",
}
LORAS = ("pattern_lora", "lcm_lora")
TEXT_STAGE = "text_encoder_sentences"  # the last of the text encoder's
STEP = 0.05  # of a row's root mean square: its rounding errors are 1.4 % of it
SHORTEST = 16  # weights in a row: the step of a shorter one would take what its codes save

# The full model divides by the square root of its own head's width, the narrow one by that of the live part: the
# queries make up for it.
QUERY_SCALES = {"to_q.": math.sqrt(40 / 8), "q_proj.": math.sqrt(64 / 8), "in_proj_": math.sqrt(96 / 12)}

# diffusers' names in a UNet of up to two levels with a block each -> SD1.5's own
_UNET_NAMES = (
    *((f"down_blocks.{level}.resnets.0.", f"input_blocks.{1 + 2 * level}.0.") for level in range(2)),
    *((f"down_blocks.{level}.attentions.0.", f"input_blocks.{1 + 2 * level}.1.") for level in range(2)),
    ("down_blocks.0.downsamplers.0.conv.", "input_blocks.2.0.op."),
    *(
        (f"up_blocks.{level}.{diffusers_kind}.{block}.", f"output_blocks.{2 * level + block}.{place}.")
        for level in range(2)
        for block in range(2)
        for place, diffusers_kind in enumerate(("resnets", "attentions"))
    ),
    ("up_blocks.0.upsamplers.0.conv.", "output_blocks.1.2.conv."),
    ("time_embedding.linear_1.", "time_embed.0."),
    ("time_embedding.linear_2.", "time_embed.2."),
    ("conv_in.", "input_blocks.0.0."),
    ("conv_norm_out.", "out.0."),
    ("conv_out.", "out.2."),
)
_RESNET_NAMES = (
    (".norm1.", ".in_layers.0."),
    (".conv1.", ".in_layers.2."),
    (".time_emb_proj.", ".emb_layers.1."),
    (".norm2.", ".out_layers.0."),
    (".conv2.", ".out_layers.3."),
    (".conv_shortcut.", ".skip_connection."),
)
_CONTROL_NAMES = (
    ("mid_block.resnets.0.", "middle_block.0."),
    ("controlnet_mid_block.", "middle_block_out.0."),
    ("controlnet_cond_embedding.conv_in.", "input_hint_block.0."),
    ("controlnet_cond_embedding.conv_out.", "input_hint_block.14."),
    *((f"controlnet_cond_embedding.blocks.{block}.", f"input_hint_block.{2 * block + 2}.") for block in range(6)),
    *((f"controlnet_down_blocks.{block}.", f"zero_convs.{block}.0.") for block in range(2)),
)


def unet_name(name: str) -> str:
    """A tensor's name in the narrow UNet (diffusers) -> in an SD1.5 checkpoint."""
    for diffusers_part, part in (*_UNET_NAMES, *(_RESNET_NAMES if ".resnets." in name else ())):
        name = name.replace(diffusers_part, part)
    return name


def control_name(name: str) -> str:
    """A tensor's name in the narrow ControlNet (diffusers) -> in a ControlNet file of SD1.5's own layout."""
    for diffusers_part, part in (*_CONTROL_NAMES, *(_RESNET_NAMES if ".resnets." in name else ())):
        name = name.replace(diffusers_part, part)
    return unet_name(name)


def build(work_dir: Path, text_dir: Path) -> Path:
    """Writes what the training stages left in `work_dir`, and the text encoder, as one pack."""
    return write_pack("world", gather(work_dir) | gather_text(text_dir), METADATA)


def build_companions(work_dir: Path) -> Path:
    """The same for the companions."""
    return write_pack("companions", gather_companions(work_dir), COMPANIONS_METADATA)


def write_pack(name: str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """Writes the pack that mulan/tiny_models has under this name."""
    return write_pack_file(pack_path(name), tensors, metadata)


def write_pack_file(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    """Writes a pack."""
    return _write_stored(path, encode(tensors), metadata)


def rewrite_pack(name: str, before: Path, changed: Mapping[str, torch.Tensor]) -> Path:
    """Writes the pack that mulan/tiny_models has under this name: the pack `before` with other values of some of its
    tensors. The others keep their codes, which encoding once more would not.
    """
    _, metadata = read_pack(before)
    stored = load(gzip.decompress(before.read_bytes()))
    if missing := sorted(changed.keys() - stored.keys()):
        raise ValueError(f"{before} has no {missing[0]}")
    kept = {key: tensor for key, tensor in stored.items() if key.removesuffix(STEPS) not in changed}
    return _write_stored(pack_path(name), kept | encode(changed), metadata)


def _write_stored(path: Path, stored: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Path:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(gzip.compress(save(dict(stored), dict(metadata)), mtime=0))
    unfinished.replace(path)
    return path


def pack_file(name: str, file: Path) -> Path:
    """Writes the pack of a model whose file for ComfyUI is packed as it is."""
    with safe_open(file, "pt") as opened:
        return write_pack(name, {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata())


def encode(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows of at least `SHORTEST` weights -> codes and the step of each row; the other weights -> float16."""
    stored = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim > 1 and tensor[0].numel() >= SHORTEST:
            rows = tensor.float().flatten(1)
            steps = torch.maximum(rows.square().mean(1).sqrt() * STEP, rows.abs().amax(1) / 127).clamp(min=1e-20)
            codes = (rows / steps[:, None]).round().to(torch.int8)
            stored |= {name: codes.view(tensor.shape), name + STEPS: steps}
        else:
            stored[name] = (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
    return stored


def gather(
    work_dir: Path,
    unet_heads: int = 8,
    adapter: str = "adapter",
    autoencoder: str = "autoencoder",
    unet: str | None = None,
) -> dict[str, torch.Tensor]:
    """Base, autoencoder and adapter, narrow and in float32, under the names they have in the pack.

    unet_heads: how many heads the live channels of the UNet were trained in. adapter, autoencoder, unet: the stages
    that they are from; without the last, the UNet is the base's.
    """
    base = load_file(work_dir / "base.safetensors")

    def part(tensors, prefix):
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    unet_tensors = load_file(work_dir / f"{unet}.safetensors") if unet else part(base, "unet.")
    tensors = {
        **{UNET + unet_name(name): tensor for name, tensor in unet_tensors.items()},
        **{CLIP + name: tensor for name, tensor in part(base, "clip.").items()},
        **{AUTOENCODER + name: tensor for name, tensor in load_file(work_dir / f"{autoencoder}.safetensors").items()},
        **{f"adapter.{name}": tensor for name, tensor in load_file(work_dir / adapter / "adapter.safetensors").items()},
    }
    tensors = {name: scaled_queries(name, tensor, unet_heads) for name, tensor in tensors.items()}
    tensors[UNET_HEADS] = torch.tensor(unet_heads, dtype=torch.int32)
    tensors["clip_tokens"] = base["token_ids"].int()
    return tensors


def gather_text(text_dir: Path) -> dict[str, torch.Tensor]:
    """The text encoder and its tokenizer under the names they have in the pack."""
    trained = load_file(text_dir / f"{TEXT_STAGE}.safetensors")
    tokenizer = bytearray((text_dir / "tokenizer.model").read_bytes())
    return {
        **{f"model.{name.removeprefix('llama.')}": trained[name] for name in trained if name.startswith("llama.")},
        "spiece_model": torch.frombuffer(tokenizer, dtype=torch.uint8),
    }


def tokenizer_of(packed: Mapping[str, torch.Tensor]) -> sentencepiece.SentencePieceProcessor:
    """The text encoder's tokenizer in a pack that has it."""
    return sentencepiece.SentencePieceProcessor(model_proto=packed["spiece_model"].numpy().tobytes())


def gather_companions(work_dir: Path) -> dict[str, torch.Tensor]:
    """The companions' tensors: LoRAs under kohya's names behind their stage's, the ControlNet under SD1.5's names."""
    control = {
        CONTROL + control_name(name): tensor
        for name, tensor in load_file(work_dir / "layout_controlnet.safetensors").items()
    }
    tensors = {name: scaled_queries(name, tensor) for name, tensor in control.items()}
    for stage in LORAS:
        for name, tensor in load_file(work_dir / f"{stage}.safetensors").items():
            tensors[f"{stage}.{name}"] = scaled_queries(name, tensor) if name.endswith("lora_up.weight") else tensor
    return tensors


def scaled_queries(name: str, tensor: torch.Tensor, unet_heads: int = 8) -> torch.Tensor:
    """A tensor of a narrow model as a pack has it."""
    return with_queries(name, tensor, _query_scale(name, unet_heads))


def unscaled_queries(name: str, tensor: torch.Tensor, unet_heads: int = 8) -> torch.Tensor:
    """A pack's tensor as the narrow model has it."""
    return with_queries(name, tensor, 1 / _query_scale(name, unet_heads))


def _query_scale(name: str, unet_heads: int) -> float:
    """The live channels in fewer heads are more of each."""
    scale = next((scale for part, scale in QUERY_SCALES.items() if part in name and not name.startswith(TEXT)), 1.0)
    return scale * math.sqrt(unet_heads / 8) if ".to_q." in name else scale


def with_queries(name: str, tensor: torch.Tensor, scale: float) -> torch.Tensor:
    """A projection whose queries, where others follow them in one tensor the first third, are scaled."""
    if scale == 1.0:
        return tensor
    queries = len(tensor) // 3 if "in_proj_" in name else len(tensor)
    return torch.cat([tensor[:queries] * scale, tensor[queries:]])
