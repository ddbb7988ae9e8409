"""Losses on where four heads of the language model look in a question about regions, and on what it knows then.

From answers alone, comparing is not learned: a region's token needs its number, the answer the right region's token;
neither helps without the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from comfy.text_encoders.llama import apply_rope
from torch import nn

from mulan_nodes.visionllm_nodes.model.language_model import LanguageModel

from .batches import Row
from .scenes import PICTURE_SIZE, Item

Places = tuple[int, int, int]  # the row, the token that looks, the token it shall look at


@dataclass
class Attended:
    """Queries and keys per layer of a pass, and the states behind the layer `OTHER`."""

    looks: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    states: torch.Tensor = field(default_factory=lambda: torch.empty(0))


NUMBER, OTHER, RIGHT, LATER = range(4)  # the layers; of each the first head looks


@contextmanager
def attention_of(language: LanguageModel) -> Iterator[Attended]:
    """Yields what the last pass behind a cache leaves in it."""
    attended = Attended()
    layers: Any = language.layers
    hooks = [
        layers[layer].self_attn.register_forward_hook(partial(_keep_look, attended, layer), with_kwargs=True)
        for layer in (NUMBER, OTHER, RIGHT, LATER)
    ]
    hooks.append(layers[OTHER].register_forward_hook(partial(_keep_states, attended)))
    try:
        yield attended
    finally:
        for hook in hooks:
            hook.remove()


def _keep_states(attended: Attended, layer: nn.Module, args: tuple, output: tuple) -> None:
    attended.states = output[0]


def _keep_look(
    attended: Attended, layer: int, attention: nn.Module, args: tuple, given: Mapping[str, Any], output: tuple
) -> None:
    projected: Any = attention
    states = given["hidden_states"]
    queries = projected.q_proj(states).view(*states.shape[:2], projected.num_heads, -1).transpose(1, 2)
    queries, _ = apply_rope(queries, queries, freqs_cis=given["freqs_cis"])
    attended.looks[layer] = queries[:, 0], output[1][0][:, 0]


def wanted_places(rows: Sequence[Row], region: int) -> dict[int, list[Places]]:
    """Per layer: each region's token at its number before it, the last at the first, the answer's number at its
    region. region: the id of a region's token.
    """
    wanted: dict[int, list[Places]] = {NUMBER: [], OTHER: [], RIGHT: [], LATER: []}
    for index, row in enumerate(rows):
        places = [place for place, id in enumerate(row.ids) if id == region]
        numbers = {row.ids[place - 1]: place for place in places}
        wanted[NUMBER] += [(index, place, place - 1) for place in places]
        wanted[OTHER] += [(index, places[-1], places[0])] * (len(places) > 1)
        wanted[RIGHT] += [(index, place, numbers[id]) for place, id in enumerate(row.labels) if id in numbers]
    return wanted | {LATER: wanted[RIGHT]}  # what is further is known behind RIGHT only


def looking_loss(attended: Attended, rows: Sequence[Row], region: int) -> torch.Tensor:
    total = torch.zeros(())
    for layer, places in wanted_places(rows, region).items():
        if not places:
            continue
        (row, looking, at), (queries, keys) = torch.tensor(places).T, attended.looks[layer]
        before = keys.shape[1] - queries.shape[1]
        scores = torch.einsum("nd,nkd->nk", queries[row, looking], keys[row]) / queries.shape[-1] ** 0.5
        later = torch.arange(keys.shape[1]) > (before + looking)[:, None]
        total = total + nn.functional.cross_entropy(scores.masked_fill(later, -torch.inf), before + at)
    return total


def distance_loss(
    attended: Attended, rows: Sequence[Row], region: int, marked: Sequence[Sequence[Item]], read_out: nn.Module
) -> torch.Tensor:
    """Behind the look at the first region, the last one's token shall show how far apart they are. marked: a row's
    items in the order of their tokens; read_out: states -> x and y, in halves of the image.
    """
    places = torch.tensor(wanted_places(rows, region)[OTHER])
    ends = [(items[-1], items[0]) for items in marked if len(items) > 1]
    wanted = torch.tensor([(last.x - first.x, last.y - first.y) for last, first in ends], dtype=torch.float32)
    shown = read_out(attended.states[places[:, 0], places[:, 1]])
    return (shown - wanted / (PICTURE_SIZE / 2)).square().mean()
