"""The strict reader of the emoji world: which thing a drawing shows, or none of them.

Two networks, one that sees colours and one that sees only edges, must name the same thing; then the drawing is laid
over the thing's own picture and must have its details. What passes, a person passes too: the reader is measured against
drawings labelled by hand (`labelled.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from .concepts import CHARACTERS, DATA
from .spoiled import blur, things

READER = DATA / "reader.safetensors"
NONE = len(CHARACTERS)  # the networks' class for none of the things; `read` says -1
SURE = 0.2  # the least probability that each network must give
DETAILS = 0.5  # the least likeness to the thing's own picture
ENOUGH = 1.35  # the least of all together: the more details, the less sure the networks need be
NETWORKS_SHARE = 0.15


class Network(nn.Module):
    """Pictures [N, C, S, S] -> logits [N, 131]; where something lies counts, so that parts in disorder are nothing."""

    def __init__(self, channels: int, widths: tuple[int, ...], last: int = 18):
        super().__init__()
        layers: list[nn.Module] = []
        for place, width in enumerate(widths):
            halves = 2 if place < len(widths) - 1 else 1
            layers += [nn.Conv2d(channels, width, 3, halves, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers += [nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(last * 36, NONE + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.dropout(self.layers(x).flatten(1), 0.1, self.training))


def colours(pictures: torch.Tensor) -> torch.Tensor:
    """[N, 3, 96, 96] in 0..1 -> at half the size, around 0."""
    return F.avg_pool2d(pictures, 2) * 2 - 1


def edges(pictures: torch.Tensor) -> torch.Tensor:
    """[N, 3, 96, 96] in 0..1 -> brightness against the mean around each pixel, over the contrast there, at half the
    size: no colours.
    """
    grey = (pictures * torch.tensor([0.3, 0.59, 0.11])[:, None, None]).sum(1, keepdim=True)
    detail = grey - _around(grey)
    return F.avg_pool2d(detail / (_around(detail.square()) + 0.05**2).sqrt(), 2)


def _around(images: torch.Tensor) -> torch.Tensor:
    small = F.avg_pool2d(F.avg_pool2d(images, 4), 3, 1, 1, count_include_pad=False)
    return F.interpolate(small, scale_factor=4, mode="bilinear")


class Reader(nn.Module):
    """Both networks."""

    def __init__(self):
        super().__init__()
        self.colours = Network(3, (24, 40, 64, 64))
        self.edges = Network(1, (24, 40, 64, 64))

    def networks(self) -> tuple[Callable[[torch.Tensor], torch.Tensor], ...]:
        """Each: float32 [N, 3, 96, 96] in 0..1 -> logits [N, 131]."""
        return (
            lambda pictures: self.colours(colours(pictures).contiguous(memory_format=torch.channels_last)),
            lambda pictures: self.edges(edges(pictures).contiguous(memory_format=torch.channels_last)),
        )

    @torch.no_grad()
    def judge(self, pictures: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 [N, 96, 96, 3] -> the thing that each shows if any [N], and whether it is drawn well enough [N]."""
        named, passed = [], []
        for part in torch.as_tensor(pictures).split(128):
            images = part.permute(0, 3, 1, 2).float() / 255
            chances = torch.stack([network(images).softmax(-1) for network in self.networks()])
            thing = chances[..., :NONE].amin(0).argmax(-1)
            sure = chances.gather(2, thing.expand(2, -1)[..., None])[..., 0]
            like = likeness(images, thing)
            total = like.logit(1e-4) + NETWORKS_SHARE * sure.logit(1e-4).mean(0)
            named.append(thing)
            passed.append((sure.amin(0) >= SURE) & (like >= DETAILS) & (total >= ENOUGH))
        return torch.cat(named), torch.cat(passed)

    def read(self, pictures: np.ndarray | torch.Tensor) -> np.ndarray:
        """uint8 [N, 96, 96, 3] -> the place in `CHARACTERS` of what each shows, or -1: int64 [N]."""
        named, passed = self.judge(pictures)
        return torch.where(passed, named, -1).numpy()

    def agrees(self, pictures: np.ndarray | torch.Tensor, wanted) -> np.ndarray:
        """Whether each picture shows the thing wanted of it: bool [N]."""
        return self.read(pictures) == np.asarray(wanted)


def load(path: Path = READER) -> Reader:
    """The trained reader."""
    reader = Reader()
    reader.load_state_dict(load_file(path))
    return reader.eval()


# --- laid over the thing's own picture

SCALES = (0.94, 0.97, 1.0, 1.03, 1.06)
REACH = 3  # half-size pixels of shift that are tried each way


@cache
def _details() -> torch.Tensor:
    """Of each thing at each scale, what `blur` takes from its picture, colours and alpha: [130, S, 4, 48, 48]."""
    sizes = []
    for scale in SCALES:
        matrix = torch.eye(2, 3)[None].expand(NONE, -1, -1) / scale
        places = F.affine_grid(matrix, [NONE, 1, 96, 96], align_corners=False)
        sizes.append(F.avg_pool2d(F.grid_sample(things(), places, align_corners=False), 2))
    small = torch.stack(sizes, 1)
    return small - _soft(small.flatten(0, 1)).view_as(small)


def _soft(small: torch.Tensor) -> torch.Tensor:
    return blur(small, 3.0)


def likeness(pictures: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """How much of the detail of the things' own pictures, in colour, pictures [N, 3, 96, 96] have: 0..1, [N].

    The correlation of what is finer than a blur, at the best scale and shift; a picture that has too little of it in
    all counts as little.
    """
    border = torch.cat([pictures[:, :, :2].flatten(2), pictures[:, :, -2:].flatten(2)], -1)
    ground = border.median(-1).values
    small = F.avg_pool2d(pictures, 2)
    seen = small - _soft(small)
    own = _details()[wanted]
    own = own[:, :, :3] - own[:, :, 3:] * ground[:, None, :, None, None]
    products = torch.fft.irfft2(
        (torch.fft.rfft2(seen)[:, None] * torch.fft.rfft2(own).conj()).sum(2), s=small.shape[2:]
    )
    products = products.roll((REACH, REACH), (2, 3))[..., : 2 * REACH + 1, : 2 * REACH + 1].amax((2, 3))
    norm, own_norm = seen.square().sum((1, 2, 3)).sqrt()[:, None], own.square().sum((2, 3, 4)).sqrt()
    return (products / (torch.maximum(norm, 0.6 * own_norm) * own_norm + 1e-6)).amax(1)
