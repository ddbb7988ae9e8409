"""Questions about marked shapes of a scene, region1 to region3, with the only right answer: alone, two compared, one of
several, and a second question behind the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from mulan_nodes.visionllm_nodes.model import prompt_templates
from mulan_nodes.visionllm_nodes.model.region_mentions import place_regions

from ..tinyworld.world import PALETTE, SHAPES, Thing
from .descriptions import CLEARLY, Description
from .questions import Exercise
from .scenes import MOST_ITEMS, SIZES, Item, Scene, draw_these

MOST_REGIONS = 3
SHORTLY = " Answer the question using a single word or phrase."
SHORTLY_SHARE = 0.25

Round = tuple[str, str]  # a question and its answer
Marked = Sequence[Item]  # region1 first


@dataclass(frozen=True)
class Exchange:
    """Rounds of a conversation, the last of which is asked, and the scene's items that are marked, region1 first."""

    rounds: tuple[Round, ...]
    items: tuple[int, ...]

    def exercise(self) -> Exercise:
        """As VisionLLM Ask gives it to the model: regions stand where they are named first."""
        *before, (question, answer) = self.rounds
        turns, placed = place_regions(prompt_templates.chat(question, before), len(self.items))
        regions = tuple(self.items[index] for index in placed)
        return Exercise(turns[-1]._replace(assistant=answer), regions=regions, history=tuple(turns[:-1]))


def draw_scene_of_likes(rng: np.random.Generator, things: Sequence[Thing], fewest: int = 2) -> Scene:
    """A scene whose shapes often share the color or the shape of one before."""
    chosen: list[Thing] = []
    for _ in range(rng.integers(fewest, MOST_ITEMS + 1)):
        fitting = things
        if chosen and rng.random() < 0.7:
            like, name = chosen[rng.integers(len(chosen))], ("colour", "shape")[rng.integers(2)]
            fitting = [thing for thing in things if getattr(thing, name) == getattr(like, name)]
        chosen.append(fitting[int(rng.integers(len(fitting)))])
    return draw_these(rng, chosen)


def exchange(scene: Scene, rng: np.random.Generator, kind: str, regions: int = 0, tries: int = 20) -> Exchange | None:
    """A question of this kind about some of the scene's items; None where it has none. regions: 0 is any number."""
    fewest = FEWEST.get(kind, 1)
    for _ in range(tries):
        count = regions or int(rng.integers(fewest, MOST_REGIONS + 1))
        items = tuple(rng.permutation(len(scene.items))[:count].tolist())
        if len(items) < max(fewest, regions):
            return None
        rounds = KINDS[kind]([scene.items[item] for item in items], rng)
        if rounds:
            return Exchange(tuple(rounds), items)
    return None


def any_exchange(scene: Scene, rng: np.random.Generator, kinds: Sequence[str]) -> Exercise:
    """A question of one of these kinds; some ask for a word or phrase."""
    while True:
        asked = exchange(scene, rng, _choose(kinds, rng))
        if asked is None:
            continue
        if rng.random() < SHORTLY_SHARE:
            *before, (question, answer) = asked.rounds
            asked = replace(asked, rounds=(*before, (question + SHORTLY, answer)))
        return asked.exercise()


def _name(number: int) -> str:
    return f"region{number + 1}"


def _colour_word(rng: np.random.Generator) -> str:
    return ("color", "colour")[rng.integers(2)]


def _choose(forms: Sequence[str], rng: np.random.Generator) -> str:
    return forms[int(rng.integers(len(forms)))]


_ALONE = {
    "colour": ("What {colour} is {one}?", "What is the {colour} of {one}?", "Which {colour} does {one} have?"),
    "shape": ("What shape is {one}?", "What is the shape of {one}?", "Which shape does {one} have?"),
    "size": ("What size is {one}?", "Is {one} big or small?", "How big is {one}?"),
}


def _alone(name: str) -> Callable[[Marked, np.random.Generator], list[Round]]:
    def ask(marked: Marked, rng: np.random.Generator) -> list[Round]:
        number = int(rng.integers(len(marked)))
        question = _choose(_ALONE[name], rng).format(one=_name(number), colour=_colour_word(rng))
        return [(question, getattr(marked[number].thing, name))]

    return ask


def _pair(marked: Marked, rng: np.random.Generator) -> list[int]:
    return rng.permutation(len(marked))[:2].tolist()


_SAME = ("Are {one} and {other} the same {name}?", "Do {one} and {other} have the same {name}?")


def _same(marked: Marked, rng: np.random.Generator) -> list[Round] | None:
    """Half of the answers are yes, if the scene allows."""
    name, same = ("colour", "shape")[rng.integers(2)], rng.random() < 0.5
    pairs = [
        (one, other)
        for one, other in permutations(range(len(marked)), 2)
        if (getattr(marked[one].thing, name) == getattr(marked[other].thing, name)) == same
    ]
    if not pairs:
        return None
    one, other = pairs[rng.integers(len(pairs))]
    said = _colour_word(rng) if name == "colour" else name
    question = _choose(_SAME, rng).format(one=_name(one), other=_name(other), name=said)
    return [(question, "yes" if same else "no")]


_MORE = ("Which is {more}, {one} or {other}?", "Which one is {more}: {one} or {other}?")


def _bigger(marked: Marked, rng: np.random.Generator) -> list[Round] | None:
    """Of a big and a small one."""
    one, other = _pair(marked, rng)
    if marked[one].thing.size == marked[other].thing.size:
        return None
    size = SIZES[rng.integers(2)]
    right = one if marked[one].thing.size == size else other
    more = {"big": "bigger", "small": "smaller"}[size]
    return [(_choose(_MORE, rng).format(more=more, one=_name(one), other=_name(other)), _name(right))]


# Which axis, whether what is there has the smaller value.
DIRECTIONS = {
    "left": ("x", True),
    "right": ("x", False),
    "above": ("y", True),
    "higher": ("y", True),
    "below": ("y", False),
    "lower": ("y", False),
}
_PLACES = "left of", "right of", "above", "below"
_FURTHER = "further left", "further right", "higher", "lower"


def direction_of(question: str) -> str:
    """The word that says in which direction; "" in a question that is not about two places."""
    return next((word for word in DIRECTIONS if word in question), "")


def _place(marked: Marked, rng: np.random.Generator) -> list[Round] | None:
    """Of two that are clearly apart: whether it is so, and which is further."""
    one, other = _pair(marked, rng)
    yes_or_no = rng.random() < 0.5
    said = _choose(_PLACES if yes_or_no else _FURTHER, rng)
    axis, smaller = DIRECTIONS[direction_of(said)]
    apart = getattr(marked[other], axis) - getattr(marked[one], axis)
    if abs(apart) < CLEARLY:
        return None
    first = (apart > 0) == smaller
    if yes_or_no:
        return [(f"Is {_name(one)} {said} {_name(other)}?", "yes" if first else "no")]
    asked = _choose(_MORE, rng).format(more=said, one=_name(one), other=_name(other))
    return [(asked, _name(one if first else other))]


def _listed(count: int, last: str) -> str:
    names = [_name(number) for number in range(count)]
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def _which(marked: Marked, rng: np.random.Generator) -> list[Round] | None:
    """Which of the marked ones fits a description that fits one of them."""
    right = int(rng.integers(len(marked)))
    thing = marked[right].thing
    described = [
        Description(thing.colour),
        Description("", thing.shape),
        Description(thing.colour, thing.shape),
        Description("", thing.shape, thing.size),
        Description("", "", thing.size),
    ][rng.integers(5)]
    if len(described.found(Scene(np.empty(0), tuple(marked)))) != 1:
        return None
    said = f"the {described.name}" if described.shape else described.name.removesuffix(" shape")
    form = _choose(("Which of {all_of} is {said}?", "Which is {said}, {any_of}?"), rng)
    question = form.format(said=said, all_of=_listed(len(marked), "and"), any_of=_listed(len(marked), "or"))
    return [(question, _name(right))]


def _whether(marked: Marked, rng: np.random.Generator) -> list[Round] | None:
    """Half of the answers are yes; where it is no, either the color or the shape is another one."""
    number, yes = int(rng.integers(len(marked))), rng.random() < 0.5
    thing = said = marked[number].thing
    form = _choose(("Is {one} a {colour} {shape}?", "Is {one} {colour}?", "Is {one} a {shape}?"), rng)
    if not yes:
        name = _choose([name for name in ("colour", "shape") if f"{{{name}}}" in form], rng)
        values = [value for value in {"colour": PALETTE, "shape": SHAPES}[name] if value != getattr(thing, name)]
        said = replace(thing, **{name: _choose(values, rng)})
        if said.held_out:
            return None
    question = form.format(one=_name(number), colour=said.colour, shape=said.shape)
    return [(question, "yes" if yes else "no")]


_AGAIN = {
    "colour": ("What {colour} is it?", "And its {colour}?"),
    "shape": ("What shape is it?", "And its shape?"),
    "size": ("What size is it?", "Is it big or small?"),
}
_OTHER = ("And {one}?", "What about {one}?")


def _later(marked: Marked, rng: np.random.Generator) -> list[Round]:
    """The same about another region, or something else about the same one."""
    first, second = rng.choice(list(_ALONE), 2, replace=False).tolist()
    (asked,) = _alone(first)(marked, rng)
    number = int(asked[0].partition("region")[2][0]) - 1
    others = [index for index in range(len(marked)) if index != number]
    if others and rng.random() < 0.5:
        other = others[rng.integers(len(others))]
        return [asked, (_choose(_OTHER, rng).format(one=_name(other)), getattr(marked[other].thing, first))]
    question = _choose(_AGAIN[second], rng).format(colour=_colour_word(rng))
    return [asked, (question, getattr(marked[number].thing, second))]


KINDS: dict[str, Callable[[Marked, np.random.Generator], list[Round] | None]] = {
    "colour": _alone("colour"),
    "shape": _alone("shape"),
    "size": _alone("size"),
    "same": _same,
    "bigger": _bigger,
    "place": _place,
    "which": _which,
    "whether": _whether,
    "later": _later,
}
FEWEST = {"same": 2, "bigger": 2, "place": 2, "which": 2}  # regions; the others need one
# How often each is asked in training: all of them, those that compare no regions, and all with more that compare.
ANY_KIND = "colour", "shape", "shape", "size", "same", "same", "bigger", "place", "place", "which", "whether", "later"
ALONE = "colour", "shape", "shape", "shape", "size", "size", "whether", "whether", "whether", "later", "later"
COMPARED = *ALONE[:6], *["same"] * 4, *["bigger"] * 2, *["place"] * 4, *["which"] * 3, *["whether"] * 3, *["later"] * 2
PLACED = *COMPARED, *["place"] * 14
