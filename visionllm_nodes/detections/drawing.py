"""Boxes, masks and keypoints drawn on pictures, with names in any script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...mulan.images.text_drawing import ASCENT, DESCENT, TextRenderer
from ...mulan.images.tiling import as_pixels
from .bounding_boxes import corners_of
from .colors import Colour, colour, ink
from .masks import SET

BY_NAME, BY_OBJECT = COLOURING = ("by name", "by object")
Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class Style:
    """Sizes in pixels, 0: what suits the picture. `fill`: how much masks cover, 0..1."""

    line: int = 0
    text: int = 0
    fill: float = 0.4
    names: bool = True
    scores: bool = True
    keypoint_names: bool = False
    colouring: str = BY_NAME

    def line_on(self, picture: Image.Image) -> int:
        return self.line or max(2, round(min(picture.size) / 250))

    def text_on(self, picture: Image.Image) -> int:
        return self.text or min(48, max(12, round(min(picture.size) / 32)))


class Colouring:
    """Which colour a thing has: one for each name, the same in all pictures, or one for each thing of a picture."""

    def __init__(self, how: str, names: Iterable[str]):
        self._how, self._names = how, {name: number for number, name in enumerate(dict.fromkeys(names))}

    def of(self, name: str, number: int) -> Colour:
        return colour(
            number if self._how == BY_OBJECT or len(self._names) < 2 and not name else self._names.get(name, number)
        )


def draw(
    picture,
    boxes: Sequence[dict],
    masks: torch.Tensor | None,
    keypoints: dict | None,
    style: Style,
    colouring: Colouring,
    lettering: TextRenderer,
) -> torch.Tensor:
    """One picture (see model/pictures.py) -> float32 [H, W, 3].

    `masks` [N, H, W] have the colours of the boxes with their numbers. Names and scores stand at the boxes, without boxes at the keypoints' objects.
    """
    canvas = Image.fromarray(_filled(as_pixels(picture), boxes, masks, style, colouring))
    objects = keypoints["objects"] if keypoints else []
    for number, thing in enumerate(objects):
        _draw_skeleton(canvas, thing, keypoints["skeleton"], colouring.of(thing["label"], number), style)
    pen = ImageDraw.Draw(canvas)
    for number, box in enumerate(boxes):
        pen.rectangle(
            _drawn(corners_of(box)), outline=colouring.of(box.get("label", ""), number), width=style.line_on(canvas)
        )
    named = boxes or [thing["box"] | {"label": thing["label"], "score": thing["score"]} for thing in objects]
    labels = _Labels(canvas, style, lettering)
    labels.draw((box, colouring.of(box.get("label", ""), number)) for number, box in enumerate(named))
    if style.keypoint_names:
        labels.draw_points(point for thing in objects for point in thing["keypoints"] if point["score"] > 0)
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)


class _Labels:
    """Puts names where they cover no other name: above the box, in it, below it."""

    def __init__(self, canvas: Image.Image, style: Style, lettering: TextRenderer):
        self._canvas, self._style, self._letters = canvas, style, lettering
        self._size = style.text_on(canvas)
        self._taken: list[Rectangle] = []

    def draw(self, named: Iterable[tuple[dict, Colour]]) -> None:
        for box, paper in named:
            name = " ".join(box.get("label", "").split()) if self._style.names else ""
            score = f"{box['score']:.2f}" if self._style.scores and "score" in box else ""
            if name or score:
                self._put(box, name, score, paper)

    def _put(self, box: dict, name: str, score: str, paper: Colour) -> None:
        """The score stands behind the name whichever way that is written, and is never cut away."""
        size, pad = self._size, max(2, self._size // 5)
        x1, y1, x2, y2 = corners_of(box)
        of_score = self._letters.width(score, size) + (2 * pad if name and score else 0)
        room = min(max(x2 - x1, self._canvas.width / 2), self._canvas.width) - of_score - 2 * pad
        name = self._letters.shorten(name, size, int(room))
        of_name = self._letters.width(name, size)
        width, height = of_name + of_score + 2 * pad, round((ASCENT + DESCENT) * size)
        left = min(max(0, round(x1)), self._canvas.width - width)
        tops = (y1 - height, y1, y2, y2 - height)
        places = [
            (left, min(max(0, round(top)), self._canvas.height - height))
            for top in tops
            if 0 <= top <= self._canvas.height - height
        ]
        places = places or [(left, min(max(0, round(y1)), max(0, self._canvas.height - height)))]
        left, top = self._free(places, width, height) or places[0]
        self._taken.append((left, top, left + width, top + height))
        ImageDraw.Draw(self._canvas).rectangle((left, top, left + width - 1, top + height - 1), fill=paper)
        baseline = top + round(ASCENT * size)
        self._letters.draw(self._canvas, left + pad, baseline, name, size, ink(paper))
        self._letters.draw(
            self._canvas, left + width - pad - self._letters.width(score, size), baseline, score, size, ink(paper)
        )

    def draw_points(self, points: Iterable[dict]) -> None:
        """Names beside keypoints, white with a black shadow; one that would cover another is left out."""
        size, aside = max(10, round(0.7 * self._size)), 2 * self._style.line_on(self._canvas) + 1
        height = round((ASCENT + DESCENT) * size)
        for point in points:
            width, x, y = self._letters.width(point["name"], size), round(point["x"]), round(point["y"])
            level, middle = y - height // 2, x - width // 2
            places = [(x + aside, level), (x - aside - width, level), (middle, y + aside), (middle, y - aside - height)]
            place = self._free(places, width, height)
            if place:
                self._taken.append((*place, place[0] + width, place[1] + height))
                for shift, paint in ((1, (0, 0, 0)), (0, (255, 255, 255))):
                    self._letters.draw(
                        self._canvas,
                        place[0] + shift,
                        place[1] + round(ASCENT * size) + shift,
                        point["name"],
                        size,
                        paint,
                    )

    def _free(self, places: Sequence[tuple[int, int]], width: int, height: int) -> tuple[int, int] | None:
        """The first place that covers no other name."""
        return next(
            (
                place
                for place in places
                if not any(_overlap((*place, place[0] + width, place[1] + height), other) for other in self._taken)
            ),
            None,
        )


def _filled(
    pixels: np.ndarray, boxes: Sequence[dict], masks: torch.Tensor | None, style: Style, colouring: Colouring
) -> np.ndarray:
    """The pixels with masks laid over them, each with a firm edge."""
    if masks is None:
        return pixels
    pixels = pixels.copy()
    edge = max(1, round(min(pixels.shape[:2]) / 400))
    for number, mask in enumerate(masks.cpu().numpy() >= SET):
        name = boxes[number].get("label", "") if number < len(boxes) else ""
        paint = np.array(colouring.of(name, number), dtype=np.float32)
        pixels[mask] = (pixels[mask] * (1 - style.fill) + paint * style.fill).astype(np.uint8)
        inner = mask.copy()
        for shift in range(1, edge + 1):
            inner[shift:] &= mask[:-shift]
            inner[:-shift] &= mask[shift:]
            inner[:, shift:] &= mask[:, :-shift]
            inner[:, :-shift] &= mask[:, shift:]
        if style.fill > 0:
            pixels[mask & ~inner] = paint.astype(np.uint8)
    return pixels


def _draw_skeleton(
    canvas: Image.Image, thing: dict, bones: Sequence[Sequence[int]], paint: Colour, style: Style
) -> None:
    """Bones in the object's colour; points with a dark rim, so that they show on their bones."""
    pen, line, points = ImageDraw.Draw(canvas), style.line_on(canvas), thing["keypoints"]
    for a, b in bones:
        if max(a, b) < len(points) and points[a]["score"] > 0 and points[b]["score"] > 0:
            pen.line((points[a]["x"], points[a]["y"], points[b]["x"], points[b]["y"]), fill=paint, width=line)
    radius = line if len(points) > 30 else 1.6 * line
    for point in points:
        if point["score"] > 0:
            x, y = point["x"], point["y"]
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=paint, outline=(0, 0, 0))


def _drawn(corners: Rectangle) -> Rectangle:
    """The outermost pixels of a box; never turned around."""
    x1, y1, x2, y2 = map(round, corners)
    return x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
