"""InternVL's text encoder -> one .safetensors for MuLan Loader; InternVL's vision side -> a second one.

The source is the published folder InternVL-14B-224px, or any file that `open_text_encoder` reads.
"""

from __future__ import annotations

import torch

from ..checkpoints.quantization import FORMATS
from ..checkpoints.tensor_files import CONFIG, TensorFile, WrongFileError, describe_path
from ..conditioning.encoder_kinds import TEACHER_KEY
from ..conditioning.model_files import (
    ENCODER_SOURCE,
    TEXT_PROJECTION,
    TOKENIZER_NAME,
    TextEncoderFile,
    text_encoder_from_tensors,
)
from ..conditioning.tokenizer import InternVLTokenizer
from . import internvl_vision
from .output_files import (
    Converter,
    Output,
    Plan,
    Precision,
    Target,
    as_bytes,
    make_metadata,
    plan_output,
    refuse_quantized,
    stem,
)

SPIECE = "spiece_model"  # the sentencepiece model, as ComfyUI's files of text encoders name it


def matches(file: TensorFile) -> bool:
    """Return whether a LLaMA is in it; `plan` refuses those of other models by name."""
    return any(name.endswith("model.embed_tokens.weight") for name in file.shapes)


def plan(source: TensorFile, target: Target, weight_format: str) -> Plan:
    """Plan the text encoder's file and, where the source has a vision side, the file of it."""
    return plan_internvl(source, text_encoder_from_tensors(source), target, weight_format)


def plan_internvl(source: TensorFile, opened: TextEncoderFile, target: Target, weight_format: str) -> Plan:
    """Plan the file of the text encoder `opened` in `source`, and that of the vision side, where there is one."""
    text = _plan_text(opened, target, weight_format)
    if not internvl_vision.has_vision_side(source):
        return Plan((text,))
    return Plan((text, internvl_vision.plan_vision(source, text.path, target, weight_format)))


def _plan_text(opened: TextEncoderFile, target: Target, weight_format: str) -> Output:
    path, config, quantization = opened.file.path, opened.config, FORMATS[weight_format]
    refuse_quantized(path, opened.names, ENCODER_SOURCE)
    model = opened.tokenizer()
    try:
        pieces = InternVLTokenizer(model).sentencepiece.get_piece_size()
    except ValueError as error:
        raise WrongFileError(f"{describe_path(path)}: {error}") from error
    if pieces != config.vocab_size:
        raise WrongFileError(
            f"{describe_path(path)} embeds {config.vocab_size} tokens, but its sentencepiece model has {pieces} pieces "
            f"and belongs to another model. Take {TOKENIZER_NAME} from {ENCODER_SOURCE}."
        )
    names = dict(opened.names)
    precisions: dict[str, Precision] = {
        stored: quantization if quantization and quantization.applies_to(name) else torch.float16
        for name, stored in names.items()
    }
    if opened.text_projection_name is not None:
        names[TEXT_PROJECTION] = opened.text_projection_name
        precisions[opened.text_projection_name] = torch.float16
    metadata = make_metadata(
        "InternVL's text encoder for MuLan",
        path,
        ENCODER_SOURCE,
        license="MIT, as InternVL's repository states it; the language model is of LLaMA's family",
        weight_format=weight_format,
        **{CONFIG: config.to_json()},
        **{name: told for name, told in opened.file.metadata.items() if name == TEACHER_KEY},
    )
    return plan_output(
        target.file(f"{stem(path)}_text_{weight_format}.safetensors"),
        f"InternVL's text encoder ({config.num_hidden_layers} layers, width {config.hidden_size}) in {weight_format}",
        "text_encoders",
        metadata,
        opened.file,
        names,
        precisions,
        {SPIECE: as_bytes(model)},
        opened,
    )


CONVERTER = Converter(matches, plan)
