"""What nodes check before the queue starts, told with the field's name."""
from __future__ import annotations

from collections.abc import Callable


def valid(check: Callable, *values) -> bool | str:
    """For `validate_inputs`: True, or what `check(*values)` has against them. A connected value is not there yet (None), it is checked later."""
    return True if any(value is None for value in values) else passes(check, *values)


def passes(check: Callable, *values, **named) -> bool | str:
    """The same where `check` knows itself what None means."""
    try:
        check(*values, **named)
    except (OSError, ValueError) as error:
        return str(error)
    return True


def for_field(field: str, check: Callable, *values):
    """What `check(*values)` gives; its ValueError begins with the field."""
    try:
        return check(*values)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
