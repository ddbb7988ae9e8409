"""The tiny InternVL that talks learns to point.

The answers' loss alone leaves it at the mean place. What it has to do in its four layers is told to each of them, by
heads that are thrown away: the projector says what is at each token's place and where that is; the second layer gathers
which color, shape and size the question names; two heads of the third look at the tokens that show it; the third and
the fourth know its box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mulan_nodes.mulan.internvl_chat.chat_template import FIND, REF

from .chat_seeing import TOWER, WIDTH, Seeing
from .chat_talks import Talks
from .contrastive_training import as_seen
from .pointing import MOST_ITEMS, NAMES, REF_END, Pointed, Shown, answer, name_each
from .talker import Talker, prompt_of_exchanges
from .talks import QUESTIONS, Exchange

SIDE = TOWER.image_size // TOWER.patch_size // 2  # tokens
WORDS_LAYER, LOOKING_LAYER, LOOKING_HEADS = 2, 3, 2  # counted from 1; heads that look at what is asked for
SEEN_FROM = 0.1  # of a token's place is covered
BOX_STEP = 0.15  # of the picture: what one unit of a normed direction stands for, so that places weigh in the sum
DIGITS = 10
TYPICAL = 5 / 0.22  # what `_share_of_side` is between a small thing and a big one
KEPT_DRAWINGS = 40  # of each shape
MANY_THINGS = (0.1, 0.3, 0.6)  # the share of batches of pictures of one, two and three things


@dataclass(frozen=True)
class Places:
    """Pictures uint8 [N, 3, S, S] of up to M things: boxes [N, M, 4], 0 to 1; colours and shapes [N, M], -1 where there
    is none; covered [N, M, tokens], the share of each token's place.
    """

    pictures: torch.Tensor
    boxes: torch.Tensor
    colours: torch.Tensor
    shapes: torch.Tensor
    covered: torch.Tensor


def places_of(shown: list[Shown]) -> Places:
    count = len(shown), MOST_ITEMS
    boxes, covered = np.zeros((*count, 4), np.float32), np.zeros((*count, SIDE**2), np.float32)
    colours, shapes = (np.full(count, -1) for _ in range(2))
    edges = np.arange(SIDE + 1) / SIDE
    for number, one in enumerate(shown):
        for place, (thing, (x0, y0, x1, y1)) in enumerate(zip(one.things, one.boxes, strict=True)):
            wide = (np.minimum(edges[1:], x1) - np.maximum(edges[:-1], x0)).clip(0)
            high = (np.minimum(edges[1:], y1) - np.maximum(edges[:-1], y0)).clip(0)
            covered[number, place] = (high[:, None] * wide[None]).ravel() * SIDE**2
            boxes[number, place] = x0, y0, x1, y1
            colours[number, place] = NAMES[0].index(thing.colour)
            shapes[number, place] = NAMES[1].index(thing.shape)
    pictures = torch.from_numpy(np.stack([one.picture for one in shown])).permute(0, 3, 1, 2).contiguous()
    return Places(pictures, *map(torch.from_numpy, (boxes, colours, shapes, covered)))


class PlaceHeads(nn.Module):
    """What a token that the language model reads says of its place."""

    def __init__(self):
        super().__init__()
        self.looks = nn.Linear(WIDTH, len(NAMES[0]) + len(NAMES[1]))
        self.digits = nn.Linear(WIDTH, 4 * DIGITS)
        self.directions = nn.Parameter(torch.randn(4, WIDTH))
        self.middle = nn.Parameter(torch.full((4,), 0.5))

    def loss(self, tokens: torch.Tensor, places: Places, numbers: torch.Tensor) -> torch.Tensor:
        """tokens [B, tokens, width] of the pictures of these numbers."""
        share, thing = places.covered[numbers].max(1)
        there = share > SEEN_FROM
        weight = share[there].clamp(max=0.5)
        box = places.boxes[numbers].gather(1, thing[..., None].expand(-1, -1, 4))[there]
        normed = F.rms_norm(tokens[there], (WIDTH,), eps=1e-6)
        colours, shapes = self.looks(normed).split([len(NAMES[0]), len(NAMES[1])], -1)
        first_digits = (box * DIGITS).floor().clamp(0, DIGITS - 1).long()
        losses = [
            F.cross_entropy(told, named[numbers].gather(1, thing)[there], reduction="none")
            for told, named in ((colours, places.colours), (shapes, places.shapes))
        ]
        digits = self.digits(normed).unflatten(-1, (4, DIGITS)).transpose(1, 2)
        losses.append(0.5 * F.cross_entropy(digits, first_digits, reduction="none").mean(-1))
        boxes = normed @ F.normalize(self.directions, dim=-1).T * BOX_STEP + self.middle
        losses.append(_share_of_side(box) * (boxes - box).abs().mean(-1))
        return (weight * torch.stack(losses)).sum() / weight.sum()


@dataclass(frozen=True)
class Asked:
    """Pictures of these numbers, each with a talk that asks for some of its things in turn."""

    numbers: list[int]
    prompts: list[str]
    pointed: list[list[Pointed]]


def draw_asked(shown: Sequence[Shown], count: int, full: float, system: str, rng: np.random.Generator) -> Asked:
    """Talks about pictures of one number of things, for rows of about one length. `full`: the share whose first
    question is the published one; the others are the phrase alone, which is learned sooner.
    """
    most = int(rng.choice(MOST_ITEMS, p=MANY_THINGS)) + 1
    asked = Asked([], [], [])
    while sum(map(len, asked.pointed)) < count:
        number = int(rng.integers(len(shown)))
        pointed = name_each(shown[number], list(QUESTIONS), rng) if len(shown[number].things) == most else []
        if pointed:
            asked.numbers.append(number)
            asked.pointed.append(pointed)
            asked.prompts.append(_talk(shown[number], pointed, rng.random() < full, system))
    return asked


def _talk(shown: Shown, pointed: Sequence[Pointed], full: bool, system: str) -> str:
    questions = [f"{REF}{one.phrase}{REF_END}" for one in pointed]
    if full:
        questions[0] = FIND.format(pointed[0].phrase)
    exchanges = [
        Exchange(question, answer(one.phrase, shown.boxes[one.place]))
        for question, one in zip(questions, pointed, strict=True)
    ]
    return prompt_of_exchanges(exchanges, 1, system if full else "")


class Pointer(nn.Module):
    """A talker with the heads that only its training to point needs."""

    def __init__(self, talker: Talker):
        super().__init__()
        self.talker = talker
        self.places = PlaceHeads()
        self.words = nn.Linear(WIDTH, sum(map(len, NAMES)))
        self.boxes = nn.ModuleList(nn.Linear(WIDTH, 4) for _ in range(2))  # behind the third layer, and the fourth
        self._begin, self._open, self._close = map(talker.tokenizer.token_to_id, (REF_END, "[", "]"))
        self._digits = torch.tensor([talker.tokenizer.token_to_id(str(digit)) for digit in range(DIGITS)])
        talker.language.set_attn_implementation("eager")  # it tells what is looked at

    def loss(self, asked: Asked, places: Places, more: torch.Tensor) -> torch.Tensor:
        """The answers' loss, and those of what each layer has to know. `more`: the numbers of more pictures, of which
        the projector alone tells the places.
        """
        talker, chosen = self.talker, torch.tensor(asked.numbers)
        every = torch.cat((chosen, more))
        read = _read(talker.seeing, places.pictures[every])
        tokens = read[: len(chosen)]
        inputs, wanted = talker.embed(asked.prompts, tokens[:, None])
        told = talker.language(inputs_embeds=inputs, output_hidden_states=True, output_attentions=True)
        answering = wanted != -100
        written, target = told.last_hidden_state[:, :-1], wanted[answering]
        missed = F.cross_entropy(
            F.linear(written[answering], talker.language.embed_tokens.weight), target, reduction="none"
        )
        thing, early, said = self._marks(wanted, asked.pointed)
        looking = thing >= 0
        digits = looking & (wanted[..., None] == self._digits).any(-1)
        rows = chosen[:, None].expand_as(thing)
        fine = _share_of_side(places.boxes[rows[digits], thing[digits]])
        of_digits = (missed[digits[answering]] * fine).sum() / fine.sum()
        losses = [missed.mean(), 1.5 * of_digits, self.places.loss(read, places, every)]

        row, thing = rows[looking], thing[looking]
        fine = _share_of_side(places.boxes[row, thing]) / TYPICAL
        weight = 1 + 3.0 * early[looking]  # where no number of the answer gives the thing away yet
        weight = weight / weight.mean()
        for head, states in zip(self.boxes, (told.hidden_states[LOOKING_LAYER][:, :-1], written), strict=True):
            box = head(F.layer_norm(states[looking], (WIDTH,)))
            losses.append(5 * ((box - places.boxes[row, thing]).abs().mean(-1) * weight * fine).mean())

        columns = torch.tensor(list(map(talker.first_image, asked.prompts)))[:, None] + torch.arange(SIDE**2)
        seen = told.attentions[LOOKING_LAYER - 1][:, :LOOKING_HEADS, :-1]
        seen = seen.gather(3, columns[:, None, None].expand(-1, *seen.shape[1:3], -1)).permute(0, 2, 1, 3)[looking]
        right = (seen * (places.covered[row, thing] > SEEN_FROM)[:, None]).sum(-1)
        losses.append(-0.5 * ((right + 1e-4).log() * weight[:, None]).mean())

        words = self.words(F.layer_norm(told.hidden_states[WORDS_LAYER][:, :-1][early], (WIDTH,)))
        for attribute, of_words in enumerate(words.split([len(names) for names in NAMES], -1)):
            losses.append(0.5 * F.cross_entropy(of_words, said[early][:, attribute], ignore_index=-100))
        return torch.stack(losses).sum()

    def loss_of_places(self, places: Places, numbers: torch.Tensor) -> torch.Tensor:
        """What the projector tells of the places in the pictures of these numbers."""
        return self.places.loss(_read(self.talker.seeing, places.pictures[numbers]), places, numbers)

    def _marks(
        self, wanted: torch.Tensor, pointed: Sequence[Sequence[Pointed]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For each token of an answer that is written from here, behind its phrase: the place of the thing, else -1;
        whether it comes before the second number; the numbers of the words that name the thing, -100 for the others.
        """
        thing, early = torch.full_like(wanted, -1), torch.zeros_like(wanted, dtype=torch.bool)
        said = torch.full((*wanted.shape, len(NAMES)), -100)
        for row, (ids, of_row) in enumerate(zip(wanted.tolist(), pointed, strict=True)):
            end = 0
            for one in of_row:
                begin = ids.index(self._begin, end) + 1
                first = ids.index(self._open, begin) + 2
                end = ids.index(self._close, begin) + 1
                thing[row, begin:end] = one.place
                early[row, begin : first + 3] = True
                said[row, begin : first + 3] = torch.tensor(one.words)
        return thing, early, said


def _share_of_side(box: torch.Tensor) -> torch.Tensor:
    """Boxes [..., 4] -> what makes a distance one of the box's own size, for that is what an overlap is spoiled by."""
    return 5 / (box[..., 2:] - box[..., :2]).mean(-1).clamp(min=0.1)


@dataclass(frozen=True)
class Kept:
    """Pictures uint8 [N, 3, S, S] of what it talks about, and what the language model has learned to read of each,
    [N, tokens, width], which the tower is held to while it learns places.
    """

    pictures: torch.Tensor
    tokens: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, seeing: Seeing, talks: Talks) -> Kept:
        pictures = torch.cat((talks.shapes[:, :KEPT_DRAWINGS].flatten(0, 1), talks.named.flatten(0, 1)))
        return cls(pictures, torch.cat([_read(seeing, part) for part in pictures.split(256)]))

    def loss(self, seeing: Seeing, count: int, rng: np.random.Generator) -> torch.Tensor:
        """How far what is read of some of them is from that."""
        some = torch.from_numpy(rng.integers(len(self.pictures), size=count))
        return F.mse_loss(_read(seeing, self.pictures[some]), self.tokens[some]) / self.tokens.var()


def _read(seeing: Seeing, pictures: torch.Tensor) -> torch.Tensor:
    """What the language model reads of pictures uint8 [N, 3, S, S]: [N, tokens, width]."""
    return seeing.project(seeing.tower(as_seen(pictures))[0])
