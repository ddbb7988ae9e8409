"""What the frozen text encoder gives of captions, once and for all on the disk, or while training."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..checkpoints.safetensors_writer import check_disk_space
from ..conditioning.families import PIXART, SDXL, Family
from ..conditioning.model_files import TextEncoderFile
from .tensor_store import Parts, TensorStore, content_key, fill_store

if TYPE_CHECKING:
    from ..conditioning.encoder_files import AnyTextEncoderFile  # imports ComfyUI
    from ..conditioning.token_windows import Window

ENCODE_BATCH = 16  # captions at once
LAYOUT_VERSION = 1  # of what is stored for a caption


@dataclass(frozen=True)
class TextStates:
    """What an adapter reads of a batch of captions.

    rows [B, T, text_hidden_size]; pooled [B, projection_dim], for SDXL; mask bool [B, T], for PixArt (True: no
    padding); is_empty bool [B]; sizes int [B, 6], for SDXL: height and width before resizing, top and left of the cut,
    height and width of the image.
    """

    rows: torch.Tensor
    is_empty: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    sizes: torch.Tensor | None = None

    def to(self, device) -> TextStates:
        """Return the same on a device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items() if tensor is not None})


class CaptionEncoder:
    """The text encoder of a family's captions; its weights are in memory between the first caption and `unload`."""

    def __init__(self, file: AnyTextEncoderFile, family: Family):
        self.file = file
        self.family = family
        self.states_size = self.file.states_size
        self.projection_dim = self.file.projection_dim if family is SDXL else None  # no other family reads it
        self._clip: Any = None
        self._projection: torch.Tensor | None = None

    @property
    def bytes_per_caption(self) -> int:
        """The bytes that a caption's states take on the disk, at most."""
        return 2 * (self.states_size * self.family.adapter_rows + (self.projection_dim or 0))

    def digest(self) -> str:
        """Return what changes with the encoder's content, not with its name. Raises ValueError where it is gone."""
        content = self.file.file.content
        for _ in range(30):  # a file that was written this moment is not told from its next version
            if content and (digest := content.digest()):
                return digest
            time.sleep(0.1)
        raise ValueError(f"{self.file.file.path} changes while it is read: start again when it is complete")

    def encode(self, captions: Sequence[str]) -> Iterator[Parts]:
        """Yield the states of each caption, float16 on the CPU, as the nodes encode a prompt of the style `upstream`.

        A caption stands behind ``summarize:``, whose rows are cut; the empty one is what the family's negative is.
        Raises ValueError for states that are not finite.
        """
        from ..conditioning.internvl_llama import last_token_state  # imports ComfyUI

        encoded: dict[int, Parts] = {}
        windows = self.windows(captions)
        for empty in (False, True):  # windows of one length
            members = [index for index, caption in enumerate(captions) if (caption == "") == empty]
            if not members:
                continue
            states = self.hidden_states([windows[index].input_ids for index in members])
            for index, of_caption in zip(members, states, strict=True):
                rows = windows[index].without_prefix(of_caption)
                parts = {"rows": rows[: windows[index].num_rows] if self.family is PIXART else rows}
                if self._projection is not None:
                    row = last_token_state(windows[index].input_ids, of_caption)
                    parts["pooled"] = row @ self._projection.to(row)
                encoded[index] = {name: tensor.to("cpu", torch.float16) for name, tensor in parts.items()}
        for index, caption in enumerate(captions):
            if not all(tensor.isfinite().all() for tensor in encoded[index].values()):
                raise ValueError(f"{self.file.file.path.name} gives numbers that are not finite for {caption[:80]!r}")
            yield encoded[index]

    def windows(self, captions: Sequence[str]) -> list[Window]:
        """Return the first window of each caption, as `encode` reads it."""
        from ..conditioning.prompt_tokenizer import NEGATIVE  # imports ComfyUI
        from ..conditioning.token_windows import window_rows

        clip = self._loaded()
        tokens = [clip.tokenize(caption, tokenizer_options={} if caption else {NEGATIVE: True}) for caption in captions]
        return [clip.cond_stage_model.window(window_rows(each, self.family)[0]) for each in tokens]

    def hidden_states(
        self, windows: Sequence[Sequence[int]], positions: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Return the states [T, states_size] of windows of T token ids each, float32. positions: see
        `InternVLEncoder.hidden_states`.
        """
        clip = self._loaded()
        clip.load_model()
        clip.cond_stage_model.set_clip_options({"execution_device": clip.patcher.load_device})
        with torch.no_grad():
            return clip.cond_stage_model.internvl.hidden_states(windows, positions=positions)

    def _loaded(self) -> Any:
        if self._clip is None:
            from ..conditioning.clip import load_text_encoder  # imports ComfyUI, which nothing else here needs

            self._clip = load_text_encoder(self.file, family=self.family)
            if self.projection_dim is not None and isinstance(self.file, TextEncoderFile):
                self._projection = self.file.text_projection().float()
        return self._clip

    def unload(self) -> None:
        """Give the memory of the weights back."""
        if self._clip is None:
            return
        import comfy.model_management

        self._clip = self._projection = None
        comfy.model_management.unload_all_models()
        gc.collect()
        comfy.model_management.soft_empty_cache()


class StoredCaptions:
    """Captions -> their `TextStates`, from the disk."""

    def __init__(self, store: TensorStore, family: Family):
        self._store, self._family = store, family

    def __call__(self, captions: Sequence[str], sizes: torch.Tensor | None = None) -> TextStates:
        return batch_states([self._store.read(content_key(each)) for each in captions], captions, self._family, sizes)


class LiveCaptions:
    """Captions -> their `TextStates`, from the text encoder, which stays in memory."""

    def __init__(self, encoder: CaptionEncoder):
        self._encoder = encoder

    def __call__(self, captions: Sequence[str], sizes: torch.Tensor | None = None) -> TextStates:
        return batch_states(list(self._encoder.encode(captions)), captions, self._encoder.family, sizes)


def batch_states(
    parts: Sequence[Parts], captions: Sequence[str], family: Family, sizes: torch.Tensor | None
) -> TextStates:
    """Put the states of captions into one batch; those of PixArt are padded to its window."""
    rows, mask = [each["rows"].float() for each in parts], None
    if family is PIXART:
        length = family.adapter_rows
        mask = torch.stack([torch.arange(length) < len(of_caption) for of_caption in rows])
        rows = [torch.nn.functional.pad(each, (0, 0, 0, length - len(each))) for each in rows]
    pooled = torch.stack([each["pooled"].float() for each in parts]) if "pooled" in parts[0] else None
    empty = torch.tensor([caption == "" for caption in captions])
    return TextStates(torch.stack(rows), empty, pooled, mask, sizes)


def store_captions(
    encoder: CaptionEncoder, captions: Sequence[str], folder: Path, accelerator, report: Callable[[int, int], None]
) -> StoredCaptions:
    """Encode the captions that are not on the disk yet, the empty one too, and return all.

    The files, float16 under `folder`/text-<digest>, are those of one text encoder's content and one family. The encoder
    leaves memory afterwards. Raises OSError where the disk has no room, before the first is encoded.
    """
    mark = content_key(f"{LAYOUT_VERSION} {encoder.family.name} {encoder.digest()}")[:12]
    store = TensorStore(folder / f"text-{mark}")
    texts = ["", *dict.fromkeys(caption for caption in captions if caption)]
    keys = [content_key(text) for text in texts]
    lacking = sum(key not in store for key in keys)
    if accelerator.is_main_process and lacking:
        folder.mkdir(parents=True, exist_ok=True)
        check_disk_space(folder, f"the states of {lacking:,} captions", lacking * encoder.bytes_per_caption)
    fill_store(
        store,
        keys,
        lambda batch: encoder.encode([texts[index] for index in batch]),
        lambda indices: (indices[start : start + ENCODE_BATCH] for start in range(0, len(indices), ENCODE_BATCH)),
        accelerator,
        report,
    )
    encoder.unload()
    return StoredCaptions(store, encoder.family)
