"""A smaller text encoder that stands for a larger one: part of it, trained so that adapters read the same.

An adapter reads rows by their places, those of padding too. So a student has its teacher's tokenizer, embedding table
and width, and learns on text alone to give the teacher's states row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from ..checkpoints.weight_source import has_quantized
from ..conditioning.families import PIXART, Family
from ..conditioning.model_files import SPIECE, TEXT_PROJECTION, TextEncoderFile
from ..conditioning.text_config import TextConfig
from .text_states import ENCODE_BATCH, CaptionEncoder

TABLE = "model.embed_tokens.weight"


@dataclass(frozen=True)
class EncodedPrompts:
    """What a text encoder gives of prompts: ids long [B, T] and the positions of these columns, long [T]; states [B, T,
    hidden_size]; is_read and is_padding bool [B, T]: the rows that an adapter reads, and those of them behind the last
    eos.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    states: torch.Tensor
    is_read: torch.Tensor
    is_padding: torch.Tensor


class Teacher:
    """The text encoder to match, with its weights in memory. Prompts go in as the nodes encode them in the style
    `upstream`: behind ``summarize:``, the empty one bare.
    """

    def __init__(self, file: TextEncoderFile, family: Family):
        self.file, self.family = file, family
        self._encoder = CaptionEncoder(file, family)

    def encode(self, prompts: Sequence[str], padding: int | None = None, seed: int = 0) -> EncodedPrompts:
        """Encode prompts; of a long one the first window.

        padding: how many rows of padding behind the longest prompt, drawn by `seed`; None: all. No row reads another's
        padding, so the rest can be left out.
        """
        windows = self._encoder.windows(prompts)
        prefix, end = (
            torch.tensor(each)[:, None]
            for each in zip(*((len(of.prefix_ids), len(of.prefix_ids) + of.num_rows) for of in windows), strict=True)
        )
        length, longest = max(len(window.input_ids) for window in windows), int(end.max())
        behind = torch.arange(longest, length)
        if padding is not None:
            kept = padding if self.family is not PIXART else 0  # whose padding no model reads
            order = torch.randperm(len(behind), generator=torch.Generator().manual_seed(seed))
            behind = behind[order[:kept].sort().values]
        positions = torch.cat([torch.arange(longest), behind])
        pad = windows[0].frame.pad
        ids = torch.full((len(windows), length), pad)
        for row, window in zip(ids, windows, strict=True):
            row[: len(window.input_ids)] = torch.tensor(window.input_ids)
        ids = ids[:, positions]
        states = torch.stack(self._encoder.hidden_states(ids.tolist(), positions))
        is_padding = positions >= end
        is_read = (positions == 0) | (positions > prefix)
        if self.family is PIXART:
            is_read &= ~is_padding
        device = states.device
        is_read, is_padding = is_read.to(device), (is_padding & is_read).to(device)
        return EncodedPrompts(ids.to(device), positions.to(device), states, is_read, is_padding)


class Student(nn.Module):
    """A text encoder that learns: ids long [B, T] and their positions, long [T] -> states [B, T, hidden_size] float32.

    `sizes` are its own; the embedding table [vocabulary, hidden_size] is the teacher's and does not learn.
    """

    def __init__(self, sizes: TextConfig, table: torch.Tensor, pad: int):
        from comfy.text_encoders import llama

        from ..conditioning.internvl_llama import LlamaConfig

        super().__init__()
        self.sizes = sizes
        config = LlamaConfig.from_text_config(replace(sizes, vocab_size=1))
        config.vocab_size = 0  # what it is called with is embedded
        self.model = llama.Llama2_(config, ops=nn)
        del self.model.embed_tokens
        self.pad = pad
        self._table = [table]  # in a list: no part of the module

    @property
    def table(self) -> torch.Tensor:
        """The embedding table, on the CPU."""
        return self._table[0]

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        if self.table.device != ids.device:
            self._table[0] = self.table.to(ids.device)
        embeds = F.embedding(ids, self.table).float()
        mask = (ids != self.pad).long()
        return self.model(None, attention_mask=mask, embeds=embeds, position_ids=positions[None])[0].float()


def spread_layers(count: int, kept: int) -> list[int]:
    """Return which of `count` layers a student of `kept` begins with: the first, the last, and some between.

    Raises ValueError where there are not so many.
    """
    if not 1 <= kept <= count:
        raise ValueError(f"--layers {kept}: the teacher has {count}, of which a student keeps 1 or more")
    if kept == 1:
        return [0]
    return [round(place * (count - 1) / (kept - 1)) for place in range(kept)]


def new_student(teacher: TextEncoderFile, layers: int, pad: int, intermediate_size: int | None = None) -> Student:
    """Build a student of some of the teacher's layers, and of some channels of their MLPs (None: all).

    Raises ValueError for a teacher whose layers are quantized, or that has not so many.
    """
    kept, whole = spread_layers(teacher.config.num_hidden_layers, layers), teacher.config.intermediate_size
    channels = whole if intermediate_size is None else intermediate_size
    if not 1 <= channels <= whole:
        raise ValueError(f"--intermediate-size {channels}: the teacher's layers have {whole} channels")
    sizes = replace(teacher.config, num_hidden_layers=layers, intermediate_size=channels)
    return _with_weights(teacher, sizes, kept, pad)


def open_student(file: TextEncoderFile, teacher: TextEncoderFile, pad: int) -> Student:
    """Build a student of a file's weights. Raises ValueError where its rows cannot be the teacher's."""
    ours, theirs = ((each.config.vocab_size, each.config.hidden_size) for each in (file, teacher))
    if ours != theirs:
        raise ValueError(
            f"{file.file.path} has {ours[0]} pieces and states of width {ours[1]}, but the teacher has {theirs[0]} and "
            f"{theirs[1]}: a student has its teacher's"
        )
    return _with_weights(file, file.config, list(range(file.config.num_hidden_layers)), pad)


def _with_weights(file: TextEncoderFile, sizes: TextConfig, kept: Sequence[int], pad: int) -> Student:
    weights = file.state_dict()
    if has_quantized(weights):
        raise ValueError(f"{file.file.path} has quantized layers, which cannot learn: take the float16 file")
    student = Student(sizes, weights[TABLE].half(), pad)
    learned = {"norm.weight": weights["model.norm.weight"].float()}
    for place, layer in enumerate(kept):
        for name, weight in _layer(weights, layer, sizes.intermediate_size).items():
            learned[f"layers.{place}.{name}"] = weight
    student.model.load_state_dict(learned)
    return student


def _layer(weights: Mapping[str, torch.Tensor], layer: int, channels: int) -> dict[str, torch.Tensor]:
    """Return a layer's weights, float32, with those channels of its MLP whose weights are the largest."""
    prefix = f"model.layers.{layer}."
    ours = {name.removeprefix(prefix): weight.float() for name, weight in weights.items() if name.startswith(prefix)}
    gate, up, down = (f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
    size = ours[gate].norm(dim=1) * ours[up].norm(dim=1) * ours[down].norm(dim=0)
    kept = size.topk(channels).indices.sort().values
    return ours | {gate: ours[gate][kept], up: ours[up][kept], down: ours[down][:, kept]}


def row_loss(states: torch.Tensor, teacher: EncodedPrompts) -> torch.Tensor:
    """Return how far states [B, T, hidden_size] are from the teacher's: the squared distance over the teacher's
    variance, and 1 - cosine; means over the rows that an adapter reads, those of words and of padding alike.
    """
    losses = []
    for rows in (teacher.is_read & ~teacher.is_padding, teacher.is_padding):
        if rows.any():
            ours, theirs = states[rows], teacher.states[rows]
            distance = F.mse_loss(ours, theirs) / teacher.states[teacher.is_read].var()
            losses.append(distance + 1 - F.cosine_similarity(ours, theirs, dim=-1).mean())
    return torch.stack(losses).mean()


@dataclass(frozen=True)
class Likeness:
    """How like the teacher's a student's rows are: mean cosine of rows of words and of padding, and the share of the
    squared distance of the teacher's rows from their mean that the student leaves.
    """

    words: float
    padding: float | None  # None: no family of this one reads padding
    left: float


@torch.no_grad()
def compare(student: nn.Module, teacher: Teacher, prompts: Sequence[str]) -> Likeness:
    """Measure a student on prompts of one language."""
    words, padding, ours, theirs = [], [], [], []
    for start in range(0, len(prompts), ENCODE_BATCH):
        encoded = teacher.encode(prompts[start : start + ENCODE_BATCH])
        states = student(encoded.ids, encoded.positions)
        cosine = F.cosine_similarity(states, encoded.states, dim=-1)
        words.append(cosine[encoded.is_read & ~encoded.is_padding].cpu())
        padding.append(cosine[encoded.is_padding].cpu())
        ours.append(states[encoded.is_read].cpu())
        theirs.append(encoded.states[encoded.is_read].cpu())
    own, wanted, of_padding = torch.cat(ours), torch.cat(theirs), torch.cat(padding)
    spread = (wanted - wanted.mean(0)).square().sum()
    return Likeness(
        torch.cat(words).mean().item(),
        of_padding.mean().item() if len(of_padding) else None,
        ((own - wanted).square().sum() / spread).item(),
    )


def published_tensors(student: Student, teacher: TextEncoderFile, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return what the file of a student holds beside its layers: the teacher's table, tokenizer and projection."""
    tensors = {TABLE: student.table.to("cpu", dtype)}
    tensors[SPIECE] = torch.frombuffer(bytearray(teacher.tokenizer()), dtype=torch.uint8)
    if teacher.projection_dim is not None:
        tensors[TEXT_PROJECTION] = teacher.text_projection().to(dtype)
    return tensors
