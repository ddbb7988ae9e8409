"""Draw 300 rows on three servers while servers, workers and the driver are killed; simulate up to 1,000 servers."""

import argparse
import shutil

NEEDS_TINY_MODELS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=300, metavar="N", help="of the table (default: 300)")
    parser.add_argument("--servers", type=int, default=3, metavar="N", help="ComfyUI servers (default: 3)")
    parser.add_argument("--kills", type=int, default=2, metavar="N", help="of each kind (default: 2)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--simulate", action="store_true", help="only the simulation")


def run(comfyui, options: argparse.Namespace) -> int:
    from ..batch import trial
    from ..batch.simulation import table
    from ..comfyui import OUTPUT

    folder = OUTPUT / "batch"
    if options.simulate:
        print(table(trial.seconds_of(folder / "one")))
        return 0
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with trial.servers(comfyui, options.servers, folder) as servers:
        report = trial.try_kills(servers, options.rows, trial.ACTS * options.kills, options.seed, folder)
    print(report.table())
    return 0 if report.passed() else 1
