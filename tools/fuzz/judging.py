"""What the server did with a case, as one of a few classes.

ok: it finished. clear: a sentence that says what to do, of a `raise` of ours or of ComfyUI's own check of a value.
unclear: a message of Python or torch. silent: it finished where it had to refuse, or with numbers that are not finite.
slow: longer than `SLOW` seconds, but Stop ended it within `STOP`. hang: Stop did not. crash: the server is gone.
comfyui: a fault of ComfyUI's own that no node can mend (`COMFYUI`).
"""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from ..comfy_server import ROOT, GraphFailed, GraphRejected

SLOW, STOP = 20.0, 2.0
CLASSES = ("ok", "clear", "unclear", "silent", "slow", "hang", "crash", "comfyui")
FAULTS = ("unclear", "silent", "hang", "crash")

# What Python, torch and their libraries say, and a person cannot act on
RAW = re.compile(
    "|".join(
        (
            r"object has no attribute",
            r"(?<!of type )object (is not|does not support|cannot be)",
            r"unsupported operand type",
            r"not supported between instances",
            r"has no len\(\)|len\(\) of|unsized object",
            r"(list|tuple|string) index out of range|indices must be",
            r"must be str|must be real number|argument must be|argument .* must be|expected str instance",
            r"expected string or bytes",
            r"unhashable type",
            r"values to unpack|cannot unpack",
            r"could not convert string to|invalid literal for",
            r"cannot convert float|too large to convert|cannot be interpreted as an integer",
            r"positional argument|unexpected keyword argument",
            r"non-empty TensorList|size mismatch for|loading state_dict|structure and input must",
            r"can't allocate memory|DefaultCPUAllocator|out of memory",
            r"is not a mapping|can only concatenate|not all arguments converted",
            r"Traceback",
            r"codec can't|surrogates not allowed",
            r"maximum recursion depth",
            r"[Tt]ensor\.|torch\.Size|must match the size of tensor|shapes cannot be multiplied|at non-singleton",
            r"Boolean value of|only one element tensors|meta tensor",
            r"cannot reshape|invalid for input of size|broadcast",
            r"^'[^' ]*'$",  # a KeyError's text
            r"^\W*$",
            r"returned a result with an exception set|enforce fail",
        )
    )
)
# ComfyUI's own checks of values before a run
CHECKS = (
    "required_input_missing",
    "bad_linked_input",
    "return_type_mismatch",
    "invalid_input_type",
    "value_smaller_than_min",
    "value_bigger_than_max",
    "value_not_in_list",
)
# Faults of ComfyUI's own: what is found in "file: message", and why no node can mend it
COMFYUI: dict[str, str] = {
    r"^execution\.py: list index out of range": (
        "an empty list on a wire: ComfyUI takes its last item before any node runs"
    ),
    r"^execution\.py: Exceeds the limit \(4300 digits\)": (
        "a huge integer: ComfyUI prints the inputs of a node that failed, and Python prints no integer of this size"
    ),
    r"^<frozen abc>: maximum recursion depth": (
        "a record that holds itself: ComfyUI looks for models in what a node gave before the next one runs"
    ),
    r"^HTTP 5\d\d": "ComfyUI could not read the request; no node was asked",
}


@dataclass(frozen=True)
class Verdict:
    """`signature`: what faults of one kind share. `where`: file:line of the innermost frame."""

    result: str
    message: str = ""
    where: str = ""

    @property
    def signature(self) -> str:
        text = re.sub(r"\d+(\.\d+)?", "#", self.message)
        text = re.sub(r"'[^']{0,200}'", "'..'", text) if len(text) > 60 else text
        return f"{self.where or '-'} | {text[:140]}"


def of_rejection(refusal: GraphRejected) -> Verdict:
    """Of a graph that the queue refused."""
    messages, unclear = [], []
    for node in refusal.node_errors.values():
        for error in node["errors"]:
            text = f"{error['message']}: {error['details']}" if error["type"] in CHECKS else error["details"]
            message = f"{error['type']}: {text}"
            messages.append(message)
            custom = error["type"] == "custom_validation_failed"
            said = error["details"].split(" - ", 1)[-1]
            if not (error["type"] in CHECKS or custom and not RAW.search(said)):
                unclear.append(f"{error['type']}: {error['message']} {error['details']}")
    if not messages:
        return Verdict("unclear", f"rejected: {refusal.error}")
    return Verdict("unclear", unclear[0][:600]) if unclear else Verdict("clear", messages[0][:600], "validation")


def of_failure(failure: GraphFailed, comfyui: Path) -> Verdict:
    """Of a graph in which a node raised."""
    if failure.exception == "ExecutionBlocked":
        return Verdict("clear", failure.message[:600])
    frames = [frame for entry in failure.traceback if (frame := re.match(r'\s*File "(.+?)", line (\d+)', entry))]
    file, line = (frames[-1][1], int(frames[-1][2])) if frames else ("", 0)
    where = f"{_short(file, comfyui)}:{line}"
    kind = failure.exception.rsplit(".", 1)[-1]
    message = f"{kind}: {failure.message}"
    for pattern in COMFYUI:
        if re.search(pattern, f"{where.rsplit(':', 1)[0]}: {failure.message}"):
            return Verdict("comfyui", message[:600], where)
    raised = _is_ours(file, comfyui) and _is_raise(file, line)
    if raised and not RAW.search(failure.message):
        return Verdict("clear", message[:600], where)
    ours = [frame for frame in frames if _is_ours(frame[1], comfyui)]
    if ours and not _is_ours(file, comfyui):
        where += f" from {_short(ours[-1][1], comfyui)}:{ours[-1][2]}"
    return Verdict("unclear", message[:600], where)


def _is_ours(file: str, comfyui: Path) -> bool:
    path = Path(file)
    if path.is_relative_to(comfyui / "custom_nodes"):
        return True
    return path.is_relative_to(ROOT) and not any(
        path.is_relative_to(folder) for folder in (ROOT / ".venv", ROOT / "tests", comfyui)
    )


def remember_sources(pack: Path) -> None:
    """Read where the pack raises, as it is while a server starts: somebody may edit it during a campaign."""
    _raises.cache_clear()
    for folder in ("nodes", "mulan", "visionllm_nodes"):
        for file in (pack / folder).rglob("*.py"):
            _raises(str(file))


@functools.cache
def _raises(file: str) -> frozenset[int]:
    try:
        tree = ast.parse(Path(file).read_text("utf-8"))
    except (OSError, SyntaxError):
        return frozenset()
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return frozenset(lines)


def _is_raise(file: str, line: int) -> bool:
    return line in _raises(file)


def _short(file: str, comfyui: Path) -> str:
    path = Path(file)
    for folder in (comfyui / "custom_nodes", ROOT / ".venv", comfyui, ROOT):
        if path.is_relative_to(folder):
            parts = path.relative_to(folder).parts
            return "/".join(
                parts[1:] if folder.name == "custom_nodes" else parts[-2:] if folder.name == ".venv" else parts
            )
    return "/".join(path.parts[-2:])
