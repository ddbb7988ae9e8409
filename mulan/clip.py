"""Files -> a real `comfy.sd.CLIP`: every stock node that takes a CLIP works with it."""
from __future__ import annotations

import logging
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.supported_models_base import ClipTarget

from .families import SD15, Family
from .files import AdapterFile, TextEncoderFile, WrongFile, open_adapter, open_text_encoder
from .prompts import PromptTokenizer
from .text_encoder import InternVLEncoder, MulanTextEncoder
from .tokenizer import InternVLTokenizer


def load_clip(text_encoder_path: Path | str, adapter_path: Path | str, prompt_style: str = "default", device: str | None = None,
              family: Family | None = None, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The InternVL text encoder with a MuLan adapter. `device="cpu"` keeps it off the GPU; `family` overrules the adapter's own (tests).

    Raises WrongFile where a file cannot serve or the two do not fit, with its name, its folder and what is expected.
    """
    encoder_file = open_text_encoder(Path(text_encoder_path))
    adapter_file = open_adapter(Path(adapter_path), family)
    check_pair(encoder_file, adapter_file)
    clip = _assemble(encoder_file, adapter_file, prompt_style, device, disable_dynamic)
    # The host builds the patcher anew where hooks need one of its own, or a second device.
    clip.patcher.cached_patcher_init = (_load_patcher, (str(text_encoder_path), str(adapter_path), prompt_style, device, family))
    return clip


def negative_view(clip: comfy.sd.CLIP) -> comfy.sd.CLIP:
    """The same weights; prompts go in without the prefix, as upstream encodes negatives."""
    view = clip.clone()
    view.set_tokenizer_option("prefix", "never")
    return view


def check_pair(encoder: TextEncoderFile, adapter: AdapterFile) -> None:
    """Raises WrongFile where the adapter was trained on another text encoder."""
    if adapter.shape.text_width != encoder.config.width:
        raise WrongFile(
            f"the adapter {adapter.file.path.name} reads states of width {adapter.shape.text_width}, but the text encoder "
            f"{encoder.file.path.name} gives {encoder.config.width}: take the text encoder this adapter was trained with "
            f"(width 4096: InternVL-14B-224px)."
        )


class TextStates:
    """The frozen text encoder for training: captions -> what an adapter reads."""

    def __init__(self, text_encoder_path: Path | str, device: str | None = None, family: Family = SD15):
        file = open_text_encoder(Path(text_encoder_path))
        self._clip = _assemble(file, None, "upstream", device, False, family)
        self.width = file.config.width

    def __call__(self, captions: list[str]) -> torch.Tensor:
        """-> states [B, 77, width] float32 of ``summarize:`` + caption, the prefix's rows cut; "" goes in without the prefix."""
        encoder = self._clip.cond_stage_model.internvl
        self._clip.load_model()
        self._clip.cond_stage_model.set_clip_options({"execution_device": self._clip.patcher.load_device})
        states = [None] * len(captions)
        for bare in (False, True):
            members = [i for i, caption in enumerate(captions) if (caption == "") == bare]
            if not members:
                continue
            options = {"tokenizer_options": {"prefix": "never"}} if bare else {}
            windows = [next(iter(self._clip.tokenize(captions[i], **options).values()))[0] for i in members]
            with torch.no_grad():
                rows = encoder.rows_for_adapter(encoder([[row[0] for row in window] for window in windows])[0])
            for i, row in zip(members, rows):
                states[i] = row
        return torch.stack(states)


def load_text_states(text_encoder_path: Path | str, device: str | None = None) -> TextStates:
    """`TextStates` of a text encoder's file or folder. Raises WrongFile."""
    return TextStates(text_encoder_path, device)


def _load_patcher(text_encoder_path, adapter_path, prompt_style, device, family, disable_dynamic=False):
    return load_clip(text_encoder_path, adapter_path, prompt_style, device, family, disable_dynamic).patcher


def _assemble(encoder_file: TextEncoderFile, adapter_file: AdapterFile | None, prompt_style: str, device: str | None,
              disable_dynamic: bool, family: Family | None = None) -> comfy.sd.CLIP:
    family = adapter_file.family if adapter_file else family
    try:
        tokenizer = InternVLTokenizer(encoder_file.tokenizer())
    except ValueError as error:
        raise WrongFile(f"{encoder_file.file.path.name} (in {encoder_file.file.path.parent}): {error}") from error
    weights, _ = comfy.utils.convert_old_quants(encoder_file.state_dict(), "", metadata=dict(encoder_file.file.metadata))
    state_dicts = [weights]
    adapter_weights = adapter_file.state_dict() if adapter_file else None
    if adapter_weights:
        state_dicts.append(adapter_weights)

    model_options = _model_options(weights, device)

    def build(device="cpu", dtype=None, model_options=None):
        encoder = InternVLEncoder(
            encoder_file.config, adapter_file.shape if adapter_file else None, [piece.id for piece in tokenizer.prefix],
            family.prefixed_window, dtype=weights["model.norm.weight"].dtype,
            adapter_dtype=adapter_weights["queries"].dtype if adapter_weights else None, device=device, model_options=model_options,
        )
        return MulanTextEncoder(family, encoder)

    def prompts(embedding_directory=None, tokenizer_data=None):
        return PromptTokenizer(tokenizer, family, prompt_style, encoder_file.config.tensor())

    parameters = sum(comfy.utils.calculate_parameters(sd) for sd in state_dicts)
    clip = comfy.sd.CLIP(ClipTarget(prompts, build), state_dict=state_dicts, parameters=parameters,
                         model_options=model_options, disable_dynamic=disable_dynamic)
    logging.info("MuLan: %s, %d queries, text encoder %s", family.title, adapter_file.shape.queries if adapter_file else 0,
                 encoder_file.file.path.name)
    return clip


def _model_options(weights: dict[str, torch.Tensor], device: str | None) -> dict:
    options = {}
    quantised = comfy.utils.detect_layer_quantization(weights, "")
    if quantised is not None:
        options["quantization_metadata"] = quantised
    if device == "cpu":
        options["load_device"] = options["offload_device"] = torch.device("cpu")
    return options
