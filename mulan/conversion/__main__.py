"""Convert a published checkpoint, here or on Hugging Face, to .safetensors for ComfyUI.

Run it from ComfyUI's folder, in ComfyUI's Python:
`python -m custom_nodes.mulan-nodes.mulan.conversion SOURCE TARGET --format int8`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..checkpoints.quantization import FORMATS

if TYPE_CHECKING:  # what imports ComfyUI waits until `main` has chosen the device
    from .download_progress import DownloadProgress
    from .output_files import ConversionResult, Progress

# This module as ComfyUI's folder names it: "custom_nodes.<folder>.mulan.conversion"
MODULE = ".".join(("custom_nodes", Path(__file__).resolve().parents[2].name, "mulan", "conversion"))


def main(
    arguments: list[str] | None = None,
    folders: Callable[[str], Path] | None = None,
    program: str = f"python -m {MODULE}",
    prompts: Callable[[], Path] | None = None,
) -> int:
    """Convert as the command line says; exit with the reason where nothing was written.

    `folders` gives the folder for each folder below models/, for results without a target; else it is the current one.
    `prompts` gives the folder of the encoded prompts, which the command then can remove.
    """
    options = _parser(program, folders is not None, prompts is not None).parse_args(arguments)
    if prompts and options.forget_prompts is not None:
        return _forget(Path(options.forget_prompts) if options.forget_prompts else prompts())
    from comfy.cli_args import args

    args.cpu = args.cpu or not (
        torch.cuda.is_available() or torch.xpu.is_available() or torch.backends.mps.is_available()
    )
    if options.list:
        return _list()
    if options.source is None:
        sys.exit(f"Name a source: {program} --help")
    target = Path(options.target) if options.target else folders or Path.cwd()
    try:
        if Path(options.source).exists():
            results = _convert(options, target)
        else:
            results = _download(options, target)
    except (ValueError, OSError) as error:
        sys.exit(f"Nothing was written: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped. What was finished of a download is kept: the same command goes on with it.")
    for result in results:
        print("\n".join(result.lines()), flush=True)
        for file in () if callable(target) else (result, *result.beside):
            print(f"Put {file.path.name} into models/{file.folder}.", flush=True)
        if options.check:
            _compare(result)
    return 0


def _convert(options: argparse.Namespace, target: Path | Callable[[str], Path]) -> list[ConversionResult]:
    """Convert a file or folder that is here."""
    from ..boundary.values import format_size
    from ..checkpoints.safetensors_writer import SafetensorsWriter
    from .converters import convert, plan_local

    start = time.monotonic()

    def show_progress(done: Progress) -> None:
        _show(f"  {done}, {time.monotonic() - start:.0f} s", last=done.bytes == done.all_bytes)

    if options.dry_run:
        for output in plan_local(Path(options.source), target, options.format, options.overwrite).outputs:
            size = SafetensorsWriter(output.path, output.layout, output.metadata).size
            print(f"{output.path}: {output.title}, {format_size(size)}")
        return []
    return [convert(options.source, target, options.format, options.overwrite, show_progress)]


def _download(options: argparse.Namespace, target: Path | Callable[[str], Path]) -> list[ConversionResult]:
    """Convert a repository while it comes."""
    from .published import plan_download

    def show_progress(done: DownloadProgress) -> None:
        _show(f"  {done}", last=done.tensors == done.all_tensors)

    only = (options.only,) if options.only else ()
    with plan_download(options.source, target, options.format, options.overwrite, only) as download:
        print(download.describe(), flush=True)
        return [] if options.dry_run else download.run(show_progress)


def _forget(folder: Path) -> int:
    """Remove all encoded prompts that MuLan Loader keeps."""
    from ..boundary.values import format_size
    from ..conditioning.prompt_memory import PromptMemory

    count, size = PromptMemory(folder).clear()
    print(f"Removed {count} encoded prompts ({format_size(size)}) from {folder}.")
    return 0


def _list() -> int:
    from .published import KNOWN

    for name, known in KNOWN.items():
        print(f"{name:40} {known.source}")
    return 0


def _parser(program: str, knows_folders: bool, knows_prompts: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a folder or file: InternVL-14B-224px, internvl_c_13b_224px.pth, a text encoder file that MuLan Loader "
        "reads, an adapter .pth, an InternVL chat folder, VisionLLM v2's folder; or on Hugging Face: "
        "owner/name[@revision][/file], or a name of --list",
    )
    default = "the folder below ComfyUI's models" if knows_folders else "the current folder"
    parser.add_argument(
        "target", nargs="?", metavar="TARGET", help=f"a .safetensors file or a folder (default: {default})"
    )
    parser.add_argument("--format", choices=tuple(FORMATS), help="of a model's matrices (default: int8)")
    parser.add_argument("--only", metavar="FOLDER", help="of a repository, what belongs into models/FOLDER only")
    parser.add_argument("--dry-run", action="store_true", help="say what would be downloaded and written, and stop")
    parser.add_argument("--list", action="store_true", help="list the models that have a name here, and stop")
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET if it exists")
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="do not compare the result with the source"
    )
    if knows_prompts:
        parser.add_argument(
            "--forget-prompts",
            nargs="?",
            const="",
            metavar="FOLDER",
            help="remove the prompts MuLan Loader keeps (default: ComfyUI's user/__mulan/prompts), and stop",
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
