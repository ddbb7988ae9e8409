"""ComfyUI's contract of a CLIP's model, for a model that talks: it generates text, and encodes none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import comfy.model_management
import comfy.utils
import torch
from torch import nn

from .chat_model import InternVLChat
from .chat_prompts import KEY, Entry, rows

TILES_AT_ONCE = 16
ANSWER = 1024  # tokens that memory is set aside for


class InternVLChatEncoder(nn.Module):
    """`stop`: the ids that end an answer. `dtype`: what it computes in (None: bfloat16 where the device is fast with it, else float32)."""

    def __init__(self, chat: InternVLChat, stop: Sequence[int], title: str, dtype: torch.dtype | None = None):
        super().__init__()
        self.chat = chat
        self.stop = list(stop)
        self.title = title
        self.dtype = dtype
        self.dtypes = {parameter.dtype for parameter in chat.parameters()}
        self.execution_device = None

    def set_clip_options(self, options):
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self):
        self.execution_device = None

    def encode_token_weights(self, tokens):
        raise ValueError(
            f"{self.title} talks, and gives no conditioning: connect this CLIP to Generate Text or InternVL Chat, and a text "
            f"encoder's here"
        )

    def load_sd(self, sd):
        """In main memory the tensors stay what they are, mapped from the file."""
        assign = next(self.chat.parameters()).device.type in ("cpu", "meta") or getattr(self, "can_assign_sd", False)
        return self.chat.load_state_dict(sd, assign=assign)

    def memory_estimation_function(self, tokens, device=None):
        """Bytes beside the weights: the tower's widest layer, or the language model's with its cache, its mask and one weight cast."""
        config, bytes_each = self.chat.config, self._computes_in(device).itemsize
        entries = _entries(tokens)
        length = rows(entries, config)
        tiles = min(TILES_AT_ONCE, sum(len(entry["data"]) for entry in entries if isinstance(entry, dict)))
        seeing = tiles * config.vision.patches * (6 * config.vision.width + 2 * config.vision.feed_forward)
        language = config.language
        cache = 2 * (length + ANSWER) * language.layers * language.key_value_heads * language.head
        reading = (
            length * (6 * language.width + 3 * language.feed_forward + 2 * length)
            + language.width * language.vocabulary
        )
        return 2 * bytes_each * max(seeing, cache + reading)

    @contextmanager
    def heard_by(self, listener: Callable[[list[int]], None]) -> Iterator[None]:
        """Within it `listener` is told all ids of an answer after each token."""
        self.chat.language.listener = listener
        try:
            yield
        finally:
            self.chat.language.listener = None

    @torch.no_grad()
    def generate(self, tokens, *, max_length: int, **sampling) -> list[int]:
        """-> the answer's ids, at most `max_length`. Shows progress; the host's operations raise where the user has pressed stop."""
        device = self.execution_device or next(self.chat.parameters()).device
        dtype = self._computes_in(device)
        entries = _entries(tokens)
        seen = iter(self._see([entry["data"] for entry in entries if isinstance(entry, dict)], device, dtype))
        prompt = self.chat.embed([next(seen) if isinstance(entry, dict) else entry for entry in entries], device, dtype)
        room = self.chat.config.language.longest - prompt.shape[1]
        try:
            return self.chat.language.generate(
                prompt, max_length=min(max_length, room), stop_tokens=self.stop, execution_dtype=dtype, **sampling
            )
        except ArithmeticError as error:
            raise ValueError(
                f"{self.title} gives {error}: its weights hold NaN or infinity. Download it again."
            ) from error

    def _see(self, pictures: Sequence[torch.Tensor], device, dtype) -> list[torch.Tensor]:
        """Tiles [N, 3, S, S] of each picture -> its rows [N * tokens, width]."""
        if not pictures:
            return []
        tiles, seen = torch.cat(list(pictures)), []
        progress = comfy.utils.ProgressBar(len(tiles))
        for batch in tiles.split(TILES_AT_ONCE):
            seen.append(self.chat.see(batch.to(device, dtype)).flatten(0, 1))
            progress.update(len(batch))
        return list(torch.cat(seen).split([len(picture) * self.chat.config.tokens for picture in pictures]))

    def _computes_in(self, device) -> torch.dtype:
        if self.dtype is not None:
            return self.dtype
        return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32


def _entries(tokens) -> list[Entry]:
    return [entry for entry, *_ in tokens.get(KEY, [[]])[0]]
