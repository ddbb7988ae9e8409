"""Scores -> Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..tinyworld.captions import LANGUAGES, TRAINED
from ..tinyworld.contrastive_examination import GOAL, QUESTIONS
from .classify import Scores, Vectors
from .dataset import Dataset
from .paper import PUBLISHED, Published, published


def of_dataset(model: str, dataset: Dataset, vectors: Vectors, found: Mapping[str, Scores]) -> str:
    """The table by language, the paper's figures, what could not be read, and a table by class."""
    pictures, classes = len(vectors.classes), len(dataset.classes)
    known = published(classes, pictures)
    lines = [f"{pictures} pictures of {classes} classes in {dataset.folder.name}, {model}.", ""]
    rows = [
        [
            language,
            scores.templates,
            f"{scores.first.float().mean():.4f}",
            f"{scores.among_five.float().mean():.4f}",
            f"{known.shares[language]:g}" if known and language in known.shares else "",
        ]
        for language, scores in found.items()
    ]
    lines += table(
        ["language", "templates", "top-1", "top-5", f"InternVL-C on {known.name}, published" if known else "published"],
        rows,
    )
    lines += ["", *_published(known, found, model)]
    if vectors.problems:
        lines += ["", f"Not read ({len(vectors.problems)}):", "", *(f"- {problem}" for problem in vectors.problems)]
    of_classes = [
        [
            name,
            *(
                cell
                for scores in found.values()
                for cell in (scores.labels[number], f"{scores.of_class(vectors, number):.2f}")
            ),
            str((vectors.classes == number).sum().item()),
        ]
        for number, name in enumerate(dataset.classes)
        if (vectors.classes == number).any()
    ]
    heads = [cell for language in found for cell in (f"label ({language})", f"top-1 ({language})")]
    return "\n".join([*lines, "", *table(["folder", *heads, "pictures"], of_classes)]) + "\n"


def of_tiny_world(model: str, drawings: int, found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """`found`: mode -> language -> question -> share."""
    lines = []
    for mode, of_mode in found.items():
        lines += [
            f"InternVL-{mode}, {model}, {drawings} new drawings of each thing; the goal in trained languages is "
            f"{GOAL}.",
            "",
        ]
        rows = [
            [_named(language), *(f"{shares[question]:.2f}" if question in shares else "" for question in QUESTIONS)]
            for language, shares in of_mode.items()
        ]
        lines += [*table(["labels", *QUESTIONS], rows), ""]
    return "\n".join([*lines, *_published(None, {}, model)]) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def _published(known: Published | None, found: Mapping[str, Scores], model: str) -> list[str]:
    """What InternVL's authors report, and what of it this run measured."""
    rows = []
    for data in PUBLISHED:
        for language, share in data.shares.items():
            here = (
                f"{found[language].first.float().mean():.4f}, {model}" if data is known and language in found else "no"
            )
            rows.append([data.name, language, f"{share:g}", here])
    return [
        "InternVL-C's published accuracies (arXiv 2312.14238), and what this run measured of them:",
        "",
        *table(["data set", "language", "published", "reproduced here"], rows),
    ]


def _named(language: str) -> str:
    return LANGUAGES[language].name + ("" if language in TRAINED else " (never trained)")
