"""InternVL's LLaMA with a MuLan adapter as its last stage: the cond-stage model of a `comfy.sd.CLIP`.

Source: mulankit 1.0.2, ``InternVLTextModel`` and mulankit/patch.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import comfy.model_management
import comfy.utils
import torch

from ..boundary.interrupts import interruptible
from ..checkpoints.file_content import FileContent
from .adapter_sdxl import LanguageAdapterXL
from .families import PIXART, Family, Zeroing
from .internvl_llama import InternVLEncoder
from .prompt_tokenizer import NEGATIVE
from .token_windows import PROMPT_SPANS, PromptSpan, Window, read_window, window_rows, without_empty_tail
from .tokenizer import Frame

BATCH_SIZE = 16  # windows at once: more take memory and save no time
RUN_SIZE = 4 * BATCH_SIZE  # windows whose hidden states are kept until their contexts are made

Conditioning = tuple[torch.Tensor, torch.Tensor | None, dict]


class QueuedWindow(NamedTuple):
    """A window to encode, and whether its prompt's pooled vector is made from it."""

    window: Window
    is_first: bool
    is_negative: bool


class Prompt(NamedTuple):
    """A prompt as it goes in: its windows, and whether it is a negative of a family that marks them."""

    windows: list[Window]
    is_negative: bool


class MulanTextEncoder(torch.nn.Module):
    """ComfyUI's cond-stage contract: weighted windows of tokens -> the context of a family's cross-attention.

    `frame`: what stands around a prompt in a window. `origin` (file names of text encoder and adapter) goes with every
    conditioning and into errors. `decode` turns ids back into text. `fingerprint` changes with the text encoder's file,
    `contents` are those of both files.
    """

    def __init__(
        self,
        family: Family,
        encoder: InternVLEncoder,
        frame: Frame,
        zeroing: Zeroing,
        origin: dict[str, str],
        decode: Callable[[Sequence[int]], str],
        fingerprint: str,
        contents: Sequence[FileContent | None] = (),
    ):
        super().__init__()
        self.family = family
        self.internvl = encoder
        self.frame = frame
        self.zeroing = zeroing
        self.origin = origin
        self.decode = decode
        self.fingerprint = fingerprint
        self.contents = tuple(contents)
        self.dtypes = {parameter.dtype for parameter in encoder.parameters()}
        self._empty_states: dict[tuple, torch.Tensor] = {}  # of windows without a prompt, which every graph has

    def set_clip_options(self, options):
        """Pass ComfyUI's options on. Raises ValueError for one that would give a wrong result without a word."""
        if not options.get("projected_pooled", True) and not self._has_pooling:
            raise ValueError(
                "this node reads CLIP's own pooled embedding (GLIGEN does), and MuLan's CLIP has none: connect the "
                "checkpoint's CLIP to it, with text in English"
            )
        self.internvl.set_clip_options(options)

    def reset_clip_options(self):
        self.internvl.reset_clip_options()

    def window(self, rows: Sequence[tuple]) -> Window:
        """Read one window of a tokenizer's (id, weight) rows. Raises ValueError where it is none of this family's."""
        return read_window(rows, self.family, self.frame, self.internvl.config.vocab_size)

    def prompts(self, tokens) -> list[Prompt]:
        """Read a tokenizer's tokens: one prompt, or those of `PROMPT_SPANS`. Raises ValueError for tokens that are not
        this CLIP's.
        """
        rows = window_rows(tokens, self.family)
        windows = iter([self.window(window) for window in interruptible(rows)])
        spans = tokens.get(PROMPT_SPANS, [PromptSpan(len(rows), NEGATIVE in tokens)])
        return [Prompt(without_empty_tail(list(islice(windows, count))), is_negative) for count, is_negative in spans]

    def encode_token_weights(self, tokens):
        """Encode {token key: windows of (id, weight)}. Raises ValueError for tokens that are not this CLIP's.

        Returns (context [1, rows, context_dim] float32, pooled [1, pooled_dim] or None, more entries of the
        conditioning). Several windows give their rows one after the other. Weights act on the hidden states: a query of
        the adapter belongs to no token. With `PROMPT_SPANS` in the tokens, the entry "each" holds such a triple per
        prompt.
        """
        prompts = self.prompts(tokens)
        zeroed = [
            prompt.is_negative and self.zeroing.empty_negative and all(window.is_empty for window in prompt.windows)
            for prompt in prompts
        ]
        encoded = self._encoded(
            [
                QueuedWindow(window, index == 0, prompt.is_negative)
                for prompt, is_zero in zip(prompts, zeroed, strict=True)
                if not is_zero
                for index, window in enumerate(prompt.windows)
            ]
        )
        each = [
            self._zeros(windows) if is_zero else self._conditioning(windows, list(islice(encoded, len(windows))))
            for (windows, _), is_zero in zip(prompts, zeroed, strict=True)
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
        windows = window_rows(tokens, self.family) if tokens else []  # no tokens: the weights alone are loaded
        return self.internvl.memory_required(sum(len(window) for window in windows[:BATCH_SIZE]), device)

    @property
    def _has_pooling(self) -> bool:
        """Whether the adapter gives a pooled vector, as SDXL's does."""
        return isinstance(getattr(self.internvl, "adapter", None), LanguageAdapterXL)

    def _encoded(self, queue: Sequence[QueuedWindow]) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yield the context [rows, context_dim] of each window and, of a prompt's first, the pooled vector.

        A run of windows at a time, so that memory holds the contexts of all but the hidden states of few.
        """
        device = comfy.model_management.intermediate_device()
        layers = self.internvl.config.num_hidden_layers
        progress = comfy.utils.ProgressBar(layers * len(queue))
        for start in range(0, len(queue), RUN_SIZE):
            run = queue[start : start + RUN_SIZE]
            windows = [queued.window for queued in run]
            states = self._weighted_states(windows, progress)
            contexts = self._contexts(windows, states)
            for queued, of_window, context in interruptible(zip(run, states, contexts, strict=True)):
                pooled = self._pooled(context[None], of_window, queued) if queued.is_first else None
                if not all(tensor.isfinite().all() for tensor in (context, pooled) if tensor is not None):
                    raise ValueError(self._damage(of_window))
                yield context.to(device), None if pooled is None else pooled.to(device)
            progress.update_absolute(layers * (start + len(run)))

    def _contexts(self, windows: Sequence[Window], states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Turn the states of windows into contexts [rows, context_dim], in batches of the adapter.

        PixArt has no adapter here: its projection is in the MODEL. ComfyUI ignores its masks: padding goes instead.
        """
        rows = [window.without_prefix(of_window) for window, of_window in zip(windows, states, strict=True)]
        if self.family is PIXART:
            return [of_window[: window.num_rows] for window, of_window in zip(windows, rows, strict=True)]
        batches = [rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]
        return [context for batch in interruptible(batches) for context in self.internvl.adapter(torch.stack(batch))]

    def _conditioning(
        self, windows: Sequence[Window], encoded: Sequence[tuple[torch.Tensor, torch.Tensor | None]]
    ) -> Conditioning:
        context = torch.cat([of_window for of_window, _ in encoded])
        return context[None], encoded[0][1], self.describe(windows)

    def _damage(self, states: torch.Tensor) -> str:
        """Name the file that a conditioning with NaN or infinity comes from."""
        which, folder = ("adapter", "mulan") if states.isfinite().all() else ("text_encoder", "text_encoders")
        return (
            f"the {which.replace('_', ' ')} {self.origin[which]} (in models/{folder}) gives numbers that are not "
            "finite: "
            f"its weights, or those of a LoRA on it, contain NaN or infinity. Download it, or convert it, again."
        )

    def _pooled(self, context: torch.Tensor, states: torch.Tensor, queued: QueuedWindow) -> torch.Tensor | None:
        """Return what the family's CLIP gives as pooled vector [1, pooled_dim].

        Zeros where the model does not read it: nodes that make a batch of prompts do. PixArt's T5 gives none.
        """
        adapter = self.internvl.adapter if self.family is not PIXART else None
        if not isinstance(adapter, LanguageAdapterXL):
            return None if adapter is None else context.new_zeros(1, context.shape[-1])
        if self.zeroing.negative_pooled if queued.is_negative else self.zeroing.pooled:
            return context.new_zeros(1, adapter.shape.pooled_dim)
        projects = adapter.shape.text_embeds_dim is not None
        return adapter.pool(context, self.internvl.text_embeds(queued.window.input_ids, states) if projects else None)

    def _zeros(self, windows: Sequence[Window]) -> Conditioning:
        adapter = self.internvl.adapter
        assert isinstance(adapter, LanguageAdapterXL), "only SDXL has zeroing"  # noqa: S101
        context = torch.zeros(1, adapter.shape.num_queries, adapter.shape.context_dim)
        return context, torch.zeros(1, adapter.shape.pooled_dim), self.describe(windows)

    def describe(self, windows: Sequence[Window]) -> dict:
        """Return what a conditioning says of itself, for nodes that save or show it."""
        prompt = self.decode([token_id for window in windows for token_id in window.prompt_ids])
        return {"mulan": {"family": self.family.name, "prompt": prompt, **self.origin}}

    def _weighted_states(self, windows: Sequence[Window], progress: comfy.utils.ProgressBar) -> list[torch.Tensor]:
        """Return the weighted states [T, states_size] of each window.

        A weight is measured from an empty prompt of the same form.
        """
        states = self._states(
            {window.input_ids for window in windows} | {window.empty_ids for window in windows if window.is_weighted},
            {window.empty_ids for window in windows},
            progress,
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
        self, windows: set[tuple[int, ...]], cacheable: set[tuple[int, ...]], progress: comfy.utils.ProgressBar
    ) -> dict[tuple[int, ...], torch.Tensor]:
        """Return the states of each window of ids, encoded in batches.

        Those of `cacheable` ones are computed once for the weights in use.
        """
        key = self.internvl.layer, self.internvl.layer_idx, getattr(self, "current_weight_patches_uuid", None)
        cache = self._empty_states
        if cache and next(iter(cache))[1:] != key or self.is_hooked():
            cache.clear()
        device = self.internvl.device
        known = {window: cache[(window, *key)].to(device) for window in windows if (window, *key) in cache}
        fresh = sorted((window for window in windows if window not in known), key=lambda window: (len(window), window))
        batches = [fresh[start : start + BATCH_SIZE] for start in range(0, len(fresh), BATCH_SIZE)]
        for batch in batches:
            length = len(batch[-1])  # no row sees a later one, so more padding changes nothing before it
            padded = [(*window, *[self.frame.pad] * (length - len(window))) for window in batch]
            states = self.internvl.hidden_states(padded, partial(progress.update, len(batch)))
            known |= {window: rows[: len(window)] for window, rows in zip(batch, states, strict=True)}
        if not self.is_hooked():
            device = comfy.model_management.intermediate_device()
            cache |= {(window, *key): known[window].to(device) for window in fresh if window in cacheable}
        return known

    def is_hooked(self) -> bool:
        """Whether weights are patched by hooks at the moment, which no uuid tells."""
        loaded = (entry.model for entry in comfy.model_management.current_loaded_models)
        return any(patcher is not None and patcher.model is self and patcher.hook_backup for patcher in loaded)
