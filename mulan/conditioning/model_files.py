"""The files MuLan reads, recognised by their tensors without reading their weights.

Text encoders: one .safetensors, the original sharded folder (.safetensors or .bin), or what the stock CLIPSave wrote.
Adapters: .safetensors, or the published .pth (read as plain tensors only).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..checkpoints.identify import adapter_layout, identify
from ..checkpoints.tensor_files import TensorFile, WrongFileError, describe_path, open_tensors
from .adapter import AdapterShape, LanguageAdapter, from_published, to_published
from .adapter_sdxl import AdapterShapeXL, LanguageAdapterXL, ProjectionShape, TextProjection
from .families import FAMILIES, PIXART, SDXL, Family

ENCODER_SOURCE = "OpenGVLab/InternVL-14B-224px on Hugging Face"
ADAPTER_SOURCE = "mulanai/mulan-lang-adapter on Hugging Face"
TOKENIZER_NAME = "tokenizer.model"
SAVED_CONFIG = (
    "text_config"  # the text encoder's sizes as a tensor, for files that the stock CLIPSave wrote without metadata
)
TEXT_PROJECTION = "text_projection"

# Where the LLaMA's ``model.`` stands: in our own file, in InternVL's checkpoint, in a file of the stock CLIPSave.
_ENCODER_PREFIXES = ("", "qllama.", "internvl.transformer.")
_ADAPTER_PREFIXES = ("", "internvl.adapter.")
_NEVER_USED = (".cross_attn.", "rotary_emb")

# An adapter's tensors that replace weights of the MODEL -> the host's names there
_MODEL_PARTS = {
    SDXL: {
        "add_embedding.linear_1.": "diffusion_model.label_emb.0.0.",
        "add_embedding.linear_2.": "diffusion_model.label_emb.0.2.",
    },
    PIXART: {
        "linear_1.": "diffusion_model.y_embedder.y_proj.fc1.",
        "linear_2.": "diffusion_model.y_embedder.y_proj.fc2.",
    },
}


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

    @property
    def projected_width(self) -> int | None:
        """The width of the pooled vector that `text_projection` gives; None where the file has no such tensor."""
        stored = _text_projection(self.file.shapes)
        return self.file.shapes[stored][1] if stored else None

    def text_projection(self) -> torch.Tensor:
        """[width, projected width]; only where `projected_width` is not None."""
        return self.file.read(_text_projection(self.file.shapes))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The LLaMA's tensors; on the CPU, in the file's own dtypes. Those of vision and generation are never read."""
        return {name: self.file.read(stored) for name, stored in self.names.items()}


@dataclass(frozen=True)
class AdapterFile:
    """A recognised adapter: its sizes, its family, and the published name of each tensor -> its name in the file."""

    file: TensorFile
    shape: AdapterShape | AdapterShapeXL | ProjectionShape
    family: Family
    names: Mapping[str, str]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors of the module behind the text encoder; none for PixArt, whose adapter is a part of the MODEL."""
        own = {name: self.file.read(stored) for name, stored in self.names.items() if self._model_name(name) is None}
        return from_published(own)

    def model_patch(self) -> dict[str, torch.Tensor]:
        """The tensors that replace weights of the MODEL, under the host's names; empty for most adapters."""
        return {
            self._model_name(name): self.file.read(stored)
            for name, stored in self.names.items()
            if self._model_name(name)
        }

    @property
    def patches_model(self) -> bool:
        return any(self._model_name(name) for name in self.names)

    def _model_name(self, name: str) -> str | None:
        parts = _MODEL_PARTS.get(self.family, {})
        return next((host + name[len(part) :] for part, host in parts.items() if name.startswith(part)), None)


def open_text_encoder(path: Path) -> TextEncoderFile:
    """Recognises InternVL's text encoder without reading its weights. Raises WrongFile for anything else."""
    return text_encoder_of(open_tensors(path))


def text_encoder_of(file: TensorFile) -> TextEncoderFile:
    """`open_text_encoder` of tensors that are open already."""
    path = file.path
    expected = f"expected is InternVL's LLaMA text encoder, from {ENCODER_SOURCE}, in models/text_encoders"
    prefix = next((p for p in _ENCODER_PREFIXES if f"{p}model.embed_tokens.weight" in file.shapes), None)
    if prefix is None:
        raise WrongFileError(f"{describe_path(path)} is {identify(file.shapes)}; {expected}.")
    stored = f"{prefix}model."
    names = {
        name[len(prefix) :]: name
        for name in file.shapes
        if name.startswith(stored) and not any(part in name for part in _NEVER_USED)
    }
    names |= {"scaled_fp8": f"{prefix}scaled_fp8"} if f"{prefix}scaled_fp8" in file.shapes else {}
    shapes = {name: file.shapes[source] for name, source in names.items()}
    layer = "model.layers.0."
    foreign = [
        name
        for name in shapes
        if name.startswith(layer)
        and ("norm.weight" in name or name.endswith(".bias"))
        and name not in (f"{layer}input_layernorm.weight", f"{layer}post_attention_layernorm.weight")
    ]
    q, k = shapes.get(f"{layer}self_attn.q_proj.weight"), shapes.get(f"{layer}self_attn.k_proj.weight")
    if foreign or q is None or q != k:
        raise WrongFileError(
            f"{describe_path(path)} is another large language model's text encoder (a Llama 3, Qwen, Gemma or Mistral); {expected}."
        )
    if "spiece_model" not in file.shapes and not (path / TOKENIZER_NAME).is_file():
        where = (
            f"the folder {path.name} has no {TOKENIZER_NAME}"
            if path.is_dir()
            else "the file has no tensor `spiece_model`"
        )
        raise WrongFileError(
            f"{describe_path(path)} is a LLaMA text encoder without its sentencepiece model: {where}. "
            f"Take {TOKENIZER_NAME} from {ENCODER_SOURCE} and keep it with the checkpoint's folder."
        )
    layers = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("model.layers."))
    missing = sorted(_llama_names(layers) - shapes.keys())
    if missing:
        raise WrongFileError(
            f"{describe_path(path)} is incomplete: {len(missing)} tensors are missing, the first is {missing[0]}. Download it again."
        )
    return TextEncoderFile(file, _text_config(file, shapes, layers), names)


def open_adapter(path: Path, family: Family | None = None) -> AdapterFile:
    """Recognises a MuLan adapter and its family from its tensors; `family` overrules it (tests). Raises WrongFile for anything else."""
    file = open_tensors(path)
    expected = f"expected is a MuLan adapter, from {ADAPTER_SOURCE}, in models/mulan"
    prefix, layout = next(
        ((p, kind) for p in _ADAPTER_PREFIXES if (kind := adapter_layout(file.shapes, p))), ("", None)
    )
    if layout is None:
        raise WrongFileError(f"{describe_path(path)} is {identify(file.shapes)}; {expected}.")
    names = {
        name[len(prefix) :].replace("in_proj.", "in_proj_"): name for name in file.shapes if name.startswith(prefix)
    }
    try:
        shape = _SHAPES[layout].of(_Shapes(file.shapes, names))
        family = family or _family_of(shape)
    except (KeyError, ValueError) as error:
        reason = f"it has no tensor {error}" if isinstance(error, KeyError) else error
        raise WrongFileError(
            f"{describe_path(path)} looks like a MuLan adapter, but cannot be used: {reason}; {expected}."
        ) from error
    found = {name: file.shapes[stored] for name, stored in names.items()}
    wrong = [name for name, size in _whole(shape, found).items() if found.get(name) != size]
    if wrong:
        is_there = f"has the shape {found[wrong[0]]}" if wrong[0] in found else "is missing"
        raise WrongFileError(
            f"{describe_path(path)} is an incomplete MuLan adapter for {family.title}: {len(wrong)} tensors are missing or of the wrong shape, "
            f"the first, {wrong[0]}, {is_there}. Download it again."
        )
    return AdapterFile(file, shape, family, names)


_SHAPES = {"one": AdapterShape, "two": AdapterShapeXL, "projection": ProjectionShape}
_MODULES = {
    AdapterShape: LanguageAdapter,
    AdapterShapeXL: LanguageAdapterXL,
    ProjectionShape: lambda shape, device: TextProjection(shape.text_width, shape.width, device=device),
}


def _whole(
    shape: AdapterShape | AdapterShapeXL | ProjectionShape, found: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Name and size of every tensor that an adapter of this shape consists of; of those for the UNet all where it `found` one."""
    whole = {
        name: tuple(tensor.shape)
        for name, tensor in to_published(_MODULES[type(shape)](shape, device="meta").state_dict()).items()
    }
    for_unet = [part + kind for part in _MODEL_PARTS[SDXL] for kind in ("weight", "bias")]
    return whole | {
        name: found.get(name, ()) for name in for_unet if any(name.startswith("add_embedding.") for name in found)
    }


def _family_of(shape: AdapterShape | AdapterShapeXL | ProjectionShape) -> Family:
    """The family whose cross-attention reads what this adapter gives. Raises ValueError where there is none."""
    if isinstance(shape, ProjectionShape):
        return PIXART
    for family in FAMILIES:
        if family.context_width == shape.width and family.pooled_width == getattr(shape, "pooled", None):
            return family
    known = ", ".join(f"{f.context_width} ({f.title})" for f in FAMILIES if f is not PIXART)
    raise ValueError(f"it gives contexts of width {shape.width}; known are {known}")


def _text_projection(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    return next((name for name in (TEXT_PROJECTION, f"internvl.{TEXT_PROJECTION}") if name in shapes), None)


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


def _text_config(file: TensorFile, shapes: Mapping[str, tuple[int, ...]], layers: int) -> TextConfig:
    vocabulary, width = shapes["model.embed_tokens.weight"]
    where, text = "", "{}"
    if "config" in file.metadata:
        where, text = "metadata `config`", file.metadata["config"]
    elif SAVED_CONFIG in file.shapes:
        where, text = f"tensor `{SAVED_CONFIG}`", file.read(SAVED_CONFIG).numpy().tobytes()
    elif (file.path / "config.json").is_file():
        where, text = "config.json", (file.path / "config.json").read_bytes()
    try:
        told = json.loads(text)
        told = told.get("qllama_config") or {} if where == "config.json" else told
        heads = int(told.get("num_attention_heads", width // 128))  # LLaMA's heads are 128 wide
        norm_eps = float(told.get("rms_norm_eps", 1e-6))
    except (ValueError, TypeError, AttributeError) as error:
        raise WrongFileError(
            f"{describe_path(file.path)}: its {where} cannot be read ({error}), and it tells the number of heads. Download it again."
        ) from error
    if heads < 1 or width % heads:
        raise WrongFileError(
            f"{describe_path(file.path)} has states of width {width}, which {heads} attention heads cannot share; their number belongs into "
            f'the metadata, `config`: {{"num_attention_heads": ...}}.'
        )
    return TextConfig(
        vocabulary=vocabulary,
        width=width,
        feed_forward=shapes["model.layers.0.mlp.up_proj.weight"][0],
        layers=layers,
        heads=heads,
        norm_eps=norm_eps,
    )


def _llama_names(layers: int) -> set[str]:
    parts = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    parts += ["input_layernorm", "post_attention_layernorm"]
    names = {f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in parts}
    return names | {"model.embed_tokens.weight", "model.norm.weight"}
