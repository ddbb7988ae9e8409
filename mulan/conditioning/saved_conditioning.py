"""CONDITIONING as a .safetensors file, so that a graph, or another machine, can generate images without the text
encoder.

The file keeps every entry with all that stock nodes put into it: tensors as tensors (one that is used twice is stored
once); numbers, texts, lists and tuples as JSON in the metadata key `ENTRIES`. What is no data (a ControlNet, hooks) is
refused, never left out silently. The other metadata keys tell people and tools what the file is. None is called
"prompt" or "workflow": the editor takes these for graphs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..boundary.files import parse_json
from ..boundary.limits import MAX_CONDITIONING_BYTES
from ..boundary.texts import whole_characters
from ..checkpoints.identify import identify
from ..checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec, is_storable
from ..checkpoints.tensor_files import WrongFileError, describe_path, open_tensors
from .base_model import check_family, detect_family
from .families import FAMILIES, PIXART, Family

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

FORMAT_KEY, FORMAT_VERSION = (
    "mulan_conditioning",
    1,
)  # the metadata key that says what the file is, and the newest layout
ENTRIES, VERSIONS = "entries", "versions"
MULAN = "mulan"  # in an entry that MuLan's CLIP made: {"family", "prompt", "text_encoder", "adapter"}
SOURCES = ("text_encoder", "adapter")
MAX_DEPTH = 50  # of lists and dictionaries within each other: ComfyUI's conditionings have three or four

_PLAIN = (bool, int, float, str)
# What the width tells where MuLan's CLIP did not: 4096 may be PixArt's, but a dozen other models' too.
_WIDTH_TITLES = {family.context_dim: family.title for family in FAMILIES if family is not PIXART} | {
    1280: "the SDXL refiner"
}


class UnsaveableError(ValueError):
    """A conditioning that a file cannot hold; the message says which part of it, and what to do."""


@dataclass(frozen=True)
class SavedConditioning:
    """What a file holds.

    `conditioning` is ComfyUI's [[context [1, rows, width], values], ...], on the CPU, in the dtypes that were saved.
    """

    path: Path
    conditioning: list
    versions: Mapping[str, str]  # of the programs that wrote it, by their names

    @property
    def context_dim(self) -> int:
        """Channels of the context."""
        return self.conditioning[0][0].shape[-1]

    @property
    def family(self) -> Family | None:
        """The family that MuLan's CLIP wrote into the conditioning; None where another CLIP made it."""
        name = _mulan_info(self.conditioning[0][1]).get("family")
        return next((family for family in FAMILIES if family.name == name), None)

    @property
    def title(self) -> str:
        """The family's title, else what the width of the context tells."""
        return (
            self.family.title
            if self.family
            else _WIDTH_TITLES.get(self.context_dim, f"a model of contexts of width {self.context_dim}")
        )

    def describe(self) -> str:
        """Describe the file for a person: the family, a line for each entry, and where it comes from."""
        lines = [f"{self.path.name}: a conditioning for {self.title}"]
        lines += [_entry_line(context, values) for context, values in self.conditioning]
        sources = [
            (name, _mulan_info(values)[name])
            for _, values in self.conditioning
            for name in SOURCES
            if _mulan_info(values).get(name)
        ]
        lines += [f"{name.replace('_', ' ')}: {file}" for name, file in dict.fromkeys(sources)]
        if self.versions:
            lines.append("saved by " + ", ".join(f"{name} {version}" for name, version in self.versions.items()))
        return "\n".join(lines)

    def check_model(self, model: ModelPatcher) -> None:
        """Raise ValueError where a MODEL reads other contexts, as far as file and MODEL tell."""
        if self.family is not None:
            check_family(model, self.family, f"the conditioning {describe_path(self.path)}")
            return
        config = model.model.model_config
        context_dim = PIXART.context_dim if detect_family(model) is PIXART else config.unet_config.get("context_dim")
        if context_dim not in (None, self.context_dim):
            raise ValueError(
                f"the conditioning {describe_path(self.path)} is for {self.title} (contexts of width "
                f"{self.context_dim}), "
                "but the connected MODEL is a "
                f"{type(config).__name__} (contexts of width {context_dim}). Load a conditioning of the model's family."
            )


def save_conditioning(
    target: Path | Iterator[Path], conditioning: list, versions: Mapping[str, str]
) -> SavedConditioning:
    """Write the file whole or not at all, to a path or the first free one of several, and return what it holds.

    Raises UnsaveableError, and UnwritableError where the disk refuses.
    """
    if not isinstance(conditioning, (list, tuple)):
        raise UnsaveableError(f"a conditioning is a list of entries, and this is a {type(conditioning).__name__}.")
    if not conditioning:
        raise UnsaveableError("this conditioning has no entries: there is nothing to save.")
    tensors = _Tensors()
    entries = [tensors.entry(number, entry) for number, entry in enumerate(conditioning, 1)]
    infos = [_mulan_info(values) for _, values in conditioning]
    metadata = {FORMAT_KEY: str(FORMAT_VERSION), ENTRIES: json.dumps(entries), VERSIONS: json.dumps(dict(versions))}
    metadata["prompts"] = _readable(json.dumps([info.get("prompt", "") for info in infos], ensure_ascii=False))
    for name in ("family", *SOURCES):
        metadata[name] = _readable(", ".join(dict.fromkeys(info[name] for info in infos if info.get(name))))
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.named.items()}
    with SafetensorsWriter(target, specs, metadata) as file:
        for name, tensor in tensors.named.items():
            file.write(name, tensor)
    return SavedConditioning(file.path, conditioning, versions)


def load_conditioning(path: Path) -> SavedConditioning:
    """Read the file whole.

    Raises WrongFileError where it is another kind of file, of a newer layout, damaged, or contains NaN.
    """
    file = open_tensors(path)
    if FORMAT_KEY not in file.metadata:
        raise WrongFileError(
            f"{describe_path(path)} is {identify(file.shapes)}; "
            f"expected a conditioning that MuLan Save Conditioning wrote."
        )
    if file.metadata[FORMAT_KEY] != str(FORMAT_VERSION):
        raise WrongFileError(
            f"{describe_path(path)} is a saved conditioning of layout {file.metadata[FORMAT_KEY]}, "
            f"and this MuLan Nodes knows {FORMAT_VERSION}: update MuLan Nodes, or save the conditioning again."
        )
    size = path.stat().st_size
    if size > MAX_CONDITIONING_BYTES:
        raise WrongFileError(
            f"{describe_path(path)} has {size / 1e9:.1f} GB, and saved conditionings of up to "
            f"{MAX_CONDITIONING_BYTES / 1e9:.1f} GB are loaded. Save fewer prompts in a file."
        )
    try:
        # Copies: the file may be replaced or cut while its conditioning lives on.
        tensors = {name: file.read(name).clone() for name in file.shapes}
        entries = parse_json(file.metadata[ENTRIES])
        conditioning = [
            [_value(entry[part], tensors.__getitem__) for part in ("context", "values")] for entry in entries
        ]
        loaded = SavedConditioning(path, conditioning, parse_json(file.metadata[VERSIONS]))
        loaded.describe()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise WrongFileError(
            f"{describe_path(path)} is a damaged saved conditioning ({type(error).__name__}: {error}): "
            f"save or copy it again."
        ) from error
    broken = [name for name, tensor in tensors.items() if _has_nan(tensor)]
    if broken:
        raise WrongFileError(
            f"{describe_path(path)} contains NaN (not a number) in {broken[0]}, which would give black images. "
            f"Save it again."
        )
    return loaded


class _Tensors:
    """Tensors of a conditioning, collected under names that say where they stand, and the JSON that refers to them."""

    def __init__(self):
        self.named: dict[str, torch.Tensor] = {}
        self._names: dict[tuple, str] = {}

    def entry(self, number: int, entry: Sequence) -> dict:
        if not (isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[1], dict)):
            raise UnsaveableError(
                f"entry {number} of this conditioning is not a context with its values, as ComfyUI's conditionings "
                "are. Look at the node that made it."
            )
        context, values = entry
        if not isinstance(context, torch.Tensor) or not context.ndim:
            raise UnsaveableError(
                f"entry {number} of this conditioning has a {type(context).__name__} where its context should be: it "
                "cannot be saved."
            )
        return {"context": self._tree(context, f"{number}.context"), "values": self._tree(values, str(number))}

    def _tree(self, value, where: str):
        """Return `value` as JSON: {"tensor": name}, {"list": [...]}, {"tuple": [...]}, {"dict": {...}}, or itself where
        it is plain.
        """
        if where.count(".") > MAX_DEPTH:
            raise UnsaveableError(f"values of this conditioning are nested more than {MAX_DEPTH} deep: {where[:60]}...")
        if isinstance(value, torch.Tensor):
            return {"tensor": self._name(value, where)}
        if type(value) in (list, tuple):
            return {type(value).__name__: [self._tree(part, f"{where}.{index}") for index, part in enumerate(value)]}
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {"dict": {key: self._tree(part, f"{where}.{key}") for key, part in value.items()}}
        if type(value) is int and value.bit_length() > 64:
            raise UnsaveableError(f"{where} of this conditioning is a number of more than 64 bits: it cannot be saved.")
        if value is None or isinstance(value, _PLAIN):
            return value
        entry, _, name = where.partition(".")
        raise UnsaveableError(
            f"entry {entry} of this conditioning contains `{name}`, a {type(value).__name__}, which cannot be saved "
            f"(it is an object, not data). Save the conditioning before that is added, and add it again behind "
            f"MuLan Load Conditioning."
        )

    def _name(self, tensor: torch.Tensor, where: str) -> str:
        if not is_storable(tensor):
            raise UnsaveableError(
                f"{where} of this conditioning is a tensor that a file cannot hold ({tensor.dtype}, {tensor.layout}, "
                f"on {tensor.device}). Look at the node that made it."
            )
        same = (tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride())
        if same not in self._names:
            if _has_nan(tensor):
                raise UnsaveableError(
                    f"{where} of this conditioning contains NaN (not a number), which would give black images. "
                    f"Check the files of the text encoder and the adapter."
                )
            name = _readable(where)
            while name in self.named:  # keys may hold dots
                name += "_"
            self.named[name], self._names[same] = tensor, name
        return self._names[same]


def _value(tree, tensor: Callable[[str], torch.Tensor]):
    """Read what `_Tensors` wrote."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensor(content)
    if kind == "dict":
        return {key: _value(part, tensor) for key, part in content.items()}
    return {"list": list, "tuple": tuple}[kind](_value(part, tensor) for part in content)


def _mulan_info(values: Mapping) -> Mapping:
    info = values.get(MULAN)
    return {name: text for name, text in info.items() if isinstance(text, str)} if isinstance(info, Mapping) else {}


def _entry_line(context: torch.Tensor, values: Mapping) -> str:
    prompt = _mulan_info(values).get("prompt")
    shape = " x ".join(map(str, context.shape)) + f", {str(context.dtype).removeprefix('torch.')}"
    more = ", ".join(sorted(name for name, value in values.items() if value is not None and name != MULAN))
    return f"{'prompt not known' if prompt is None else _readable(repr(prompt))}: {shape}" + (
        f"; {more}" if more else ""
    )


def _has_nan(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and bool(tensor.float().isnan().any())


def _readable(text: str) -> str:
    """Replace half characters, which neither a file nor a message can hold."""
    return whole_characters(text)[0]
