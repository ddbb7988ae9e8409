"""InternVL-C's published zero-shot accuracies: OpenGVLab/InternVL, README and clip_benchmark (arXiv 2312.14238, section
4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Published:
    """A data set, told by how many classes and pictures it has, and the share of its pictures that InternVL-C labelled
    right, by language.
    """

    name: str
    classes: int
    pictures: int
    shares: MappingProxyType


def _published(name: str, classes: int, pictures: int, **shares: float) -> Published:
    return Published(name, classes, pictures, MappingProxyType(shares))


PUBLISHED = (
    _published("ImageNet-1K", 1000, 50_000, en=0.83178, zh=0.6446, ja=0.61488, ar=0.4486, it=0.65686),
    _published("ImageNet-A", 200, 7_500, en=0.838),
    _published("ImageNet-R", 200, 30_000, en=0.955),
    _published("ImageNet-V2", 1000, 10_000, en=0.773),
    _published("ImageNet-Sketch", 1000, 50_889, en=0.739),
    _published("ObjectNet", 113, 18_574, en=0.806),
)


def published(classes: int, pictures: int) -> Published | None:
    return next((data for data in PUBLISHED if (data.classes, data.pictures) == (classes, pictures)), None)
