"""InternVL's LLaMA with a MuLan adapter as its last stage: the cond-stage model of a `comfy.sd.CLIP`.

Source: mulankit 1.0.2, ``InternVLTextModel`` and mulankit/patch.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import comfy.model_management
import comfy.utils
import torch

from .adapter_sdxl import LanguageAdapterXL
from .families import PIXART, Family, Zeroing
from .internvl_llama import InternVLEncoder
from .prompt_tokenizer import NEGATIVE
from .tokenizer import BOS, EOS, PAD

# A key beside the token keys, where several prompts go in with one call: the `PromptSpan` of each.
# Stock nodes never see it, only `clip.encode_prompts` sets it.
PROMPT_SPANS = "mulan_prompt_spans"
BATCH_SIZE = 16  # windows at once: more take memory and save no time

Conditioning = tuple[torch.Tensor, torch.Tensor | None, dict]


class PromptSpan(NamedTuple):
    """Which of the windows in one call are a prompt's: the next `num_windows`."""

    num_windows: int
    is_negative: bool


@dataclass(frozen=True)
class Window:
    """One window of a prompt: a row per token, padding included. The prefix, where it has one, stands behind bos."""

    input_ids: tuple[int, ...]
    weights: tuple[float, ...]
    prefix_ids: tuple[int, ...]  # none where the prompt goes in bare

    @property
    def empty_ids(self) -> tuple[int, ...]:
        """The ids of a window of this form without a prompt."""
        ids = (BOS, *self.prefix_ids, EOS)
        return (*ids, *[PAD] * (len(self.input_ids) - len(ids)))

    @property
    def is_empty(self) -> bool:
        return self.input_ids == self.empty_ids

    @property
    def is_weighted(self) -> bool:
        return any(weight != 1.0 for weight in self.weights)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The prompt's own ids: between the prefix and the last eos."""
        return self.input_ids[1 + len(self.prefix_ids) : self._end - 1]

    @property
    def num_rows(self) -> int:
        """The rows that are not padding, the prefix's not counted: to the last eos, as in the tokenizer's mask of
        upstream.
        """
        return self._end - len(self.prefix_ids)

    @property
    def _end(self) -> int:
        """Behind the last eos."""
        return len(self.input_ids) - self.input_ids[::-1].index(EOS)

    def without_prefix(self, states: torch.Tensor) -> torch.Tensor:
        """Cut the prefix's rows from this window's states [T, hidden_size], by position, as upstream does."""
        return torch.cat((states[:1], states[1 + len(self.prefix_ids) :])) if self.prefix_ids else states


class MulanTextEncoder(torch.nn.Module):
    """ComfyUI's cond-stage contract: weighted windows of tokens -> the context of a family's cross-attention.

    `prefix_ids` are the prefix's tokens. `origin` (file names of text encoder and adapter) goes with every conditioning
    and into errors. `decode` turns ids back into text. `fingerprint` changes with the text encoder's file.
    """

    def __init__(
        self,
        family: Family,
        encoder: InternVLEncoder,
        prefix_ids: Sequence[int],
        zeroing: Zeroing,
        origin: dict[str, str],
        decode: Callable[[Sequence[int]], str],
        fingerprint: str,
    ):
        super().__init__()
        self.family = family
        self.internvl = encoder
        self.prefix_ids = tuple(prefix_ids)
        self.zeroing = zeroing
        self.origin = origin
        self.decode = decode
        self.fingerprint = fingerprint
        self.dtypes = {parameter.dtype for parameter in encoder.parameters()}
        self._empty_states: dict[tuple, torch.Tensor] = {}  # of windows without a prompt, which every graph has

    def set_clip_options(self, options):
        self.internvl.set_clip_options(options)

    def reset_clip_options(self):
        self.internvl.reset_clip_options()

    def window(self, rows: Sequence[tuple]) -> Window:
        """Read one window of a tokenizer's (id, weight) rows.

        Only windows with the prefix have the family's longer length.
        """
        input_ids, weights = zip(*(row[:2] for row in rows), strict=True)
        return Window(input_ids, weights, self.prefix_ids if len(rows) == self.family.prefixed_window else ())

    def encode_token_weights(self, tokens):
        """Encode {token key: windows of (id, weight)}.

        Returns (context [1, rows, context_dim] float32, pooled [1, pooled_dim] or None, more entries of the
        conditioning). Several windows give their rows one after the other. Weights act on the hidden states: a query of
        the adapter belongs to no token. With `PROMPT_SPANS` in the tokens, the entry "each" holds such a triple per
        prompt.
        """
        rows = tokens[self.family.token_keys[0]]
        windows = iter([self.window(window) for window in rows])
        spans = tokens.get(PROMPT_SPANS, [PromptSpan(len(rows), NEGATIVE in tokens)])
        prompts = [_without_empty_tail(list(islice(windows, span.num_windows))) for span in spans]
        zeroed = [
            span.is_negative and self.zeroing.empty_negative and all(window.is_empty for window in prompt)
            for prompt, span in zip(prompts, spans, strict=True)
        ]
        encoded = [window for prompt, is_zero in zip(prompts, zeroed, strict=True) if not is_zero for window in prompt]
        all_states = self._weighted_states(encoded)
        states, contexts = iter(all_states), iter(self._contexts(encoded, all_states))
        each = [
            self._zeros(prompt)
            if is_zero
            else self._conditioning(
                prompt, list(islice(states, len(prompt))), list(islice(contexts, len(prompt))), span.is_negative
            )
            for prompt, span, is_zero in zip(prompts, spans, zeroed, strict=True)
        ]
        if PROMPT_SPANS in tokens:
            return *each[0][:2], {"each": each}
        return each[0]

    def load_sd(self, sd):
        """Load one file: the encoder's tensors (``model.*``) or the adapter's. Returns (missing, unexpected) keys.

        In main memory the tensors stay what they are, mapped from the file: nothing is copied, and loaders of one file
        share its memory.
        """
        assign = self.internvl.device.type in ("cpu", "meta") or getattr(self, "can_assign_sd", False)
        if not any(key.startswith("model.") for key in sd):
            return self.internvl.adapter.load_state_dict(sd, strict=False, assign=assign)
        projection = sd.pop("text_projection", None)
        if projection is not None:
            self.internvl.text_projection = torch.nn.Parameter(projection, requires_grad=False)
        missing, unexpected = self.internvl.transformer.load_state_dict(sd, strict=False, assign=assign)
        if unexpected:
            logging.warning(
                "MuLan: %s holds %d tensors that are not used, the first is %s",
                self.origin["text_encoder"],
                len(unexpected),
                unexpected[0],
            )
        return missing, unexpected

    def memory_estimation_function(self, tokens, device=None):
        """Return the bytes that one encode takes beside the weights."""
        windows = tokens.get(self.family.token_keys[0], [])
        return self.internvl.memory_required(sum(len(window) for window in windows[:BATCH_SIZE]))

    def _contexts(self, windows: Sequence[Window], states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Turn the states of windows into contexts [rows, context_dim], all prompts in one pass of the adapter.

        PixArt has no adapter here: its projection is in the MODEL.
        """
        rows = [window.without_prefix(of_window) for window, of_window in zip(windows, states, strict=True)]
        if self.family is PIXART:
            return rows
        batches = [rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]
        return [context for batch in batches for context in self.internvl.adapter(torch.stack(batch))]

    def _conditioning(
        self,
        windows: Sequence[Window],
        states: Sequence[torch.Tensor],
        contexts: Sequence[torch.Tensor],
        is_negative: bool,
    ) -> Conditioning:
        if self.family is PIXART:  # ComfyUI ignores masks: padding goes instead
            context = torch.cat([rows[: window.num_rows] for window, rows in zip(windows, contexts, strict=True)])
            pooled = None
        else:
            pooled = self._pooled(contexts[0][None], windows[0], states[0], is_negative)
            context = torch.cat(list(contexts))
        if not all(tensor.isfinite().all() for tensor in (context, pooled) if tensor is not None):
            raise ValueError(self._damage(states))
        device = comfy.model_management.intermediate_device()
        return context[None].to(device), None if pooled is None else pooled.to(device), self._description(windows)

    def _damage(self, states: Sequence[torch.Tensor]) -> str:
        """Name the file that a conditioning with NaN or infinity comes from."""
        which, folder = (
            ("adapter", "mulan") if all(rows.isfinite().all() for rows in states) else ("text_encoder", "text_encoders")
        )
        return (
            f"the {which.replace('_', ' ')} {self.origin[which]} (in models/{folder}) gives numbers that are not "
            "finite: "
            f"its weights, or those of a LoRA on it, contain NaN or infinity. Download it, or convert it, again."
        )

    def _pooled(
        self, context: torch.Tensor, window: Window, states: torch.Tensor, is_negative: bool
    ) -> torch.Tensor | None:
        adapter = self.internvl.adapter
        if not isinstance(adapter, LanguageAdapterXL):
            return None
        if self.zeroing.negative_pooled if is_negative else self.zeroing.pooled:
            return context.new_zeros(1, adapter.shape.pooled_dim)
        projects = adapter.shape.text_embeds_dim is not None
        return adapter.pool(context, self.internvl.text_embeds(window.input_ids, states) if projects else None)

    def _zeros(self, windows: Sequence[Window]) -> Conditioning:
        adapter = self.internvl.adapter
        assert isinstance(adapter, LanguageAdapterXL), "only SDXL has zeroing"  # noqa: S101
        context = torch.zeros(1, adapter.shape.num_queries, adapter.shape.context_dim)
        return context, torch.zeros(1, adapter.shape.pooled_dim), self._description(windows)

    def _description(self, windows: Sequence[Window]) -> dict:
        """Return what a conditioning says of itself, for nodes that save or show it."""
        prompt = self.decode([token_id for window in windows for token_id in window.prompt_ids])
        return {"mulan": {"family": self.family.name, "prompt": prompt, **self.origin}}

    def _weighted_states(self, windows: Sequence[Window]) -> list[torch.Tensor]:
        """Return the weighted states [T, hidden_size] of each window.

        A weight is measured from an empty prompt of the same form.
        """
        states = self._states(
            {window.input_ids for window in windows} | {window.empty_ids for window in windows if window.is_weighted},
            cacheable={window.empty_ids for window in windows},
        )
        weighted = []
        for window in windows:
            rows = states[window.input_ids]
            if window.is_weighted:
                empty = states[window.empty_ids]
                factor = torch.tensor(window.weights, dtype=rows.dtype, device=rows.device)[:, None]
                rows = torch.where(factor == 1.0, rows, empty + (rows - empty) * factor)
            weighted.append(rows)
        return weighted

    def _states(
        self, windows: set[tuple[int, ...]], cacheable: set[tuple[int, ...]]
    ) -> dict[tuple[int, ...], torch.Tensor]:
        """Return the states of each window of ids, encoded in batches.

        Those of `cacheable` ones are computed once for the weights in use.
        """
        key = self.internvl.layer, self.internvl.layer_idx, getattr(self, "current_weight_patches_uuid", None)
        cache = self._empty_states
        if cache and next(iter(cache))[1:] != key or self._is_hooked():
            cache.clear()
        device = self.internvl.device
        known = {window: cache[(window, *key)].to(device) for window in windows if (window, *key) in cache}
        fresh = sorted((window for window in windows if window not in known), key=lambda window: (len(window), window))
        batches = [fresh[start : start + BATCH_SIZE] for start in range(0, len(fresh), BATCH_SIZE)]
        progress = comfy.utils.ProgressBar(self.internvl.config.num_hidden_layers * len(batches))
        for batch in batches:
            length = len(batch[-1])  # no row sees a later one, so more padding changes nothing before it
            states = self.internvl.hidden_states(
                [(*window, *[PAD] * (length - len(window))) for window in batch], lambda: progress.update(1)
            )
            known |= {window: rows[: len(window)] for window, rows in zip(batch, states, strict=True)}
        if not self._is_hooked():
            device = comfy.model_management.intermediate_device()
            cache |= {(window, *key): known[window].to(device) for window in fresh if window in cacheable}
        return known

    def _is_hooked(self) -> bool:
        """Whether weights are patched by hooks at the moment, which no uuid tells."""
        loaded = (entry.model for entry in comfy.model_management.current_loaded_models)
        return any(patcher is not None and patcher.model is self and patcher.hook_backup for patcher in loaded)


def _without_empty_tail(windows: list[Window]) -> list[Window]:
    """Drop empty windows at the end: CLIPTextEncodeSDXL fills the shorter of its two texts with them."""
    while len(windows) > 1 and windows[-1].is_empty:
        windows = windows[:-1]
    return windows
