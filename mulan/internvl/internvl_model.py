"""InternVL in the host's care, and what it is asked for: embeddings of pictures and of texts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..checkpoints.tensor_files import fingerprint
from ..conditioning.prompt_syntax import plain
from ..conditioning.text_encoder import InternVLEncoder, last_row
from ..conditioning.tokenizer import BOS, EOS, PAD, PREFIX, InternVLTokenizer
from .contrastive import ContrastiveModel, QueryReader, ensemble
from .intern_vit import InternViTConfig
from .internvl_files import MODES
from .preprocessing import check_framing, prepare

LONGEST = 80  # rows of a text, upstream's
ROWS_AT_ONCE = 16 * LONGEST  # of texts, padding included
PICTURES_AT_ONCE = 16
STATES_AT_ONCE = 256  # mode G: pictures that the tower sees before the LLaMA's turn; their states take 0.4 GB


class LoadedInternVL:
    """InternVL in one mode: `patcher` holds what pictures need (tower, pooling), `reader_patcher` what mode G adds (None in mode C), `clip` the LLaMA
    of texts and of mode G. The host moves, evicts and frees each on its own.

    `dtype`: what the tower computes in. `logit_scale`: what cosines are multiplied by before a softmax. `identity` changes with whatever
    embeddings depend on.
    """

    def __init__(
        self,
        path: Path,
        patcher: ModelPatcher,
        reader_patcher: ModelPatcher | None,
        clip: comfy.sd.CLIP,
        dtype: torch.dtype,
    ):
        self.mode = MODES[reader_patcher is not None]
        self.name = path.name
        self.dtype = dtype
        self.clip = clip
        self.patcher = patcher
        self.reader_patcher = reader_patcher
        self.labels: tuple[tuple, torch.Tensor] | None = (
            None  # the last ones and their vectors (zeroshot.py): other pictures are asked about the same
        )
        self.logit_scale = self.model.logit_scale.float().exp().item()
        lora = str(clip.patcher.patches_uuid) if clip.patcher.patches else ""
        told = fingerprint(path), clip.cond_stage_model.fingerprint, lora, self.mode, str(dtype)
        self.identity = hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]

    @property
    def model(self) -> ContrastiveModel:
        return self.patcher.model

    @property
    def reader(self) -> QueryReader | None:
        return self.reader_patcher and self.reader_patcher.model

    @property
    def encoder(self) -> InternVLEncoder:
        return self.clip.cond_stage_model.internvl

    @property
    def tokenizer(self) -> InternVLTokenizer:
        return self.clip.tokenizer.tokenizer

    @torch.no_grad()
    def embed_pictures(
        self, pictures: Sequence[torch.Tensor], framing: str = "whole", bar: comfy.utils.ProgressBar | None = None
    ) -> torch.Tensor:
        """Pictures [H, W, 3] float, 0 to 1, of any sizes -> [N, E] float32 on the CPU, of unit length.

        `framing`: one of `FRAMINGS`. Each picture is asked for when its batch begins, so the sequence may read files. Shows progress, `steps` of them,
        on `bar` if there is one; stops when the user interrupts. Raises ValueError for what is no picture.
        """
        check_framing(framing)
        together = PICTURES_AT_ONCE if self.reader is None else STATES_AT_ONCE
        after_layer = _progress(bar or comfy.utils.ProgressBar(self.steps(len(pictures))))
        found = [torch.empty(0, self.model.config.embedding)]
        for start in range(0, len(pictures), together):
            begins = range(start, min(start + together, len(pictures)), PICTURES_AT_ONCE)
            some = [self._states(pictures[begin : begin + PICTURES_AT_ONCE], framing, after_layer) for begin in begins]
            embeddings = torch.cat([embeddings for embeddings, _ in some])
            if self.reader is not None:
                embeddings = ensemble(embeddings, self._read([states for _, states in some], after_layer))
            found.append(embeddings)
        return torch.cat(found)

    def steps(self, pictures: int) -> int:
        """By how much `embed_pictures` moves a progress bar on."""
        layers = len(self.model.tower.layers) + (self.encoder.config.layers if self.reader else 0)
        return layers * math.ceil(pictures / PICTURES_AT_ONCE)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts -> [N, E] float32 on the CPU, of unit length; behind ``summarize:`` and cut at 80 tokens as upstream does.

        Shows progress, stops when the user interrupts.
        """
        ids = [text_ids(self.tokenizer, text) for text in texts]
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), ids[i]))
        batches = list(_batches(order, [len(of_text) for of_text in ids]))
        after_layer = _progress(comfy.utils.ProgressBar(self.encoder.config.layers * len(batches)))
        found = torch.empty(len(ids), self.model.config.embedding)
        for batch in batches:
            longest = len(ids[batch[-1]])  # no row sees a later one, so padding changes nothing before it
            self._ready_encoder(longest * len(batch))
            states = self.encoder.states([(*ids[i], *[PAD] * (longest - len(ids[i]))) for i in batch], after_layer)
            rows = torch.stack([last_row(ids[i], of_text) for i, of_text in zip(batch, states)]).cpu()
            found[batch] = self._finite(self.model.embed_rows(rows), "texts")
        return found

    def _states(
        self, pictures: Sequence[torch.Tensor], framing: str, after_layer: Callable[[], None]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A batch of pictures -> mode C's embeddings and, for mode G, the tower's states; on the CPU."""
        config = self.model.config.tower
        pixels = torch.stack([prepare(picture, config.picture, framing) for picture in pictures])
        comfy.model_management.load_models_gpu([self.patcher], memory_required=_memory(config, len(pixels), self.dtype))
        with _after_each(self.model.tower.layers, after_layer):
            states = self.model.states(pixels.to(self.patcher.load_device, self.dtype))
        embeddings = self._finite(self.model.embed_states(states).cpu(), "pictures")
        return embeddings, states.cpu() if self.reader is not None else None

    def _read(self, batches: list[torch.Tensor], after_layer: Callable[[], None]) -> torch.Tensor:
        """Mode G: the tower's states -> what the queries read of them through the LLaMA."""
        found = []
        for states in batches:
            self._ready_encoder(len(states) * (self.reader.config.queries + states.shape[1]), self.reader_patcher)
            found.append(
                self.reader(
                    states.to(self.reader_patcher.load_device), self.encoder.transformer.model, after_layer
                ).cpu()
            )
        return self._finite(torch.cat(found), "pictures")

    def _ready_encoder(self, rows: int, *others: ModelPatcher) -> None:
        """Has the host load the LLaMA, and `others` with it."""
        comfy.model_management.load_models_gpu([self.clip.patcher, *others], memory_required=self.encoder.memory(rows))
        self.clip.cond_stage_model.reset_clip_options()
        self.clip.cond_stage_model.set_clip_options({"execution_device": self.clip.patcher.load_device})

    def _finite(self, embeddings: torch.Tensor, of: str) -> torch.Tensor:
        if not torch.isfinite(embeddings).all():
            raise ValueError(
                f"{self.name} gives embeddings of {of} that are not finite: its weights, or those of its text encoder, hold NaN or "
                f"infinity. Download, or convert, them again."
            )
        return embeddings


def text_ids(tokenizer: InternVLTokenizer, text: str) -> tuple[int, ...]:
    """bos, ``summarize:`` and the text, eos: at most 80, of which the text's end is cut. Halves of characters become U+FFFD."""
    (segments,) = plain(PREFIX + text).parts
    pieces = tokenizer.encode("".join(segment.text for segment in segments))
    return (BOS, *(piece.id for piece in pieces[: LONGEST - 2]), EOS)


def _memory(config: InternViTConfig, pictures: int, dtype: torch.dtype) -> int:
    """Bytes for so many pictures beside the weights: the widest layer's activations and one weight, cast; twice for safety."""
    activations = pictures * (1 + config.patches) * (8 * config.width + 2 * config.feed_forward)
    return 2 * dtype.itemsize * (activations + config.width * config.feed_forward)


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Texts (by number, in order of length) in runs that take at most `ROWS_AT_ONCE` rows when padded to the longest of the run."""
    batch: list[int] = []
    for text in order:
        if batch and lengths[text] * (len(batch) + 1) > ROWS_AT_ONCE:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _progress(bar: comfy.utils.ProgressBar) -> Callable[[], None]:
    """What to call after each step: moves the bar, and raises where the user has interrupted."""

    def step():
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update(1)

    return step


@contextmanager
def _after_each(layers: Sequence[nn.Module], call: Callable[[], None]) -> Iterator[None]:
    hooks = [layer.register_forward_hook(lambda *_: call()) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
