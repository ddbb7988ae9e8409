"""Measure the tiny models (output/*.md), or InternVL's labels and retrieval on a data set of yours."""

import argparse
from pathlib import Path

NEEDS_TINY_MODELS = True
EVALUATIONS = ("mulan", "visionllm", "zeroshot")
LANGUAGES, NAMES, CHAT = "languages", "names", "chat"  # which take long: only where they are asked for
CHECK = "check"  # the choice among eight images, by several
RETRIEVAL = "retrieval"  # of a data set only
TRACKS, ALIKE = "tracks", "alike"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="?",
        choices=(*EVALUATIONS, LANGUAGES, NAMES, CHAT, CHECK, RETRIEVAL, TRACKS, ALIKE),
        help="measure one of them (default: the first three; languages, for hours, and names ask in 113 of them)",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=48,
        metavar="N",
        help="mulan, languages, chat: images per language, chat: of each kind (default: 48, of the shapes each once)",
    )
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
        help="visionllm, alike: number of scenes (default: 300); check: of prompts of each kind (default: 24)",
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
    from .. import (
        evaluate_alike,
        evaluate_chat,
        evaluate_check,
        evaluate_languages,
        evaluate_mulan,
        evaluate_names,
        evaluate_retrieval,
        evaluate_tracks,
        evaluate_visionllm,
        evaluate_zeroshot,
    )
    from ..comfyui import OUTPUT, has_accelerator

    wanted, cpu = (options.what,) if options.what else EVALUATIONS, not has_accelerator()
    data_set = options.what in ("zeroshot", RETRIEVAL)
    if not data_set and any((options.dataset, options.checkpoint, options.mode)):
        raise SystemExit("--dataset, --checkpoint and --mode belong to: dev.py eval zeroshot and retrieval")
    if options.language and options.what not in ("zeroshot", LANGUAGES, NAMES, CHAT):
        raise SystemExit("--language belongs to: dev.py eval zeroshot, languages, names and chat")
    if options.text_encoder and not data_set and options.what != "mulan":
        raise SystemExit("--text-encoder belongs to: dev.py eval mulan, zeroshot and retrieval")
    if options.what == RETRIEVAL and options.dataset is None:
        raise SystemExit("dev.py eval retrieval needs --dataset FOLDER")
    if "mulan" in wanted:
        evaluate_mulan.evaluation(comfyui, cpu, OUTPUT, options.pictures, options.seed, options.text_encoder)
    if "visionllm" in wanted:
        evaluate_visionllm.evaluation(comfyui, cpu, OUTPUT, options.scenes or 300)
    if "zeroshot" in wanted:
        evaluate_zeroshot.evaluation(comfyui, cpu, OUTPUT, options)
    if LANGUAGES in wanted:
        evaluate_languages.evaluation(comfyui, cpu, OUTPUT, options.pictures, options.seed, options.language or ())
    if NAMES in wanted:
        evaluate_names.evaluation(comfyui, cpu, OUTPUT, options.language or ())
    if CHAT in wanted:
        evaluate_chat.evaluation(comfyui, cpu, OUTPUT, options.pictures, options.language or ())
    if CHECK in wanted:
        evaluate_check.evaluation(comfyui, cpu, OUTPUT, options.scenes or 24)
    if RETRIEVAL in wanted:
        evaluate_retrieval.evaluation(comfyui, cpu, OUTPUT, options)
    if TRACKS in wanted:
        evaluate_tracks.evaluation(comfyui, cpu, OUTPUT, options.videos)
    if ALIKE in wanted:
        evaluate_alike.evaluation(comfyui, cpu, OUTPUT, options.scenes or 300)
    return 0
