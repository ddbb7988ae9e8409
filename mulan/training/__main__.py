"""Train a MuLan adapter: `python -m custom_nodes.<folder>.mulan.training`, in ComfyUI's folder and Python.

With `encoder` as its first argument the command trains a smaller text encoder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

from ..conditioning.encoder_kinds import FINGERPRINT_KEY, KIND_KEY
from ..conditioning.families import SDXL
from . import encoder_training
from .adapters import AdapterPlan, fresh_adapter, load_adapter
from .arguments import PROMPTS, make_parser, make_settings
from .base_models import DiffusionBase, load_base
from .dataset import CaptionedImages
from .estimate import describe_estimate, estimate_training
from .graph_validation import GraphValidation
from .latents import bucket_sizes, cache_latents
from .text_states import CaptionEncoder, LiveCaptions, store_captions
from .trainer import check_unused, compute_beside, find_devices, train_adapter
from .validation import draw_validation


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns 0, 1 with a message for what cannot be trained, 130 after Ctrl-C."""
    arguments, parser, train = sys.argv[1:] if argv is None else argv, make_parser(), _train
    if arguments[:1] == ["encoder"]:
        arguments, parser, train = arguments[1:], encoder_training.make_parser(), encoder_training.train
    options = parser.parse_args(arguments)
    try:
        if not options.resume:
            check_unused(options.out)  # before all that takes minutes
        train(options)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"Training failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'Stopped before the first step'}. Continue with --resume.", file=sys.stderr)
        return 130
    return 0


def _train(options: argparse.Namespace) -> None:
    images = CaptionedImages(options.data, options.language)
    by_graph = _graph_validation(options) if options.graph and not options.estimate else None  # before all else
    accelerator = find_devices()
    compute_beside(accelerator)
    from ..conditioning.encoder_files import open_prompt_encoder  # imports ComfyUI

    text_encoder = open_prompt_encoder(options.text_encoder)
    say = print if accelerator.is_main_process else _say_nothing
    base = load_base(
        options.base,
        accelerator.device,
        torch.bfloat16 if options.precision == "bf16" else torch.float32,
        options.prediction,
        options.gradient_checkpointing,
        options.vae,
        options.size or 1024,
    )
    settings = make_settings(options, base.prediction)
    side = _side(options.size, base)
    encoder = CaptionEncoder(text_encoder, base.family)
    plan = _plan(options, base, encoder)
    adapter = (
        fresh_adapter(plan, options.seed, base.size_embedding)
        if options.adapter is None
        else load_adapter(options.adapter, plan, text_encoder)
    ).to(accelerator.device)

    prompts = tuple(options.prompt or PROMPTS)
    captions = [*images.captions, *prompts]
    size = (side, side)
    latent_bytes = 2 * base.latent_channels * (side // base.downscale_factor) ** 2
    texts = 0 if options.encode_while_training else len(set(captions)) * encoder.bytes_per_caption
    estimate = estimate_training(adapter, base, plan, size, settings, accelerator.device)
    say(describe_estimate(estimate, settings, size, accelerator.num_processes, len(images) * latent_bytes + texts))
    if options.estimate:
        return

    # The captions first: the text encoder and the images' batches are never in memory together.
    encode_text = (
        LiveCaptions(encoder)
        if options.encode_while_training
        else store_captions(encoder, captions, options.out, accelerator, _progress("captions"))
    )
    examples = cache_latents(
        images,
        bucket_sizes(side, base.size_multiple) if settings.buckets else [size],
        base.encode_images,
        base.encoder_fingerprint,
        latent_bytes,
        options.out,
        accelerator,
        _progress("latents"),
    )
    if settings.buckets:
        counts = ", ".join(f"{width} x {height}: {count}" for (height, width), count in examples.buckets.items())
        say(f"images by size: {counts}")
    metadata = _metadata(options, base, encoder, images, side)
    if by_graph:
        by_graph.metadata = metadata
    train_adapter(
        adapter,
        base.denoiser,
        encode_text,
        examples,
        base.alphas_cumprod,
        settings,
        resume=options.resume,
        validate=by_graph or draw_validation(base, encode_text, prompts, side, settings.seed, options.out),
        metadata=metadata,
    )
    say(f"The adapter is in {options.out}.")


def _graph_validation(options: argparse.Namespace) -> GraphValidation:
    return GraphValidation(options.graph, options.server, options.adapters, options.prompt or (), options.out)


def _side(size: int | None, base: DiffusionBase) -> int:
    side = size or base.side
    if side % base.downscale_factor:
        raise ValueError(
            f"--size {side} is not a multiple of {base.downscale_factor}, "
            f"the factor by which the autoencoder downscales images"
        )
    return side


def _plan(options: argparse.Namespace, base: DiffusionBase, encoder: CaptionEncoder) -> AdapterPlan:
    """Return what the adapter connects. Raises ValueError where the two do not fit."""
    if base.text_hidden_size not in (None, encoder.states_size):
        raise ValueError(
            f"{options.text_encoder.name} gives states of width {encoder.states_size}, but the projection in "
            f"{options.base.name}, which a PixArt adapter replaces, reads {base.text_hidden_size}: use a text encoder "
            f"of that width"
        )
    plan = AdapterPlan(
        base.family, encoder.states_size, encoder.projection_dim, base.context_dim, options.queries, options.layout
    )
    if options.adapter is None:
        plan.shape()  # before gigabytes are encoded
    return plan


def _metadata(
    options: argparse.Namespace, base: DiffusionBase, encoder: CaptionEncoder, images: CaptionedImages, side: int
) -> dict[str, str]:
    """Return what the adapter's file says of its making."""
    layout = {"layout": options.layout} if base.family is SDXL and options.adapter is None else {}
    return {
        "family": base.family.name,
        "base": options.base.name,
        "base_fingerprint": base.fingerprint,
        "text_encoder": options.text_encoder.name,
        KIND_KEY: encoder.file.kind,
        FINGERPRINT_KEY: encoder.file.fingerprint(),
        "images": str(len(images)),
        "captions": str(len(images.captions)),
        "languages": " ".join(options.language),
        "size": str(side),
        **layout,
    }


def _progress(what: str) -> Callable[[int, int], None]:
    return lambda done, count: print(f"\r{what} {done} of {count}  ", end="\n" if done == count else "", flush=True)


def _say_nothing(*_: object) -> None:
    """Say what the main process says."""


if __name__ == "__main__":
    sys.exit(main())
