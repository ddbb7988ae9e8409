"""Figures -> goals and Markdown."""

from __future__ import annotations

import math

from .cases import CASES
from .weights import Sizes

FULL_LAYERS = 32
COMPARED = {
    "mulankit": "mulankit",
    "ours": "folder",
}  # of the ways to load: the same folder, and both compute in float32
LOAD_GOAL, RESIDENT_GOAL = 0.2, 0.45
SMALLER = {"published": "published folder (fp16)", "int8": "int8", "int4": "int4", "fp8": "fp8"}
SMALLER_GOALS = {("int8", "one"): 0.4, ("int8", "twelve"): 0.25}
ERROR_GOALS = {"int8": 0.05}
GOALS = *(name for name, case in CASES.items() if case.goal is not None), "load"  # those that a profile can explain
WAYS = {
    "mulankit": ("mulankit, float32 pipeline (diffusers' default)", "published folder"),
    "mulankit_half": ("mulankit, float16 pipeline", "published folder"),
    "folder": ("ours", "published folder"),
    "fp16": ("ours", "converted to fp16"),
    "int8": ("ours", "converted to int8"),
    "fp8": ("ours", "converted to fp8"),
}
BYTES_KEPT = {"mulankit": 4, "mulankit_half": 2, "folder": 2, "fp16": 2, "int8": 1, "fp8": 1}


def ratio(results: dict, case: str, side: str = "ours", clock: str = "cpu") -> float:
    """Ours / mulankit, medians of one run."""
    return results["encoding"][side][case][clock] / results["encoding"]["mulankit"][case][clock]


def loading_ratio(results: dict, key: str, way: str = COMPARED["ours"], beside: str = COMPARED["mulankit"]) -> float:
    return results["loading"][way][key] / results["loading"][beside][key]


def resident(results: dict, way: str, layers: int | None = None) -> float:
    """Bytes that a loaded text encoder with a prompt encoded adds to its process; for more layers than measured, by
    arithmetic.
    """
    row, sizes = results["loading"][way], Sizes(**results["sizes"])
    parameters = sizes.layer_parameters + (sizes.unused_parameters if way.startswith("mulankit") else 0)
    return row["anonymous"] + row["file"] + ((layers or sizes.layers) - sizes.layers) * parameters * BYTES_KEPT[way]


def missed(results: dict) -> list[str]:
    """Those of `GOALS` that are not reached."""
    return [
        name
        for name in GOALS
        if (
            loading_ratio(results, "load_cpu") > LOAD_GOAL
            if name == "load"
            else ratio(results, name) > (CASES[name].goal or math.inf)
        )
    ]


def markdown(results: dict) -> str:
    """What is measured so far, as a page's part."""
    sections = {
        "sizes": [_about],
        "encoding": [_floor, _encoding],
        "loading": [_memory],
        "sampling": [_sampling],
        "quantization": [_quantization],
        "profiles": [_profiles],
    }
    parts = [section(results) for needed, belonging in sections.items() if results.get(needed) for section in belonging]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(results: dict) -> str:
    machine, sizes = results["machine"], results["sizes"]
    return (
        f"Measured on {machine['processor']}, {results['threads']} thread{'s' if results['threads'] > 1 else ''} a "
        f"side, {machine['memory'] / 2**30:.0f} GiB of memory, "
        f"{machine['system']}, Python {machine['python']}, torch {machine['torch']} on both sides; medians of "
        f"{results['repeat']} rounds. "
        f"The text encoder has InternVL's full width ({sizes['width']}, feed-forward {sizes['feed_forward']}, "
        f"vocabulary {sizes['vocabulary']}) and "
        f"{sizes['layers']} of its 32 layers, with random weights."
    )


def _floor(results: dict) -> str:
    sizes = Sizes(**results["sizes"])
    flop = 80 * sizes.matrix_flop_per_row
    seconds = results["encoding"]["floor"]["one"]["cpu"]
    used = sizes.layers * sizes.layer_parameters
    return (
        f"**The floor.** A window is 80 rows, padding included. Its matrix products are {flop / 1e9:.0f} GFLOP "
        f"({flop / 1e9 / sizes.layers * FULL_LAYERS:.0f} with 32 layers) "
        f"and a bare loop of them takes {seconds:.2f} s of CPU time here. Each encode reads the layers' weights "
        f"once: {used * 4 / 1e9:.2f} GB in float32, {used * 2 / 1e9:.2f} in fp16, "
        f"{used / 1e9:.2f} in int8 ({FULL_LAYERS * sizes.layer_parameters * 4 / 1e9:.1f}, "
        f"{FULL_LAYERS * sizes.layer_parameters * 2 / 1e9:.1f} and "
        f'{FULL_LAYERS * sizes.layer_parameters / 1e9:.1f} GB with 32 layers). "Floor" below is the bare loop on the '
        "rows that cannot be avoided."
    )


def _encoding(results: dict) -> str:
    rows = []
    for name, case in CASES.items():
        ours, theirs, floor = (results["encoding"][side][name] for side in ("ours", "mulankit", "floor"))
        rows.append(
            [
                case.title,
                f"{theirs['cpu']:.2f}",
                f"{ours['cpu']:.2f}",
                f"{floor['cpu']:.2f}",
                f"**{ratio(results, name):.2f}**",
                f"{ratio(results, name, clock='wall'):.2f}",
                goal(ratio(results, name), case.goal),
                f"{results['differences'][name]:.1e}",
            ]
        )
    smaller = [
        [
            CASES[name].title,
            SMALLER[side],
            f"{results['encoding'][side][name]['cpu']:.2f}",
            f"{ratio(results, name, side):.2f}",
            goal(ratio(results, name, side), SMALLER_GOALS.get((side, name))),
        ]
        for side in SMALLER
        for name in results["encoding"][side]
    ]
    return (
        "### Encoding\n\nPrompts to contexts, adapter included once. Both sides load the same float32 folder and "
        "compute in float32; seconds of CPU time.\n\n"
        + table(
            ["what", "mulankit", "ours", "floor", "ours / mulankit", "by the wall clock", "goal", "contexts differ by"],
            rows,
            1,
        )
        + "\n\nOurs with smaller files beside mulankit in float32, which keeps all of it in float32:\n\n"
        + table(["what", "file", "ours", "ours / mulankit", "goal"], smaller, 2)
    )


def _memory(results: dict) -> str:
    rows = []
    for name, row in results["loading"].items():
        who, what = WAYS[name]
        rows.append(
            [
                who,
                what,
                f"{row['load_cpu']:.2f}",
                f"{row['first_cpu']:.2f}",
                gigabytes(row["anonymous"]),
                gigabytes(row["file"]),
                gigabytes(row["peak"]),
                f"{loading_ratio(results, 'load_cpu', name):.2f}",
                f"{resident(results, name) / resident(results, 'mulankit'):.2f}",
                gigabytes(resident(results, name, FULL_LAYERS)),
            ]
        )
    load, kept = (
        loading_ratio(results, "load_cpu"),
        resident(results, COMPARED["ours"]) / resident(results, COMPARED["mulankit"]),
    )
    half = resident(results, "int8", FULL_LAYERS) / resident(results, "mulankit_half", FULL_LAYERS)
    return (
        "### Loading and memory\n\nA fresh process each, files in the system's cache. Memory is what text encoder "
        "and adapter add to the process, one prompt encoded: "
        "anonymous belongs to the process, mapped is the file itself, which the system shares and drops at need. "
        "Gigabytes; seconds of CPU time.\n\n"
        + table(
            [
                "who",
                "file",
                "load",
                "load and first prompt",
                "anonymous",
                "mapped",
                "peak",
                "load / mulankit",
                "resident / mulankit",
                "resident, 32 layers",
            ],
            rows,
            2,
        )
        + f"\n\nThe same folder, both computing in float32: load {load:.2f}x ({goal(load, LOAD_GOAL)}), resident "
        f"{kept:.2f}x ({goal(kept, RESIDENT_GOAL)}). "
        f"Our int8 beside mulankit in float16, 32 layers: resident {half:.2f}x. The last column is by arithmetic: "
        "what was measured, and the bytes of the layers left out."
    )


def _sampling(results: dict) -> str:
    sampling = results["sampling"]
    theirs, ours, steps = sampling["mulankit"], sampling["ours"], sampling["steps"]
    return (
        f"### Per denoising step\n\nIn {steps} steps mulankit runs its adapter {theirs['calls']} times, "
        f"{theirs['seconds'] / max(theirs['calls'], 1) * 1000:.0f} ms of CPU time each; "
        f"ours runs {ours['calls']} times ({goal(ours['calls'], 0)})."
    )


def _quantization(results: dict) -> str:
    rows = [
        [
            form,
            *(f"{error:.3f}" for error in errors),
            goal(max(errors), ERROR_GOALS.get(form)),
            f"{results['files'][form] / 1e9:.2f} GB",
        ]
        for form, errors in results["quantization"].items()
    ]
    return (
        "### Error of the smaller formats\n\nRelative error of the hidden states against the published float16 "
        "weights, the mean of ten languages; random weights, without outliers and with six channels of the states 50 "
        "times the others.\n\n"
        + table(["format", "error", "with outliers", "goal", f"file, {results['sizes']['layers']} layers"], rows, 1)
    )


def _profiles(results: dict) -> str:
    parts = []
    for name, sides in results.get("profiles", {}).items():
        rows = []
        for side, operations in sides.items():
            rows += [
                [side, f"`{row['operation']}`", str(row["calls"]), f"{row['seconds']:.2f}", f"{row['share']:.0%}"]
                for row in operations
            ]
        state = "missed" if name in missed(results) else "reached"
        parts.append(
            f"{CASES[name].title if name in CASES else 'load'} ({state}):\n\n"
            + table(["side", "operation", "calls", "CPU s", "share"], rows, 2)
        )
    return "### Where the time goes\n\n" + "\n\n".join(parts) if parts else ""


def goal(value: float, most: float | None) -> str:
    if most is None:
        return ""
    return f"at most {most:g}: {'reached' if value <= most else 'missed'}"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"


def table(heads: list[str], rows: list[list[str]], words: int) -> str:
    """Markdown; the first `words` columns are text, the others figures."""
    marks = ["---" if number < words else "--:" for number in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, marks, *rows])
