"""The files MuLan reads, recognized by their tensors without reading their weights.

Text encoders: one .safetensors, the original sharded folder (.safetensors or .bin), or what the stock CLIPSave wrote.
Adapters: .safetensors, or the published .pth (read as plain tensors only).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..checkpoints.identify import adapter_layout, identify
from ..checkpoints.tensor_files import TensorFile, WrongFileError, describe_path, open_tensors, read_beside
from ..checkpoints.weight_check import check_dtype, reading_sizes, shape_of
from .adapter import AdapterShape, LanguageAdapter, from_published, published_key, to_published
from .adapter_sdxl import AdapterShapeXL, AnyAdapterShape, LanguageAdapterXL, ProjectionShape, TextProjection
from .encoder_kinds import FINGERPRINT_KEY, INTERNVL_LLAMA, fingerprint_of, saved_kind, trained_kind
from .families import FAMILIES, PIXART, SDXL, Family
from .text_config import OUTPUT, TextConfig, check_llama, text_configuration

ENCODER_SOURCE = "OpenGVLab/InternVL-14B-224px on Hugging Face"
ADAPTER_SOURCE = "mulanai/mulan-lang-adapter on Hugging Face"
TOKENIZER_NAME = "tokenizer.model"
SPIECE = "spiece_model"  # the same as a tensor
TEXT_PROJECTION = "text_projection"

# Prefixes of the LLaMA's ``model.``: in our own file, in InternVL's checkpoint, in a file of the stock CLIPSave.
_ENCODER_PREFIXES = ("", "qllama.", "internvl.transformer.")
_ADAPTER_PREFIXES = ("", "internvl.adapter.")
_NEVER_USED = (".cross_attn.", "rotary_emb")

# An adapter's tensors that replace weights of the MODEL -> ComfyUI's keys there
_MODEL_KEYS = {
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
class TextEncoderFile:
    """A recognized text encoder: sizes, the tokenizer's bytes, and its tensors under the keys of ComfyUI's LLaMA."""

    file: TensorFile
    config: TextConfig
    names: Mapping[str, str]  # ComfyUI's key -> the name in the file
    kind: str = INTERNVL_LLAMA

    def tokenizer(self) -> bytes:
        """Return the sentencepiece model: the tensor `spiece_model`, or the folder's tokenizer.model.

        Raises WrongFileError where it cannot be read.
        """
        if SPIECE in self.file.shapes:
            return self.file.read_bytes(SPIECE)
        return read_beside(self.file.path, TOKENIZER_NAME) or b""

    @property
    def states_size(self) -> int:
        """The width of its states."""
        return self.config.states_size

    @property
    def text_projection_name(self) -> str | None:
        """The name of `text_projection` in the file; None where the file has no such tensor."""
        return next(
            (name for name in (TEXT_PROJECTION, f"internvl.{TEXT_PROJECTION}") if name in self.file.shapes), None
        )

    @property
    def projection_dim(self) -> int | None:
        """The size of the pooled vector that `text_projection` gives; None where the file has no such tensor."""
        name = self.text_projection_name
        return self.file.shapes[name][1] if name else None

    def text_projection(self) -> torch.Tensor:
        """Read the projection [states_size, projection_dim]. Only where `projection_dim` is not None."""
        name = self.text_projection_name
        assert name is not None, "a caller asks for projection_dim first"  # noqa: S101
        return self.file.read(name)

    def config_tensor(self) -> torch.Tensor:
        """Return what tensors cannot tell, as JSON in a uint8 tensor, for `SAVED_CONFIG`."""
        return self.config.to_tensor()

    def fingerprint(self) -> str:
        """Return what an adapter's file calls this text encoder; see `fingerprint_of`."""
        sizes = self.config.vocab_size, self.config.hidden_size, self.config.num_hidden_layers
        return fingerprint_of(self.kind, sizes, lambda name: self.file.read(self.names[name]))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Read the LLaMA's tensors, on the CPU, in the file's own dtypes; float64 in float32.

        Those of vision and generation are never read.
        """
        return {key: _castable(self.file.read(name)) for key, name in self.names.items()}


def _castable(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight in a dtype that ComfyUI casts: it takes a CLIP of float64 for one that it must move."""
    return weight.float() if weight.dtype == torch.float64 else weight


@dataclass(frozen=True)
class AdapterFile:
    """A recognized adapter: its sizes, its family, and the published name of each tensor -> its name in the file."""

    file: TensorFile
    shape: AnyAdapterShape
    family: Family
    names: Mapping[str, str]
    encoder_kind: str = INTERNVL_LLAMA  # of the text encoder that it was trained with

    @property
    def encoder_fingerprint(self) -> str:
        """That of the text encoder that it was trained with; empty where the file does not say."""
        return self.file.metadata.get(FINGERPRINT_KEY, "")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Read the tensors of the module behind the text encoder; none for PixArt, whose adapter is a part of the
        MODEL.
        """
        return from_published(
            {
                name: _castable(self.file.read(stored))
                for name, stored in self.names.items()
                if self._model_key(name) is None
            }
        )

    def model_patch(self) -> dict[str, torch.Tensor]:
        """Read the tensors that replace weights of the MODEL, under ComfyUI's keys; empty for most adapters."""
        return {key: self.file.read(self.names[name]) for name in self.names if (key := self._model_key(name))}

    @property
    def patches_model(self) -> bool:
        """Whether the adapter replaces weights of the MODEL."""
        return any(self._model_key(name) for name in self.names)

    def _model_key(self, name: str) -> str | None:
        parts = _MODEL_KEYS.get(self.family, {})
        return next((key + name[len(part) :] for part, key in parts.items() if name.startswith(part)), None)


def open_text_encoder(path: Path) -> TextEncoderFile:
    """Recognize InternVL's text encoder without reading its weights. Raises WrongFileError for anything else."""
    return text_encoder_from_tensors(open_tensors(path))


def text_encoder_from_tensors(file: TensorFile) -> TextEncoderFile:
    """Recognize InternVL's text encoder among tensors that are open already.

    Raises WrongFileError for anything else.
    """
    path = file.path
    expected = f"expected InternVL's LLaMA text encoder, from {ENCODER_SOURCE}, in models/text_encoders"
    prefix = next((p for p in _ENCODER_PREFIXES if f"{p}model.embed_tokens.weight" in file.shapes), None)
    if prefix is None:
        raise WrongFileError(f"{describe_path(path)} is {identify(file.shapes)}; {expected}.")
    stored = f"{prefix}model.", f"{prefix}{OUTPUT}"
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
            f"{describe_path(path)} is the text encoder of another large language model "
            f"(a Llama 3, Qwen, Gemma or Mistral); {expected}."
        )
    if SPIECE not in file.shapes and read_beside(path, TOKENIZER_NAME) is None:
        where = (
            f"the folder {path.name} has no {TOKENIZER_NAME}"
            if path.is_dir()
            else "the file has no tensor `spiece_model`"
        )
        raise WrongFileError(
            f"{describe_path(path)} is a LLaMA text encoder without its sentencepiece model: {where}. "
            f"Take {TOKENIZER_NAME} from {ENCODER_SOURCE} and put it into the checkpoint's folder."
        )
    with reading_sizes(path, prefix=prefix):
        opened = TextEncoderFile(file, text_configuration(file, shapes), names)
        projection = opened.text_projection_name
        if projection and shape_of(file.shapes, projection, 2)[0] != opened.config.states_size:
            raise ValueError(f"{projection} {list(file.shapes[projection])} does not read its hidden states")
    check_llama(file, opened.config, names)
    return opened


def open_adapter(path: Path, family: Family | None = None) -> AdapterFile:
    """Recognize a MuLan adapter and its family from its tensors, without reading its weights.

    `family` overrides the detected one (tests). Raises WrongFileError for anything else.
    """
    return adapter_from_tensors(open_tensors(path), family)


def adapter_from_tensors(file: TensorFile, family: Family | None = None) -> AdapterFile:
    """Recognize a MuLan adapter among tensors that are open already, as `open_adapter` does."""
    path = file.path
    expected = f"expected a MuLan adapter, from {ADAPTER_SOURCE}, in models/mulan"
    prefix, layout = next(
        ((p, kind) for p in _ADAPTER_PREFIXES if (kind := adapter_layout(file.shapes, p))), ("", None)
    )
    if layout is None:
        raise WrongFileError(f"{describe_path(path)} is {identify(file.shapes)}; {expected}.")
    names = {published_key(name[len(prefix) :]): name for name in file.shapes if name.startswith(prefix)}
    try:
        shape = _SHAPES[layout].from_state_dict(_Shapes(file.shapes, names))
        family = family or _family_of(shape)
    except (KeyError, ValueError) as error:
        reason = f"it has no tensor {error}" if isinstance(error, KeyError) else error
        raise WrongFileError(
            f"{describe_path(path)} looks like a MuLan adapter, but cannot be used: {reason}; {expected}."
        ) from error
    for stored in names.values():
        check_dtype(file, stored)
    found = {name: file.shapes[stored] for name, stored in names.items()}
    wrong = [name for name, size in _expected_shapes(shape, found).items() if found.get(name) != size]
    if wrong:
        is_there = f"has the shape {found[wrong[0]]}" if wrong[0] in found else "is missing"
        raise WrongFileError(
            f"{describe_path(path)} is an incomplete MuLan adapter for {family.title}: "
            f"{len(wrong)} tensors are missing or have the wrong shape, the first, {wrong[0]}, {is_there}. "
            f"Download it again."
        )
    kind = saved_kind(file) or trained_kind(file.metadata, f"the adapter {describe_path(path)}")
    return AdapterFile(file, shape, family, names, kind)


_SHAPES = {"one": AdapterShape, "two": AdapterShapeXL, "projection": ProjectionShape}


def _empty_module(shape: AnyAdapterShape) -> nn.Module:
    """Build an adapter of this shape, without memory for its weights."""
    if isinstance(shape, AdapterShapeXL):
        return LanguageAdapterXL(shape, device="meta")
    if isinstance(shape, AdapterShape):
        return LanguageAdapter(shape, device="meta")
    return TextProjection(shape.text_hidden_size, shape.context_dim, device="meta")


def _expected_shapes(shape: AnyAdapterShape, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of such an adapter. Of those for the UNet, all four where one is "
    "`found`.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in to_published(_empty_module(shape).state_dict()).items()}
    if any(name.startswith("add_embedding.") for name in found):
        for_unet = [part + kind for part in _MODEL_KEYS[SDXL] for kind in ("weight", "bias")]
        expected |= {name: found.get(name, ()) for name in for_unet}
    return expected


def _family_of(shape: AnyAdapterShape) -> Family:
    """Return the family whose cross-attention reads this adapter's context. Raises ValueError where there is none."""
    if isinstance(shape, ProjectionShape):
        return PIXART
    for family in FAMILIES:
        if (family.context_dim, family.pooled_dim) == (shape.context_dim, getattr(shape, "pooled_dim", None)):
            return family
    known = ", ".join(f"{f.context_dim} ({f.title})" for f in FAMILIES if f is not PIXART)
    raise ValueError(f"it gives contexts of width {shape.context_dim}; known are {known}")


class _Shaped(NamedTuple):
    """In place of a tensor: what is known of it before it is read."""

    shape: tuple[int, ...]


class _Shapes(Mapping[str, _Shaped]):
    """A state dict of shapes alone, from which `from_state_dict` reads an adapter's sizes."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str]):
        self._shapes, self._names = shapes, names

    def __getitem__(self, name: str) -> _Shaped:
        return _Shaped(self._shapes[self._names[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
