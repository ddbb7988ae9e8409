"""What `dev.py bench --visionllm` does: VisionLLM v2 beside the ways that recompute what it keeps, rounds, output."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .run import machine
from .sections import Rounds, Say, checked, difference, parser_of, run
from .visionllm_report import markdown
from .visionllm_weights import WHOLE, Depth, write_published
from .worker import peak_bytes, profiled, timed

LAYERS, TOWER_LAYERS = 2, 4
SECTIONS = ("parts", "asking", "writing", "profiles")


def main(arguments: list[str], comfyui: Path, cache: Path, output: Path) -> int:
    return run("visionllm", parse(arguments), measure, markdown, comfyui, cache, output)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = parser_of("visionllm", "VisionLLM v2", SECTIONS)
    parser.add_argument(
        "--layers",
        type=int,
        default=LAYERS,
        metavar="N",
        help=f"of the language model's {WHOLE.language} (default: {LAYERS})",
    )
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, cache: Path, known: dict, say: Say) -> Iterator[dict]:
    """`known` and the figures so far, after each section; the last are all. ComfyUI is open already."""
    from .visionllm_asking import Asking
    from .visionllm_parts import Canvas

    cache.mkdir(parents=True, exist_ok=True)
    canvas = Canvas()
    if options.quick:
        from ..random_checkpoints import visionllm as random_visionllm

        folder = random_visionllm.checkpoint(cache / "visionllm-tiny")
        canvas = replace(canvas, levels=((10, 12), (5, 6), (3, 3), (2, 2)), chosen=2)
    else:
        folder = write_published(cache, Depth(options.layers, TOWER_LAYERS), say)
    asking = Asking(folder)
    grounding: Any = asking.loaded.model.grounding
    language, tower = (asking.loaded.file.parts[name].config for name in ("language", "tower"))
    results = {
        **known,
        "machine": machine(),
        "threads": options.threads,
        "repeat": options.repeat,
        "canvas": asdict(canvas),
        "sizes": {
            "width": language.hidden_size,
            "feed_forward": language.intermediate_size,
            "layers": language.num_hidden_layers,
            "tower_layers": tower.num_hidden_layers,
            "queries": grounding.config.num_queries,
            "decoder_layers": grounding.config.num_layers,
        },
        "whole": asdict(WHOLE),
    }
    sections = {
        "parts": lambda: measure_parts(asking, canvas, options.repeat, say),
        "asking": lambda: measure_asking(asking, options.repeat, say),
        "writing": lambda: measure_writing(asking, options.repeat, say),
        "profiles": lambda: profiles(asking, say),
    }
    for name in options.only or SECTIONS:
        results = {**results, name: sections[name]()}
        yield results


@torch.no_grad()
def measure_parts(asking, canvas, repeat: int, say: Say) -> dict:
    from .visionllm_parts import deformable_attention, masks

    decoder = asking.loaded.model.grounding
    made = {
        "deformable": deformable_attention(canvas),
        "masks": masks(decoder, canvas, with_features=False),
        "masks_with_features": masks(decoder, canvas, with_features=True),
    }
    found, rounds = {}, Rounds()
    for name, part in made.items():
        found[name] = {
            "differ": checked(name, difference(part.ours(), part.same(part.theirs()))),
            "ours": {"peak": peak_bytes(part.ours)},
            "theirs": {"peak": peak_bytes(part.theirs)},
        }
        say(f"{name}: peak {found[name]['ours']['peak'] / found[name]['theirs']['peak']:.3f}x")
    for number in range(1, repeat + 1):
        for name, part in made.items():
            for side, work in (("theirs", part.theirs), ("ours", part.ours)):
                rounds.note(name, side, times=timed(work)[0])
        say(f"  round {number} of {repeat}")
    return {
        name: {**part, **{side: part[side] | rounds.median(name, side) for side in ("ours", "theirs")}}
        for name, part in found.items()
    }


def measure_asking(asking, repeat: int, say: Say) -> dict:
    """Per number of views: the first question about a picture, and the second; of the most views with the decoder,
    which is the same for all.
    """
    from .visionllm_asking import PHRASES, VIEWS

    found, rounds = {}, Rounds()
    for views in VIEWS:  # the first pass warms up and is compared
        found[views] = {
            "tokens": asking.tokens(views, PHRASES[1]),
            "differ": checked(f"{views} views", asking.error(views, PHRASES[1])),
        }
        say(f"{views} views: states differ by {found[views]['differ']:.1e}")
    for number in range(1, repeat + 1):
        for views in VIEWS:
            for order, phrase in zip(("first", "second"), PHRASES, strict=True):
                taken = asking.question(views, phrase, fresh=order == "first", decode=views == VIEWS[-1])
                for part, times in taken.items():
                    rounds.note(views, order, part, times=times)
        say(f"  round {number} of {repeat}")
    for views, figures in found.items():
        figures |= {order: {part: rounds.median(views, order, part) for part in taken} for order in ("first", "second")}
    return {str(views): figures for views, figures in found.items()}


def measure_writing(asking, repeat: int, say: Say) -> dict:
    """Answers in words: with the cache and without, several questions side by side and one by one."""
    from .visionllm_asking import MAX_TOKENS, NAIVE_LIMIT, QUESTIONS

    rounds = Rounds()
    same = asking.answer(QUESTIONS[:1], NAIVE_LIMIT)[1][0] == asking.answer_without_cache(QUESTIONS[0])[1]
    say(f"writing: {'the same text' if same else 'another text'} without the cache")
    for number in range(1, repeat + 1):
        apart, texts = {"cpu": 0.0, "wall": 0.0}, []
        for question in QUESTIONS:
            times, text = asking.answer([question])
            rounds.note("cached", times=times)
            apart = {clock: apart[clock] + times[clock] for clock in apart}
            texts += text
        rounds.note("apart", times=apart)
        times, together = asking.answer(QUESTIONS)
        rounds.note("together", times=times)
        rounds.note("naive", times=asking.answer_without_cache(QUESTIONS[0])[0])
        say(f"  round {number} of {repeat}")
    return {
        "limit": MAX_TOKENS,
        "naive_limit": NAIVE_LIMIT,
        "same_text": same,
        "same_texts": sum(a == b for a, b in zip(texts, together, strict=True)),
        "questions": len(QUESTIONS),
        **{name: rounds.median(name) for name in ("cached", "naive", "apart", "together")},
    }


def profiles(asking, say: Say) -> dict:
    """What a second question to a decoder and an answer in words spend their time on."""
    from .visionllm_asking import PHRASES, QUESTIONS, VIEWS

    say("profiles")
    asking.question(VIEWS[-1], PHRASES[0], fresh=False, decode=False)  # the picture may be forgotten by now
    return {
        "second": profiled(lambda: asking.question(VIEWS[-1], PHRASES[1], fresh=False, decode=True)),
        "answer": profiled(lambda: asking.answer(QUESTIONS[:1])),
    }
