"""A few frames of a VIDEO, evenly spread over it."""

from __future__ import annotations

import comfy.model_management
import torch
from comfy_api.latest import Input, InputImpl

from ..boundary.limits import MAX_MASK_PIXELS
from ..boundary.tensors import check_images


def middle_frames(length: int, count: int) -> list[int]:
    """Return the middle frames of `count` equal parts of `length` frames; of fewer frames some serve several times."""
    return [int((part + 0.5) * length / count) for part in range(count)]


def sample_frames(video: Input.Video, count: int) -> list[torch.Tensor]:
    """Return `count` frames [H, W, 3] float32 0..1, evenly spread.

    Those of a file are decoded one by one, since a whole video would not fit in memory; a part that has no frame where
    one is expected (frames of uneven length) is left out. Raises ValueError where no frame can be read, and for what
    is no image.
    """
    frames = _single_frames(video, count) if isinstance(video, InputImpl.VideoFromFile) else []
    if not frames:
        if isinstance(video, InputImpl.VideoFromFile):
            _check_whole(video)
        images = video.get_components().images
        if not len(images):
            raise ValueError("video: none of its frames can be read")
        frames = [images[index] for index in middle_frames(len(images), count)]
    return [_check_frame(frame) for frame in frames]


def _check_frame(frame) -> torch.Tensor:
    try:
        return check_images(frame[None])[0]
    except ValueError as error:
        raise ValueError(f"video: {error}") from error


def _check_whole(video: Input.Video) -> None:
    """Raise ValueError where the whole video would not fit in memory."""
    (width, height), count = video.get_dimensions(), video.get_frame_count()
    if width * height * count > MAX_MASK_PIXELS:
        raise ValueError(
            f"video: its frames cannot be read one by one, and all {count} of {width} x {height} pixels are too many. "
            "Save it again as MP4"
        )


def _single_frames(video: Input.Video, count: int) -> list[torch.Tensor]:
    rate = float(video.get_frame_rate())
    if rate <= 0:
        return []
    length = max(1, round(video.get_duration() * rate))
    frames: dict[int, torch.Tensor | None] = {}
    for index in middle_frames(length, count):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if index not in frames:
            # From half a frame before it, so that it is this one and not the next. As long as two, since the clocks of
            # files
            # are coarse.
            part = video.as_trimmed(max(0.0, (index - 0.5) / rate), 2 / rate, strict_duration=False)
            frames[index] = None if part is None else next(iter(part.get_components().images), None)
    sampled = [frames[index] for index in middle_frames(length, count)]
    return [frame for frame in sampled if frame is not None]
