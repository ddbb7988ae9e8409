"""Measure the tiny models (output/*.md), or InternVL's labels and retrieval on a data set of yours."""

import argparse
from pathlib import Path

NEEDS_TINY_MODELS = True
EVALUATIONS = ("mulan", "visionllm", "zeroshot")  # unless one is named
OTHERS = ("languages", "names", "chat", "check", "retrieval", "tracks", "alike", "words")
OWNERS = {  # options that not every evaluation has
    "dataset": ("zeroshot", "retrieval"),
    "checkpoint": ("zeroshot", "retrieval"),
    "mode": ("zeroshot", "retrieval"),
    "language": ("zeroshot", "languages", "names", "chat"),
    "text_encoder": ("mulan", "zeroshot", "retrieval"),
    "family": ("mulan",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=(*EVALUATIONS, *OTHERS),
        help="measure one of them (default: the first three; languages, for hours, and names ask in 113 of them)",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=48,
        metavar="N",
        help="mulan, languages, chat: images per language, chat: of each kind (default: 48, of the shapes each once)",
    )
    parser.add_argument("--family", choices=("sd15", "sdxl", "pixart"), help="mulan: of the tiny base (default: sd15)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--text-encoder",
        metavar="NAME",
        help="mulan, zeroshot: a file in models/text_encoders, for zeroshot also a path (default: the tiny one, for "
        "zeroshot the one in the checkpoint)",
    )
    parser.add_argument(
        "--scenes",
        type=int,
        metavar="N",
        help="visionllm, alike: number of scenes (default: 300); check: of prompts of each kind (default: 24); "
        "words: of images in each language (default: 1)",
    )
    parser.add_argument("--videos", type=int, default=12, metavar="N", help="tracks: of each kind (default: 12)")
    zeroshot = parser.add_argument_group("zeroshot")
    zeroshot.add_argument(
        "--dataset",
        type=Path,
        metavar="FOLDER",
        help="a folder of images per class, laid out as ImageNet; class names in a language from classnames_xx.json "
        "(default: the tiny world). retrieval: a folder of images, each with a .txt of captions or in metadata.jsonl",
    )
    zeroshot.add_argument(
        "--language",
        nargs="+",
        metavar="xx",
        help="of the labels (default: en; in the tiny world all), languages, names or chat",
    )
    zeroshot.add_argument("--checkpoint", metavar="NAME", help="in models/internvl, or a path (default: the tiny one)")
    zeroshot.add_argument("--mode", choices=("C", "G"), help="(default: C; in the tiny world both)")


def run(comfyui: Path, options: argparse.Namespace) -> int:
    from ..comfyui import OUTPUT, has_accelerator
    from ..evaluate import alike, chat, check, languages, mulan, names, retrieval, tracks, visionllm, words, zeroshot

    modules = (alike, chat, check, languages, mulan, names, retrieval, tracks, visionllm, words, zeroshot)
    by_name = {module.__name__.rpartition(".")[2]: module for module in modules}
    for option, owners in OWNERS.items():
        if getattr(options, option) and options.what not in owners:
            raise SystemExit(f"--{option.replace('_', '-')} belongs to: dev.py eval {', '.join(owners)}")
    if options.what == "retrieval" and options.dataset is None:
        raise SystemExit("dev.py eval retrieval needs --dataset FOLDER")
    for name in (options.what,) if options.what else EVALUATIONS:
        by_name[name].evaluation(comfyui, not has_accelerator(), OUTPUT, options)
    return 0
