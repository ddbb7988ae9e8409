"""MuLan's CLIP: a `comfy.sd.CLIP` that reads no weight for a prompt it remembers.

A prompt is known by all that its contents depend on: the content of both files, what goes into the text encoder
(token ids, weights, windows, prefix, negative or not), what is done there (family, zeroing, clip skip), and what it is
computed with (device, dtypes, operations, the versions of torch, ComfyUI and this pack). So a prompt's text, the style
it was read in and the files' names do not count. Nor do the number of CPU threads and the prompts it is encoded
together with, which change the last bits alone: a known prompt has those of its first time. Where something changes the
contents that has no such name, nothing is remembered: patches of a LoRA or a merge, hooks, injections, callbacks,
methods that another pack replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

import comfy.model_management
import comfy.sd
import comfyui_version
import torch
from comfy.cli_args import args
from comfy.ldm.modules.attention import optimized_attention_for_device
from comfy.model_patcher import ModelPatcher

from .. import VERSION
from ..boundary.interrupts import interruptible
from .prompt_memory import EncodedPrompt, PromptMemory
from .text_encoder import Conditioning, MulanTextEncoder, Prompt
from .token_windows import PROMPT_SPANS, PromptSpan


class MulanClip(comfy.sd.CLIP):
    """`prompt_memory`: where encoded prompts are kept, None for nowhere; clones share it."""

    prompt_memory: PromptMemory | None = None

    def clone(self, disable_dynamic=False):
        """Return a CLIP of the same weights with patches of its own."""
        clone = super().clone(disable_dynamic)
        clone.__class__ = type(self)  # ComfyUI makes one of its own kind
        cast(MulanClip, clone).prompt_memory = self.prompt_memory
        return clone

    def load_model(self, tokens={}):  # noqa: B006, as in ComfyUI
        """Have ComfyUI load the weights. An error of memory says what would be smaller."""
        with advice_where_memory_is_short(self.cond_stage_model.origin["text_encoder"]):
            return super().load_model(tokens)

    def encode_from_tokens(self, tokens, return_pooled: Any = False, return_dict=False):
        """Encode what `tokenize` or `clip.encode_prompts` gives; only prompts that are not known need the weights."""
        model, identity = self.cond_stage_model, self._identity()
        if identity is None or return_pooled not in (True, False):  # "unprojected": an option of CLIP's own
            return super().encode_from_tokens(tokens, return_pooled, return_dict)
        prompts = model.prompts(tokens)
        each = self._encode(model, prompts, identity)
        context, pooled, more = each[0] if PROMPT_SPANS not in tokens else (*each[0][:2], {"each": each})
        if return_dict:
            result = {"cond": context, "pooled_output": pooled, **more}
            self.add_hooks_to_dict(result)
            return result
        return (context, pooled) if return_pooled else context

    def _encode(self, model: MulanTextEncoder, prompts: list[Prompt], identity: list) -> list[Conditioning]:
        assert self.prompt_memory is not None, "what has an identity is remembered"  # noqa: S101
        device = comfy.model_management.intermediate_device()
        keys = [_key(identity, prompt) for prompt in prompts]
        known = {key: found for key in interruptible(dict.fromkeys(keys)) if (found := self.prompt_memory.recall(key))}
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in known}
        if missing:
            encoded: Any = super().encode_from_tokens(_tokens(model, list(missing.values())), return_dict=True)
            new = {
                key: EncodedPrompt(context, pooled)
                for key, (context, pooled, _) in zip(missing, encoded["each"], strict=True)
            }
            known |= new
            if not model.is_hooked() and self._identity() == identity:
                self.prompt_memory.store(new)
        else:
            logging.info("MuLan: the text encoder is not needed, %d encoded prompts are known", len(known))
        return [
            (
                known[key].context.to(device),
                None if (pooled := known[key].pooled) is None else pooled.to(device),
                model.describe(prompt.windows),
            )
            for key, prompt in zip(keys, prompts, strict=True)
        ]

    def _identity(self) -> list | None:
        """Return all but the prompt that contents depend on, as JSON; None where that cannot be told, or nothing is to
        be remembered.
        """
        model, patcher = self.cond_stage_model, self.patcher
        if self.prompt_memory is None or patcher.model is not model or _is_changed(patcher) or _is_replaced(model):
            return None
        contents = [content and content.digest() for content in model.contents]
        if not contents or None in contents:
            return None
        return [
            contents,
            [model.family.name, asdict(model.zeroing), list(model.frame.prefix), self.layer_idx],
            _arithmetic(model, patcher),
        ]


@contextmanager
def advice_where_memory_is_short(file_name: str):
    """Let an error of memory say what would be smaller; its type stays, which ComfyUI knows it by."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        kind = MemoryError if isinstance(error, MemoryError) else torch.OutOfMemoryError
        raise kind(
            f"There is not enough memory for the text encoder {file_name}: {error}. Use its int4 or int8 conversion, "
            f"device = cpu, or close other programs."
        ) from error


def _key(identity: list, prompt: Prompt) -> str:
    windows = [[window.input_ids, window.weights, window.prefix_ids] for window in prompt.windows]
    return hashlib.sha256(json.dumps([identity, prompt.is_negative, windows]).encode()).hexdigest()


def _tokens(model: MulanTextEncoder, prompts: list[Prompt]) -> dict:
    """Return tokens of which `model.prompts` reads these prompts."""
    rows = [list(zip(window.input_ids, window.weights, strict=True)) for each in prompts for window in each.windows]
    spans = [PromptSpan(len(prompt.windows), prompt.is_negative) for prompt in prompts]
    return {**dict.fromkeys(model.family.token_keys, rows), PROMPT_SPANS: spans}


def _is_changed(patcher: ModelPatcher) -> bool:
    """Whether the patcher does more than load the files' weights."""
    changes = (
        patcher.patches,
        patcher.object_patches.keys() - {"manual_cast_dtype"},  # ComfyUI's own: what text encoders compute in
        patcher.weight_wrapper_patches,
        patcher.injections,
        patcher.hook_patches,
        patcher.forced_hooks,
        patcher.current_hooks,
        patcher.additional_models,
        patcher.model_options.keys() - {"transformer_options"},
        patcher.model_options.get("transformer_options"),
        *patcher.callbacks.values(),
        *patcher.wrappers.values(),
    )
    return any(map(bool, changes))


def _is_replaced(model) -> bool:
    """Whether the model, or a part of it, is another class's or has methods that another pack put there."""
    return not isinstance(model, MulanTextEncoder) or any(
        callable(value) and callable(getattr(type(module), name, None))
        for module in model.modules()
        for name, value in vars(module).items()
    )


def _arithmetic(model: MulanTextEncoder, patcher: ModelPatcher) -> list:
    """Return what contents are computed with: versions, device, dtypes, and the classes of the layers.

    A class of operations that has several ways to compute names the one in use in its attribute `arithmetic`.
    """
    device = patcher.load_device
    layers = {f"{type(module).__qualname__} {getattr(module, 'arithmetic', '')}" for module in model.modules()}
    return [
        [VERSION, comfyui_version.__version__, torch.__version__],
        [str(device.type), comfy.model_management.get_torch_device_name(device)],
        [
            str(model.internvl.computes_in(device)),
            str(patcher.object_patches.get("manual_cast_dtype")),
            str(comfy.model_management.intermediate_dtype()),
        ],
        [torch.get_float32_matmul_precision(), optimized_attention_for_device(device, mask=True).__name__],
        sorted(str(feature) for feature in args.fast),
        sorted(layers),
    ]
