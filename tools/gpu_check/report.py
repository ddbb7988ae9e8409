"""The results of the GPU check as Markdown: the figures a README quotes, then every row."""

from __future__ import annotations

from collections.abc import Callable

from ..bench.report import table

Row = dict
QUOTED: tuple[tuple[str, str, str, Callable[[Row], str]], ...] = (  # section, beginning of a row's name, title, figure
    ("sd15", "SD1.5 and MuLan int8", "SD1.5 + MuLan int8, 512 x 512: peak", lambda row: _of_upstream(row)),
    ("sd15", "SD1.5 and MuLan fp16", "SD1.5 + MuLan fp16, 512 x 512: peak", lambda row: _of_upstream(row)),
    *(
        (
            "mulan",
            f"{form} encode {count} x",
            f"{count} prompt{'s' * (count > 1)} in {form}",
            lambda row: _of_floor(row),
        )
        for form in ("int4", "int8", "fp8", "fp16")
        for count in (1, 12)
    ),
    ("visionllm", "bf16 detect, first", "VisionLLM 7B: first question about an image", lambda row: f"{row['s']:.2f} s"),
    ("visionllm", "bf16 detect, second", "VisionLLM 7B: the next question", lambda row: f"{row['s']:.2f} s"),
    ("visionllm", "bf16 generating", "VisionLLM 7B: writing", lambda row: f"{row['tokens/s each']:.0f} tokens/s"),
    ("internvl", "tower, 16", "InternVL 6B tower", lambda row: f"{row['images/s']:.0f} images/s"),
    ("chat", "bf16 prefill", "InternVL chat 8B: writing in bf16", lambda row: f"{row['tokens/s']:.0f} tokens/s"),
    ("chat", "int8 prefill", "InternVL chat 8B: writing in int8", lambda row: f"{row['tokens/s']:.0f} tokens/s"),
)


def markdown(results: dict) -> str:
    """Return the page of a run's `gpu.json`."""
    versions = next(iter(_rows(results, "machine", "versions")), {})
    quick = "A rehearsal with tiny sizes: these figures mean nothing. " if results.get("quick") else ""
    card = versions.get("card", "no GPU")
    quoted = [
        [title, figure(row)]
        for section, name, title, figure in QUOTED
        for row in _rows(results, section, name)[:1]
        if "error" not in row
    ]
    parts = [
        f"{quick}Measured on {card}, torch {versions.get('torch', '?')}; random weights at full size.",
        table(["what", "figure"], quoted, 1),
    ]
    for section, result in results.items():
        if not isinstance(result, dict):
            continue
        rows = result.get("rows", [])
        state = result.get("skipped") or (f"ended by {result['rc']}" if result.get("rc") else "")
        heading = f"### {section}" + (f" ({state})" if state else "")
        parts.append(
            f"{heading}\n\n" + table(["what", "figures"], [_cells(row) for row in rows], 2) if rows else heading
        )
    return "\n\n".join(parts) + "\n"


def _rows(results: dict, section: str, name: str) -> list[Row]:
    return [row for row in results.get(section, {}).get("rows", []) if row.get("name", "").startswith(name)]


def _cells(row: Row) -> list[str]:
    figures = ", ".join(f"{key} {value}" for key, value in row.items() if key != "name")
    return [str(row.get("name", "")), figures.replace("|", "/")]


def _of_upstream(row: Row) -> str:
    return f"{row['peak_GiB']:.1f} GiB (upstream's pipeline: {row['upstream_GiB']})"


def _of_floor(row: Row) -> str:
    return f"{row['s']:.3f} s (reading the weights once: {row['floor_s']:.3f})"
