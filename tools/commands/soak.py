"""Run 1,000 graphs with interrupts, lost clients and kills: none gets lost, memory stays flat; output/soak."""

import argparse

NEEDS_TINY_MODELS = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, default=1000, metavar="N", help="how many (default: 1000)")
    parser.add_argument("--kills", type=int, default=3, metavar="N", help="of the server (default: 3)")
    parser.add_argument("--seed", type=int, default=1)


def run(comfyui, options: argparse.Namespace) -> int:
    from ..comfyui import OUTPUT, device_arguments, has_accelerator, open_comfyui

    open_comfyui(*device_arguments())
    from ..soak.soak import Soak

    report = Soak(comfyui, not has_accelerator(), options.prompts, options.kills, options.seed, OUTPUT / "soak").run()
    print(report.table())
    return 0 if report.passed() else 1
