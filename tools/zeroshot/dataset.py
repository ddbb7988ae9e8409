"""A data set as ImageNet's is laid out, a folder per class, and what its classes are called in a language.

imagenet.json holds the 1,000 synsets of ImageNet-1K in the order of their numbers, and the names that InternVL's
authors used for them in five languages (the clip_benchmark folder of OpenGVLab/InternVL, MIT).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

IMAGENET = Path(__file__).with_name("imagenet.json")
SYNSETS = "synsets"
ALIASES = {"cn": "zh", "jp": "ja"}  # the authors' own codes


class WrongDatasetError(ValueError):
    """The message says what is wrong with which folder."""


@dataclass(frozen=True)
class Dataset:
    folder: Path
    classes: tuple[str, ...]  # names of the folders, in order

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """Raises WrongDataset where there are not two folders at least."""
        if not folder.is_dir():
            raise WrongDatasetError(f"{folder} is no folder")
        classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if len(classes) < 2:
            raise WrongDatasetError(
                f"{folder} holds {len(classes)} folders; expected is a folder for each class, two at least, with its "
                "pictures inside"
            )
        return cls(folder, tuple(classes))

    def labels(self, language: str) -> tuple[str, ...]:
        """A label for each class: of classnames_<language>.json or classnames.json in the folder; where the folders are
        ImageNet's, of its names;
        else the names of the folders. Raises WrongDataset.
        """
        for name in (f"classnames_{language}.json", "classnames.json"):
            if (self.folder / name).is_file():
                return self._told(self.folder / name)
        numbers = self._imagenet_numbers()
        if numbers is None:
            return tuple(name.replace("_", " ") for name in self.classes)
        known = _imagenet()
        if language not in known:
            raise WrongDatasetError(
                f"the classes of {self.folder} are ImageNet's, whose names are here in "
                f"{', '.join(sorted(known.keys() - {SYNSETS}))}, not "
                f"in {language}: write classnames_{language}.json beside them, an object with a name for each folder"
            )
        return tuple(known[language][number] for number in numbers)

    def _imagenet_numbers(self) -> list[int] | None:
        """ImageNet's number of each class, where the folders are called by synset, or all 1,000 by number
        (ImageNet-V2); None for other folders.
        """
        synsets = _imagenet()[SYNSETS]
        if set(self.classes) <= set(synsets):
            return [synsets.index(name) for name in self.classes]
        if set(self.classes) == {str(number) for number in range(len(synsets))}:
            return [int(name) for name in self.classes]
        return None

    def _told(self, file: Path) -> tuple[str, ...]:
        try:
            told = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise WrongDatasetError(f"{file} is no JSON: {error}") from error
        if isinstance(told, list) and len(told) == len(self.classes):
            told = dict(zip(self.classes, told, strict=True))
        if not isinstance(told, dict):
            raise WrongDatasetError(
                f"{file} must hold an object with a name for each folder, or a list of {len(self.classes)} names in "
                "the folders' order"
            )
        wrong = next(
            (name for name in self.classes if not isinstance(told.get(name), str) or not told[name].strip()), None
        )
        if wrong is not None:
            raise WrongDatasetError(f"{file} has no name for the folder {wrong}")
        return tuple(told[name] for name in self.classes)


def _imagenet() -> dict[str, Sequence[str]]:
    return json.loads(IMAGENET.read_text("utf-8"))
