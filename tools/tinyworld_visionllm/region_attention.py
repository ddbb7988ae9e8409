"""Losses on where heads of the language model look in a question about regions, and on what it knows then.

From answers alone, comparing is not learned: a region's token needs its number, the answer the right region's token;
neither helps without the other. Of two places, the distance was known at the last region's token and the word of
direction at the answer, and they met nowhere.
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
from mulan_nodes.visionllm_nodes.model.llama_tokenizer import VisionTokenizer
from mulan_nodes.visionllm_nodes.model.special_tokens import REGION

from .batches import IGNORED, Row
from .questions import Exercise
from .region_questions import DIRECTIONS, direction_of
from .scenes import PICTURE_SIZE, Item

Places = tuple[int, int, int, int]  # the row, the token that looks, the first and last of those it shall look at
Looks = dict[tuple[int, int], list[Places]]  # per layer and head


@dataclass
class Attended:
    """Queries and keys of the first `HEADS` heads per layer of a pass, and the states behind the layer `OTHER`."""

    looks: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    states: torch.Tensor = field(default_factory=lambda: torch.empty(0))


NUMBER, OTHER, RIGHT, LATER = range(4)  # the layers; of each the first head looks
AFTER_REGION = "</reg>"
HEADS = 2  # of OTHER and RIGHT the second one looks in questions of places


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
    attended.looks[layer] = queries[:, :HEADS], output[1][0][:, :HEADS]


def wanted_places(rows: Sequence[Row], region: int) -> Looks:
    """Each region's token at its number before it, the last at the first, the answer's number at its region. region:
    the id of a region's token.
    """
    numbered: list[Places] = []
    other: list[Places] = []
    right: list[Places] = []
    for index, row in enumerate(rows):
        places = _places(row, region)
        numbers = {row.ids[place - 1]: place for place in places}
        numbered += [(index, place, place - 1, place - 1) for place in places]
        other += [(index, places[-1], places[0], places[0])] * (len(places) > 1)
        right += [(index, place, numbers[id], numbers[id]) for place, id in enumerate(row.labels) if id in numbers]
    # what is further is known behind RIGHT only
    return {(NUMBER, 0): numbered, (OTHER, 0): other, (RIGHT, 0): right, (LATER, 0): right}


def wanted_directions(rows: Sequence[Row], exercises: Sequence[Exercise], tokenizer: VisionTokenizer) -> Looks:
    """In questions of places: the last region's token at the word of direction, where the answer begins to differ at
    the last region.
    """
    words: list[Places] = []
    ends: list[Places] = []
    for index, (row, exercise) in enumerate(zip(rows, exercises, strict=True)):
        if word := direction_of(exercise.turn.user):
            places = _places(row, tokenizer.ids[REGION])
            numbers = {row.ids[place - 1] for place in places}
            written = [place for place, id in enumerate(row.labels) if id != IGNORED]
            answer = next((place for place in written if row.labels[place] in numbers), written[0])
            words.append((index, places[-1], *_span(row.ids, word, tokenizer)))
            ends.append((index, answer, places[-1], places[-1]))
    return {(OTHER, 1): words, (RIGHT, 1): ends}


def _places(row: Row, region: int) -> list[int]:
    return [place for place, id in enumerate(row.ids) if id == region]


def _span(ids: list[int], word: str, tokenizer: VisionTokenizer) -> tuple[int, int]:
    """The first and last token of a word, which has other tokens behind a region than behind a space."""
    behind = tokenizer.encode(AFTER_REGION + word, bos=False)
    behind = behind[behind.index(tokenizer.ids[AFTER_REGION]) + 1 :]
    for spelled in (tokenizer.encode(word, bos=False), behind):
        for first in range(len(ids)):
            if ids[first : first + len(spelled)] == spelled:
                return first, first + len(spelled) - 1
    raise ValueError(f"no {word} in {tokenizer.decode(ids)}")


def looking_loss(attended: Attended, wanted: Looks) -> torch.Tensor:
    total = torch.zeros(())
    for (layer, head), places in wanted.items():
        if not places:
            continue
        (row, looking, first, last), (queries, keys) = torch.tensor(places).T[..., None], attended.looks[layer]
        queries, keys = queries[row[:, 0], head, looking[:, 0]], keys[row[:, 0], head]
        before, at = keys.shape[1] - attended.states.shape[1], torch.arange(keys.shape[1])
        scores = torch.einsum("nd,nkd->nk", queries, keys) / queries.shape[-1] ** 0.5
        scores = scores.masked_fill(at > before + looking, -torch.inf).log_softmax(dim=1)
        outside = (at < before + first) | (at > before + last)
        total = total - scores.masked_fill(outside, -torch.inf).logsumexp(dim=1).mean()
    return total


def distance_loss(
    attended: Attended, rows: Sequence[Row], region: int, marked: Sequence[Sequence[Item]], read_out: nn.Module
) -> torch.Tensor:
    """Behind the look at the first region, the last one's token shall show how far apart they are. marked: a row's
    items in the order of their tokens; read_out: states -> x and y, in halves of the image.
    """
    places = torch.tensor(wanted_places(rows, region)[OTHER, 0])
    ends = [(items[-1], items[0]) for items in marked if len(items) > 1]
    wanted = torch.tensor([(last.x - first.x, last.y - first.y) for last, first in ends], dtype=torch.float32)
    shown = read_out(attended.states[places[:, 0], places[:, 1]])
    return (shown - wanted / (PICTURE_SIZE / 2)).square().mean()


def direction_loss(
    attended: Attended,
    rows: Sequence[Row],
    exercises: Sequence[Exercise],
    region: int,
    marked: Sequence[Sequence[Item]],
    read_out: nn.Module,
) -> torch.Tensor:
    """There it shall show as well whether the last one is further in the direction that is asked about. read_out:
    states -> a logit.
    """
    places, wanted = [], []
    for index, (row, exercise, items) in enumerate(zip(rows, exercises, marked, strict=True)):
        if word := direction_of(exercise.turn.user):
            axis, smaller = DIRECTIONS[word]
            places.append((index, _places(row, region)[-1]))
            wanted.append((getattr(items[-1], axis) < getattr(items[0], axis)) == smaller)
    if not places:
        return torch.zeros(())
    row, last = torch.tensor(places).T
    shown = read_out(attended.states[row, last])[:, 0]
    return nn.functional.binary_cross_entropy_with_logits(shown, torch.tensor(wanted, dtype=shown.dtype))
