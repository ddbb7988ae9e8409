"""`dev.py eval zeroshot`: how often InternVL's best label is the right one, in the tiny world or in a data set."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from mulan_nodes.mulan.tiny_models.unpacking import INTERNVL, TEXT_ENCODER

from ..comfyui import open_comfyui
from .telling import Ticker, tell

FILE = "zeroshot_scores.md"
CACHE_FOLDER = "zeroshot"  # embeddings of data sets
DRAWINGS = 6  # of each thing of the tiny world


def evaluation(comfyui: Path, cpu: bool, output: Path, options: Namespace) -> None:
    """Prints the tables and writes them to output/zeroshot_scores.md. `options`: those of the command; without a
    dataset the tiny world is asked.
    """
    open_comfyui(*(["--cpu"] if cpu else []))
    from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError

    from ..zeroshot.dataset import WrongDatasetError

    output.mkdir(exist_ok=True)
    try:
        told = of_dataset(comfyui, output, options) if options.dataset else of_tiny_world(comfyui, options)
    except (WrongDatasetError, WrongFileError, ValueError) as error:
        sys.exit(f"Nothing was measured: {str(error).removesuffix('.')}.")
    tell(told, output / FILE)


def of_tiny_world(comfyui: Path, options: Namespace) -> str:
    """Both modes of the checkpoint, in every language or in those asked for."""
    from ..tinyworld import captions
    from ..tinyworld.contrastive_examination import examine, look
    from ..zeroshot import report

    languages = options.language or list(captions.LANGUAGES)
    unknown = [language for language in languages if language not in captions.LANGUAGES]
    if unknown:
        raise ValueError(f"the tiny world has no words in {unknown[0]}, only in {', '.join(captions.LANGUAGES)}")
    found, ticker = {}, Ticker()
    for mode in options.mode or "CG":
        loaded = load(comfyui, options, mode)
        pictures = look(loaded, DRAWINGS)
        found[mode] = examine(
            loaded,
            pictures,
            languages,
            on_language=lambda language, mode=mode: ticker.show(f"InternVL-{mode}, {language}"),
        )
    ticker.end()
    return report.of_tiny_world(loaded.name, DRAWINGS, found)


def of_dataset(comfyui: Path, output: Path, options: Namespace) -> str:
    """A folder of folders; its embeddings are kept in output/zeroshot, so a run that was stopped goes on, and another
    language costs little.
    """
    from ..zeroshot import report
    from ..zeroshot.classify import classify, embed
    from ..zeroshot.dataset import ALIASES, Dataset

    dataset = Dataset.open(options.dataset)
    languages = [ALIASES.get(language, language) for language in options.language or ["en"]]
    labels = {language: dataset.labels(language) for language in languages}
    loaded, ticker = load(comfyui, options, options.mode or "C"), Ticker()
    vectors = embed(
        loaded,
        dataset,
        output / CACHE_FOLDER,
        lambda number: ticker.show(f"class {number + 1} of {len(dataset.classes)}, {dataset.classes[number]}"),
    )
    found = {}
    for language in languages:
        ticker.show(f"labels in {language}")
        found[language] = classify(loaded, vectors, labels[language], language)
    ticker.end()
    return report.of_dataset(f"{loaded.name}, mode {loaded.mode}", dataset, vectors, found)


def load(comfyui: Path, options: Namespace, mode: str):
    """The InternVL that is asked for, in a mode; the tiny one by default."""
    from mulan_nodes.mulan.internvl.internvl_loader import load_internvl

    encoder = options.text_encoder or (TEXT_ENCODER.name if options.checkpoint is None else None)
    return load_internvl(
        _located(comfyui, "internvl", options.checkpoint or INTERNVL.name),
        mode,
        encoder and _located(comfyui, "text_encoders", encoder),
    )


def _located(comfyui: Path, kind: str, name: str) -> Path:
    """A path as it is, else a name in ComfyUI's models folder."""
    return Path(name) if Path(name).exists() else comfyui / "models" / kind / name
