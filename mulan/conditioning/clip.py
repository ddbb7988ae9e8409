"""Files -> a real `comfy.sd.CLIP`: every stock node that takes a CLIP works with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.supported_models_base import ClipTarget

from ..checkpoints.tensor_files import fingerprint
from .adapter import LanguageAdapter
from .adapter_sdxl import AdapterShapeXL, LanguageAdapterXL
from .families import DEFAULT_ZEROING, PIXART, SD15, ZEROING, Family
from .model_files import (
    ENCODER_SOURCE,
    TOKENIZER_NAME,
    AdapterFile,
    TextEncoderFile,
    WrongFileError,
    open_adapter,
    open_text_encoder,
)
from .prompt_tokenizer import NEGATIVE, PromptTokenizer
from .text_encoder import COUNTS, InternVLEncoder, MulanTextEncoder
from .tokenizer import BOS, EOS, PREFIX, UNK, InternVLTokenizer

PREFIX_ROWS = 3  # the windows' lengths (families.py) are right for so many


def load_clip(
    text_encoder_path: Path | str,
    adapter_path: Path | str | None,
    prompt_style: str = "default",
    device: str | None = None,
    zeroing: str = DEFAULT_ZEROING,
    family: Family | None = None,
    disable_dynamic: bool = False,
) -> comfy.sd.CLIP:
    """The InternVL text encoder with a MuLan adapter; without one (None), the CLIP of a MuLan PixArt model, which brings its own projection.

    `device="cpu"` keeps it off the GPU; `zeroing` names one of `ZEROING`, for SDXL; `family` overrules the adapter's own (tests).
    Raises WrongFile where a file cannot serve or the two do not fit, with its name, its folder and what is expected;
    MemoryError or torch.OutOfMemoryError that says what would be smaller.
    """
    encoder_file = open_text_encoder(Path(text_encoder_path))
    adapter_file = open_adapter(Path(adapter_path), family) if adapter_path is not None else None
    if adapter_file:
        check_pair(encoder_file, adapter_file)
    clip = _assemble(
        encoder_file,
        adapter_file,
        adapter_file.family if adapter_file else family or PIXART,
        prompt_style,
        device,
        zeroing,
        disable_dynamic,
    )
    # The host builds the patcher anew where hooks need one of its own, or a second device.
    clip.patcher.cached_patcher_init = (
        _load_patcher,
        (str(text_encoder_path), adapter_path and str(adapter_path), prompt_style, device, zeroing, family),
    )
    return clip


def negative_view(clip: comfy.sd.CLIP) -> comfy.sd.CLIP:
    """The same weights; prompts are encoded as upstream encodes negatives: without the prefix, for SDXL with it and a pooled vector of zeros."""
    view = clip.clone()
    view.set_tokenizer_option("negative", True)
    return view


def encode_prompts(clip: comfy.sd.CLIP, prompts: list[str], negatives: Sequence[str] = ()) -> list[list]:
    """The CONDITIONING of each prompt, then of each negative, as CLIPTextEncode gives it (negatives on `negative_view`).

    MuLan's CLIP encodes all in one go; any other, or one with scheduled hooks, one after another.
    """
    tokens = [clip.tokenize(text) for text in prompts] + [
        clip.tokenize(text, tokenizer_options={"negative": True}) for text in negatives
    ]
    if not tokens or clip.use_clip_schedule or not isinstance(clip.cond_stage_model, MulanTextEncoder):
        return [clip.encode_from_tokens_scheduled(of_prompt) for of_prompt in tokens]
    keys = clip.cond_stage_model.family.token_keys
    together = {key: [window for of_prompt in tokens for window in of_prompt[key]] for key in keys}
    together[COUNTS] = [(len(of_prompt[keys[0]]), NEGATIVE in of_prompt) for of_prompt in tokens]
    common = clip.encode_from_tokens(together, return_dict=True)
    del common["cond"]
    each = common.pop("each")
    return [[[context, {**common, **more, "pooled_output": pooled}]] for context, pooled, more in each]


def check_pair(encoder: TextEncoderFile, adapter: AdapterFile) -> None:
    """Raises WrongFile where the adapter was trained on another text encoder, or needs what this file of it lacks."""
    names = f"the adapter {adapter.file.path.name}", f"the text encoder {encoder.file.path.name}"
    if adapter.shape.text_width != encoder.config.width:
        raise WrongFileError(
            f"{names[0]} reads states of width {adapter.shape.text_width}, but {names[1]} gives {encoder.config.width}: "
            f"take the text encoder this adapter was trained with (width 4096: InternVL-14B-224px)."
        )
    needed = adapter.shape.text_embeds if isinstance(adapter.shape, AdapterShapeXL) else None
    if needed is not None and encoder.projected_width != needed:
        held = "has none" if encoder.projected_width is None else f"has one of width {encoder.projected_width}"
        raise WrongFileError(
            f"{names[0]} needs the text encoder's `text_projection` of width {needed}, but {names[1]} (in {encoder.file.path.parent}) {held}. "
            f"Take the checkpoint's own folder, or convert that again."
        )


class TextStates:
    """The frozen text encoder for training: captions -> what an adapter reads."""

    def __init__(self, text_encoder_path: Path | str, device: str | None = None, family: Family = SD15):
        file = open_text_encoder(Path(text_encoder_path))
        self._clip = load_text_encoder(file, device, family)
        self.width = file.config.width

    def __call__(self, captions: list[str]) -> torch.Tensor:
        """-> states [B, 77, width] float32 of ``summarize:`` + caption, the prefix's rows cut; "" goes in without the prefix."""
        model = self._clip.cond_stage_model
        self._clip.load_model()
        model.set_clip_options({"execution_device": self._clip.patcher.load_device})
        states = [None] * len(captions)
        for bare in (False, True):
            members = [i for i, caption in enumerate(captions) if (caption == "") == bare]
            if not members:
                continue
            options = {"tokenizer_options": {"negative": True}} if bare else {}
            windows = [next(iter(self._clip.tokenize(captions[i], **options).values()))[0] for i in members]
            with torch.no_grad():
                rows = model.rows_for_adapter(
                    torch.stack(model.internvl.states([[row[0] for row in window] for window in windows]))
                )
            for i, row in zip(members, rows):
                states[i] = row
        return torch.stack(states)


def load_text_encoder(file: TextEncoderFile, device: str | None = None, family: Family = SD15) -> comfy.sd.CLIP:
    """The text encoder without an adapter, for those who read its states. Raises as `load_clip` does."""
    return _assemble(file, None, family, "upstream", device, DEFAULT_ZEROING, False)


def load_text_states(text_encoder_path: Path | str, device: str | None = None) -> TextStates:
    """`TextStates` of a text encoder's file or folder. Raises WrongFile."""
    return TextStates(text_encoder_path, device)


def _load_patcher(text_encoder_path, adapter_path, prompt_style, device, zeroing, family, disable_dynamic=False):
    return load_clip(text_encoder_path, adapter_path, prompt_style, device, zeroing, family, disable_dynamic).patcher


def _assemble(encoder_file: TextEncoderFile, *others) -> comfy.sd.CLIP:
    """`_assembled`, where memory is short with a message that says what would be smaller."""
    try:
        return _assembled(encoder_file, *others)
    except (MemoryError, torch.OutOfMemoryError) as error:
        kind = (
            MemoryError if isinstance(error, MemoryError) else torch.OutOfMemoryError
        )  # the host knows them by their type
        raise kind(
            f"There is not enough memory for the text encoder {encoder_file.file.path.name}: {error}. Take its int8 conversion, "
            f"device = cpu, or close other programs."
        ) from error


def _assembled(
    encoder_file: TextEncoderFile,
    adapter_file: AdapterFile | None,
    family: Family,
    prompt_style: str,
    device: str | None,
    zeroing: str,
    disable_dynamic: bool,
) -> comfy.sd.CLIP:
    tokenizer = _tokenizer(encoder_file)
    weights, _ = comfy.utils.convert_old_quants(
        encoder_file.state_dict(), "", metadata=dict(encoder_file.file.metadata)
    )
    adapter_weights = adapter_file.state_dict() if adapter_file else {}
    shape = adapter_file.shape if adapter_weights else None
    projected = shape.text_embeds if isinstance(shape, AdapterShapeXL) else None
    if projected is not None:
        weights["text_projection"] = encoder_file.text_projection()
    state_dicts = [weights, adapter_weights] if adapter_weights else [weights]
    origin = {
        "text_encoder": encoder_file.file.path.name,
        "adapter": adapter_file.file.path.name if adapter_file else "",
    }
    model_options = _model_options(weights, device)

    def build(device="cpu", dtype=None, model_options=None):
        adapter = _adapter(shape, adapter_weights, device, model_options) if shape else None
        encoder = InternVLEncoder(
            encoder_file.config,
            adapter,
            projected,
            dtype=weights["model.norm.weight"].dtype,
            device=device,
            model_options=model_options,
        )
        return MulanTextEncoder(
            family,
            encoder,
            [piece.id for piece in tokenizer.prefix],
            ZEROING[zeroing],
            origin,
            tokenizer.decode,
            fingerprint(encoder_file.file.path),
        )

    def prompts(embedding_directory=None, tokenizer_data=None):
        return PromptTokenizer(tokenizer, family, prompt_style, encoder_file.config.tensor())

    parameters = sum(comfy.utils.calculate_parameters(sd) for sd in state_dicts)
    clip = comfy.sd.CLIP(
        ClipTarget(prompts, build),
        state_dict=state_dicts,
        parameters=parameters,
        model_options=model_options,
        disable_dynamic=disable_dynamic,
    )
    logging.info(
        "MuLan: %s, text encoder %s, adapter %s", family.title, origin["text_encoder"], origin["adapter"] or "none"
    )
    return clip


def _tokenizer(encoder_file: TextEncoderFile) -> InternVLTokenizer:
    """The tokenizer of a text encoder's file. Raises WrongFile where it cannot be read, or is another model's."""
    where = f"{encoder_file.file.path.name} (in {encoder_file.file.path.parent})"
    advice = f"Take {TOKENIZER_NAME} from where the weights come from ({ENCODER_SOURCE})."
    try:
        tokenizer = InternVLTokenizer(encoder_file.tokenizer())
    except (ValueError, RuntimeError) as error:  # sentencepiece takes no bytes at all for a model, and fails later
        raise WrongFileError(f"{where}: its sentencepiece model cannot be read ({error}). {advice}") from error
    knows = tokenizer.sentencepiece
    if knows.get_piece_size() != encoder_file.config.vocabulary:
        raise WrongFileError(
            f"{where}: its sentencepiece model knows {knows.get_piece_size()} pieces, but its embedding has "
            f"{encoder_file.config.vocabulary} rows, so the tokenizer is another model's. {advice}"
        )
    special, prefix = [knows.unk_id(), knows.bos_id(), knows.eos_id()], len(tokenizer.prefix)
    if special != [UNK, BOS, EOS] or prefix != PREFIX_ROWS:
        raise WrongFileError(
            f"{where}: its sentencepiece model has unk, bos, eos = {special} and {PREFIX!r} is {prefix} pieces, but InternVL's has "
            f"{[UNK, BOS, EOS]} and {PREFIX_ROWS}, so the tokenizer is another model's. {advice}"
        )
    return tokenizer


def _adapter(
    shape, weights: dict[str, torch.Tensor], device, model_options: dict | None
) -> LanguageAdapter | LanguageAdapterXL:
    """The adapter's module in its own dtype: in the encoder's half precision it would lose 3e-3. Its layers are never quantised."""
    operations = (model_options or {}).get("custom_operations") or comfy.ops.manual_cast
    module = LanguageAdapterXL if isinstance(shape, AdapterShapeXL) else LanguageAdapter
    return module(shape, dtype=next(iter(weights.values())).dtype, device=device, operations=operations)


def _model_options(weights: dict[str, torch.Tensor], device: str | None) -> dict:
    options = {}
    quantised = comfy.utils.detect_layer_quantization(weights, "")
    if quantised is not None:
        options["quantization_metadata"] = quantised
    if device == "cpu":
        options["load_device"] = options["offload_device"] = torch.device("cpu")
    return options
