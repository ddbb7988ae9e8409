"""The strict reader of the emoji world: passes drawings of the things, refuses what a person would refuse."""

from __future__ import annotations

import numpy as np
import pytest

from mulan_nodes.tools.emoji_world import labelled, pictures, reader, spoiled
from mulan_nodes.tools.emoji_world.concepts import CHARACTERS
from mulan_nodes.tools.tinyworld.stages import as_pictures

PER_KIND = 65
REFUSED = {"mixtures": 0.9}  # where two thirds are one thing, a person sees this thing, too
# Of the drawings that measure it: what it has reached, never to get worse.
FALSE_PASSES, FALSE_FAILURES = 0.033, 0.21


@pytest.fixture(scope="module")
def emoji_reader():
    return reader.load()


def test_every_clean_drawing_is_read_as_what_it_is(emoji_reader):
    rng = np.random.default_rng(7)
    wanted = np.repeat(np.arange(len(CHARACTERS)), 3)
    backgrounds = ["", "", *pictures.BACKGROUNDS]
    drawn = np.stack([pictures.draw(int(thing), rng, str(rng.choice(backgrounds))) for thing in wanted])
    right = emoji_reader.agrees(drawn, wanted)
    assert right.mean() >= 0.99, [CHARACTERS[thing] for thing in wanted[~right]]
    assert not emoji_reader.agrees(drawn, np.roll(wanted, 3)).any()


@pytest.mark.parametrize("kind", spoiled.KINDS)
def test_spoiled_drawings_are_none_of_the_things(emoji_reader, kind):
    dice = spoiled.Dice(list(spoiled.KINDS).index(kind))
    shown = dice.uniform(0, 1, len(CHARACTERS)).argsort()[:PER_KIND]
    drawn, really = spoiled.spoiled(kind, spoiled.things()[shown], dice)
    drawn = drawn[really]
    read = emoji_reader.read(as_pictures(drawn))
    assert len(drawn) > PER_KIND / 2
    assert (read == -1).mean() >= REFUSED.get(kind, 0.95), [
        (CHARACTERS[thing], place) for place, thing in enumerate(read) if thing >= 0
    ]


def test_emoji_that_no_training_saw_are_none_of_the_things(emoji_reader):
    dice = spoiled.Dice(1)
    drawn = spoiled.strangers(spoiled.things()[:60], dice, spoiled.OTHERS_SEEN, len(spoiled.OTHER_CHARACTERS))
    assert (emoji_reader.read(as_pictures(drawn)) == -1).mean() >= 0.95


def test_it_agrees_with_a_person_who_labelled_drawings(emoji_reader):
    found = labelled.errors(emoji_reader, labelled.labelled().half(odd=True))
    assert min(found.fails, found.passes) >= 60
    assert found.false_passes <= FALSE_PASSES * found.fails, found
    assert found.false_failures <= FALSE_FAILURES * found.passes, found
