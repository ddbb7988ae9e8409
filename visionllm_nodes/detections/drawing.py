"""Boxes, masks and keypoints drawn on images, with labels in any script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

from ...mulan.boundary.interrupts import interruptible
from ...mulan.images.text_drawing import ASCENT, DESCENT, TextRenderer
from ...mulan.images.tiling import ImageLike, to_pixels
from .bounding_boxes import box_corners
from .colors import Color, palette_color, text_color
from .keypoints import reaches
from .masks import MASK_THRESHOLD

_FAR = 2**20  # pixels: labels are placed as if boxes ended so far outside the image
BY_NAME, BY_OBJECT = COLOR_MODES = ("by name", "by object")
Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class Style:
    """Sizes in pixels, 0: what suits the image. `mask_opacity`: 0..1."""

    line_width: int = 0
    text_size: int = 0
    mask_opacity: float = 0.4
    names: bool = True
    scores: bool = True
    keypoint_names: bool = False
    color_by: str = BY_NAME

    def line_width_on(self, image: Image.Image) -> int:
        """Return the width of lines on an image."""
        return self.line_width or max(2, round(min(image.size) / 250))

    def text_size_on(self, image: Image.Image) -> int:
        """Return the size of labels on an image."""
        return self.text_size or min(48, max(12, round(min(image.size) / 32)))


class ColorMap:
    """The color of each object: one per name, the same in all images, or one per object of an image."""

    def __init__(self, how: str, names: Iterable[str]):
        self._how, self._names = how, {name: index for index, name in enumerate(dict.fromkeys(names))}

    def of(self, name: str, index: int) -> Color:
        """Return the color of an object by its name, and its index in the image."""
        return palette_color(
            index if self._how == BY_OBJECT or len(self._names) < 2 and not name else self._names.get(name, index)
        )


def draw(
    image: ImageLike,
    boxes: Sequence[dict],
    masks: torch.Tensor | None,
    keypoints: dict | None,
    style: Style,
    color_map: ColorMap,
    text_renderer: TextRenderer,
) -> torch.Tensor:
    """Draw on one image (see mulan/images/tiling.py) -> float32 [H, W, 3].

    masks: [N, H, W], in the colors of the boxes with the same index. Labels and scores stand at the boxes, without
    boxes at the keypoints' objects.
    """
    canvas = Image.fromarray(_filled(to_pixels(image), boxes, masks, style, color_map))
    objects, bones = (keypoints["objects"], keypoints["skeleton"]) if keypoints else ([], [])
    for index, obj in enumerate(interruptible(objects)):
        _draw_skeleton(canvas, obj, bones, color_map.of(obj["label"], index), style)
    pen, line = ImageDraw.Draw(canvas), style.line_width_on(canvas)
    for index, box in enumerate(interruptible(boxes)):
        pen.rectangle(
            _outermost_pixels(_near_corners(box, canvas, line + 2)),
            outline=color_map.of(box.get("label", ""), index),
            width=line,
        )
    named = boxes or [obj["box"] | {"label": obj["label"], "score": obj["score"]} for obj in objects]
    labels = _Labels(canvas, style, text_renderer)
    labels.draw((box, color_map.of(box.get("label", ""), index)) for index, box in enumerate(named))
    if style.keypoint_names:
        labels.draw_points(point for obj in objects for point in obj["keypoints"] if point["score"] > 0)
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255)


class _Labels:
    """Labels, put where they cover no other label: above the box, in it, below it."""

    def __init__(self, canvas: Image.Image, style: Style, text_renderer: TextRenderer):
        self._canvas, self._style, self._text = canvas, style, text_renderer
        self._size = style.text_size_on(canvas)
        self._taken = np.zeros((canvas.height, canvas.width), bool)

    def draw(self, named: Iterable[tuple[dict, Color]]) -> None:
        """Draw the labels of boxes."""
        for box, paper in interruptible(named):
            name = " ".join(box.get("label", "").split()) if self._style.names else ""
            score = _score_text(box["score"]) if self._style.scores and "score" in box else ""
            if name or score:
                self._put(box, name, score, paper)

    def _put(self, box: dict, name: str, score: str, paper: Color) -> None:
        """Draw one label; the score stands behind the name whichever way that is written, and is never cut away."""
        size, pad = self._size, max(2, self._size // 5)
        x1, y1, x2, y2 = _near_corners(box, self._canvas, _FAR)
        of_score = self._text.width(score, size) + (2 * pad if name and score else 0)
        room = min(max(x2 - x1, self._canvas.width / 2), self._canvas.width) - of_score - 2 * pad
        name = self._text.shorten(name, size, int(room))
        of_name = self._text.width(name, size)
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
        self._take(left, top, width, height)
        ImageDraw.Draw(self._canvas).rectangle((left, top, left + width - 1, top + height - 1), fill=paper)
        baseline = top + round(ASCENT * size)
        self._text.draw(self._canvas, left + pad, baseline, name, size, text_color(paper))
        self._text.draw(
            self._canvas, left + width - pad - self._text.width(score, size), baseline, score, size, text_color(paper)
        )

    def draw_points(self, points: Iterable[dict]) -> None:
        """Draw names beside keypoints, white with a black shadow; one that would cover another is left out."""
        size, aside = max(10, round(0.7 * self._size)), 2 * self._style.line_width_on(self._canvas) + 1
        height = round((ASCENT + DESCENT) * size)
        for point in interruptible(points):
            width, x, y = self._text.width(point["name"], size), round(point["x"]), round(point["y"])
            level, middle = y - height // 2, x - width // 2
            places = [(x + aside, level), (x - aside - width, level), (middle, y + aside), (middle, y - aside - height)]
            place = self._free(places, width, height)
            if place:
                self._take(*place, width, height)
                for shift, paint in ((1, (0, 0, 0)), (0, (255, 255, 255))):
                    self._text.draw(
                        self._canvas,
                        place[0] + shift,
                        place[1] + round(ASCENT * size) + shift,
                        point["name"],
                        size,
                        paint,
                    )

    def _take(self, left: int, top: int, width: int, height: int) -> None:
        self._part(left, top, width, height)[...] = True

    def _free(self, places: Sequence[tuple[int, int]], width: int, height: int) -> tuple[int, int] | None:
        """Return the first place that covers no other label."""
        return next((place for place in places if not self._part(*place, width, height).any()), None)

    def _part(self, left: int, top: int, width: int, height: int) -> np.ndarray:
        return self._taken[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]


def _filled(
    pixels: np.ndarray, boxes: Sequence[dict], masks: torch.Tensor | None, style: Style, color_map: ColorMap
) -> np.ndarray:
    """Return the pixels with masks laid over them, each with a firm edge."""
    if masks is None:
        return pixels
    pixels = pixels.copy()
    edge = max(1, round(min(pixels.shape[:2]) / 400))
    for index, values in enumerate(interruptible(masks)):
        mask = values.cpu().numpy() >= MASK_THRESHOLD
        name = boxes[index].get("label", "") if index < len(boxes) else ""
        paint = np.array(color_map.of(name, index), dtype=np.float32)
        pixels[mask] = (pixels[mask] * (1 - style.mask_opacity) + paint * style.mask_opacity).astype(np.uint8)
        inner = mask.copy()
        for shift in range(1, edge + 1):
            inner[shift:] &= mask[:-shift]
            inner[:-shift] &= mask[shift:]
            inner[:, shift:] &= mask[:, :-shift]
            inner[:, :-shift] &= mask[:, shift:]
        if style.mask_opacity > 0:
            pixels[mask & ~inner] = paint.astype(np.uint8)
    return pixels


def _draw_skeleton(canvas: Image.Image, obj: dict, bones: Sequence[Sequence[int]], paint: Color, style: Style) -> None:
    """Draw bones in the object's color, and points with a dark rim, so that they show on their bones."""
    pen, line, points = ImageDraw.Draw(canvas), style.line_width_on(canvas), obj["keypoints"]
    places = [(point["x"], point["y"]) for point in points]
    for a, b in interruptible(bones):
        if max(a, b) < len(points) and points[a]["score"] > 0 and points[b]["score"] > 0:
            if reaches((places[a], places[b]), canvas.size, line):
                pen.line((places[a], places[b]), fill=paint, width=line)
    radius = line if len(points) > 30 else 1.6 * line
    for (x, y), point in zip(places, interruptible(points), strict=True):
        if point["score"] > 0 and reaches([(x, y)], canvas.size, radius):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=paint, outline=(0, 0, 0))


def _near_corners(box: dict, canvas: Image.Image, around: int) -> Rectangle:
    """Return x1, y1, x2, y2, at most `around` pixels outside the image."""
    x1, y1, x2, y2 = box_corners(box)
    (x1, x2), (y1, y2) = (
        [min(max(corner, -around), side + around) for corner in corners]
        for corners, side in zip(((x1, x2), (y1, y2)), canvas.size, strict=True)
    )
    return x1, y1, x2, y2


def _outermost_pixels(corners: Rectangle) -> Rectangle:
    """Return the outermost pixels of a box; its end is never before its start."""
    x1, y1, x2, y2 = map(round, corners)
    return x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)


def _score_text(score: float) -> str:
    return f"{score:.2f}" if abs(score) < 10000 else f"{score:.0e}"
