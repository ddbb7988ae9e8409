"""Which frames of a video are looked at: files of several kinds, and frames in memory."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from comfy_api.latest import InputImpl, Types

from mulan_nodes.mulan.images.video_frames import middle_frames, sample_frames


def film(path, count: int, codec: str = "libx264", pixels: str = "yuv420p"):
    """A video of 12 frames a second, each a little lighter than the one before: black to white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for number in range(count):
            grey = np.full((48, 64, 3), 250 * number // max(1, count - 1), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def numbers(frames: list[torch.Tensor], count: int) -> list[int]:
    """Which frames of a film they are."""
    return [round(frame.mean().item() * 255 / 250 * (count - 1)) for frame in frames]


def test_frames_are_the_middles_of_equal_parts():
    assert middle_frames(80, 8) == [5, 15, 25, 35, 45, 55, 65, 75] and middle_frames(9, 1) == [4]
    assert middle_frames(1, 8) == [0] * 8 and middle_frames(3, 6) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "name, codec, count",
    [("x.mp4", "libx264", 40), ("x.webm", "libvpx-vp9", 40), ("x.mkv", "libx264", 30), ("three.mp4", "libx264", 3)],
)
def test_frames_of_files(tmp_path, name, codec, count):
    frames = sample_frames(InputImpl.VideoFromFile(film(tmp_path / name, count, codec)), 8)
    assert numbers(frames, count) == middle_frames(count, 8) and frames[0].shape == (48, 64, 3)


@pytest.mark.parametrize("name, codec", [("one.mp4", "libx264"), ("one.webm", "libvpx-vp9")])
def test_a_video_of_one_frame(tmp_path, name, codec):
    assert numbers(sample_frames(InputImpl.VideoFromFile(film(tmp_path / name, 1, codec)), 8), 1) == [0] * 8


@pytest.mark.parametrize(
    "cut, first, length", [({"start_time": 1.0, "duration": 1.0}, 12, 12), ({"start_time": -1.0}, 28, 12)]
)
def test_a_part_of_a_video(tmp_path, cut, first, length):
    video = InputImpl.VideoFromFile(film(tmp_path / "x.mp4", 40), **cut)
    assert numbers(sample_frames(video, 4), 40) == [first + number for number in middle_frames(length, 4)]


def test_a_file_is_never_decoded_whole(tmp_path, monkeypatch):
    most = []
    decode = InputImpl.VideoFromFile.get_components

    def watched(video):
        components = decode(video)
        most.append(len(components.images))
        return components

    monkeypatch.setattr(InputImpl.VideoFromFile, "get_components", watched)
    sample_frames(InputImpl.VideoFromFile(film(tmp_path / "x.mp4", 120)), 8)
    assert len(most) == 8 and max(most) <= 3


def test_frames_in_memory():
    images = torch.linspace(0, 1, 20)[:, None, None, None].expand(20, 8, 8, 3)
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=Fraction(10)))
    assert torch.equal(torch.stack(sample_frames(video, 8)), images[middle_frames(20, 8)])
    empty = InputImpl.VideoFromComponents(Types.VideoComponents(images=images[:0], frame_rate=Fraction(10)))
    with pytest.raises(ValueError, match="video: none of its frames can be read"):
        sample_frames(empty, 8)
