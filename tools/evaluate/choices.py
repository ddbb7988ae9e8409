"""Prompts with eight images each to choose from: scenes that a program draws, and single shapes that MuLan draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import graphs
from ..tinyworld import captions, world
from ..tinyworld.world import PALETTE, SHAPES, Thing
from ..tinyworld_visionllm import scenes

CHOICES = 8
GRAPH = "mulan_lcm"
NUMBERS = ("no", "one", "two", "three", "four", "five")


@dataclass(frozen=True)
class Prompt:
    """A prompt with the images to choose from, uint8 [height, width, 3], and which of them are right.

    right_pixels, wrong_pixels: bool [height, width] for each image, of its objects; empty where nobody knows.
    """

    sentence: str  # in English, for InternVL
    things: str
    questions: str
    images: Sequence[np.ndarray]
    right: Sequence[bool]
    pixels: Sequence[tuple[np.ndarray, np.ndarray]] = ()


def draw_with_mulan(comfyui: Path, cpu: bool, output: Path, count: int) -> Iterator[Prompt]:
    """Yield eight images of each pair of color and shape held out, in each trained language, of `count` prompts."""
    from ..comfy_server import ComfyServer

    things = [thing for thing in world.THINGS if thing.held_out and thing.size == "big"]
    asked = [(thing, language) for language in captions.TRAINED for thing in things][:count]
    graph = graphs.change(graphs.load(GRAPH), "Empty Latent Image", batch_size=CHOICES)
    with ComfyServer(comfyui, cpu=cpu, log=output / "server.log") as server:
        for index, (thing, language) in enumerate(asked):
            said = graphs.change(graph, "Prompt", text=captions.full_caption(thing, language, index))
            images = server.run(graphs.change(said, "KSampler", seed=1000 + index)).images
            name = _name(thing)
            questions = f"Is there a {name}?\nWhat colour is the {thing.shape}? {thing.colour}"
            right = [world.read(image).agrees(thing) for image in images]
            yield Prompt(f"a {name}", f"{name}: 1", questions, images, right)


def scene_prompts(count: int, seed: int = 7200) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    return [_scene_prompt(rng) for _ in range(count)]


def _scene_prompt(rng: np.random.Generator) -> Prompt:
    """Two to four things; a quarter of the images shows them, the others all but one, one more, or one changed."""
    wanted = [scenes.SEEN[rng.integers(len(scenes.SEEN))] for _ in range(rng.integers(2, 5))]
    if rng.random() < 0.5:
        wanted[1] = wanted[0]
    drawn = [wanted if index < CHOICES // 4 else _changed(wanted, rng) for index in range(CHOICES)]
    shown = [scenes.draw_these(rng, drawn[index]) for index in rng.permutation(CHOICES)]
    counts = Counter(map(_name, wanted))
    shapes = Counter(thing.shape for thing in wanted)
    sentence = " and ".join(f"{NUMBERS[n]} {name}{'s' * (n > 1)}" for name, n in counts.items())
    questions = [f"How many {shape}s are there? {n}" for shape, n in shapes.items()]
    questions += [f"How many shapes are there? {len(wanted)}", *(f"Is there a {name}?" for name in counts)]
    return Prompt(
        sentence,
        "\n".join(f"{name}: {n}" for name, n in counts.items()),
        "\n".join(questions),
        [scene.picture for scene in shown],
        [Counter(_name(item.thing) for item in scene.items) == counts for scene in shown],
        [_pixels(scene, counts) for scene in shown],
    )


def _name(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _changed(things: list[Thing], rng: np.random.Generator) -> list[Thing]:
    """Other things, in one respect: one less, one more, one of another color or shape. All are pairs that were seen."""
    while True:
        changed, index = list(things), int(rng.integers(len(things)))
        kind = rng.integers(4)
        if kind == 0:
            del changed[index]
        elif kind == 1:
            changed.append(scenes.SEEN[rng.integers(len(scenes.SEEN))])
        elif kind == 2:
            changed[index] = replace(changed[index], colour=list(PALETTE)[rng.integers(len(PALETTE))])
        else:
            changed[index] = replace(changed[index], shape=SHAPES[rng.integers(len(SHAPES))])
        different = Counter(map(_name, changed)) != Counter(map(_name, things))
        if different and not any(thing.held_out for thing in changed):
            return changed


def _pixels(scene: scenes.Scene, counts: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of objects that are asked for, and of those whose kind is not, or too many of it."""
    have = Counter(_name(item.thing) for item in scene.items)
    right, wrong = np.zeros((2, *scene.picture.shape[:2]), bool)
    for item in scene.items:
        name = _name(item.thing)
        if have[name] <= counts[name]:
            right |= item.mask
        elif not counts[name]:
            wrong |= item.mask
    return right, wrong
