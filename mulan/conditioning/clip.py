"""Files -> a real `comfy.sd.CLIP`: every stock node that takes a CLIP works with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.supported_models_base import ClipTarget

from ..boundary.interrupts import interruptible
from ..boundary.limits import MAX_WINDOWS
from ..checkpoints.devices import Devices, choose_devices
from ..checkpoints.tensor_files import fingerprint
from ..checkpoints.weight_source import has_quantized
from .adapter import LanguageAdapter
from .adapter_sdxl import AdapterShapeXL, AnyAdapterShape, LanguageAdapterXL
from .encoder_files import (
    AnyTextEncoderFile,
    check_pair,
    check_whole_pixart,
    open_prompt_encoder,
    pair_warning,
    window_tokenizer,
)
from .families import DEFAULT_ZEROING, PIXART, SD15, ZEROING, Family
from .internvl_llama import InternVLEncoder
from .model_files import AdapterFile, TextEncoderFile, open_adapter
from .prompt_memory import PromptMemory
from .prompt_tokenizer import NEGATIVE, PromptTokenizer
from .remembering_clip import MulanClip, advice_where_memory_is_short
from .text_encoder import PROMPT_SPANS, MulanTextEncoder, PromptSpan


def load_clip(
    text_encoder: Path | str | AnyTextEncoderFile,
    adapter: Path | str | AdapterFile | None,
    prompt_style: str = "default",
    device: str | None = None,
    zeroing: str = DEFAULT_ZEROING,
    family: Family | None = None,
    disable_dynamic: bool = False,
    memory: PromptMemory | None = None,
) -> MulanClip:
    """Load a text encoder (InternVL's, or a chat file's language model) with a MuLan adapter, each from a path or
    from a file that is open already.

    No weight is read before a prompt must be encoded that `memory` does not know. Without an adapter (None), return the
    CLIP of a MuLan PixArt model, which brings its own projection. `device="cpu"` keeps the CLIP off the GPU. `zeroing`
    names one of `ZEROING`, for SDXL. `family` overrides the adapter's own (tests). Raises WrongFileError where a file
    cannot serve or the two do not fit, with its name, its folder and what was expected; MemoryError or
    torch.OutOfMemoryError with what would be smaller.
    """
    if not isinstance(text_encoder, AnyTextEncoderFile):
        text_encoder = open_prompt_encoder(Path(text_encoder))
    if adapter is not None and not isinstance(adapter, AdapterFile):
        adapter = open_adapter(Path(adapter), family)
    if adapter is not None:
        check_pair(text_encoder, adapter)
        if warning := pair_warning(text_encoder, adapter):
            logging.warning("MuLan: %s", warning)
        family = adapter.family
    else:
        check_whole_pixart(text_encoder)
    clip = _build_clip(text_encoder, adapter, family or PIXART, prompt_style, device, zeroing, disable_dynamic)
    clip.prompt_memory = memory
    # ComfyUI builds the patcher anew where hooks need one of its own, or a second device.
    paths = str(text_encoder.file.path), str(adapter.file.path) if adapter else None
    clip.patcher.cached_patcher_init = _load_patcher, (*paths, prompt_style, device, zeroing, family)
    return clip


def negative_view(clip: comfy.sd.CLIP) -> comfy.sd.CLIP:
    """Return a CLIP of the same weights that encodes prompts as upstream encodes negatives.

    That is without the prefix; for SDXL with it, and with a pooled vector of zeros.
    """
    view = clip.clone()
    view.set_tokenizer_option(NEGATIVE, True)
    return view


def encode_prompts(clip: comfy.sd.CLIP, prompts: list[str], negatives: Sequence[str] = ()) -> list[list]:
    """Return the CONDITIONING of each prompt, then of each negative, as CLIPTextEncode gives it (negatives on
    `negative_view`).

    MuLan's CLIP encodes all in one go. Any other, or one with scheduled hooks, encodes one after another. Stops when
    the user interrupts. Raises ValueError where all together are too long.
    """
    options = [{}] * len(prompts) + [{"tokenizer_options": {NEGATIVE: True}}] * len(negatives)
    texts = zip([*prompts, *negatives], options, strict=True)
    tokens = [clip.tokenize(text, **more) for text, more in interruptible(texts)]
    if not tokens or clip.use_clip_schedule or not isinstance(clip.cond_stage_model, MulanTextEncoder):
        progress = comfy.utils.ProgressBar(len(tokens))
        encoded = []
        for prompt_tokens in interruptible(tokens):
            encoded.append(clip.encode_from_tokens_scheduled(prompt_tokens))
            progress.update(1)
        return encoded
    keys = clip.cond_stage_model.family.token_keys
    together = {key: [window for prompt_tokens in tokens for window in prompt_tokens[key]] for key in keys}
    if (count := len(together[keys[0]])) > MAX_WINDOWS:
        raise ValueError(
            f"the {len(tokens)} prompts take {count} windows of the text encoder, and at most {MAX_WINDOWS} are "
            "encoded at once. Use fewer or shorter ones"
        )
    together[PROMPT_SPANS] = [
        PromptSpan(len(prompt_tokens[keys[0]]), is_negative=NEGATIVE in prompt_tokens) for prompt_tokens in tokens
    ]
    common: Any = clip.encode_from_tokens(together, return_dict=True)
    del common["cond"]
    each = common.pop("each")
    return [[[context, {**common, **more, "pooled_output": pooled}]] for context, pooled, more in each]


def load_text_encoder(
    file: AnyTextEncoderFile, device: str | Devices | None = None, family: Family = SD15
) -> MulanClip:
    """Load the text encoder without an adapter, for those who read its states. Raises as `load_clip` does."""
    return _build_clip(file, None, family, "upstream", device, DEFAULT_ZEROING, False)


def _load_patcher(text_encoder_path, adapter_path, prompt_style, device, zeroing, family, disable_dynamic=False):
    return load_clip(text_encoder_path, adapter_path, prompt_style, device, zeroing, family, disable_dynamic).patcher


def _build_clip(
    encoder_file: AnyTextEncoderFile,
    adapter_file: AdapterFile | None,
    family: Family,
    prompt_style: str,
    device: str | Devices | None,
    zeroing: str,
    disable_dynamic: bool,
) -> MulanClip:
    with advice_where_memory_is_short(encoder_file.file.path.name):
        tokenizer = window_tokenizer(encoder_file)
        weights, _ = comfy.utils.convert_old_quants(
            encoder_file.state_dict(), "", metadata=dict(encoder_file.file.metadata)
        )
        adapter_weights = adapter_file.state_dict() if adapter_file else {}
        shape = adapter_file.shape if adapter_file and adapter_weights else None
        projection_dim = shape.text_embeds_dim if isinstance(shape, AdapterShapeXL) else None
        if projection_dim is not None and isinstance(encoder_file, TextEncoderFile):  # which `check_pair` has checked
            weights["text_projection"] = encoder_file.text_projection()
        state_dicts = [weights, adapter_weights] if adapter_weights else [weights]
        origin = {
            "text_encoder": encoder_file.file.path.name,
            "adapter": adapter_file.file.path.name if adapter_file else "",
        }
        model_options = _model_options([weights["model.norm.weight"], *adapter_weights.values()], device)
        is_quantized = has_quantized(weights)
        # The modules take the file's own tensors; quantized ones are moved to where their layer was made.
        made_on = "cpu" if is_quantized else "meta"
        contents = [each.file.content for each in (encoder_file, adapter_file) if each]

        def build_model(device="cpu", dtype=None, model_options=None):
            adapter = _adapter(shape, adapter_weights, made_on) if shape else None
            encoder = InternVLEncoder(
                encoder_file.config,
                adapter,
                projection_dim,
                dtype=weights["model.norm.weight"].dtype,
                device=made_on,
                model_options=model_options,
                is_quantized=is_quantized,
                frame=tokenizer.frame,
            )
            return MulanTextEncoder(
                family,
                encoder,
                tokenizer.frame,
                ZEROING[zeroing],
                origin,
                tokenizer.decode,
                fingerprint(encoder_file.file.path),
                contents,
            )

        def build_tokenizer(embedding_directory=None, tokenizer_data=None):
            return PromptTokenizer(tokenizer, family, prompt_style, encoder_file.config_tensor())

        clip = MulanClip(
            ClipTarget(build_tokenizer, build_model),
            state_dict=state_dicts,
            parameters=sum(comfy.utils.calculate_parameters(sd) for sd in state_dicts),
            model_options=model_options,
            disable_dynamic=disable_dynamic,
        )
    logging.info(
        "MuLan: %s, text encoder %s, adapter %s", family.title, origin["text_encoder"], origin["adapter"] or "none"
    )
    return clip


def _adapter(shape: AnyAdapterShape, weights: dict[str, torch.Tensor], device) -> LanguageAdapter | LanguageAdapterXL:
    """Build the adapter's module in its own dtype: in the encoder's half precision it would lose 3e-3.

    It is never quantized.
    """
    module: Any = LanguageAdapterXL if isinstance(shape, AdapterShapeXL) else LanguageAdapter
    return module(shape, dtype=next(iter(weights.values())).dtype, device=device, operations=comfy.ops.manual_cast)


def _model_options(weights: list[torch.Tensor], device: str | Devices | None) -> dict:
    """Return where the CLIP computes and waits: beside the file's weights, where the device has not their dtypes."""
    devices = device if isinstance(device, Devices) else choose_devices(device)
    fits = all(comfy.model_management.supports_cast(devices.load, dtype) for dtype in {w.dtype for w in weights})
    return {
        "load_device": devices.load if fits else devices.offload,
        "offload_device": devices.offload,
        "initial_device": torch.device("meta"),  # nowhere yet: ComfyUI would read the weights to put them on a device
    }
