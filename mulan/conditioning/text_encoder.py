"""InternVL's LLaMA with a MuLan adapter as its last stage: the cond-stage model of a `comfy.sd.CLIP`.

Source: mulankit 1.0.2, ``InternVLTextModel`` and mulankit/patch.py. The LLaMA is the host's own, so streaming to small GPUs,
casting and quantised weights are the host's work. The adapter is nested in the encoder's module because LoRA keys need one common prefix.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy import sd1_clip
from comfy.text_encoders import llama

from .adapter import LanguageAdapter
from .adapter_sdxl import LanguageAdapterXL
from .families import PIXART, Family, Zeroing
from .model_files import TextConfig
from .prompt_tokenizer import NEGATIVE
from .tokenizer import BOS, EOS, PAD

BYTES_PER_ACTIVATION = 4  # the host computes text encoders in float32
COUNTS = "windows per prompt"  # a key beside the token keys, for several prompts in one call: (number of windows, is a negative) of each
WINDOWS_AT_ONCE = 16  # a batch of the encoder: more take memory and save no time


@dataclass
class LlamaConfig(llama.Llama2Config):
    """The host's LLaMA with InternVL's constants; the sizes come from the file."""

    vocab_size: int = 49954
    intermediate_size: int = 11008
    num_key_value_heads: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @classmethod
    def of(cls, config: TextConfig) -> LlamaConfig:
        llama_config = cls(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            rms_norm_eps=config.norm_eps,
        )
        llama_config.head_dim = config.width // config.heads  # a class attribute of the host's, not a field
        return llama_config


class InternVLLlama(llama.BaseLlama, torch.nn.Module):
    """All rows of the last layer behind the final norm; `config` is a `TextConfig`."""

    def __init__(self, config, dtype, device, operations):
        super().__init__()
        self.num_layers = config["sizes"].layers
        self.model = llama.Llama2_(LlamaConfig.of(config["sizes"]), device=device, dtype=dtype, ops=operations)
        self.dtype = dtype


class InternVLEncoder(sd1_clip.SDClipModel):
    """Windows of token ids -> hidden states; it holds the adapter, which reads them."""

    def __init__(
        self,
        config: TextConfig,
        adapter: LanguageAdapter | LanguageAdapterXL | None = None,
        projected_width: int | None = None,
        dtype=None,
        device="cpu",
        model_options=None,
    ):
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config={"sizes": config},
            model_class=InternVLLlama,
            layer="last",
            layer_norm_hidden_state=True,
            enable_attention_masks=True,
            special_tokens={"start": BOS, "end": EOS, "pad": PAD},
            model_options=model_options or {},
        )
        self.config = config
        if projected_width is not None:
            self.text_projection = torch.nn.Parameter(
                torch.empty(config.width, projected_width, dtype=dtype, device=device), requires_grad=False
            )
        if adapter is not None:
            self.adapter = adapter
            self.adapter.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the host wants it to compute."""
        return self.execution_device or self.transformer.get_input_embeddings().weight.device

    def process_tokens(self, tokens, device):
        """Upstream masks every row of id 0, also a literal <unk> inside the text, and nothing else."""
        embeds, _, _, info = super().process_tokens(tokens, device)
        mask = (torch.tensor(tokens, device=device) != PAD).long()
        return embeds, mask, mask.sum(dim=1).tolist(), info

    def states(
        self, windows: Sequence[Sequence[int]], after_layer: Callable[[], None] = lambda: None
    ) -> list[torch.Tensor]:
        """Windows of ids -> the hidden states of each, [T, width] float32. Stops when the user interrupts."""

        def hook(*_):
            comfy.model_management.throw_exception_if_processing_interrupted()
            after_layer()

        hooks = [layer.register_forward_hook(hook) for layer in self.transformer.model.layers]
        try:
            return list(self([list(window) for window in windows])[0])
        finally:
            for registered in hooks:
                registered.remove()

    def text_embeds(self, ids: Sequence[int], states: torch.Tensor) -> torch.Tensor:
        """Upstream's pooled vector [1, projected width]: `last_row`, projected."""
        row = last_row(ids, states)
        return row[None] @ self.text_projection.to(row)

    def memory(self, rows: int) -> int:
        """Bytes for encoding so many rows beside the weights: the widest layer's activations and one weight cast to float32, twice for safety."""
        activations = rows * (6 * self.config.width + 3 * self.config.feed_forward)
        return 2 * BYTES_PER_ACTIVATION * (activations + self.config.width * self.config.feed_forward)


def last_row(ids: Sequence[int], states: torch.Tensor) -> torch.Tensor:
    """Of a text's states [T, width] the row that stands for it: the one that the count of ids above 0 points at, normally eos."""
    return states[sum(id > 0 for id in ids) - 1]


class MulanTextEncoder(torch.nn.Module):
    """ComfyUI's cond-stage contract: weighted windows of tokens -> the context of a family's cross-attention.

    `prefix` is the number of the prefix's rows. `origin` (text encoder's and adapter's file names) goes with every conditioning and into errors;
    `decode` turns ids back into text; `fingerprint` changes with the text encoder's file.
    """

    def __init__(
        self,
        family: Family,
        encoder: InternVLEncoder,
        prefix_ids: list[int],
        zeroing: Zeroing,
        origin: dict[str, str],
        decode: Callable[[list[int]], str],
        fingerprint: str,
    ):
        super().__init__()
        self.family = family
        self.internvl = encoder
        self.prefix_ids = prefix_ids
        self.zeroing = zeroing
        self.origin = origin
        self.decode = decode
        self.fingerprint = fingerprint
        self.dtypes = {parameter.dtype for parameter in encoder.parameters()}
        self._of_empty: dict[tuple, torch.Tensor] = {}  # states of prompts without words, which every graph has

    def set_clip_options(self, options):
        self.internvl.set_clip_options(options)

    def reset_clip_options(self):
        self.internvl.reset_clip_options()

    def encode_token_weights(self, tokens):
        """{token key: windows of (id, weight)} -> (context [1, rows, width] float32, pooled [1, pooled width] or None, more entries).

        Several windows give their rows one after the other. Weights act on the hidden states: a query of the adapter belongs to no token.
        With `COUNTS` in the tokens the entry "each" holds such a triple per prompt.
        """
        windows = iter(tokens[self.family.token_keys[0]])
        counts = tokens.get(COUNTS, [(len(tokens[self.family.token_keys[0]]), NEGATIVE in tokens)])
        prompts = [(self._without_empty_tail(list(islice(windows, count))), negative) for count, negative in counts]
        skipped = [negative and self.zeroing.empty_negative and self._is_empty(prompt) for prompt, negative in prompts]
        states = self._weighted_states(
            [window for (prompt, _), skip in zip(prompts, skipped) if not skip for window in prompt]
        )
        read = iter(zip(states, self._contexts(states)))
        each = [
            self._zeros(prompt) if skip else self._conditioning(prompt, *zip(*islice(read, len(prompt))), negative)
            for (prompt, negative), skip in zip(prompts, skipped)
        ]
        if COUNTS in tokens:
            return *each[0][:2], {"each": each}
        return each[0]

    def rows_for_adapter(self, states: torch.Tensor) -> torch.Tensor:
        """States [B, T, width] -> the rows the adapter reads: those of the prefix are cut, by position, as upstream does."""
        if states.shape[1] != self.family.prefixed_window:
            return states
        return torch.cat((states[:, :1], states[:, 1 + len(self.prefix_ids) :]), dim=1)

    def load_sd(self, sd):
        """One call per file: the encoder's tensors (``model.*``) or the adapter's. Gives (missing, unexpected) names.

        In main memory the tensors stay what they are, mapped from the file: nothing is copied, and loaders of one file share its memory.
        """
        assign = self.internvl.device.type in ("cpu", "meta") or getattr(self, "can_assign_sd", False)
        if not any(name.startswith("model.") for name in sd):
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
        """Bytes for one encode beside the weights."""
        return self.internvl.memory(
            sum(len(window) for window in tokens.get(self.family.token_keys[0], [])[:WINDOWS_AT_ONCE])
        )

    def _contexts(self, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The states of windows -> [rows, width] each, all prompts in one pass of the adapter; PixArt's projection is in the MODEL instead."""
        rows = [self.rows_for_adapter(state[None])[0] for state in states]
        if self.family is PIXART:
            return rows
        batches = [rows[start : start + WINDOWS_AT_ONCE] for start in range(0, len(rows), WINDOWS_AT_ONCE)]
        return [context for batch in batches for context in self.internvl.adapter(torch.stack(batch))]

    def _conditioning(self, windows, states, contexts, negative: bool):
        ids = [[row[0] for row in window] for window in windows]
        if self.family is PIXART:  # the host ignores masks: padding goes instead
            context = torch.cat([rows[: self._rows(window)] for window, rows in zip(ids, contexts)])
            pooled = None
        else:
            pooled = self._pooled(contexts[0][None], ids[0], states[0], negative)
            context = torch.cat(contexts)
        if not all(tensor.isfinite().all() for tensor in (context, pooled) if tensor is not None):
            raise ValueError(self._damage(states))
        keep = comfy.model_management.intermediate_device()
        return context[None].to(keep), None if pooled is None else pooled.to(keep), self._described(ids)

    def _damage(self, states) -> str:
        """Which file a conditioning that is not finite comes from."""
        which, folder = (
            ("adapter", "mulan") if all(rows.isfinite().all() for rows in states) else ("text_encoder", "text_encoders")
        )
        return (
            f"the {which.replace('_', ' ')} {self.origin[which]} (in models/{folder}) gives numbers that are not finite: its weights, or those of "
            f"a LoRA on it, hold NaN or infinity. Download it, or convert it, again."
        )

    def _pooled(self, context, ids, states, negative: bool):
        adapter = self.internvl.adapter
        if not isinstance(adapter, LanguageAdapterXL):
            return None
        if self.zeroing.negative_pooled if negative else self.zeroing.pooled:
            return context.new_zeros(1, adapter.shape.pooled)
        text_embeds = None if adapter.shape.text_embeds is None else self.internvl.text_embeds(ids, states)
        return adapter.pool(context, text_embeds)

    def _zeros(self, windows):
        shape = self.internvl.adapter.shape
        ids = [[row[0] for row in window] for window in windows]
        return torch.zeros(1, shape.queries, shape.width), torch.zeros(1, shape.pooled), self._described(ids)

    def _described(self, ids) -> dict:
        """What a conditioning says of itself, for nodes that save or show it."""
        prompt = self.decode([id for window in ids for id in self._content(window)])
        return {"mulan": {"family": self.family.name, "prompt": prompt, **self.origin}}

    def _weighted_states(self, windows) -> list[torch.Tensor]:
        """Windows of (id, weight) -> states [T, width] each; a weight is measured from an empty prompt of the same form."""
        ids = [tuple(row[0] for row in window) for window in windows]
        weights = [[row[1] for row in window] for window in windows]
        weighted = [any(weight != 1.0 for weight in of_window) for of_window in weights]
        states = self._states(
            {*ids, *(self._empty(len(window)) for window, is_weighted in zip(ids, weighted) if is_weighted)}
        )
        out = []
        for window, of_window, is_weighted in zip(ids, weights, weighted):
            rows = states[window]
            if is_weighted:
                empty = states[self._empty(len(window))]
                factor = torch.tensor(of_window, dtype=rows.dtype, device=rows.device)[:, None]
                rows = torch.where(factor == 1.0, rows, empty + (rows - empty) * factor)
            out.append(rows)
        return out

    def _states(self, windows: set[tuple[int, ...]]) -> dict[tuple[int, ...], torch.Tensor]:
        """The states of each window, in batches; those without words are computed once for the weights in use."""
        key = self.internvl.layer, self.internvl.layer_idx, getattr(self, "current_weight_patches_uuid", None)
        if self._of_empty and next(iter(self._of_empty))[1:] != key or self._hooked():
            self._of_empty.clear()
        device = self.internvl.device
        known = {
            window: self._of_empty[(window, *key)].to(device) for window in windows if (window, *key) in self._of_empty
        }
        fresh = sorted((window for window in windows if window not in known), key=lambda window: (len(window), window))
        batches = [fresh[start : start + WINDOWS_AT_ONCE] for start in range(0, len(fresh), WINDOWS_AT_ONCE)]
        progress = comfy.utils.ProgressBar(self.internvl.config.layers * len(batches))
        for batch in batches:
            longest = len(batch[-1])  # no row sees a later one, so more padding changes nothing before it
            states = self.internvl.states(
                [(*window, *[PAD] * (longest - len(window))) for window in batch], lambda: progress.update(1)
            )
            known |= {window: rows[: len(window)] for window, rows in zip(batch, states)}
        if not self._hooked():
            self._of_empty |= {
                (window, *key): known[window].to(comfy.model_management.intermediate_device())
                for window in fresh
                if window == self._empty(len(window))
            }
        return known

    def _hooked(self) -> bool:
        """Whether weights are patched by hooks at the moment, which no uuid tells."""
        loaded = (entry.model for entry in comfy.model_management.current_loaded_models)
        return any(patcher is not None and patcher.model is self and patcher.hook_backup for patcher in loaded)

    def _empty(self, length: int) -> tuple[int, ...]:
        rows = [BOS, *(self.prefix_ids if length == self.family.prefixed_window else []), EOS]
        return (*rows, *[PAD] * (length - len(rows)))

    def _is_empty(self, windows) -> bool:
        return all(tuple(row[0] for row in window) == self._empty(len(window)) for window in windows)

    def _without_empty_tail(self, windows):
        """CLIPTextEncodeSDXL fills the shorter of its two texts with empty windows, which would say something here."""
        while len(windows) > 1 and self._is_empty(windows[-1:]):
            windows = windows[:-1]
        return windows

    def _content(self, ids) -> list[int]:
        """The prompt's own ids of a window: between the prefix, by position, and the last eos."""
        first = 1 + (len(self.prefix_ids) if len(ids) == self.family.prefixed_window else 0)
        return ids[first : len(ids) - 1 - ids[::-1].index(EOS)]

    def _rows(self, ids) -> int:
        """How many rows of a window are no padding, the prefix's not counted: to the last eos, as the tokenizer's mask of upstream."""
        prefix = len(self.prefix_ids) if len(ids) == self.family.prefixed_window else 0
        return len(ids) - ids[::-1].index(EOS) - prefix
