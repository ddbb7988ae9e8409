"""Words for the shapes of a picture: names that fit several of them, sentences that fit exactly one, in several
languages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from ..tinyworld import captions
from ..tinyworld.world import HELD_OUT, PALETTE, SHAPES
from .scenes import SIZES, Scene

CLEARLY = 8.0  # pixels by which the leftmost shape must be left of the next one, and so on
OTHER_LANGUAGES = ("zh", "ja", "de", "es", "fr")

# Per side: the axis, whether its largest value is meant, the superlative and the place.
_SIDES = {
    "left": (0, False, "leftmost", "on the left"),
    "right": (0, True, "rightmost", "on the right"),
    "top": (1, False, "highest", "at the top"),
    "bottom": (1, True, "lowest", "at the bottom"),
}
SIDES = tuple(_SIDES)


@dataclass(frozen=True)
class Description:
    """What is said of a shape; "" is what is not said. `side`: of all shapes that fit the rest, the one furthest on
    that side.
    """

    colour: str = ""
    shape: str = ""
    size: str = ""
    side: str = ""

    @property
    def trained(self) -> bool:
        """The colour and shape said are not one of the pairs kept out of training."""
        return (self.colour, self.shape) not in HELD_OUT

    @property
    def name(self) -> str:
        """As in a list of names: "red circle"."""
        return " ".join(word for word in (self.size, self.colour, self.shape or "shape") if word)

    def sentences(self) -> list[str]:
        """Ways to refer to one shape, in English."""
        if not self.side:
            return [f"the {self.name}"]
        _, _, superlative, place = _SIDES[self.side]
        return [f"the {superlative} {self.name}", f"the {self.name} {place}"]

    def sentence_in(self, language: str) -> str:
        """With an article where the language has one; sides are only said in English."""
        named = frozenset(name for name in ("colour", "shape", "size") if getattr(self, name))
        return captions.LANGUAGES[language].noun_phrase(self, named)

    def found(self, scene: Scene) -> tuple[int, ...]:
        """The items of the scene that fit. With a side: exactly one or, where it would not be clear which, none."""
        fitting = [
            index
            for index, item in enumerate(scene.items)
            if all(
                not said or said == own
                for said, own in (
                    (self.colour, item.thing.colour),
                    (self.shape, item.thing.shape),
                    (self.size, item.thing.size),
                )
            )
        ]
        if not self.side:
            return tuple(fitting)
        if len(fitting) < 2:  # nobody says "the leftmost" of a single one
            return ()
        axis, largest, _, _ = _SIDES[self.side]
        places = {
            index: ((scene.items[index].x, scene.items[index].y)[axis]) * (-1 if largest else 1) for index in fitting
        }
        first, second = sorted(fitting, key=places.__getitem__)[:2]
        return (first,) if places[second] - places[first] >= CLEARLY else ()


NAMES = tuple(
    Description(colour, shape, size)
    for colour, shape, size in product(("", *PALETTE), ("", *SHAPES), ("", *SIZES))
    if colour or shape or size
)


def names_for(scene: Scene, rng: np.random.Generator, count: int) -> list[Description]:
    """Different descriptions, about two thirds of which fit something in the scene; none is a pair kept out of
    training.
    """
    chosen: dict[Description, None] = {}
    while len(chosen) < count:
        if rng.random() < 0.65:
            thing = scene.items[rng.integers(len(scene.items))].thing
            description = Description(thing.colour, thing.shape, thing.size)
        else:
            description = NAMES[rng.integers(len(NAMES))]
        kind = rng.random()  # mostly bare shapes, and colours with shapes
        if kind < 0.4:
            description = replace(description, colour="", size="")
        elif kind < 0.8:
            description = replace(description, size="")
        if (description.colour or description.shape or description.size) and description.trained:
            chosen[description] = None
    return list(chosen)


def referring(scene: Scene, rng: np.random.Generator) -> Description:
    """A description that fits exactly one of the scene's items."""
    while True:
        thing = scene.items[rng.integers(len(scene.items))].thing
        said = [rng.random() < share for share in (0.6, 0.8, 0.4)]
        description = Description(
            *(getattr(thing, name) if say else "" for name, say in zip(("colour", "shape", "size"), said, strict=True))
        )
        if rng.random() < 0.4:
            description = replace(description, side=SIDES[rng.integers(4)])
        if len(description.found(scene)) == 1 and (description.side or any(said)):
            return description
