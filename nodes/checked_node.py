"""The base class of all nodes: `execute` gets checked values, whatever node, pack or API client they come from, and
what it returns lies where ComfyUI's own nodes put theirs.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, ClassVar

import comfy.sd
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import Input, io

from ..mulan.boundary.interrupts import uninterrupted
from ..mulan.boundary.limits import MAX_JSON_LENGTH, MAX_TEXT_LENGTH
from ..mulan.boundary.tensors import check_images, check_masks, to_intermediate
from ..mulan.boundary.texts import clean_text
from ..mulan.boundary.values import describe, shown

Check = Callable[[Any], Any]

# Socket types whose tensors meet those of ComfyUI's nodes -> whether these share a dtype. CONDITIONING keeps its own.
PASSED_ON = {"IMAGE": True, "MASK": True, "SEGS": True, "CONDITIONING": False}

MAX_INTEGER = 10**100  # of an integer that is taken as a text: Python refuses to write much longer ones


def instance_of(kind: type | tuple[type, ...], expected: str) -> Check:
    """Return a check that a value is a `kind`; `expected` says what it should be and where to get it."""

    def check(value):
        if not isinstance(value, kind):
            raise ValueError(f"expected {expected}, got {describe(value)}")
        return value

    return check


def _check_clip(value):
    if value is None:
        raise ValueError("the connected CLIP is empty, its checkpoint has no text encoder. Connect MuLan Loader's CLIP")
    return instance_of(comfy.sd.CLIP, "a CLIP")(value)


class CheckedNode(io.ComfyNode):
    """A node whose inputs are checked and brought into one form, by their types, before `execute` sees them.

    Errors begin with the input's name. `checks` has what each socket type needs; the values of widgets are checked by
    the schema, also where they are connected, which ComfyUI does not do. `files` are the inputs that choose a file:
    their options may have changed, and the node looks for the file itself. In `validate_inputs` a missing or unusable
    value is None, like a connected one: ComfyUI itself reports it. It may return a list, True or a message for each
    check: all problems are told, a line each, beginning with its input's name, for ComfyUI shows the text at every
    input that the method names.
    """

    checks: ClassVar[dict[str, Check]] = {
        "IMAGE": check_images,
        "MASK": check_masks,
        "CLIP": _check_clip,
        "MODEL": instance_of(ModelPatcher, "a MODEL"),
        "VIDEO": instance_of(Input.Video, "a VIDEO"),
    }
    files: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name, wrap in (("execute", _checked_execute), ("validate_inputs", _checked_validation)):
            method = cls.__dict__.get(name)
            # ComfyUI runs each node in a copy of its class, whose methods are wrapped already
            if isinstance(method, classmethod) and not hasattr(method.__func__, "__wrapped__"):
                setattr(cls, name, classmethod(wrap(method.__func__)))


def _checked_execute(execute: Callable) -> Callable:
    @functools.wraps(execute)
    def checked(cls: type[CheckedNode], **values):
        schema = cls.define_schema()
        with _encodable_errors():
            for given in schema.inputs:
                if given.optional and _is_nothing(values.get(given.id), schema.is_input_list):
                    values.pop(given.id, None)  # the connected node gave no value: the default of `execute` stands
                elif given.id in values:
                    values[given.id] = _checked_input(cls, given, values[given.id], schema.is_input_list)
            return _placed(schema, execute(cls, **values))

    return checked


def _placed(schema: io.Schema, returned):
    if isinstance(returned, io.NodeOutput):
        returned.args = tuple(
            to_intermediate(value, PASSED_ON[output.io_type]) if output.io_type in PASSED_ON else value
            for output, value in zip(schema.outputs, returned.args, strict=True)
        )
    return returned


@contextmanager
def _encodable_errors():
    """Replace half characters in an error: ComfyUI's log cannot be written with one, and its queue would stop for good.

    They come in by file names of another encoding.
    """
    try:
        yield
    except Exception as error:
        message = str(error)
        if (cleaned := clean_text(message)) == message:
            raise
        raise ValueError(cleaned) from None


def _checked_validation(validate: Callable) -> Callable:
    parameters = list(inspect.signature(validate).parameters.values())[1:]
    required = [each.name for each in parameters if each.default is inspect.Parameter.empty]

    @functools.wraps(validate)
    def checked(cls: type[CheckedNode], **values):
        in_lists = cls.define_schema().is_input_list
        unknown = [None] if in_lists else None
        values = {
            name: [_usable(each) for each in value] if in_lists and isinstance(value, (list, tuple)) else _usable(value)
            for name, value in values.items()
        }
        with uninterrupted():
            result = validate(cls, **{name: unknown for name in required} | values)
        if isinstance(result, list):
            result = "\n".join(each for each in result if each is not True) or True
        return clean_text(result) if isinstance(result, str) else result

    checked.__signature__ = inspect.signature(validate)  # by which ComfyUI chooses what to pass  # pyright: ignore
    return checked


def _is_nothing(value, in_list: bool) -> bool:
    if in_list and isinstance(value, (list, tuple)):
        return len(value) > 0 and all(each is None for each in value)
    return value is None


def _usable(value):
    if isinstance(value, str):
        return clean_text(value)
    return None if isinstance(value, (list, tuple, dict)) else value


def _checked_input(node: type[CheckedNode], given: io.Input, value, in_list: bool):
    if isinstance(given, io.Autogrow.Input):
        template = given.template.input
        return {name: _named(name, _checked_value, node, template, each) for name, each in (value or {}).items()}
    if in_list and isinstance(value, (list, tuple)):
        return [_named(given.id, _checked_value, node, given, each) for each in value]
    return _named(given.id, _checked_value, node, given, value)


def _named(name: str, check: Callable, *values):
    try:
        return check(*values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _checked_value(node: type[CheckedNode], given: io.Input, value):
    if isinstance(given, io.String.Input):
        return _check_text(value, MAX_JSON_LENGTH if given.id == "json" else MAX_TEXT_LENGTH)
    if isinstance(given, (io.Int.Input, io.Float.Input)):
        return _check_number(given, value)
    if isinstance(given, io.Boolean.Input):
        return instance_of((bool, int, float), "true or false")(value)
    if isinstance(given, io.Combo.Input):
        return _check_text(value, MAX_TEXT_LENGTH) if given.id in node.files else _check_choice(given.options, value)
    check = node.checks.get(given.io_type)
    return check(value) if check else value


def _check_text(value, limit: int) -> str:
    if not isinstance(value, (str, bool, float)) and not (isinstance(value, int) and abs(value) < MAX_INTEGER):
        raise ValueError(f"expected a text, got {describe(value)}")
    text = clean_text(str(value))
    if len(text) > limit:
        raise ValueError(f"the text has {len(text)} characters, and at most {limit} are allowed. Shorten it")
    return text


def _check_number(given: io.Int.Input | io.Float.Input, value) -> int | float:
    whole = isinstance(given, io.Int.Input)
    low, high = -math.inf if given.min is None else given.min, math.inf if given.max is None else given.max
    try:
        number = math.nan if isinstance(value, (str, bytes)) else int(value) if value == int(value) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # not a number, NaN, infinity, a tensor of several
        number = math.nan
    if low <= number <= high and not (whole and number != int(number)):
        return number if whole else float(number)
    raise ValueError(f"expected a {'whole ' if whole else ''}number from {low} to {high}, got {shown(value)}")


def _check_choice(options: list, value) -> Any:
    if not any(type(value) is type(option) and value == option for option in options):
        raise ValueError(f"{shown(value)} is not one of {', '.join(map(str, options))}")
    return value
