"""A chat model as ComfyUI expects the model of a CLIP: it generates text, and encodes none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import comfy.utils
import torch
from torch import nn

from ..boundary.limits import PREFILL_TOKENS
from ..checkpoints.devices import choose_dtype, streaming_memory
from ..checkpoints.finite import why_not_finite
from ..checkpoints.tensor_files import TensorFile, describe_path
from .chat_model import InternVLChat
from .chat_prompts import KEY, Entry, prompt_length

TILE_BATCH_SIZE = 16
ANSWER_TOKENS = 512  # that memory is set aside for


class InternVLChatEncoder(nn.Module):
    """A chat model inside a CLIP.

    `stop_tokens`: the ids that end an answer. `file`: the checkpoint's, for errors. `dtype`: what it computes in
    (None: bfloat16 where the device is fast with it, else float32).
    """

    def __init__(
        self, chat: InternVLChat, stop_tokens: Sequence[int], file: TensorFile, dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.chat = chat
        self.stop_tokens = list(stop_tokens)
        self.file = file
        self.dtype = dtype
        self.dtypes = {parameter.dtype for parameter in chat.parameters()}
        self.execution_device: Any = None

    def set_clip_options(self, options):
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self):
        self.execution_device = None

    def encode_token_weights(self, tokens):
        raise ValueError(
            f"{self.file.path.name} is a chat model and gives no conditioning: connect this CLIP to Generate Text or "
            "InternVL Chat, and a text encoder's CLIP here"
        )

    def load_sd(self, sd):
        """Fill the model. In main memory the tensors stay what they are, mapped from the file."""
        assign = next(self.chat.parameters()).device.type in ("cpu", "meta") or getattr(self, "can_assign_sd", False)
        return self.chat.load_state_dict(sd, assign=assign)

    def memory_estimation_function(self, tokens, device=None):
        """Return the bytes beside the weights: the tower's widest layer, or the language model's with its cache. Where
        the device cannot hold the weights, also the largest of them.
        """
        vision, language = self.chat.config.vision, self.chat.config.language
        entries = _entries(tokens)
        length = prompt_length(entries, self.chat.config)
        tiles = min(TILE_BATCH_SIZE, sum(len(entry["data"]) for entry in entries if isinstance(entry, dict)))
        seeing = tiles * (1 + vision.num_patches) * (4 * vision.hidden_size + 2 * vision.intermediate_size)
        heads_size = language.num_key_value_heads * language.head_dim
        cache = 2 * (length + ANSWER_TOKENS) * language.num_hidden_layers * heads_size
        at_once = min(length, PREFILL_TOKENS)
        mask = at_once * length if length > PREFILL_TOKENS else 0
        activations = at_once * (5 * language.hidden_size + 3 * language.intermediate_size)
        itemsize = self.compute_dtype(device).itemsize
        reading = itemsize * (cache + activations + mask)
        if device is not None:
            reading += streaming_memory(self.chat, device, reading)
        return max(itemsize * seeing, reading)

    @contextmanager
    def streaming_to(self, callback: Callable[[list[int]], None]) -> Iterator[None]:
        """Call `callback` after each token, with all ids of the answer so far, while the context lasts."""
        self.chat.language_model.on_token = callback
        try:
            yield
        finally:
            self.chat.language_model.on_token = None

    @torch.no_grad()
    def generate(self, tokens, *, max_length: int, **sampling) -> list[int]:
        """Return the answer's ids, at most `max_length`.

        Shows progress. ComfyUI's operations raise where the user has pressed stop. Raises ValueError where the weights
        are damaged.
        """
        device = self.execution_device or next(self.chat.parameters()).device
        dtype = self.compute_dtype(device)
        entries = _entries(tokens)
        images = iter(
            self._encode_images([entry["data"] for entry in entries if isinstance(entry, dict)], device, dtype)
        )
        prompt = self.chat.embed(
            [next(images) if isinstance(entry, dict) else entry for entry in entries], device, dtype
        )
        max_length = min(max_length, self.chat.config.language.max_position_embeddings - prompt.shape[1])
        try:
            return self.chat.language_model.generate(
                prompt, max_length=max_length, stop_tokens=self.stop_tokens, execution_dtype=dtype, **sampling
            )
        except ArithmeticError as error:
            cause = why_not_finite(self.file, dtype, "device = cpu, where it computes in float32")
            raise ValueError(f"{describe_path(self.file.path)} gives {error}: {cause}.") from error

    def _encode_images(self, images: Sequence[torch.Tensor], device, dtype) -> list[torch.Tensor]:
        """Return, from the tiles [N, 3, S, S] of each image, what the language model reads of it [tokens of its tiles,
        hidden_size].
        """
        if not images:
            return []
        tiles = torch.cat(list(images))
        progress = comfy.utils.ProgressBar(len(tiles))

        def batches() -> Iterator[torch.Tensor]:
            for batch in tiles.split(TILE_BATCH_SIZE):
                yield batch.to(device, dtype)
                progress.update(len(batch))

        read = iter(self.chat.read_tiles(batches()))
        return [torch.cat(list(islice(read, len(image)))) for image in images]

    def compute_dtype(self, device) -> torch.dtype:
        """Return what it computes in there."""
        return self.dtype or choose_dtype(device, torch.bfloat16)


def _entries(tokens) -> list[Entry]:
    return [entry for entry, *_ in tokens.get(KEY, [[]])[0]]
