"""Published checkpoints of MuLan and InternVL -> files of .safetensors that ComfyUI lists and loads.

InternVL's text encoder: only what text needs, its sentencepiece model inside, in 8 bits or float16; from the published folder, from
internvl_c_13b_224px.pth, or from any file `open_text_encoder` reads. InternVL's vision side beside it, where the source has one
(internvl/convert.py); one that talks, whole (internvl_chat/convert.py). MuLan's adapters: the published names and numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch

from ..checkpoints.identify import adapter_layout, identify, is_internvl_chat
from ..checkpoints.quantization import FORMATS, NotFiniteError, cast_chunks, quantize_chunks, tensor_layout
from ..checkpoints.safetensors_writer import TensorSpec
from ..checkpoints.tensor_files import WrongFileError, describe_path, open_tensors
from ..conditioning.model_files import ADAPTER_SOURCE, ENCODER_SOURCE, TEXT_PROJECTION, TOKENIZER_NAME, TextEncoderFile, open_adapter, text_encoder_of
from ..conditioning.tokenizer import InternVLTokenizer
from ..internvl import internvl_c
from . import internvl_vision as vision
from .output_files import DEFAULT_FORMAT, CannotWriteError, ConversionResult, Output, Progress, opened_again, source_notes, stem, target_path, write


def convert(
    source: Path | str,
    target: Path | str | None = None,
    format: str | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> ConversionResult:
    """Writes `source` as one .safetensors, InternVL-C or -G as two (text encoder, vision side), and says what was written.

    `target` is a file or a folder (the current one by default). `format`, for all but adapters: one of `FORMATS`, int8 by default. The files
    appear whole or not at all, and memory stays within about a gigabyte whatever the model's size. `progress` may raise to stop.
    Raises WrongFile for a source that is neither InternVL nor an adapter, CannotWrite for a target that will not do, OSError where
    the disk has no room.
    """
    source, target = Path(source), Path(target) if target is not None else Path.cwd()
    if format is not None and format not in FORMATS:
        raise CannotWriteError(f"the format is {format!r}, expected is one of {', '.join(FORMATS)}")
    if not source.exists():
        raise WrongFileError(f"there is no {source.absolute()}: name a checkpoint's folder or a file")
    shapes = open_tensors(source).shapes
    try:
        if adapter_layout(shapes) is not None:
            return write([_adapter(source, target, format, overwrite)], progress)
        if is_internvl_chat(shapes):
            from . import internvl_chat as chat

            return write([chat.output(source, target, format or DEFAULT_FORMAT, overwrite)], progress)
        if not internvl_c.is_internvl_c(shapes) and not any(name.endswith("model.embed_tokens.weight") for name in shapes):
            raise WrongFileError(
                f"{describe_path(source)} is {identify(shapes)}; expected is InternVL, from {ENCODER_SOURCE}, "
                f"or a MuLan adapter, from {ADAPTER_SOURCE}."
            )
        format = format or DEFAULT_FORMAT
        outputs = [_encoder(source, target, format, overwrite)]
        if vision.is_internvl_c(shapes):
            outputs.append(vision.output(source, outputs[0].path, format, overwrite))
        return write(outputs, progress)
    except NotFiniteError as error:
        raise WrongFileError(f"{describe_path(source)} is damaged: {error}. Download it again.") from error


def _encoder(source: Path, target: Path, format: str, overwrite: bool) -> Output:
    def open_source() -> TextEncoderFile:
        file = open_tensors(source)
        return text_encoder_of(internvl_c.as_published(file) if internvl_c.is_internvl_c(file.shapes) else file)

    opened, quantization = open_source(), FORMATS[format]
    path, config = opened.file.path, opened.config
    quantised = [name for name in opened.names if name.endswith((".comfy_quant", "scaled_fp8"))]
    if quantised:
        raise WrongFileError(
            f"{describe_path(path)} holds weights in 8 bits already ({quantised[0]}): convert the published checkpoint, from {ENCODER_SOURCE}."
        )
    model = opened.tokenizer()
    try:
        pieces_known = InternVLTokenizer(model).sentencepiece.get_piece_size()
    except ValueError as error:
        raise WrongFileError(f"{describe_path(path)}: {error}") from error
    if pieces_known != config.vocabulary:
        raise WrongFileError(
            f"{describe_path(path)} embeds {config.vocabulary} tokens, but its sentencepiece model has {pieces_known} pieces: it is another "
            f"model's. Take {TOKENIZER_NAME} from {ENCODER_SOURCE}."
        )

    forms = {name: quantization if quantization and quantization.takes(name) else None for name in opened.names}
    layout = {
        key: slot
        for name, form in forms.items()
        for key, slot in tensor_layout(name, opened.file.shapes[opened.names[name]], form).items()
    }
    layout["spiece_model"] = TensorSpec(torch.uint8, (len(model),))
    if opened.projected_width is not None:
        layout[TEXT_PROJECTION] = TensorSpec(torch.float16, (config.width, opened.projected_width))

    def tensors():
        yield "spiece_model", torch.frombuffer(bytearray(model), dtype=torch.uint8), 0
        if opened.projected_width is not None:
            yield from quantize_chunks(TEXT_PROJECTION, open_source().text_projection(), None)
        for name, again in opened_again(
            open_source, {name: math.prod(opened.file.shapes[stored]) for name, stored in opened.names.items()}
        ):
            yield from quantize_chunks(name, again.file.read(again.names[name]), forms[name])

    sizes = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "rms_norm_eps": config.norm_eps,
    }
    metadata = {
        **source_notes("InternVL's text encoder for MuLan", path, ENCODER_SOURCE),
        "config": json.dumps(sizes),
        "quantization": quantization.format if quantization else "none",
        "license": "MIT, as InternVL's repository states it; the language model is of LLaMA's family",
    }
    title = f"InternVL's text encoder ({config.layers} layers, width {config.width}) in {format}"
    file = target_path(source, target, f"{stem(path)}_text_{format}.safetensors", overwrite)
    return Output(file, title, "text_encoders", layout, metadata, tensors, open_source)


def _adapter(path: Path, target: Path, format: str | None, overwrite: bool) -> Output:
    source = open_adapter(path)
    if path.suffix.lower() == ".safetensors":
        raise CannotWriteError(
            f"{describe_path(path)} is a MuLan adapter in .safetensors already: put it into models/mulan as it is."
        )
    if format is not None:
        raise CannotWriteError(
            f"{describe_path(path)} is a MuLan adapter, and adapters keep their own numbers (8 bits would save a hundredth of what the text "
            f"encoder takes): leave the format {format} out."
        )

    def tensors():
        for name, stored in source.names.items():
            yield from cast_chunks(name, source.file.read(stored))

    layout = {
        name: TensorSpec(source.file.read(stored).dtype, source.file.shapes[stored])
        for name, stored in source.names.items()
    }
    title = f"MuLan adapter for {source.family.title}"
    metadata = {
        **source_notes(title, path, ADAPTER_SOURCE),
        "family": source.family.name,
        "license": "none stated by MuLan's repository",
    }
    return Output(
        target_path(path, target, f"{stem(path)}.safetensors", overwrite), title, "mulan", layout, metadata, tensors
    )
