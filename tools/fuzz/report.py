"""The table by node and class, and each distinct fault with a case."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from .cases import Case
from .judging import CLASSES, COMFYUI, FAULTS
from .running import LARGE, Result

TOLD = (*FAULTS, "slow")


def table(results: Sequence[Result]) -> str:
    counts: dict[str, Counter] = defaultdict(Counter)
    for result in results:
        counts[result.id.split("/")[0]][result.verdict.result] += 1
    lines = ["| node | " + " | ".join(CLASSES) + " | all |", "|---" * (len(CLASSES) + 2) + "|"]
    for node, found in [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]:
        cells = [str(found[name] or "") for name in CLASSES]
        lines.append(f"| {node} | {' | '.join(cells)} | {sum(found.values())} |")
    return "\n".join(lines)


def faults(results: Sequence[Result]) -> str:
    """Each distinct fault once, the frequent ones first."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        if result.verdict.result in TOLD:
            groups[result.verdict.result, result.verdict.signature].append(result)
    lines = []
    for (kind, _), found in sorted(groups.items(), key=lambda group: (TOLD.index(group[0][0]), -len(group[1]))):
        first = found[0]
        lines.append(
            f"- {len(found)}x {kind} {first.verdict.message[:240]!r} at {first.verdict.where or '-'}: {first.id[:160]}"
        )
    large = sorted((result for result in results if result.peak > LARGE), key=lambda result: -result.peak)
    lines += [f"- memory {result.peak / 2**30:.1f} GB ({result.verdict.result}): {result.id[:160]}" for result in large]
    return "\n".join(lines)


def clear_messages(results: Sequence[Result]) -> str:
    """Each distinct clear sentence once: for a person to read."""
    seen: dict[str, Result] = {}
    for result in results:
        if result.verdict.result == "clear":
            seen.setdefault(result.verdict.signature, result)
    return "\n".join(
        sorted(f"{result.verdict.where} {result.verdict.message!r}  {result.id[:120]}" for result in seen.values())
    )


def text(results: Sequence[Result], title: str) -> str:
    own = "\n".join(f"- {pattern}: {reason}" for pattern, reason in COMFYUI.items())
    return f"{title}\n\n{table(results)}\n\n{faults(results)}\n\nComfyUI's own:\n{own}\n"


def write(folder: Path, results: Sequence[Result], title: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fuzz.md").write_text(text(results, title), "utf-8")
    (folder / "clear.txt").write_text(clear_messages(results), "utf-8", "backslashreplace")
    (folder / "fuzz.json").write_text(json.dumps([result.record() for result in results]), "utf-8")


def write_graph(folder: Path, case: Case, result: Result) -> None:
    """The graph of a case that failed, to be posted again."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9.=]+", "_", f"{result.verdict.result}_{case.id}")[:150]
    (folder / f"{name}.json").write_text(json.dumps(case.graph), "utf-8")
