"""Published checkpoints -> one .safetensors that ComfyUI lists and loads.

InternVL's text encoder: only what text needs, its sentencepiece model inside, in 8 bits or float16; from the published folder, from
internvl_c_13b_224px.pth, or from any file `open_text_encoder` reads. MuLan's adapters: the published names and numbers.
"""
from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from . import VERSION, internvl_c
from .files import (
    ADAPTER_SOURCE, ENCODER_SOURCE, TEXT_PROJECTION, TOKENIZER_NAME, AdapterFile, TextEncoderFile, open_adapter, open_text_encoder,
    text_encoder_of,
)
from .quantise import FORMATS, NotFinite, as_it_is, pieces, slots
from .recognise import adapter_layout, recognise
from .safetensors_stream import SafetensorsStream, Slot
from .tensor_files import WrongFile, open_tensors, place
from .tokenizer import InternVLTokenizer

DEFAULT_FORMAT = "int8"
PORTION = 2 ** 28  # weights read between two openings of the source: closing it gives the pages of the mapped file back


class CannotWrite(ValueError):
    """The target, or the format for it, is not one that can be written."""


@dataclass(frozen=True)
class Progress:
    """What is written so far, and what there is to write."""

    tensors: int
    all_tensors: int
    bytes: int
    all_bytes: int


@dataclass(frozen=True)
class Converted:
    """The file written and what it is; a text encoder's `source` opens what it was made of, for `encoder_error`."""

    path: Path
    title: str
    size: int
    folder: str  # below ComfyUI's models
    source: Callable[[], TextEncoderFile] | None = None
    beside: tuple[Converted, ...] = ()  # further files that were made of the same source
    notes: tuple[str, ...] = ()  # what a person should know, such as what was left out


@dataclass(frozen=True)
class _Plan:
    title: str
    folder: str
    name: str
    slots: Mapping[str, Slot]
    metadata: Mapping[str, str]
    tensors: Callable[[], Iterator[tuple[str, torch.Tensor, int]]]
    source: Callable[[], TextEncoderFile] | None = None


def convert(source: Path | str, target: Path | str | None = None, format: str | None = None, overwrite: bool = False,
            progress: Callable[[Progress], None] = lambda _: None) -> Converted:
    """Writes `source` as one .safetensors and says what was written.

    `target` is a file or a folder (the current one by default). `format`, for text encoders: one of `FORMATS`, int8 by default. The file appears
    whole or not at all, and memory stays within about a gigabyte whatever the model's size. `progress` may raise to stop.
    Raises WrongFile for a source that is neither a text encoder nor an adapter, CannotWrite for a target that will not do, OSError where
    the disk has no room.
    """
    source = Path(source)
    plan = _plan(source, format)
    path = target_path(source, Path(target) if target is not None else Path.cwd(), plan.name, overwrite)
    try:
        with SafetensorsStream(path, plan.slots, plan.metadata) as file:
            for name, rows, first in plan.tensors():
                file.write(name, rows, first)
                progress(Progress(file.complete, len(plan.slots), file.written, file.size))
    except NotFinite as error:
        raise WrongFile(f"{place(source)} is damaged: {error}. Download it again.") from error
    return Converted(path, plan.title, file.size, plan.folder, plan.source)


def _plan(source: Path, format: str | None) -> _Plan:
    if format is not None and format not in FORMATS:
        raise CannotWrite(f"the format is {format!r}, expected is one of {', '.join(FORMATS)}")
    if not source.exists():
        raise WrongFile(f"there is no {source.absolute()}: name a checkpoint's folder or a file")
    file = open_tensors(source)
    if adapter_layout(file.shapes) is not None:
        return _adapter_plan(open_adapter(source), format)
    if internvl_c.is_one(file.shapes):
        return _encoder_plan(lambda: text_encoder_of(internvl_c.as_published(open_tensors(source))), format or DEFAULT_FORMAT)
    if any(name.endswith("model.embed_tokens.weight") for name in file.shapes):
        return _encoder_plan(lambda: open_text_encoder(source), format or DEFAULT_FORMAT)
    raise WrongFile(f"{place(source)} is {recognise(file.shapes)}; expected is InternVL's text encoder, from {ENCODER_SOURCE}, "
                    f"or a MuLan adapter, from {ADAPTER_SOURCE}.")


def _encoder_plan(open_source: Callable[[], TextEncoderFile], format: str) -> _Plan:
    source = open_source()
    path, config, quantisation = source.file.path, source.config, FORMATS[format]
    quantised = [name for name in source.names if name.endswith((".comfy_quant", "scaled_fp8"))]
    if quantised:
        raise WrongFile(f"{place(path)} holds weights in 8 bits already ({quantised[0]}): convert the published checkpoint, from {ENCODER_SOURCE}.")
    model = source.tokenizer()
    try:
        pieces_known = InternVLTokenizer(model).sentencepiece.get_piece_size()
    except ValueError as error:
        raise WrongFile(f"{place(path)}: {error}") from error
    if pieces_known != config.vocabulary:
        raise WrongFile(f"{place(path)} embeds {config.vocabulary} tokens, but its sentencepiece model has {pieces_known} pieces: it is another "
                        f"model's. Take {TOKENIZER_NAME} from {ENCODER_SOURCE}.")

    forms = {name: quantisation if quantisation and quantisation.takes(name) else None for name in source.names}
    layout = {key: slot for name, form in forms.items() for key, slot in slots(name, source.file.shapes[source.names[name]], form).items()}
    layout["spiece_model"] = Slot(torch.uint8, (len(model),))
    if source.projected_width is not None:
        layout[TEXT_PROJECTION] = Slot(torch.float16, (config.width, source.projected_width))

    def tensors():
        yield "spiece_model", torch.frombuffer(bytearray(model), dtype=torch.uint8), 0
        if source.projected_width is not None:
            yield from pieces(TEXT_PROJECTION, open_source().text_projection(), None)
        for names in portions({name: math.prod(source.file.shapes[stored]) for name, stored in source.names.items()}):
            opened = open_source()
            for name in names:
                yield from pieces(name, opened.file.read(opened.names[name]), forms[name])

    sizes = {"vocab_size": config.vocabulary, "hidden_size": config.width, "intermediate_size": config.feed_forward,
             "num_hidden_layers": config.layers, "num_attention_heads": config.heads, "rms_norm_eps": config.norm_eps}
    metadata = {
        **source_notes("InternVL's text encoder for MuLan", path, ENCODER_SOURCE),
        "config": json.dumps(sizes), "quantization": quantisation.format if quantisation else "none",
        "license": "MIT, as InternVL's repository states it; the language model is of LLaMA's family",
    }
    title = f"InternVL's text encoder ({config.layers} layers, width {config.width}) in {format}"
    return _Plan(title, "text_encoders", f"{stem(path)}_text_{format}.safetensors", layout, metadata, tensors, open_source)


def portions(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Tensors' names, given with their numbers of weights, in runs of about `PORTION` weights."""
    names, weights = [], 0
    for name, size in sizes.items():
        names.append(name)
        weights += size
        if weights > PORTION:
            yield names
            names, weights = [], 0
    yield names


def _adapter_plan(source: AdapterFile, format: str | None) -> _Plan:
    path = source.file.path
    if path.suffix.lower() == ".safetensors":
        raise CannotWrite(f"{place(path)} is a MuLan adapter in .safetensors already: put it into models/mulan as it is.")
    if format is not None:
        raise CannotWrite(f"{place(path)} is a MuLan adapter, and adapters keep their own numbers (8 bits would save a hundredth of what the text "
                          f"encoder takes): leave the format {format} out.")

    def tensors():
        for name, stored in source.names.items():
            yield from as_it_is(name, source.file.read(stored))

    layout = {name: Slot(source.file.read(stored).dtype, source.file.shapes[stored]) for name, stored in source.names.items()}
    title = f"MuLan adapter for {source.family.title}"
    metadata = {**source_notes(title, path, ADAPTER_SOURCE), "family": source.family.name, "license": "none stated by MuLan's repository"}
    return _Plan(title, "mulan", f"{stem(path)}.safetensors", layout, metadata, tensors)


def target_path(source: Path, target: Path, name: str, overwrite: bool) -> Path:
    """The file to write: `target`, or `name` in it where it is a folder. Raises CannotWrite for one that will not do."""
    path = target / name if target.is_dir() else target
    if path.suffix.lower() != ".safetensors":
        raise CannotWrite(f"the target is {path}: name a .safetensors file, or a folder that exists")
    if not path.parent.is_dir():
        raise CannotWrite(f"the target's folder {path.parent} does not exist: make it, or name another")
    inside = source.resolve() in path.resolve().parents
    if path.resolve() == source.resolve() or inside:
        raise CannotWrite(f"the target {path} is {'in the source folder' if inside else 'the source itself'}: name another, the source stays as it is")
    if path.exists() and not overwrite:
        raise CannotWrite(f"{path} exists: delete it, name another target, or say that it may be overwritten")
    return path


def stem(path: Path) -> str:
    """What a converted file's name begins with."""
    return path.resolve().name if path.is_dir() else path.stem


def source_notes(title: str, path: Path, source: str) -> dict[str, str]:
    """The metadata that every converted file has."""
    return {"format": "pt", "title": title, "made_by": f"MuLan Nodes {VERSION}, python dev.py convert", "source": f"{path.resolve().name}, from {source}"}
