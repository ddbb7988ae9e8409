"""`dev.py eval check`: how often the image that Check Images chooses among eight shows what its prompt says.

Beside it: the image that InternVL scores highest, any image, and the best choice possible. Two kinds of images, both
read exactly: single shapes that MuLan draws in four steps, by `tinyworld.world.read`; and scenes of two to four shapes
that a program draws, by what it drew. The tiny InternVL never saw scenes of several shapes.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from . import graphs
from .comfyui import open_comfyui
from .tinyworld import captions, world
from .tinyworld.world import PALETTE, SHAPES, Thing
from .tinyworld_visionllm import scenes

CHOICES = 8
GRAPH = "mulan_lcm"
NUMBERS = ("no", "one", "two", "three", "four", "five")
WAYS = {
    "Check Images: things and counts": ("things",),
    "Check Images: questions": ("questions",),
    "Check Images: both": ("things", "questions"),
}
INTERNVL, ANY, BEST = "InternVL Rank", "any image", "best choice possible"


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


@dataclass
class Tally:
    """Per way of choosing whether the chosen image was right, of each prompt; `mixed`: which prompts have a choice."""

    chosen: dict[str, list[float]] = field(default_factory=dict)
    mixed: list[bool] = field(default_factory=list)
    verdicts: list[float] = field(default_factory=list)
    covered: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)

    def add(self, way: str, right: float) -> None:
        self.chosen.setdefault(way, []).append(right)


def evaluation(comfyui: Path, cpu: bool, output: Path, count: int) -> None:
    """Print the tables and write output/check_scores.md; `count` prompts of each kind of images."""
    output.mkdir(exist_ok=True)
    open_comfyui(*(["--cpu"] if cpu else []))
    from mulan_nodes.mulan.internvl.internvl_loader import load_internvl
    from mulan_nodes.mulan.tiny_models.unpacking import VISIONLLM
    from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

    from .evaluate_zeroshot import CHECKPOINT, TEXT_ENCODER

    models = comfyui / "models"
    visionllm = load_visionllm(models / VISIONLLM.folder / VISIONLLM.name)
    internvl = load_internvl(models / "internvl" / CHECKPOINT, "C", models / "text_encoders" / TEXT_ENCODER)
    tallies, start = {}, time.monotonic()
    for title, prompts in (
        ("scenes of two to four shapes drawn by a program", scene_prompts(count)),
        ("pairs of color and shape that MuLan never saw, drawn by it", draw_with_mulan(comfyui, cpu, output, count)),
    ):
        tallies[title] = Tally()
        for index, prompt in enumerate(prompts, start=1):
            judge(visionllm, internvl, prompt, tallies[title])
            print(f"  {title}: prompt {index} of {count}, {time.monotonic() - start:.0f} s", flush=True)
            (output / "check_scores.md").write_text(report(tallies), "utf-8")
    print(report(tallies), f"The tables: {os.path.relpath(output / 'check_scores.md')}", sep="\n")


# --- what is chosen from ---


def draw_with_mulan(comfyui: Path, cpu: bool, output: Path, count: int) -> Iterator[Prompt]:
    """Yield eight images of each pair of color and shape held out, in each trained language, of `count` prompts."""
    from .comfy_server import ComfyServer

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


# --- who chooses ---


def judge(visionllm, internvl, prompt: Prompt, tally: Tally) -> None:
    """Let everyone choose among the images of a prompt, and count who was right."""
    from mulan_nodes.visionllm_nodes.detections.checked_images import best_first

    images = torch.from_numpy(np.stack(prompt.images)).float() / 255
    scores = internvl.embed_images(list(images), "whole") @ internvl.embed_texts([prompt.sentence])[0]
    tally.mixed.append(any(prompt.right) and not all(prompt.right))
    tally.add(ANY, float(np.mean(prompt.right)))
    tally.add(INTERNVL, float(prompt.right[int(scores.argmax())]))
    tally.add(BEST, float(any(prompt.right)))
    check = checker(visionllm, prompt)
    for way, parts in WAYS.items():
        checked = [check(image, "\n".join(getattr(prompt, part) for part in parts)) for image in images]
        tally.add(way, float(prompt.right[best_first(checked)[0]]))
        if parts == ("things",):
            tally.verdicts += [
                float((one.score == 1) == right) for one, right in zip(checked, prompt.right, strict=True)
            ]
            for one, (right, wrong) in zip(checked, prompt.pixels, strict=False):
                if one.score < 1:
                    tally.kept += [1 - float(one.mask.numpy()[right].mean())] if right.any() else []
                    tally.covered += [float(one.mask.numpy()[wrong].mean())] if wrong.any() else []


def checker(visionllm, prompt: Prompt) -> Callable:
    """Return what checks an image as the node does; each image is asked about once."""
    from mulan_nodes.visionllm_nodes.detections.bounding_boxes import to_bounding_boxes
    from mulan_nodes.visionllm_nodes.detections.checked_images import check_image
    from mulan_nodes.visionllm_nodes.detections.checklist import questions_of, read_checklist, things_of
    from mulan_nodes.visionllm_nodes.model import prompt_templates
    from mulan_nodes.visionllm_nodes.model.answers import answer
    from mulan_nodes.visionllm_nodes.model.perception import detect

    names = [thing.name for thing in things_of(read_checklist(prompt.things))]
    questions = questions_of(read_checklist(prompt.questions))
    turns = [[prompt_templates.short_answer(question.question)] for question in questions]
    known: dict[int, tuple] = {}

    def check(image: torch.Tensor, text: str):
        if (key := image.data_ptr()) not in known:
            found = detect(visionllm, image, names, threshold=0.3, iou_threshold=0.5)
            replies = answer(visionllm, [image], turns, max_tokens=16)
            known[key] = found, {one: reply.plain_text for one, reply in zip(questions, replies, strict=True)}
        found, answers = known[key]
        items = read_checklist(text)
        assert found.masks is not None
        if not things_of(items):
            return check_image(items, answers, [], found.masks[:0])
        return check_image(items, answers, to_bounding_boxes([found])[0], found.masks, grow=2)

    return check


def report(tallies: dict[str, Tally]) -> str:
    lines = []
    for title, tally in tallies.items():
        mixed = np.array(tally.mixed)
        lines += [f"{title[0].upper()}{title[1:]}, {CHOICES} images for each prompt:", ""]
        lines += [
            f"| choice | all {len(mixed)} prompts | the {mixed.sum()} with right and wrong images |",
            "| --- | --: | --: |",
        ]
        for way in (ANY, INTERNVL, *WAYS, BEST):
            values = np.array(tally.chosen[way])
            lines.append(f"| {way} | {values.mean():.2f} | {values[mixed].mean() if mixed.any() else 0:.2f} |")
        lines += ["", f"Images judged right or wrong as they are, by things and counts: {np.mean(tally.verdicts):.2f}."]
        if tally.covered:
            lines.append(
                f"Masks of images judged wrong: they cover {np.mean(tally.covered):.2f} of the pixels of objects that "
                f"nobody asked for, and leave {np.mean(tally.kept):.2f} of those of objects that are right."
            )
        lines.append("")
    return "\n".join(lines)
