"""InternVL loaded, in memory that ComfyUI manages: embeddings of images and of texts."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from typing import Protocol

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from ..boundary.interrupts import interruptible, uninterrupted
from ..boundary.read_ahead import read_ahead
from ..checkpoints.devices import streaming_memory
from ..checkpoints.finite import first_not_finite, why_not_finite
from ..checkpoints.tensor_files import TensorFile, WrongFileError, describe_path, fingerprint
from ..conditioning.internvl_llama import InternVLEncoder, last_token_state
from ..conditioning.prompt_syntax import plain_prompt
from ..conditioning.tokenizer import BOS, EOS, PAD, PREFIX, InternVLTokenizer
from .contrastive import ContrastiveModel, QueryReader, ensemble
from .intern_vit import InternViTConfig
from .internvl_files import MODES
from .preprocessing import check_framing, preprocess

MAX_TOKENS = 80  # of a text, as upstream
MAX_CHARACTERS = 64 * MAX_TOKENS  # of a text that are tokenized: far more than its tokens hold
MAX_TEXT_STATES = 16 * MAX_TOKENS  # hidden states of texts in one batch, padding included
TEXTS_PER_STEP = 1000  # of the progress bar while texts are tokenized
BATCH_SIZE = 16  # images
BYTES_PER_STATE = 6  # of a number that the tower gives: in half precision, and in float32 for the reader
READER_BATCHES = 16  # mode G: batches that the tower encodes before the LLaMA's turn; their states take 0.4 GB


class Progress(Protocol):
    """What shows progress, such as ComfyUI's ProgressBar."""

    def update(self, value: int, /) -> None:
        """Move on by `value` steps."""


class LoadedInternVL:
    """InternVL in one mode.

    `file`: the checkpoint's. `patcher` holds what images need (tower, pooling), `reader_patcher` what mode G adds (None
    in mode C), `clip` the LLaMA of texts and of mode G. ComfyUI moves, evicts and frees each on its own. `dtype`: what
    the tower computes in. `logit_scale`: what cosines are multiplied by before a softmax. `identity` changes with
    whatever embeddings depend on.
    """

    def __init__(
        self,
        file: TensorFile,
        patcher: ModelPatcher,
        reader_patcher: ModelPatcher | None,
        clip: comfy.sd.CLIP,
        dtype: torch.dtype,
    ):
        self.mode = MODES[reader_patcher is not None]
        self.file = file
        self.dtype = dtype
        self.clip = clip
        self.patcher = patcher
        self.reader_patcher = reader_patcher
        # The last labels and their vectors (zeroshot.py): the next images are often classified by the same.
        self.label_cache: tuple[tuple, torch.Tensor] | None = None
        self.logit_scale = self.model.logit_scale.float().exp().item()
        if not 0 < self.logit_scale < math.inf:
            raise WrongFileError(
                f"{describe_path(file.path)}: its logit_scale is {self.model.logit_scale.item():g}, so no score can be "
                "computed. Download it, or convert it, again."
            )
        lora = str(clip.patcher.patches_uuid) if clip.patcher.patches else ""
        origins = fingerprint(file.path), clip.cond_stage_model.fingerprint, lora, self.mode, str(dtype)
        self.identity = hashlib.sha256("\n".join(origins).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        return self.file.path.name

    @property
    def model(self) -> ContrastiveModel:
        return self.patcher.model

    @property
    def reader(self) -> QueryReader | None:
        return self.reader_patcher.model if self.reader_patcher is not None else None

    @property
    def encoder(self) -> InternVLEncoder:
        return self.clip.cond_stage_model.internvl

    @property
    def tokenizer(self) -> InternVLTokenizer:
        return self.clip.tokenizer.tokenizer

    @torch.no_grad()
    def embed_images(
        self, images: Sequence[torch.Tensor], framing: str = "whole", progress: Progress | None = None
    ) -> torch.Tensor:
        """Return the embeddings [N, E] of images, float32 on the CPU, of unit length.

        `images`: [H, W, 3] float, 0 to 1, of any sizes. Each is asked for while the batch before its own is encoded, in
        another thread, so the sequence may read files. `framing`: one of `FRAMINGS`. Moves `progress` on by `steps`, or
        a bar of its own. Stops when the user interrupts. Raises ValueError for what is no image.
        """
        check_framing(framing)
        after_layer = _after_layer(progress or comfy.utils.ProgressBar(self.steps(len(images))))
        found = [torch.empty(0, self.model.config.embedding_size)]
        at_once = 1 if self.reader is None else READER_BATCHES
        with closing(self._prepared(images, framing)) as prepared:
            encoding = (self._encode(pixels, after_layer) for pixels in prepared)
            while encoded := list(islice(encoding, at_once)):
                embeddings = torch.cat([embeddings for embeddings, _ in encoded])
                if self.reader_patcher is not None:
                    batches = [hidden_states for _, hidden_states in encoded]
                    embeddings = ensemble(embeddings, self._read(self.reader_patcher, batches, after_layer))
                found.append(embeddings)
        return torch.cat(found)

    def steps(self, image_count: int) -> int:
        """Return by how many steps `embed_images` moves a progress bar on."""
        layers = len(self.model.vision_model.layers) + (self.encoder.config.num_hidden_layers if self.reader else 0)
        return layers * math.ceil(image_count / BATCH_SIZE)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings [N, E] of texts, float32 on the CPU, of unit length.

        Texts stand behind ``summarize:`` and are cut at 80 tokens, as upstream does. Shows progress. Stops when the
        user interrupts.
        """
        ids, bar = [], comfy.utils.ProgressBar(len(texts))
        for count, text in enumerate(interruptible(texts), 1):
            ids.append(text_ids(self.tokenizer, text))
            if count % TEXTS_PER_STEP == 0:
                bar.update_absolute(count)
        order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), ids[index]))
        batches = list(_batches(order, [len(of_text) for of_text in ids]))
        after_layer = _after_layer(comfy.utils.ProgressBar(self.encoder.config.num_hidden_layers * len(batches)))
        found = torch.empty(len(ids), self.model.config.embedding_size)
        for batch in batches:
            longest = len(ids[batch[-1]])  # no token sees a later one, so padding changes nothing before it
            self._ready_encoder(longest * len(batch))
            padded = [(*ids[index], *[PAD] * (longest - len(ids[index]))) for index in batch]
            hidden_states = self.encoder.hidden_states(padded, after_layer)
            last = [last_token_state(ids[index], states) for index, states in zip(batch, hidden_states, strict=True)]
            found[batch] = self._check_finite(self.model.project_texts(torch.stack(last).cpu()), "texts")
        return found

    def _prepared(self, images: Sequence[torch.Tensor], framing: str) -> Generator[torch.Tensor, None, None]:
        """Yield batches of images, float32 [N, 3, S, S] on the CPU; the next is prepared while the caller works."""
        size = self.model.config.vision.image_size

        def prepare(stopped: threading.Event) -> Iterator[torch.Tensor]:
            with uninterrupted():  # the caller looks whether the user has stopped: who sees it first takes it away
                for start in range(0, len(images), BATCH_SIZE):
                    batch = []
                    for index in range(start, min(start + BATCH_SIZE, len(images))):
                        if stopped.is_set():
                            return
                        batch.append(preprocess(images[index], size, framing))
                    yield torch.stack(batch)

        return read_ahead(prepare, comfy.model_management.throw_exception_if_processing_interrupted, depth=1)

    def _encode(self, pixels: torch.Tensor, after_layer: Callable[[], None]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mode C's embeddings of a batch of images on the CPU and, there too in mode G, the tower's hidden
        states.
        """
        config = self.model.config.vision
        memory = _memory(config, len(pixels), self.dtype)
        memory += streaming_memory(self.model, self.patcher.load_device, memory)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory)
        with _calling_after_each(self.model.vision_model.layers, after_layer):
            hidden_states = self.model.encode_images(pixels.to(self.patcher.load_device, self.dtype))
        embeddings = self._check_finite(self.model.pool_images(hidden_states).cpu(), "images")
        return embeddings, hidden_states.cpu() if self.reader is not None else hidden_states[:0]

    def _read(
        self, patcher: ModelPatcher, batches: Sequence[torch.Tensor], after_layer: Callable[[], None]
    ) -> torch.Tensor:
        """Return the embeddings that mode G's queries read, through the LLaMA, in batches of the tower's states."""
        reader: QueryReader = patcher.model
        found = []
        for vision_states in batches:
            self._ready_encoder(len(vision_states) * reader.config.num_queries, patcher, states=vision_states)
            llama = self.encoder.transformer.model
            found.append(reader(vision_states.to(patcher.load_device), llama, after_layer).cpu())
        return self._check_finite(torch.cat(found), "images")

    def _ready_encoder(self, rows: int, *others: ModelPatcher, states: torch.Tensor | None = None) -> None:
        """Have ComfyUI load the LLaMA, and `others` with it. states: the tower's, which are read on the way."""
        memory = self.encoder.memory_required(rows, self.clip.patcher.load_device)
        memory += 0 if states is None else states.numel() * BYTES_PER_STATE
        comfy.model_management.load_models_gpu([self.clip.patcher, *others], memory_required=memory)
        self.clip.cond_stage_model.reset_clip_options()
        self.clip.cond_stage_model.set_clip_options({"execution_device": self.clip.patcher.load_device})

    def _check_finite(self, embeddings: torch.Tensor, of: str) -> torch.Tensor:
        if not torch.isfinite(embeddings).all():
            raise ValueError(
                f"{describe_path(self.file.path)} gives embeddings of {of} that are not finite: {self._cause(of)}."
            )
        return embeddings

    def _cause(self, of: str) -> str:
        if of == "texts" or self.reader is not None:
            weights = self.encoder.state_dict()
            damaged = first_not_finite(weights, weights.__getitem__)
            if damaged:
                return (
                    f"{damaged} of its text encoder, or a LoRA on it, contains NaN or infinity. Download, or convert, "
                    "the text encoder again"
                )
        dtype = self.dtype if of == "images" else torch.float32
        return why_not_finite(self.file, dtype, "another precision: bf16 or fp32" if of == "images" else "weaker LoRAs")


def text_ids(tokenizer: InternVLTokenizer, text: str) -> tuple[int, ...]:
    """Return the ids of a text: bos, ``summarize:`` and the text, eos; at most 80, of which the text's end is cut.

    Halves of characters become U+FFFD.
    """
    (segments,) = plain_prompt(PREFIX + text[:MAX_CHARACTERS]).parts
    pieces = tokenizer.encode("".join(segment.text for segment in segments))
    return (BOS, *(piece.id for piece in pieces[: MAX_TOKENS - 2]), EOS)


def _memory(config: InternViTConfig, image_count: int, dtype: torch.dtype) -> int:
    """Estimate the bytes beside the weights: the widest layer's activations."""
    activations = 4 * config.hidden_size + 2 * config.intermediate_size
    return dtype.itemsize * image_count * (1 + config.num_patches) * activations


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield runs of texts (their indices, in `order` of length) of at most `MAX_TEXT_STATES` when padded to the longest
    of the run.
    """
    batch: list[int] = []
    for text in order:
        if batch and lengths[text] * (len(batch) + 1) > MAX_TEXT_STATES:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _after_layer(progress: Progress) -> Callable[[], None]:
    """Return what to call after each layer: it raises where the user has interrupted, and moves the progress on."""

    def step():
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.update(1)

    return step


@contextmanager
def _calling_after_each(layers: Iterable[nn.Module], call: Callable[[], None]) -> Iterator[None]:
    hooks = [layer.register_forward_hook(lambda *_: call()) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
