"""The entries of a configuration (config.json), each checked when it is read.

Whoever wrote the file, a number that sizes a model or is computed with is one of the expected kind and range, or an
error names file, entry, value and what was expected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .tensor_files import CONFIG, TensorFile, WrongFileError, describe_path, read_beside, read_object

MAX_HEADS = 1024
EPS_RANGE = {"low": 1e-12, "high": 0.1}  # of what a norm adds to the variance
ROPE_RANGE = {"low": 1.0, "high": 1e12}  # of the longest wavelength of positions
ADVICE = "Correct it, or download the file again."
MAX_SHOWN = 60  # characters of a value in an error


class Config:
    """A configuration, or an object inside it. `entries`: as they stand in the file; `where`: the file, for errors.

    Each method returns an entry by name; `default` where it is absent or null, and without a default that is an error
    too. All raise WrongFileError. Numbers that JSON has no words for (NaN, infinity) are wrong everywhere.
    """

    def __init__(self, entries: Mapping[str, Any], where: str = "the configuration", path: str = ""):
        self.entries = entries
        self._where, self._path = where, path

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int) -> int:
        """Return a whole number of a range; 4.0 is one."""
        expected = f"a whole number from {low} to {high}"
        value = self._get(name, default, expected)
        if not _is_number(value) or value != int(value) or not low <= value <= high:
            raise self.wrong(name, expected)
        return int(value)

    def number(self, name: str, default: float | None = None, *, low: float, high: float) -> float:
        """Return a number of a range."""
        expected = f"a number from {low:g} to {high:g}"
        value = self._get(name, default, expected)
        if not _is_number(value) or not low <= value <= high:
            raise self.wrong(name, expected)
        return float(value)

    def rgb(self, name: str, default: Sequence[float], *, low: float, high: float) -> tuple[float, float, float]:
        """Return three numbers of a range."""
        expected = f"three numbers from {low:g} to {high:g}"
        values = self._get(name, default, expected)
        if not isinstance(values, Sequence) or len(values) != 3:
            raise self.wrong(name, expected)
        if not all(_is_number(value) and low <= value <= high for value in values):
            raise self.wrong(name, expected)
        red, green, blue = map(float, values)
        return red, green, blue

    def indices(self, name: str, default: Sequence[int], *, count: int, below: int) -> tuple[int, ...]:
        """Return a rising list of `count` indices from 0, all below a number."""
        expected = f"{count} rising whole numbers from 0 to {below - 1}"
        values = self._get(name, default, expected)
        if not isinstance(values, Sequence) or not all(_is_number(v) and v == int(v) for v in values):
            raise self.wrong(name, expected)
        indices = tuple(map(int, values))
        if len(indices) != count or any(b <= a for a, b in zip((-1, *indices), (*indices, below), strict=False)):
            raise self.wrong(name, expected)
        return indices

    def heads(self, name: str, width: int, default: int | None = None, *, even: str = "") -> int:
        """Return a number of attention heads that divides the width.

        `even`: what else must be even, "number" or "size of a head" (a rotary embedding turns pairs of channels).
        """
        heads = self.integer(name, default or None, high=MAX_HEADS)
        halved = heads if even == "number" else width // heads if even else 2
        if width % heads or halved % 2:
            raise self.wrong(name, f"a divisor of {width}, the model's width" + (f", with an even {even}" * bool(even)))
        return heads

    def choice(self, name: str, choices: Sequence[str], default: str | None = None, advice: str = ADVICE) -> str:
        """Return one of several texts; `advice` is what to do where it is another."""
        expected = "one of " + ", ".join(map(repr, choices)) if len(choices) > 1 else repr(choices[0])
        value = self._get(name, default, expected)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(name, expected, advice)
        return value

    def text(self, name: str, default: str = "") -> str:
        """Return a text."""
        value = self._get(name, default, "a text")
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self._get(name, default, "true or false")
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def section(self, name: str) -> Config:
        """Return an object inside this one, an empty one where it is absent."""
        value = self._get(name, {}, "an object")
        if not isinstance(value, Mapping):
            raise self.wrong(name, "an object")
        return Config(value, self._where, f"{self._path}{name}.")

    def with_defaults(self, defaults: Mapping[str, Any]) -> Config:
        """Return the same with `defaults` for entries that are absent or null."""
        told = {name: value for name, value in self.entries.items() if value is not None}
        return Config({**defaults, **told}, self._where, self._path)

    def wrong(self, name: str, expected: str, advice: str = ADVICE) -> WrongFileError:
        """Return the error for an entry that is not what was expected."""
        value = self.entries.get(name)
        found = "is missing" if value is None else f"is {_shown(value)}"
        return WrongFileError(f"{self._where}: {self._path}{name} {found}, expected {expected}. {advice}")

    def __contains__(self, name: str) -> bool:
        return self.entries.get(name) is not None

    def _get(self, name: str, default: Any, expected: str) -> Any:
        value = self.entries.get(name)
        value = default if value is None else value
        if value is None:
            raise self.wrong(name, expected)
        return value


def read_config(file: TensorFile) -> Config:
    """Return the configuration of a checkpoint, an empty one where there is none.

    It is in a converted file's metadata, else in config.json in the folder or beside the file. Raises WrongFileError
    where it cannot be read.
    """
    if CONFIG in file.metadata:
        where, content = f"{describe_path(file.path)}: its metadata `{CONFIG}`", file.metadata[CONFIG]
    else:
        where = f"{describe_path(file.path)}: its config.json"
        content = read_beside(file.path if file.path.is_dir() else file.path.parent, "config.json")
    return Config({} if content is None else read_object(content, where), where)


def need_config(file: TensorFile, source: str) -> Config:
    """Do what `read_config` does, and raise WrongFileError where there is none; `source` is where to get it."""
    config = read_config(file)
    if not config.entries:
        raise WrongFileError(
            f"{describe_path(file.path)} has no config.json, and its tensors alone do not say enough. Keep that of "
            f"{source} with the weights."
        )
    return config


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**MAX_SHOWN else "a huge number"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."
