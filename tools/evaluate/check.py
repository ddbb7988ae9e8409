"""`dev.py eval check`: how often the image that Check Images chooses among eight shows what its prompt says.

Beside it: the image that InternVL scores highest, any image, and the best choice possible. Two kinds of images, both
read exactly: single shapes that MuLan draws in four steps, by `tinyworld.world.read`; and scenes of two to four shapes
that a program draws, by what it drew. The tiny InternVL never saw scenes of several shapes.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..comfyui import open_comfyui
from .choices import CHOICES, Prompt, draw_with_mulan, scene_prompts
from .telling import located, table, tell, tiny_internvl

FILE = "check_scores.md"
PROMPTS = 24
THRESHOLD = 0.3  # the node's default
WAYS = {
    "Check Images: things and counts": ("things",),
    "Check Images: questions": ("questions",),
    "Check Images: both": ("things", "questions"),
}
INTERNVL, ANY, BEST = "InternVL Rank", "any image", "best choice possible"


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


def evaluation(comfyui: Path, cpu: bool, output: Path, options: Namespace) -> None:
    """Write output/check_scores.md; `options.scenes` prompts of each kind of images."""
    open_comfyui(*(["--cpu"] if cpu else []))
    from mulan_nodes.mulan.tiny_models.unpacking import VISIONLLM
    from mulan_nodes.visionllm_nodes.model.visionllm_loader import load_visionllm

    visionllm, internvl = load_visionllm(located(comfyui, VISIONLLM)), tiny_internvl(comfyui)
    count, tallies, start = options.scenes or PROMPTS, {}, time.monotonic()
    output.mkdir(exist_ok=True)
    for title, prompts in (
        ("scenes of two to four shapes drawn by a program", scene_prompts(count)),
        ("pairs of color and shape that MuLan never saw, drawn by it", draw_with_mulan(comfyui, cpu, output, count)),
    ):
        tallies[title] = Tally()
        for index, prompt in enumerate(prompts, start=1):
            judge(visionllm, internvl, prompt, tallies[title])
            print(f"  {title}: prompt {index} of {count}, {time.monotonic() - start:.0f} s", flush=True)
            (output / FILE).write_text(report(tallies), "utf-8")  # the second kind takes long
    tell(report(tallies), output / FILE)


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
    from mulan_nodes.visionllm_nodes.check_images import ANSWER_TOKENS, SAME_OBJECT
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
            found = detect(visionllm, image, names, threshold=THRESHOLD, iou_threshold=SAME_OBJECT)
            replies = answer(visionllm, [image], turns, max_tokens=ANSWER_TOKENS)
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
        rows = []
        for way in (ANY, INTERNVL, *WAYS, BEST):
            values = np.array(tally.chosen[way])
            rows.append([way, f"{values.mean():.2f}", f"{values[mixed].mean() if mixed.any() else 0:.2f}"])
        heads = ("choice", f"all {len(mixed)} prompts", f"the {mixed.sum()} with right and wrong images")
        lines.append(f"{title[0].upper()}{title[1:]}, {CHOICES} images for each prompt:\n\n{table(heads, rows)}")
        lines.append(f"Images judged right or wrong as they are, by things and counts: {np.mean(tally.verdicts):.2f}.")
        if tally.covered:
            lines.append(
                f"Masks of images judged wrong: they cover {np.mean(tally.covered):.2f} of the pixels of objects that "
                f"nobody asked for, and leave {np.mean(tally.kept):.2f} of those of objects that are right."
            )
        lines.append("")
    return "\n".join(lines)
