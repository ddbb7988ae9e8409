"""Model files: opened lazily, recognised by their tensors, read only where a tensor is needed.

Text encoders: one .safetensors, the original sharded folder (.safetensors or .bin), or what the stock CLIPSave wrote.
Adapters: .safetensors, or the published .pth (read as plain tensors only).
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .adapter import AdapterShape, from_published
from .families import Family, adapter_kind, family_of

ENCODER_SOURCE = "OpenGVLab/InternVL-14B-224px on Hugging Face"
ADAPTER_SOURCE = "mulanai/mulan-lang-adapter on Hugging Face"
INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
TOKENIZER_NAME = "tokenizer.model"
SAVED_CONFIG = "text_config"  # the text encoder's sizes as a tensor, for files that the stock CLIPSave wrote without metadata

# Where the LLaMA's ``model.`` stands: in our own file, in InternVL's checkpoint, in a file of the stock CLIPSave.
_ENCODER_PREFIXES = ("", "qllama.", "internvl.transformer.")
_ADAPTER_PREFIXES = ("", "internvl.adapter.")
_NEVER_USED = (".cross_attn.", "rotary_emb")


class WrongFile(ValueError):
    """A model file that cannot serve; the message says which, what it is, what is expected and where that comes from."""


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file or sharded folder, known by name and shape before any is read."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], torch.Tensor]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class TextConfig:
    """The LLaMA's sizes; all but the number of heads and the norm's epsilon are told by the tensors."""

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    norm_eps: float

    def tensor(self) -> torch.Tensor:
        """What tensors cannot tell, as bytes of JSON in a uint8 tensor, for `SAVED_CONFIG`."""
        told = json.dumps({"num_attention_heads": self.heads, "rms_norm_eps": self.norm_eps})
        return torch.frombuffer(bytearray(told.encode()), dtype=torch.uint8)


@dataclass(frozen=True)
class TextEncoderFile:
    """A recognised text encoder: sizes, the tokenizer's bytes, and its tensors under the names of the host's LLaMA."""

    file: TensorFile
    config: TextConfig
    names: Mapping[str, str]  # the host's name -> the name in the file

    def tokenizer(self) -> bytes:
        if "spiece_model" in self.file.shapes:
            return self.file.read("spiece_model").numpy().tobytes()
        return (self.file.path / TOKENIZER_NAME).read_bytes()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors that text needs; on the CPU, in the file's own dtypes. Those of vision and generation are never read."""
        return {name: self.file.read(stored) for name, stored in self.names.items()}


@dataclass(frozen=True)
class AdapterFile:
    """A recognised adapter, its sizes and its family."""

    file: TensorFile
    shape: AdapterShape
    family: Family
    names: Mapping[str, str]

    def state_dict(self) -> dict[str, torch.Tensor]:
        return from_published({name: self.file.read(stored) for name, stored in self.names.items()})


def open_tensors(path: Path) -> TensorFile:
    """Opens .safetensors, .pth / .pt / .bin / .ckpt (weights only, mapped) or a folder with an index of shards. Raises WrongFile."""
    if path.is_dir():
        return _open_folder(path)
    if not path.is_file():
        raise WrongFile(f"{path.name} is not in {path.parent}: the file was moved or deleted. Press R in the editor to refresh the list.")
    if path.suffix.lower() == ".safetensors":
        return _open_safetensors(path)
    return _open_torch(path)


def open_text_encoder(path: Path) -> TextEncoderFile:
    """Recognises InternVL's text encoder without reading its weights. Raises WrongFile for anything else."""
    file = open_tensors(path)
    expected = f"expected is InternVL's LLaMA text encoder, from {ENCODER_SOURCE}, in models/text_encoders"
    prefix = next((p for p in _ENCODER_PREFIXES if f"{p}model.embed_tokens.weight" in file.shapes), None)
    if prefix is None:
        raise WrongFile(f"{_place(path)} is {recognise(file.shapes)}; {expected}.")
    stored = f"{prefix}model."
    names = {
        name[len(prefix):]: name for name in file.shapes
        if name.startswith(stored) and not any(part in name for part in _NEVER_USED)
    }
    names |= {"scaled_fp8": f"{prefix}scaled_fp8"} if f"{prefix}scaled_fp8" in file.shapes else {}
    shapes = {name: file.shapes[source] for name, source in names.items()}
    layer = "model.layers.0."
    foreign = [name for name in shapes if name.startswith(layer) and ("norm.weight" in name or name.endswith(".bias"))
               and name not in (f"{layer}input_layernorm.weight", f"{layer}post_attention_layernorm.weight")]
    q, k = shapes.get(f"{layer}self_attn.q_proj.weight"), shapes.get(f"{layer}self_attn.k_proj.weight")
    if foreign or q is None or q != k:
        raise WrongFile(f"{_place(path)} is another large language model's text encoder (a Llama 3, Qwen, Gemma or Mistral); {expected}.")
    if "spiece_model" not in file.shapes and not (path / TOKENIZER_NAME).is_file():
        where = f"the folder {path.name} has no {TOKENIZER_NAME}" if path.is_dir() else "the file has no tensor `spiece_model`"
        raise WrongFile(f"{_place(path)} is a LLaMA text encoder without its sentencepiece model: {where}. "
                        f"Take {TOKENIZER_NAME} from {ENCODER_SOURCE} and keep it with the checkpoint's folder.")
    config = _text_config(file, shapes, prefix)
    missing = sorted(_llama_names(config.layers) - shapes.keys())
    if missing:
        raise WrongFile(f"{_place(path)} is incomplete: {len(missing)} tensors are missing, the first is {missing[0]}. Download it again.")
    return TextEncoderFile(file, config, names)


def open_adapter(path: Path, family: Family | None = None) -> AdapterFile:
    """Recognises a MuLan adapter and its family from its tensors; `family` overrules it (tests). Raises WrongFile for anything else."""
    file = open_tensors(path)
    expected = f"expected is a MuLan adapter for SD1.5 or SD2.1, from {ADAPTER_SOURCE}, in models/mulan"
    prefix = next((p for p in _ADAPTER_PREFIXES if f"{p}queries" in file.shapes), None)
    if prefix is None:
        raise WrongFile(f"{_place(path)} is {recognise(file.shapes)}; {expected}.")
    names = {name[len(prefix):]: name for name in file.shapes if name.startswith(prefix)}
    names = {name.replace("in_proj.", "in_proj_"): stored for name, stored in names.items()}
    try:
        shape = AdapterShape.of(_Shapes(file.shapes, names))
        family = family or family_of(shape)
    except (KeyError, ValueError) as error:
        raise WrongFile(f"{_place(path)} looks like a MuLan adapter, but cannot be used: {error}; {expected}.") from error
    return AdapterFile(file, shape, family, names)


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a file of these tensors is, in the words of a user."""
    kind = adapter_kind(shapes)
    if kind is not None:
        titles = {"sd15": "Stable Diffusion 1.5", "sd21": "Stable Diffusion 2.1", "sdxl": "SDXL", "pixart": "PixArt", "unknown": "an unknown family"}
        return f"a MuLan adapter for {titles[kind]}"

    def has(*parts: str) -> bool:
        return any(part in name for name in shapes for part in parts)

    if has("model.diffusion_model."):
        return "a whole checkpoint (it belongs in models/checkpoints)"
    if has("lora_unet_", "lora_te", ".lora_down.", ".lora_up.", ".lora_A."):
        return "a LoRA (it belongs in models/loras)"
    if has("control_model.", "controlnet_cond_embedding.", "input_hint_block."):
        return "a ControlNet (it belongs in models/controlnet)"
    clip = next((shape for name, shape in shapes.items() if name.endswith("text_model.encoder.layers.0.mlp.fc1.weight")), None)
    if clip is not None:
        which = {768: "CLIP-L", 1024: "CLIP-H", 1280: "CLIP-G"}.get(clip[1], f"CLIP (width {clip[1]})")
        return f"a {which} text encoder"
    if has("transformer.resblocks.0."):
        return "an OpenCLIP text encoder"
    if has("encoder.block.0.layer.0.SelfAttention"):
        return "a T5 text encoder"
    if has("vision_model.encoder.layers.0.", "visual.blocks.0."):
        return "a vision encoder"
    if has("double_blocks.0.", "joint_blocks.0.", "transformer_blocks.0.", "down_blocks.0."):
        return "a diffusion model (it belongs in models/diffusion_models)"
    if has("encoder.conv_in.weight", "decoder.conv_in.weight", "first_stage_model."):
        return "a VAE (it belongs in models/vae)"
    if has("model.embed_tokens.weight"):
        return "a large language model's text encoder"
    some = ", ".join(list(shapes)[:3]) or "no tensors at all"
    return f"no file this pack knows (its tensors begin with {some})"


class _Shapes(Mapping):
    """Lets `AdapterShape.of` read the shapes of tensors that are not loaded."""

    class _Shape:
        def __init__(self, shape):
            self.shape = shape

    def __init__(self, shapes, names):
        self._shapes, self._names = shapes, names

    def __getitem__(self, name):
        return self._Shape(self._shapes[self._names[name]])

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)


def _place(path: Path) -> str:
    return f"{path.name} (in {path.parent})"


def _open_safetensors(path: Path) -> TensorFile:
    try:
        file = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise WrongFile(f"{_place(path)} cannot be read as safetensors: {error}. Download it again.") from error
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    return TensorFile(path, shapes, file.get_tensor, file.metadata() or {})


def _open_torch(path: Path) -> TensorFile:
    try:
        try:
            tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError:  # files of before torch 1.6 cannot be mapped
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WrongFile(f"{_place(path)} cannot be read as plain weights: {reason}. "
                        f"Only tensors are loaded from such files, never code; ask for a .safetensors.") from error
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise WrongFile(f"{_place(path)} holds a {type(tensors).__name__}, expected is a plain state dict of tensors.")
    return TensorFile(path, {name: tuple(t.shape) for name, t in tensors.items()}, tensors.__getitem__, {})


def _open_folder(path: Path) -> TensorFile:
    index = next((path / name for name in INDEX_NAMES if (path / name).is_file()), None)
    if index is None:
        single = next((path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()), None)
        if single is None:
            raise WrongFile(f"the folder {_place(path)} holds neither {INDEX_NAMES[0]} nor {INDEX_NAMES[1]}: it is not a published checkpoint.")
        file = open_tensors(single)
        return TensorFile(path, file.shapes, file.read, file.metadata)
    shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    missing = sorted({shard for shard in shard_of.values() if not (path / shard).is_file()})
    if missing:
        raise WrongFile(f"the folder {_place(path)} lacks {len(missing)} of its shards, the first is {missing[0]}. Download it again.")
    shards = {shard: open_tensors(path / shard) for shard in sorted(set(shard_of.values()))}
    lost = sorted(name for name, shard in shard_of.items() if name not in shards[shard].shapes)
    if lost:
        raise WrongFile(f"the folder {_place(path)} is damaged: {shard_of[lost[0]]} does not hold {lost[0]}. Download it again.")
    shapes = {name: shards[shard].shapes[name] for name, shard in shard_of.items()}
    return TensorFile(path, shapes, lambda name: shards[shard_of[name]].read(name), {})


def _text_config(file: TensorFile, shapes: Mapping[str, tuple[int, ...]], prefix: str) -> TextConfig:
    vocabulary, width = shapes["model.embed_tokens.weight"]
    told = {}
    if "config" in file.metadata:
        told = json.loads(file.metadata["config"])
    elif SAVED_CONFIG in file.shapes:
        told = json.loads(file.read(SAVED_CONFIG).numpy().tobytes())
    elif (file.path / "config.json").is_file():
        told = json.loads((file.path / "config.json").read_text(encoding="utf-8")).get("qllama_config") or {}
    heads = told.get("num_attention_heads", width // 128)  # LLaMA's heads are 128 wide
    if not heads or width % heads:
        raise WrongFile(f"{_place(file.path)} has states of width {width} and says nothing of its number of heads "
                        f"(metadata `config`: {{\"num_attention_heads\": ...}}).")
    return TextConfig(
        vocabulary=vocabulary,
        width=width,
        feed_forward=shapes["model.layers.0.mlp.up_proj.weight"][0],
        layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")),
        heads=heads,
        norm_eps=told.get("rms_norm_eps", 1e-6),
    )


def _llama_names(layers: int) -> set[str]:
    parts = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    parts += ["input_layernorm", "post_attention_layernorm"]
    names = {f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in parts}
    return names | {"model.embed_tokens.weight", "model.norm.weight"}
