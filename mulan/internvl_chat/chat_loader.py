"""A chat model's checkpoint -> a real `comfy.sd.CLIP` that generates text: core's Generate Text takes it as it is."""

from __future__ import annotations

import logging
from pathlib import Path

import comfy.sd
import comfy.utils
import torch
from comfy.supported_models_base import ClipTarget

from ..checkpoints.devices import choose_devices, log_device
from ..checkpoints.language_tokenizers import END, END_OF_TEXT
from ..checkpoints.linear import operations_for
from ..checkpoints.tensor_files import describe_path
from .chat_clip import InternVLChatEncoder
from .chat_files import open_chat, unexpected
from .chat_prompts import ChatPrompts
from .chat_template import SYSTEM


def load_chat(
    path: Path | str, device: str | None = None, dtype: torch.dtype | None = None, disable_dynamic: bool = False
) -> comfy.sd.CLIP:
    """Load a chat model from what `open_chat` reads; tensors stay mapped from the file until they are needed.

    `device="cpu"` keeps it off the GPU. `dtype`: what it computes in (None: what suits the device). Raises
    WrongFileError for a file that cannot be used, and MemoryError or torch.OutOfMemoryError that says what would be
    smaller.
    """
    file = open_chat(Path(path))
    tokenizer, title = file.tokenizer(), file.file.path.name
    stray = unexpected(file)
    if stray:
        logging.warning(
            "InternVL: %s holds %d tensors that are not used, the first is %s",
            describe_path(file.file.path),
            len(stray),
            stray[0],
        )
    weights = dict(file.tensors())
    stop_tokens = [id for name in (END, *END_OF_TEXT) if (id := tokenizer.token_to_id(name)) is not None]

    def build(device="cpu", dtype=None, model_options=None):
        quantized = operations_for(kept, exact=computed_in is torch.float32) if file.is_quantized else None
        chat = file.build(operations=operations_for(None), language_operations=quantized, dtype=kept, device=device)
        return InternVLChatEncoder(chat.train(False).requires_grad_(False), stop_tokens, file.file, computed_in)

    def prompts(embedding_directory=None, tokenizer_data=None):
        return ChatPrompts(tokenizer, file.config, title, file.system or SYSTEM)

    kept, computed_in = weights["language_model.model.norm.weight"].dtype, dtype
    devices = choose_devices(device, sees_images=True)
    options = {"load_device": devices.load, "offload_device": devices.offload}
    try:
        clip = comfy.sd.CLIP(
            ClipTarget(prompts, build),
            state_dict=[weights],
            parameters=comfy.utils.calculate_parameters(weights),
            model_options=options,
            disable_dynamic=disable_dynamic,
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        # ComfyUI knows them by their type.
        error_type = MemoryError if isinstance(error, MemoryError) else torch.OutOfMemoryError
        raise error_type(
            f"There is not enough memory for {title}: {error}. Use its int4 or int8 conversion, a smaller InternVL, "
            "device = cpu, or close other "
            f"programs."
        ) from error
    log_device(f"InternVL Chat: {title}", devices.load, clip.cond_stage_model.compute_dtype(devices.load))
    # ComfyUI builds the patcher again for a second device.
    clip.patcher.cached_patcher_init = (_load_patcher, (str(path), device, dtype))
    return clip


def _load_patcher(path, device, dtype, disable_dynamic=False):
    return load_chat(path, device, dtype, disable_dynamic).patcher
