"""The tiny world's models in one small file, and their expansion into the files that ComfyUI loads.

There are two packs, of the models themselves and of their companions (LoRAs, a ControlNet). A pack holds only what was
trained: the live channels of each tensor, in float16 and under their final names. `expand` scatters them into zero
tensors of the published sizes (see `narrow.py` for why the result computes the same).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

PACK = Path(__file__).with_name("tiny_world.safetensors")
VERSION = "tiny_world_version"
METADATA = {
    "title": "MuLan Nodes: tiny world",
    "description": "Tiny models of a world of coloured shapes, trained from nothing on pictures drawn by a program",
    "made_by": "python dev.py train-tiny",
    "license": "MIT",
}
CHECKPOINT = "checkpoints/tiny_sd15.safetensors"
TEXT_ENCODER = "text_encoders/tiny_internvl.safetensors"
ADAPTER = "mulan/tiny_sd15_adapter.safetensors"

COMPANIONS = Path(__file__).with_name("tiny_companions.safetensors")
COMPANIONS_METADATA = {
    **METADATA,
    "title": "MuLan Nodes: companions of the tiny world",
    "description": "A style LoRA, an LCM LoRA and a ControlNet for the tiny SD1.5 checkpoint, trained on pictures "
    "drawn by a program",
}
LORAS = {"pattern_lora": "loras/tiny_pattern_lora.safetensors", "lcm_lora": "loras/tiny_lcm_lora.safetensors"}
CONTROLNET = "controlnet/tiny_layout_controlnet.safetensors"

UNET = "model.diffusion_model."
CLIP = "cond_stage_model.transformer.text_model."
AUTOENCODER = "first_stage_model."
CONTROL = "control_model."
TEXT = "model.layers.", "model.embed_tokens.", "model.norm."
CLIP_LAYERS, CLIP_VOCABULARY = 12, 49408
TEXT_METADATA = {"config": json.dumps({"num_attention_heads": 4, "rms_norm_eps": 1e-6})}
LATENT_SCALE = 0.18215  # SD1.5's: with it the autoencoder's own latents are what the denoiser sees


@dataclass(frozen=True)
class Axis:
    """Where the live channels of one axis stand among all of them."""

    live: torch.Tensor
    full: int

    @classmethod
    def first(cls, live: int, full: int) -> Axis:
        return cls(torch.arange(live), full)

    @classmethod
    def blocks(cls, count: int, live: int, full: int) -> Axis:
        """`count` blocks (heads, norm groups, packed projections) of `full` channels, the first `live` of each live."""
        return cls((torch.arange(count)[:, None] * full + torch.arange(live)).flatten(), count * full)

    def twice(self) -> Axis:
        return Axis(torch.cat([self.live, self.full + self.live]), 2 * self.full)


def scatter(tensor: torch.Tensor, axes: Sequence[Axis]) -> torch.Tensor:
    full = torch.zeros([axis.full for axis in axes], dtype=tensor.dtype)
    full[torch.meshgrid(*[axis.live for axis in axes], indexing="ij")] = tensor
    return full


@dataclass(frozen=True)
class Layout:
    """How a model's tensors are widened: every axis by its length, except those that attention heads divide."""

    by_length: dict[int, Axis]
    heads: Axis
    into_heads: tuple[str, ...]  # parts of the names of projections whose output is divided among heads
    out_of_heads: tuple[str, ...]  # and of those whose input is
    packed: int = 1  # projections in one tensor

    def widen(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The full-width tensor, zero in every channel that is not live."""
        return scatter(tensor, self.axes(name, tensor.shape))

    def axes(self, name: str, shape: Sequence[int]) -> list[Axis]:
        """The axes of the tensor `name` that has this shape in the narrow model."""
        axes = [self.by_length.get(length, Axis.first(length, length)) for length in shape]
        if any(part in name for part in self.into_heads):
            axes[0] = self._packed_heads()
        if any(part in name for part in self.out_of_heads) and name.endswith("weight"):
            axes[1] = self.heads
        return axes

    def _packed_heads(self) -> Axis:
        offsets = torch.arange(self.packed)[:, None] * self.heads.full
        return Axis((offsets + self.heads.live).flatten(), self.packed * self.heads.full)


_CHANNELS = Axis.blocks(32, 2, 10)
_HIDDEN = Axis.first(256, 1280)
LAYOUTS = {
    UNET: Layout(
        by_length={64: _CHANNELS, 128: _CHANNELS.twice(), 256: _HIDDEN, 512: _HIDDEN.twice(), 96: Axis.first(96, 768)},
        heads=Axis.blocks(8, 8, 40),
        into_heads=("to_q", "to_k", "to_v"),
        out_of_heads=("to_out",),
    ),
    CLIP: Layout(
        by_length={96: Axis.first(96, 768), 384: Axis.first(384, 3072)},
        heads=Axis.blocks(12, 8, 64),
        into_heads=("q_proj", "k_proj", "v_proj"),
        out_of_heads=("out_proj",),
    ),
    AUTOENCODER: Layout(by_length={24: Axis.first(24, 64)}, heads=Axis.first(0, 0), into_heads=(), out_of_heads=()),
    "adapter.": Layout(
        by_length={96: Axis.first(96, 768), 192: Axis.first(192, 3072)},
        heads=Axis.blocks(8, 12, 96),
        into_heads=("in_proj",),
        out_of_heads=("out_proj",),
        packed=3,
    ),
}
# A ControlNet is made of the UNet's blocks behind convolutions of its own, which no norm follows.
LAYOUTS[CONTROL] = replace(
    LAYOUTS[UNET],
    by_length={
        **LAYOUTS[UNET].by_length,
        12: Axis.first(12, 16),
        20: Axis.first(20, 32),
        40: Axis.first(40, 96),
        48: Axis.first(48, 256),
    },
)
# The full model divides by the square root of its own head's width, the narrow one by that of the live part: the
# queries make up for it.
QUERY_SCALES = {"to_q.": math.sqrt(40 / 8), "q_proj.": math.sqrt(64 / 8), "in_proj_": math.sqrt(96 / 12)}

# diffusers' names in one level of a UNet -> SD1.5's own
_UNET_NAMES = (
    ("down_blocks.0.resnets.0.", "input_blocks.1.0."),
    ("down_blocks.0.attentions.0.", "input_blocks.1.1."),
    ("up_blocks.0.resnets.0.", "output_blocks.0.0."),
    ("up_blocks.0.attentions.0.", "output_blocks.0.1."),
    ("up_blocks.0.resnets.1.", "output_blocks.1.0."),
    ("up_blocks.0.attentions.1.", "output_blocks.1.1."),
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


def build(work_dir: Path, out: Path = PACK) -> Path:
    """Writes what the training stages left in `work_dir` as one pack, in float16."""
    return _build(out, gather(work_dir), METADATA)


def build_companions(work_dir: Path, out: Path = COMPANIONS) -> Path:
    """The same for the companions."""
    return _build(out, gather_companions(work_dir), COMPANIONS_METADATA)


def _build(out: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Path:
    _write(
        out,
        {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()},
        metadata,
    )
    return out


def gather(work_dir: Path) -> dict[str, torch.Tensor]:
    """The trained tensors, narrow and in float32, under the names they have in the pack."""
    base = load_file(work_dir / "base.safetensors")
    text = load_file(work_dir / "text_encoder.safetensors")

    def part(tensors, prefix):
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    tensors = {
        **{UNET + unet_name(name): tensor for name, tensor in part(base, "unet.").items()},
        **{CLIP + name: tensor for name, tensor in part(base, "clip.").items()},
        **{AUTOENCODER + name: tensor for name, tensor in load_file(work_dir / "autoencoder.safetensors").items()},
        **{
            f"adapter.{name}": tensor
            for name, tensor in load_file(work_dir / "adapter" / "adapter.safetensors").items()
        },
        **{f"model.{name}": tensor for name, tensor in part(text, "llama.").items()},
    }
    tensors = {name: _scaled_queries(name, tensor) for name, tensor in tensors.items()}
    tensors["clip_tokens"] = base["token_ids"].int()
    tensors["spiece_model"] = torch.frombuffer(
        bytearray((work_dir / "tokenizer.model").read_bytes()), dtype=torch.uint8
    )
    return tensors


def gather_companions(work_dir: Path) -> dict[str, torch.Tensor]:
    """The companions' tensors: LoRAs under kohya's names behind their stage's, the ControlNet under SD1.5's names."""
    control = {
        CONTROL + control_name(name): tensor
        for name, tensor in load_file(work_dir / "layout_controlnet.safetensors").items()
    }
    tensors = {name: _scaled_queries(name, tensor) for name, tensor in control.items()}
    for stage in LORAS:
        for name, tensor in load_file(work_dir / f"{stage}.safetensors").items():
            tensors[f"{stage}.{name}"] = _scaled_queries(name, tensor) if name.endswith("lora_up.weight") else tensor
    return tensors


def _scaled_queries(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return _with_queries(name, tensor, _query_scale(name))


def unscaled_queries(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A pack's tensor as the narrow model has it."""
    return _with_queries(name, tensor, 1 / _query_scale(name))


def _query_scale(name: str) -> float:
    return next((scale for part, scale in QUERY_SCALES.items() if part in name and not name.startswith(TEXT)), 1.0)


def _with_queries(name: str, tensor: torch.Tensor, scale: float) -> torch.Tensor:
    if scale == 1.0:
        return tensor
    queries = len(tensor) // 3 if "in_proj_" in name else len(tensor)
    return torch.cat([tensor[:queries] * scale, tensor[queries:]])


def expand(models_dir: Path, progress: Callable[[Path], None] | None = None) -> list[Path]:
    """Writes the checkpoint, the text encoder, the adapter and the companions below `models_dir`; returns their paths.

    A file that these very packs wrote before is left alone. `progress` is called with each path before it is written.
    Each file appears complete or not at all. Raises OSError where it cannot be written.
    """
    models = {CHECKPOINT: checkpoint, TEXT_ENCODER: text_encoder, ADAPTER: adapter}
    companions = {**{name: partial(lora, stage=stage) for stage, name in LORAS.items()}, CONTROLNET: controlnet}
    packs = {PACK: models, COMPANIONS: companions}
    return [path for pack, files in packs.items() for path in _expand(pack, files, Path(models_dir), progress)]


def expand_text_encoder(models_dir: Path) -> Path:
    """The text encoder alone."""
    (path,) = _expand(PACK, {TEXT_ENCODER: text_encoder}, Path(models_dir), None)
    return path


def _expand(
    pack: Path, files: dict[str, Callable], models_dir: Path, progress: Callable[[Path], None] | None
) -> list[Path]:
    version = hashlib.sha256(pack.read_bytes()).hexdigest()[:16]
    with safe_open(pack, "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}
        metadata = {**file.metadata(), VERSION: version}
    for name, tensors_of in files.items():
        path = models_dir / name
        if _version_of(path) != version:
            if progress is not None:
                progress(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, tensors_of(stored), {**metadata, **(TEXT_METADATA if name == TEXT_ENCODER else {})})
    return [models_dir / name for name in files]


def _version_of(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get(VERSION)
    except Exception:  # not a whole safetensors file: it is written anew
        return None


def _widened(stored: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name: LAYOUTS[prefix].widen(name, tensor) for name, tensor in stored.items() if name.startswith(prefix)}


def checkpoint(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A pack's tensors -> an SD1.5 checkpoint with UNet, CLIP and autoencoder, in the pack's dtype."""
    clip = _widened(stored, CLIP)
    embedding = f"{CLIP}embeddings.token_embedding.weight"
    rows = clip[embedding]
    clip[embedding] = torch.zeros(CLIP_VOCABULARY, rows.shape[1], dtype=rows.dtype).index_copy_(
        0, stored["clip_tokens"].long(), rows
    )
    layers = f"{CLIP}encoder.layers."
    trained = 1 + max(int(name.removeprefix(layers).split(".")[0]) for name in clip if name.startswith(layers))
    layer_0 = {
        name.removeprefix(f"{layers}0."): tensor for name, tensor in clip.items() if name.startswith(f"{layers}0.")
    }
    for layer in range(trained, CLIP_LAYERS):  # all zero, a layer adds nothing to what goes past it
        clip |= {f"{layers}{layer}.{name}": torch.zeros_like(tensor) for name, tensor in layer_0.items()}
    autoencoder = _widened(stored, AUTOENCODER) | {f"{AUTOENCODER}vae_scale": torch.tensor(LATENT_SCALE)}
    return _widened(stored, UNET) | clip | autoencoder


def text_encoder(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A pack's tensors -> the text encoder with its tokenizer; it is in the pack as it is."""
    return {name: tensor for name, tensor in stored.items() if name.startswith(TEXT) or name == "spiece_model"}


def adapter(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A pack's tensors -> the full-width adapter under its published names."""
    return {name.removeprefix("adapter."): tensor for name, tensor in _widened(stored, "adapter.").items()}


def lora(stored: dict[str, torch.Tensor], stage: str) -> dict[str, torch.Tensor]:
    """A pack's tensors -> the LoRA of a stage for the full-width UNet."""
    tensors = {}
    for name in [name for name in stored if name.startswith(f"{stage}.") and name.endswith(".lora_down.weight")]:
        down, up = stored[name], stored[name.replace("lora_down", "lora_up")]
        layer = name.removeprefix(f"{stage}.").removesuffix(".lora_down.weight")
        out_axis, in_axis = LAYOUTS[UNET].axes(f"{layer}.weight", (len(up), down.shape[1]))
        tensors[f"{layer}.lora_down.weight"] = scatter(
            down, [*_whole(down.shape[:1]), in_axis, *_whole(down.shape[2:])]
        )
        tensors[f"{layer}.lora_up.weight"] = scatter(up, [out_axis, *_whole(up.shape[1:])])
        tensors[f"{layer}.alpha"] = torch.tensor(
            float(len(down))
        )  # the rank: the LoRA is neither amplified nor weakened
    return tensors


def _whole(shape: Sequence[int]) -> list[Axis]:
    return [Axis.first(length, length) for length in shape]


def controlnet(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A pack's tensors -> the full-width ControlNet."""
    return _widened(stored, CONTROL)


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes beside the target first, so that no half-written file ever bears its name. (`save_file` would leave it
    unreadable to others.)
    """
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))
    unfinished.replace(path)
