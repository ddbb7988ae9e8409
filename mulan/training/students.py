"""Text encoders that learn to stand for a larger one.

An adapter reads rows by their places, those of padding too. So a student has its teacher's tokenizer, and either the
teacher's embedding table and width, or a narrow table of its own and a linear layer to the width of the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from ..checkpoints.weight_source import has_quantized
from ..conditioning.model_files import SPIECE, TEXT_PROJECTION, TextEncoderFile
from ..conditioning.text_config import OUTPUT, TextConfig

TABLE = "model.embed_tokens.weight"


class Student(nn.Module):
    """A text encoder that learns: ids long [B, T] and their positions, long [T] -> states [B, T, states_size] float32.

    `sizes` are its own. The embedding table [vocabulary, hidden_size] learns in a narrow one, whose states a linear
    layer makes; else it is the teacher's and does not.
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
        self._table: list[torch.Tensor] = []  # in a list: no part of the module
        if sizes.output_size is None:
            self._table.append(table)
        else:
            self.model.embed_tokens = nn.Embedding.from_pretrained(table.float(), freeze=False)
            self.output_projection = nn.Linear(sizes.hidden_size, sizes.output_size)

    @property
    def kept_table(self) -> torch.Tensor | None:
        """The teacher's embedding table; None where it learns."""
        return self._table[0] if self._table else None

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        embeds = self._embed(ids)
        mask = (ids != self.pad).long()
        states = self.model(None, attention_mask=mask, embeds=embeds, position_ids=positions[None])[0]
        return (states if self.sizes.output_size is None else self.output_projection(states)).float()

    def _embed(self, ids: torch.Tensor) -> torch.Tensor:
        if not self._table:
            return self.model.embed_tokens(ids)
        if self._table[0].device != ids.device:
            self._table[0] = self._table[0].to(ids.device)
        return F.embedding(ids, self._table[0]).float()


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


def new_narrow_student(
    teacher: TextEncoderFile, layers: int, pad: int, hidden_size: int, intermediate_size: int | None = None
) -> Student:
    """Build a student of fresh layers, `hidden_size` channels wide. It embeds tokens as the teacher does, along the
    directions in which the teacher's embeddings differ the most. intermediate_size: None for the teacher's ratio.

    Raises ValueError for sizes that no text encoder has.
    """
    theirs = teacher.config
    if not (2 <= hidden_size < theirs.hidden_size and hidden_size % 2 == 0):
        raise ValueError(
            f"--hidden-size {hidden_size}: expected an even number below the teacher's {theirs.hidden_size}"
        )
    if has_quantized(name for name in teacher.names if name.startswith(TABLE.removesuffix("weight"))):
        raise ValueError(
            f"{teacher.file.path} has a quantized embedding table, and a narrow text encoder begins with it: take the "
            "float16 file"
        )
    if layers < 1:
        raise ValueError(f"--layers {layers}: a student has 1 or more")
    channels = hidden_size * theirs.intermediate_size // theirs.hidden_size
    channels = channels if intermediate_size is None else intermediate_size
    if channels < 1:
        raise ValueError(f"--intermediate-size {channels}: a layer has 1 or more channels")
    size = next(
        size
        for size in range(theirs.hidden_size // theirs.num_attention_heads, 1, -1)
        if hidden_size % size == 0 and size % 2 == 0  # rotary positions turn channels in pairs
    )
    sizes = replace(
        theirs,
        hidden_size=hidden_size,
        intermediate_size=channels,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // size,
        output_size=theirs.states_size,
    )
    table = teacher.file.read(teacher.names[TABLE]).float()
    _, directions = torch.linalg.eigh(table.T @ table)  # the widest last
    student = Student(sizes, table @ directions[:, -hidden_size:].flip(1), pad)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in student.model.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
        elif name != "embed_tokens.weight":
            nn.init.normal_(parameter, std=0.02, generator=generator)
    nn.init.normal_(student.output_projection.weight, std=0.02, generator=generator)
    nn.init.zeros_(student.output_projection.bias)
    return student


def open_student(file: TextEncoderFile, teacher: TextEncoderFile, pad: int) -> Student:
    """Build a student of a file's weights. Raises ValueError where its rows cannot be the teacher's."""
    ours, theirs = ((each.config.vocab_size, each.states_size) for each in (file, teacher))
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
    learned = {
        name: weights[name].float()
        for name in ("model.norm.weight", f"{OUTPUT}weight", f"{OUTPUT}bias")
        if name in weights
    }
    if student.kept_table is None:
        learned[TABLE] = weights[TABLE].float()
    for place, layer in enumerate(kept):
        for name, weight in _layer(weights, layer, sizes.intermediate_size).items():
            learned[f"model.layers.{place}.{name}"] = weight
    student.load_state_dict(learned)
    return student


def _layer(weights: Mapping[str, torch.Tensor], layer: int, channels: int) -> dict[str, torch.Tensor]:
    """Return a layer's weights, float32, with those channels of its MLP whose weights are the largest."""
    prefix = f"model.layers.{layer}."
    ours = {name.removeprefix(prefix): weight.float() for name, weight in weights.items() if name.startswith(prefix)}
    gate, up, down = (f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
    size = ours[gate].norm(dim=1) * ours[up].norm(dim=1) * ours[down].norm(dim=0)
    kept = size.topk(channels).indices.sort().values
    return ours | {gate: ours[gate][kept], up: ours[up][kept], down: ours[down][:, kept]}


def published_tensors(student: Student, teacher: TextEncoderFile, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return what the file of a student holds beside what learned: the teacher's table, where the student has it, its
    tokenizer and projection.
    """
    tensors = {} if student.kept_table is None else {TABLE: student.kept_table.to("cpu", dtype)}
    tensors[SPIECE] = torch.frombuffer(bytearray(teacher.tokenizer()), dtype=torch.uint8)
    if teacher.projection_dim is not None:
        tensors[TEXT_PROJECTION] = teacher.text_projection().to(dtype)
    return tensors
