"""Values as texts tell of them: those of a wrong kind, and sizes."""

from __future__ import annotations


def describe(value) -> str:
    """Name the type of a value that came where another type belongs."""
    if value is None:
        return "nothing (None): the connected node gave no value"
    return f"a value of type {type(value).__name__}"


def shown(value) -> str:
    """Return a value for an error, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)):
        return repr(value) if len(value) <= 40 else f"{value[:40]!r}..."
    return str(value) if isinstance(value, (bool, int, float)) else f"a {type(value).__name__}"


def format_size(count: int) -> str:
    """Return a number of bytes as people write it."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
