"""Which files serve as MuLan's text encoder, their tokenizers, and which adapters each fits."""

from __future__ import annotations

from pathlib import Path

from ..checkpoints.tensor_files import WrongFileError, open_tensors
from .adapter_sdxl import AdapterShapeXL
from .chat_encoder_file import ChatEncoderFile, chat_encoder_from_tensors, is_chat_encoder
from .encoder_kinds import INTERNVL_LLAMA, KINDS, TEACHER_KEY
from .families import PIXART, PREFIX_ROWS
from .model_files import ENCODER_SOURCE, TOKENIZER_NAME, AdapterFile, TextEncoderFile, text_encoder_from_tensors
from .tokenizer import BOS, EOS, PREFIX, UNK, InternVLTokenizer, WindowTokenizer

AnyTextEncoderFile = TextEncoderFile | ChatEncoderFile


def open_prompt_encoder(path: Path) -> AnyTextEncoderFile:
    """Recognize a text encoder for MuLan: InternVL's LLaMA, or the language model of an InternVL chat file.

    Raises WrongFileError for anything else.
    """
    file = open_tensors(path)
    return chat_encoder_from_tensors(file) if is_chat_encoder(file) else text_encoder_from_tensors(file)


def check_pair(encoder: AnyTextEncoderFile, adapter: AdapterFile) -> None:
    """Raise WrongFileError where the adapter was trained on another kind of text encoder or another width, or needs
    what this file of it lacks.
    """
    names = f"the adapter {adapter.file.path.name}", f"the text encoder {encoder.file.path.name}"
    if adapter.encoder_kind != encoder.kind:
        raise WrongFileError(
            f"{names[0]} was trained with {KINDS[adapter.encoder_kind]}, but {names[1]} is {KINDS[encoder.kind]}: "
            "their states have nothing in common. Choose the text encoder that the adapter was trained with."
        )
    if adapter.shape.text_hidden_size != encoder.states_size:
        right = " (width 4096: InternVL-14B-224px)" if encoder.kind == INTERNVL_LLAMA else ""
        raise WrongFileError(
            f"{names[0]} reads states of width {adapter.shape.text_hidden_size}, but {names[1]} gives "
            f"{encoder.states_size}: use the text encoder that this adapter was trained with{right}."
        )
    if adapter.family is PIXART and encoder.kind != INTERNVL_LLAMA and encoder.states_size != PIXART.context_dim:
        raise WrongFileError(
            f"{names[0]} is for PixArt, whose MODEL takes states of width {PIXART.context_dim}, but {names[1]} gives "
            f"{encoder.states_size}: choose a text encoder of that width (InternVL3_5-8B), or another family."
        )
    needed = adapter.shape.text_embeds_dim if isinstance(adapter.shape, AdapterShapeXL) else None
    if needed is not None and encoder.projection_dim != needed:
        held = "has none" if encoder.projection_dim is None else f"has one of width {encoder.projection_dim}"
        advice = (
            "Use the published checkpoint's folder, or convert it again"
            if encoder.kind == INTERNVL_LLAMA
            else "Chat models have no such projection: choose an adapter with a pooling of its own"
        )
        raise WrongFileError(
            f"{names[0]} needs the text encoder's `text_projection` of width {needed}, but {names[1]} "
            f"(in {encoder.file.path.parent}) {held}. {advice}."
        )


def pair_warning(encoder: AnyTextEncoderFile, adapter: AdapterFile) -> str:
    """Return what to tell where the adapter names another text encoder of this kind and width; else an empty text."""
    stands_for = encoder.file.metadata.get(TEACHER_KEY, "")
    if adapter.encoder_fingerprint in ("", stands_for) or adapter.encoder_fingerprint == encoder.fingerprint():
        return ""
    trained_with = adapter.file.metadata.get("text_encoder", "another file")
    return (
        f"the adapter {adapter.file.path.name} was trained with another text encoder of this kind ({trained_with}), "
        f"not with {encoder.file.path.name}. It runs, but images may not show what the prompts say: choose the text "
        "encoder that it was trained with."
    )


def check_whole_pixart(encoder: AnyTextEncoderFile) -> None:
    """Raise WrongFileError where a text encoder is not the one of the published whole MuLan PixArt model."""
    if encoder.kind != INTERNVL_LLAMA:
        raise WrongFileError(
            f"a whole MuLan PixArt model was trained with {KINDS[INTERNVL_LLAMA]}, but the text encoder "
            f"{encoder.file.path.name} is {KINDS[encoder.kind]}: choose the former, or an adapter that was trained "
            "with this one."
        )


def window_tokenizer(encoder_file: AnyTextEncoderFile) -> WindowTokenizer:
    """Read the tokenizer of a text encoder's file.

    Raises WrongFileError where it cannot be read, or is another model's.
    """
    if isinstance(encoder_file, ChatEncoderFile):
        return encoder_file.tokenizer()
    where = f"{encoder_file.file.path.name} (in {encoder_file.file.path.parent})"
    advice = f"Take {TOKENIZER_NAME} from where the weights come from ({ENCODER_SOURCE})."
    try:
        tokenizer = InternVLTokenizer(encoder_file.tokenizer())
    except (ValueError, RuntimeError) as error:  # of no bytes at all sentencepiece makes a model, and fails later
        raise WrongFileError(f"{where}: its sentencepiece model cannot be read ({error}). {advice}") from error
    model = tokenizer.sentencepiece
    if model.get_piece_size() != encoder_file.config.vocab_size:
        raise WrongFileError(
            f"{where}: its sentencepiece model knows {model.get_piece_size()} pieces, but its embedding has "
            f"{encoder_file.config.vocab_size} rows, so the tokenizer is another model's. {advice}"
        )
    special, prefix = [model.unk_id(), model.bos_id(), model.eos_id()], len(tokenizer.prefix)
    if special != [UNK, BOS, EOS] or prefix != PREFIX_ROWS:
        raise WrongFileError(
            f"{where}: its sentencepiece model has unk, bos, eos = {special} and {PREFIX!r} is {prefix} pieces, "
            f"but InternVL's has {[UNK, BOS, EOS]} and {PREFIX_ROWS}, so the tokenizer is another model's. {advice}"
        )
    return tokenizer
