"""Convert a published checkpoint to .safetensors for ComfyUI.

Run it from ComfyUI's folder, in ComfyUI's Python:
`python -m custom_nodes.mulan-nodes.mulan.conversion SOURCE TARGET --format int8`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # what imports ComfyUI waits until `main` has chosen the device
    from .output_files import ConversionResult, Progress

# This module as ComfyUI's folder names it: "custom_nodes.<folder>.mulan.conversion"
MODULE = ".".join(("custom_nodes", Path(__file__).resolve().parents[2].name, "mulan", "conversion"))


def main(arguments: list[str] | None = None) -> int:
    """Convert as the command line says; exit with the reason where nothing was written."""
    options = _parser().parse_args(arguments)
    from comfy.cli_args import args

    args.cpu = args.cpu or not (
        torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available()
    )
    from .converters import convert

    start = time.monotonic()

    def show_progress(done: Progress) -> None:
        line = (
            f"  {done.tensors} of {done.all_tensors} tensors, {done.bytes / 1e9:.2f} of {done.all_bytes / 1e9:.2f} GB"
        )
        _show(f"{line}, {time.monotonic() - start:.0f} s", last=done.bytes == done.all_bytes)

    try:
        result = convert(options.source, options.target, options.format, options.overwrite, show_progress)
    except (ValueError, OSError) as error:
        sys.exit(f"Nothing was written: {error}")
    for file in (result, *result.beside):
        print(f"{file.path}: {file.title}, {file.size / 1e9:.2f} GB. Put it into models/{file.folder}.", flush=True)
    for note in result.notes:
        print(note, flush=True)
    if options.check:
        _compare(result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="the folder InternVL-14B-224px, internvl_c_13b_224px.pth, a text encoder file that MuLan Loader reads, "
        "an adapter .pth, an InternVL chat folder, or VisionLLM v2's folder",
    )
    parser.add_argument(
        "target",
        type=Path,
        nargs="?",
        metavar="TARGET",
        help="a .safetensors file or a folder (default: the current folder)",
    )
    parser.add_argument("--format", choices=("int8", "fp8", "fp16"), help="of a model's matrices (default: int8)")
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET if it exists")
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="do not compare the result with the source"
    )
    return parser


def _compare(result: ConversionResult) -> None:
    """Print how far a text encoder is from its source, for a sentence in each of ten languages."""
    if result.source is None:
        return
    from ..checkpoints.tensor_files import open_streaming
    from ..conditioning.model_files import text_encoder_from_tensors
    from .encoder_error import encoder_error

    print(
        "Comparing with the source: the same sentences through both "
        "(minutes for the full model on a CPU; --no-check skips it) ..."
    )
    errors = encoder_error(
        text_encoder_from_tensors(open_streaming(result.path)),
        result.source,
        lambda done, all: _show(f"  {done} of {all} layers", last=done == all),
    )
    print("Relative error of the hidden states, against the source:")
    for language, error in errors.items():
        print(f"  {language:10} {error:.4f}")
    print(f"  {'mean':10} {sum(errors.values()) / len(errors):.4f}", flush=True)


def _show(progress: str, last: bool) -> None:
    """Overwrite one line on a terminal; elsewhere print only the last one."""
    if sys.stdout.isatty():
        print(f"\r{progress:78}", end="\n" if last else "", flush=True)
    elif last:
        print(progress, flush=True)


if __name__ == "__main__":
    sys.exit(main())
