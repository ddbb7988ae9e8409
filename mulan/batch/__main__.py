"""Run a table of prompts over several ComfyUI servers.

`python -m custom_nodes.mulan-nodes.mulan.batch run TABLE WORKFLOW --servers URL ... --set 6.text=prompt --out DIR`, in
ComfyUI's folder; or from the folder that the pack's folder lies in, without "custom_nodes.".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# This module as it is run: "custom_nodes.<folder>.mulan.batch"
_FOLDER = Path(__file__).absolute().parents[2].name
MODULE = __package__ if (__package__ or "").endswith(".batch") else f"custom_nodes.{_FOLDER}.mulan.batch"
STOPPED = 130
INSTALL = 'pip install "ray>=2.40" "pyarrow>=15" "aiohttp>=3.9"'


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 where rows failed, 2 where nothing could start, 130 where it stopped."""
    options = _parser().parse_args(arguments)
    if not options.servers and not options.start:
        print("Name --servers URL ..., or --start N.", file=sys.stderr)
        return 2
    try:
        return _run(options)
    except ModuleNotFoundError as error:
        name = str(error.name).partition(".")[0]
        print(f"Nothing was run: {name} is not installed. Install what batches need: {INSTALL}", file=sys.stderr)
        return 2
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"Nothing was run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped. The same command goes on.", file=sys.stderr)
        return STOPPED


def _run(options: argparse.Namespace) -> int:
    from .run import Settings, run  # here, where Ctrl-C and a package that is missing are caught

    settings = Settings(
        table=options.table,
        workflow=options.workflow,
        out=options.out,
        placeholders=options.set,
        servers=options.servers,
        start=options.start,
        encoders=options.encoders,
        comfyui=options.comfyui,
        cpu=options.cpu,
        comfyui_arguments=options.comfyui_arguments.split(),
        ray=options.ray,
        headers=options.header,
        header_file=options.header_file,
        id_column=options.id,
        language_column=options.language,
        attempts=options.attempts,
        depth=options.depth,
        give_up=options.give_up,
        patience=options.patience,
        retry_failed=options.retry_failed,
        check_only=options.check,
    )
    ended = run(settings, lambda line: print(line, flush=True))
    if options.check:
        return 1 if ended.failed else 0
    print(f"{ended.done} rows are done, {ended.failed} failed" + (" (failed.jsonl)" if ended.failed else ""))
    if ended.stopped:
        print(f"Stopped: {ended.stopped}. The same command goes on.", file=sys.stderr)
        return STOPPED
    return 1 if ended.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "run", help="run a table", description="Each row of TABLE is one run of WORKFLOW. The same command goes on."
    )
    add = command.add_argument
    add("table", type=Path, metavar="TABLE", help=".csv, .jsonl or .parquet; columns: id, language, and any other")
    add("workflow", type=Path, metavar="WORKFLOW", help="exported from the editor with Export (API)")
    add("--servers", nargs="+", default=[], metavar="URL", help="such as http://10.0.0.7:8188, a path behind it too")
    add("--start", type=int, default=0, metavar="N", help="start so many ComfyUI, one per GPU of the Ray cluster")
    add(
        "--encoders",
        nargs="+",
        default=[],
        metavar="N|auto|URL",
        help="encode prompts on so many of these servers, or on others, and draw on the rest",
    )
    add("--comfyui", type=Path, metavar="DIR", help="for --start (default: the folder above the pack)")
    add("--cpu", action="store_true", help="for --start: without GPUs")
    add("--comfyui-arguments", default="", metavar="TEXT", help="for --start: more of ComfyUI's own arguments")
    add("--ray", metavar="ADDRESS", help="of a Ray cluster (default: RAY_ADDRESS, else one on this machine)")
    add(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NODE.INPUT=COLUMN",
        help="which column fills which input; NODE is an id, a title or a class",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="results; a later run with the same DIR goes on")
    add("--id", default="id", metavar="COLUMN", help="a row's name (default: id; without one, its line)")
    add("--language", default="language", metavar="COLUMN", help="for sheets and the summary (default: language)")
    add("--header", action="append", default=[], metavar="NAME: VALUE", help="in every request; others may see it here")
    add("--header-file", type=Path, metavar="FILE", help="the same, a line each; [URL] begins those of one server")
    add("--attempts", type=int, default=3, metavar="N", help="of a row that fails, on other servers (default: 3)")
    add("--depth", type=int, default=2, metavar="N", help="rows in each server's queue (default: 2)")
    add("--patience", type=float, default=15.0, metavar="S", help="seconds without answer until a server is away")
    add("--give-up", type=float, default=600.0, metavar="S", help="seconds without any server until the run stops")
    add("--retry-failed", action="store_true", help="run rows again that failed before")
    add("--check", action="store_true", help="only check table, workflow and servers")
    return parser


if __name__ == "__main__":
    sys.exit(main())
