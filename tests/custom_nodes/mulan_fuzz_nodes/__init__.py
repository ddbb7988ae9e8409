"""Nodes of tests alone: any Python value into any socket, and a look at what came out."""

from __future__ import annotations

import json
import math

import numpy as np
import torch

NAMES = {"torch": torch, "np": np, "nan": math.nan, "inf": math.inf}
ANY = type("Any", (str,), {"__ne__": lambda self, other: False})("*")
OUTPUTS = 10


class FuzzValue:
    """The value of a Python expression."""

    RETURN_TYPES = (ANY,)
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"expr": ("STRING", {"default": "None"})}}

    def give(self, expr):
        return (eval(expr, dict(NAMES)),)


class FuzzList(FuzzValue):
    """The values of a list, one run each."""

    OUTPUT_IS_LIST = (True,)


class FuzzSink:
    """Takes every output of a node and tells what it is, and whether all its numbers are finite."""

    RETURN_TYPES = ()
    FUNCTION = "take"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {},
            "optional": {name: (ANY,) for name in ("value", *map("value_{}".format, range(OUTPUTS)))},
        }

    def take(self, **values):
        told = {name: told_of(value)[:400] for name, value in values.items()}
        return {"ui": {"told": [json.dumps(told)], "finite": [all(map(is_finite, values.values()))]}}


class ProbeJson(FuzzValue):
    """The value of a JSON text."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": "[]"})}}

    def give(self, text):
        return (json.loads(text),)


class ProbeTensor:
    """The value of an expression with `t`, the image or mask."""

    RETURN_TYPES = (ANY,)
    FUNCTION = "give"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        optional = {"image": ("IMAGE",), "mask": ("MASK",)}
        return {"required": {"kind": ("STRING", {"default": ""})}, "optional": optional}

    def give(self, kind, image=None, mask=None):
        return (eval(kind, {**NAMES, "t": mask if image is None else image}),)


def told_of(value, depth: int = 0) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, (list, tuple)) and depth < 4:
        return f"{len(value)} [" + ", ".join(told_of(part, depth + 1) for part in value[:4]) + "]"
    if isinstance(value, dict) and depth < 4:
        return "{" + ", ".join(f"{name}: {told_of(part, depth + 1)}" for name, part in list(value.items())[:8]) + "}"
    return f"{type(value).__name__} {str(value)[:80]}"


def is_finite(value) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_meta or not value.is_floating_point() or bool(torch.isfinite(value.float()).all())
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_finite, value))
    return True


NODE_CLASS_MAPPINGS = {each.__name__: each for each in (FuzzValue, FuzzList, FuzzSink, ProbeJson, ProbeTensor)}
