"""A checkpoint of VisionLLM v2, as published or converted -> its parts, their configs, and their tensors' sources.

Names and shapes come first; a tensor is read only when the model is filled. Converted files keep the published names,
so both are read alike: what the conversion adds is `spiece_model`, the configuration in the metadata, and the scales of
quantized weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ...mulan.checkpoints.config import Config, read_config
from ...mulan.checkpoints.tensor_files import (
    CONFIG,
    TensorFile,
    WrongFileError,
    describe_path,
    open_tensors,
    read_beside,
    read_object,
)
from ...mulan.checkpoints.weight_check import check_weights
from ...mulan.checkpoints.weight_source import WeightSource, has_quantized, with_scales
from ...mulan.conditioning.adapter import AdapterShape, LanguageAdapter
from ...mulan.internvl import intern_vit_keys
from ...mulan.internvl.intern_vit import InternViT, InternViTConfig
from .bridge import Bridge, BridgeConfig
from .grounding_decoder import GroundingConfig
from .image_inputs import ImageSettings
from .keys import below, bridge, clip, grounding, internlm2, llama, mappers, pose, region_encoder, super_link
from .language_model import LanguageConfig, LanguageModel
from .llama_tokenizer import VisionTokenizer
from .pose_decoder import PoseConfig
from .region_encoder import RegionConfig, RegionEncoder
from .super_link import SuperLink, SuperLinkConfig
from .vision_tower import TowerConfig, VisionTower
from .visionllm import VisionLLM
from .visionllm_config import check_widths, image_settings, tower_layer

SOURCE = "OpenGVLab/VisionLLMv2 on Hugging Face"
TOKENIZER = "tokenizer"  # in the configuration of a converted file: the tokenizer's json files by name
SPIECE = "spiece_model"  # the tokenizer's tensor in a converted file
TOKENIZER_NAME = "tokenizer.model"
TOKENIZER_JSONS = ("tokenizer_config.json", "added_tokens.json")
REQUIRED = ("tower", "bridge", "language", "super_link")


@dataclass(frozen=True)
class Part:
    """One of the model's parts in a file: its config, and in `names` its keys below `prefix`."""

    prefix: str
    names: ModuleType
    config: Any

    def sources(self) -> dict[str, WeightSource]:
        """Return the published tensors of each of the part's."""
        return {ours: source.under(self.prefix) for ours, source in self.names.sources(self.config).items()}


@dataclass(frozen=True)
class VisionLLMFile:
    """An open checkpoint; nothing of its weights is read yet. `config`: config.json's dict.

    tower_layer: whose hidden states the bridge reads.
    """

    file: TensorFile
    config: Mapping[str, Any]
    parts: Mapping[str, Part]
    tower_layer: int
    settings: ImageSettings

    def build(self, *, operations: Any, language_operations: Any = None, dtype=None, device=None) -> VisionLLM:
        """Return the model without values. `language_operations`: for a language model whose weights are quantized."""

        def build_part(name):
            if name not in self.parts:
                return None
            config = self.parts[name].config
            module = _MODULES[type(config)]
            if name == "language" and language_operations is not None:
                # quantized weights are moved to where their layer was made: "meta" would lose them.
                return module(config, operations=language_operations, dtype=dtype, device="cpu")
            return module(config, operations=operations, dtype=dtype, device=device)

        parts: dict[str, Any] = {name: build_part(name) for name in _PARTS}
        return VisionLLM(tower_layer=self.tower_layer, **parts)

    def sources(self) -> dict[str, WeightSource]:
        """Return the published tensors of each of ours, the scales of quantized weights included."""
        return with_scales(
            {f"{name}.{ours}": source for name, part in self.parts.items() for ours, source in part.sources().items()},
            self.file.shapes,
        )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Read our tensors one after another, by name."""
        for ours, source in self.sources().items():
            yield ours, source.read(self.file.read)

    @property
    def is_quantized(self) -> bool:
        return has_quantized(self.file.shapes)

    @property
    def _folder(self) -> Path:
        return self.file.path if self.file.path.is_dir() else self.file.path.parent

    def tokenizer(self) -> VisionTokenizer:
        """Return the tokenizer inside the file or beside it.

        Raises WrongFileError where there is none, or it is another model's.
        """
        folder = self._folder
        if SPIECE in self.file.shapes:
            where, model = f"its tensor {SPIECE}", self.file.read_bytes(SPIECE)
        else:
            where, model = TOKENIZER_NAME, read_beside(folder, TOKENIZER_NAME)
        if model is None:
            raise WrongFileError(
                f"{describe_path(self.file.path)} has no tokenizer: neither a tensor {SPIECE} nor {TOKENIZER_NAME} "
                f"beside it. Take {TOKENIZER_NAME} from {SOURCE} and keep it with the checkpoint."
            )
        config = self.tokenizer_config()
        try:
            tokenizer = VisionTokenizer.from_files(model, *map(config.get, TOKENIZER_JSONS))
        except ValueError as error:
            raise WrongFileError(
                f"{describe_path(self.file.path)}: {where} cannot be used: {error}. "
                f"Take {TOKENIZER_NAME} from {SOURCE}."
            ) from error
        rows = self.parts["language"].config.vocab_size
        if len(tokenizer) > rows:
            raise WrongFileError(
                f"{describe_path(self.file.path)}: {where} has {len(tokenizer)} tokens, but the language model "
                f"embeds {rows}: it is another model's. Take {TOKENIZER_NAME} from {SOURCE}."
            )
        return tokenizer

    def tokenizer_config(self) -> dict[str, Any]:
        """Return the contents of the tokenizer's JSON files, by name.

        They are in a converted file's configuration, else beside the weights.
        """
        if TOKENIZER in self.config or CONFIG in self.file.metadata:
            inside = Config(self.config, describe_path(self.file.path)).section(TOKENIZER)
            return {name: inside.section(name).entries for name in TOKENIZER_JSONS if name in inside}
        contents = {name: read_beside(self._folder, name) for name in TOKENIZER_JSONS}
        return {
            name: read_object(content, f"{name} (in {self._folder})")
            for name, content in contents.items()
            if content is not None
        }


def _one_of(prefix: str, *choices: tuple[str, ModuleType]) -> Callable[[Mapping], tuple[str, ModuleType] | None]:
    """Return a finder of the names of a part that has several makes, each known by a tensor."""

    def choose(shapes):
        return next(((prefix, names) for mark, names in choices if prefix + mark in shapes), None)

    return choose


def _optional(prefix: str, names: ModuleType) -> Callable[[Mapping], tuple[str, ModuleType] | None]:
    """Return a finder of the names of a part that a checkpoint may lack as a whole."""
    return lambda shapes: (prefix, names) if any(name.startswith(prefix) for name in shapes) else None


# Our part -> how to find it, and its entry of config.json: empty where its tensors tell all of its sizes.
_PARTS: dict[str, tuple[Callable, str]] = {
    "tower": (
        _one_of(
            "vis_encoder.",
            ("vision_model.embeddings.class_embedding", clip),
            ("embeddings.class_embedding", intern_vit_keys),
        ),
        "vis_encoder_config",
    ),
    "bridge": (_one_of("vl_bridge.", ("weight", bridge), ("0.weight", bridge)), ""),
    "language": (
        _one_of("llm.", ("model.embed_tokens.weight", llama), ("model.tok_embeddings.weight", internlm2)),
        "llm_config",
    ),
    "super_link": (_one_of(super_link.PREFIX, ("det.weight", super_link)), ""),
    "region_encoder": (_optional("region_encoder.", region_encoder), ""),
    "grounding": (_optional("gdino.", grounding), "gdino_config"),
    "pose": (_optional("unipose.", pose), "unipose_config"),
    "generate": (_optional("sd.", mappers), ""),
    "edit": (_optional("ip2p.", mappers), ""),
}

_MODULES = {
    TowerConfig: VisionTower,
    InternViTConfig: InternViT,
    BridgeConfig: Bridge,
    LanguageConfig: LanguageModel,
    SuperLinkConfig: SuperLink,
    RegionConfig: RegionEncoder,
    AdapterShape: LanguageAdapter,
    GroundingConfig: grounding.build,
    PoseConfig: pose.build,
}


def open_visionllm(path: Path) -> VisionLLMFile:
    """Open a folder of shards or one file.

    Raises WrongFileError for anything else, and for a checkpoint in which a tensor is missing or has another shape.
    """
    return visionllm_from_tensors(open_tensors(path))


def visionllm_from_tensors(file: TensorFile) -> VisionLLMFile:
    """Like `open_visionllm`, of tensors that are open already."""
    file = _with_shared(file)
    path, config = file.path, read_config(file)
    missing = [name for name in REQUIRED if _PARTS[name][0](file.shapes) is None]
    if missing:
        raise WrongFileError(
            f"{describe_path(path)} is not a VisionLLM v2 checkpoint: it has no {', '.join(missing).replace('_', ' ')} "
            f"(its tensors begin with {', '.join(list(file.shapes)[:3])}). It comes from {SOURCE}."
        )
    parts = {}
    for name, (find, entry) in _PARTS.items():
        found = find(file.shapes)
        if found is None:
            continue
        prefix, names = found
        entries = config.section(entry) if entry else Config({})
        try:
            parts[name] = Part(prefix, names, names.configuration(below(prefix, file.shapes), entries))
        except KeyError as error:
            raise WrongFileError(
                f"{describe_path(path)} is incomplete: its {name.replace('_', ' ')} has no tensor "
                f"{prefix}{error.args[0]}. Download it again."
            ) from error
        except WrongFileError:
            raise
        except ValueError as error:
            raise WrongFileError(
                f"{describe_path(path)}: its {name.replace('_', ' ')} cannot be used: {error}. Download it again."
            ) from error
    sizes = {name: part.config for name, part in parts.items()}
    try:
        check_widths(sizes)
    except ValueError as error:
        raise WrongFileError(f"{describe_path(path)} cannot be used: {error}. Download it again.") from error
    layer, settings = tower_layer(config, sizes["tower"]), image_settings(config, sizes)
    opened = VisionLLMFile(file, config.entries, parts, layer, settings)
    check_tensors(opened)
    return opened


def check_tensors(opened: VisionLLMFile) -> None:
    """Raise WrongFileError where a tensor is missing, holds no weights, or has another shape than the model's."""
    with torch.device("meta"):
        model = opened.build(operations=nn, device="meta")
    expected = {ours: tuple(tensor.shape) for ours, tensor in model.state_dict().items()}
    check_weights(opened.file, opened.sources(), expected, quantized_in="language.")


def unused_tensors(opened: VisionLLMFile) -> list[str]:
    """Return the names of tensors that no part reads.

    Copies and parts of stock diffusion models do not count.
    """
    used = {name for source in opened.sources().values() for name in source.names}
    by_prefix = [(part.prefix, part.names.unused) for part in opened.parts.values()]
    return [
        name
        for name in opened.file.shapes
        if name not in used
        and name != SPIECE
        and not any(name.startswith(prefix) and is_unused(name.removeprefix(prefix)) for prefix, is_unused in by_prefix)
    ]


def _with_shared(file: TensorFile) -> TensorFile:
    """Return the file with each shared tensor under the name it is looked for.

    A writer may have kept any one of its copies.
    """
    stored = {}
    for prefix, names in (("gdino.", grounding), ("unipose.", pose)):
        for name in file.shapes:
            known = prefix + names.shared(name.removeprefix(prefix)) if name.startswith(prefix) else name
            if known not in file.shapes:
                stored.setdefault(known, name)
    return file.renamed({name: name for name in file.shapes} | stored)
