"""A few frames of a VIDEO, evenly spread over it."""

from __future__ import annotations

import comfy.model_management
import torch
from comfy_api.latest import Input, InputImpl


def middles(length: int, count: int) -> list[int]:
    """The middle frames of `count` equal parts of `length` frames; one may serve several times where there are fewer."""
    return [int((part + 0.5) * length / count) for part in range(count)]


def spread_frames(video: Input.Video, count: int) -> list[torch.Tensor]:
    """`count` frames [H, W, 3] float32 0..1. Those of a file are decoded one by one, since a whole video would not fit in memory; a part that has no
    frame where one is expected (frames of uneven length) is left out. Raises ValueError where no frame can be read."""
    frames = _single_frames(video, count) if isinstance(video, InputImpl.VideoFromFile) else []
    if not frames:
        images = video.get_components().images
        if not len(images):
            raise ValueError("video: no frame of it can be read")
        frames = [images[number] for number in middles(len(images), count)]
    return frames


def _single_frames(video: Input.Video, count: int) -> list[torch.Tensor]:
    rate = float(video.get_frame_rate())
    length = max(1, round(video.get_duration() * rate))
    frames: dict[int, torch.Tensor | None] = {}
    for number in middles(length, count):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if number not in frames:
            # From half a frame before it, so that it is this one and not the next; as long as two, since clocks of files are coarse.
            part = video.as_trimmed(max(0.0, (number - 0.5) / rate), 2 / rate, strict_duration=False)
            frames[number] = next(iter(part.get_components().images), None)
    return [frames[number] for number in middles(length, count) if frames[number] is not None]
