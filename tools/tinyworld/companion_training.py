"""Trains the tiny companions: a style LoRA, an LCM LoRA and a ControlNet for the tiny SD1.5 base.

All three learn as those on the web did: beside a frozen base, on contexts of its own English CLIP. Nothing of MuLan
takes part, so what they do under prompts in other languages is MuLan's doing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.training.diffusion import Denoiser, add_noise, diffusion_loss, sample

from . import captions, companions, scenes, world
from .base_training import CFG, STEPS, Base, alphas_cumprod, latents_of
from .companions import Shipped, read_shipped
from .stages import SEED, as_input, as_pictures, is_finished, train_stage

BATCH = 32
DROPPED_WORDS, DROPPED_CAPTIONS = 0.1, 0.1
HIGH_NOISE_FROM, HIGH_NOISE_SHARE = 600, 0.4
PAIRS = [(colour, shape) for colour in world.PALETTE for shape in world.SHAPES]
SCORED = world.SEEN_THINGS
VARIANTS, PLACES = 50, 60  # drawings of each pair for the LoRA, for the ControlNet

TEACHER_STEPS = 25
TEACHER_TIMESTEPS = torch.arange(999, 0, -1000 // TEACHER_STEPS)  # 999, 959 ... 39
TEACHER_ALPHAS = torch.cat([alphas_cumprod()[TEACHER_TIMESTEPS], torch.ones(1)])
TEACHER_PICTURES = 512
HUBER = 0.03


def train_companions(work_dir: Path) -> Path:
    """All three against the models of the pack, as it is; returns `work_dir`."""
    shipped = read_shipped()
    contexts = Captions(shipped)
    for train in (train_pattern_lora, train_lcm_lora, train_layout_controlnet):
        train(work_dir, shipped, contexts)
    return work_dir


class Captions:
    """English captions and their contexts [B, 77, 96] from the base's own CLIP, every caption encoded once."""

    def __init__(self, shipped: Shipped):
        with torch.no_grad():
            self.contexts = {
                text: shipped.base.context([text])[0] for text in captions.all_captions(world.THINGS, "en")
            }

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([self.contexts[text] for text in texts])

    def drawn(self, pairs: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """Contexts for numbers of `PAIRS`: words and whole captions are left out now and then; the size is any, nothing
        hangs on it.
        """
        texts = []
        for pair in pairs:
            colour, shape = PAIRS[pair]
            thing = world.Thing(colour, shape, str(rng.choice(list(world.SIZES))))
            text = captions.caption(thing, "en", rng, captions.choose_attributes(rng, DROPPED_WORDS))
            texts.append("" if rng.random() < DROPPED_CAPTIONS else text)
        return self(texts)


def draw_timesteps(rng: np.random.Generator) -> torch.Tensor:
    """[BATCH], some of them only from the noisy end, where the layout is settled."""
    return torch.from_numpy(rng.integers(np.where(rng.random(BATCH) < HIGH_NOISE_SHARE, HIGH_NOISE_FROM, 0), 1000))


def noise_loss(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], clean: torch.Tensor, rng: np.random.Generator
) -> torch.Tensor:
    """The diffusion loss of clean latents [BATCH, 4, 8, 8] under `predict` (x_t, t)."""
    timesteps = draw_timesteps(rng)
    alphas, noise = alphas_cumprod()[timesteps], torch.randn_like(clean)
    return diffusion_loss(
        predict(add_noise(clean, noise, alphas), timesteps), clean, noise, alphas, "epsilon", high_noise_weight=True
    )


# --- the style: four small ones instead of one


def train_pattern_lora(work_dir: Path, shipped: Shipped, contexts: Captions, steps: int = 600) -> None:
    """Under the caption of a thing, four of it. (Of drawn patterns the autoencoder itself restores .88 of the quarters
    readably.)
    """
    torch.manual_seed(SEED)
    if is_finished("pattern_lora", work_dir):
        return
    lora = companions.lora(shipped.base.unet)
    rng = np.random.default_rng(SEED)
    pictures = np.stack([[scenes.draw_pattern(colour, shape, rng) for _ in range(VARIANTS)] for colour, shape in PAIRS])
    latents = latents_of(shipped.autoencoder, torch.from_numpy(pictures).permute(0, 1, 4, 2, 3))

    def loss_of(rng):
        pairs = rng.integers(len(PAIRS), size=BATCH)
        clean = latents[pairs, rng.integers(VARIANTS, size=BATCH)]
        context = contexts.drawn(pairs, rng)
        with companions.applied(lora, shipped.base.unet):
            return noise_loss(lambda x, t: shipped.base(x, t, context), clean, rng)

    def score(averaged):
        with companions.applied(averaged, shipped.base.unet):
            return pattern_score(shipped)

    train_stage(
        "pattern_lora",
        work_dir,
        lora,
        loss_of,
        steps=steps,
        learning_rate=2e-3,
        average=0.99,
        score=score,
        score_every=250,
    )


def draw_things(shipped: Shipped, context_of, language: str, denoiser: Denoiser | None = None) -> np.ndarray:
    """A picture of every pair that MuLan was trained with, uint8 [B, 64, 64, 3]."""
    texts = [captions.full_caption(thing, language, number) for number, thing in enumerate(SCORED)]
    with torch.no_grad():
        latents = sample(
            denoiser or shipped.base, context_of(texts), context_of([""]), alphas_cumprod(), STEPS, CFG, SEED, (4, 8, 8)
        )
        return as_pictures(shipped.autoencoder.taesd_decoder(latents))


def pattern_score(shipped: Shipped) -> str:
    said = []
    for name, context_of, language in (
        ("own CLIP", shipped.base.context, "en"),
        ("MuLan", shipped.mulan_context, "zh"),
    ):
        pictures = draw_things(shipped, context_of, language)
        right = np.mean(
            [scenes.share_of_quarters(picture, thing) for picture, thing in zip(pictures, SCORED, strict=True)]
        )
        said.append(
            f"{name} {language}: {np.mean(list(map(scenes.is_pattern, pictures))):.2f} are patterns, {right:.2f} of "
            "the quarters right"
        )
    return "; ".join(said)


# --- four steps instead of twenty: the LCM LoRA


def teacher_paths(shipped: Shipped, contexts: Captions, count: int, seed: int) -> dict[str, torch.Tensor]:
    """Where the base goes from noise, in `TEACHER_STEPS` steps of DDIM with its usual guidance.

    "context" [2N] numbers of captions; "x" [2N, steps + 1, 4, 8, 8]: a path's points, the last of them the picture's
    latents; "start" [2N]: a path begins at this step and its earlier points are to be left out. The first N paths begin
    at step 0. The others begin where the few-step sampler does after its first step: at the end of one of those, with
    new noise.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    things = [world.THINGS[number] for number in rng.integers(len(world.THINGS), size=count)]
    texts = [captions.caption(thing, "en", rng, captions.choose_attributes(rng, DROPPED_WORDS)) for thing in things]
    told, empty = contexts(texts), contexts([""])
    first = torch.zeros(count, dtype=torch.long)
    again = torch.from_numpy(rng.integers(1, TEACHER_STEPS, size=count))
    ends = torch.zeros(count, 4, 8, 8)
    paths = []
    for start in (first, again):
        noise = torch.randn(ends.shape, generator=generator)
        begins = noise if start is first else add_noise(ends, noise, TEACHER_ALPHAS[start])
        paths.append(
            torch.cat(
                [
                    _path(shipped.base, *of_batch, empty)
                    for of_batch in zip(begins.split(128), start.split(128), told.split(128), strict=True)
                ]
            )
        )
        ends = paths[-1][:, -1]
        print(f"lcm_lora: {len(ends)} of the teacher's paths", flush=True)
    numbers = {text: number for number, text in enumerate(contexts.contexts)}
    return {
        "x": torch.cat(paths),
        "start": torch.cat([first, again]),
        "context": torch.tensor([numbers[text] for text in texts] * 2),
    }


@torch.no_grad()
def _path(
    base: Base, begins: torch.Tensor, start: torch.Tensor, told: torch.Tensor, empty: torch.Tensor
) -> torch.Tensor:
    """[B, 4, 8, 8] at the steps `start` -> [B, TEACHER_STEPS + 1, 4, 8, 8]."""
    x, points = begins, [begins]
    for step in range(TEACHER_STEPS):
        alpha, next_alpha = TEACHER_ALPHAS[step], TEACHER_ALPHAS[step + 1]
        going = (start <= step).nonzero().flatten()
        if not len(going):
            points.append(x)
            continue
        both = torch.cat([empty.expand_as(told[going]), told[going]])
        times = TEACHER_TIMESTEPS[step].expand(len(both))
        without, with_words = base(x[going].repeat(2, 1, 1, 1), times, both).chunk(2)
        noise = without + CFG * (with_words - without)
        clean = (x[going] - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        x = x.index_copy(0, going, next_alpha.sqrt() * clean + (1 - next_alpha).sqrt() * noise)
        points.append(x)
    return torch.stack(points, dim=1)


def end_of_path(base: Base, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Where the path through x_t ends, in one evaluation of the UNet."""
    alpha = alphas_cumprod()[timesteps].view(-1, 1, 1, 1)
    return (x - (1 - alpha).sqrt() * base(x, timesteps, context)) / alpha.sqrt()


def train_lcm_lora(work_dir: Path, shipped: Shipped, contexts: Captions, steps: int = 600) -> None:
    """Consistency distillation with the teacher's whole paths at hand: every point of a path is mapped to the path's
    end.
    """
    torch.manual_seed(SEED)
    if is_finished("lcm_lora", work_dir):
        return
    if not is_finished("lcm_teacher", work_dir):
        save_file(teacher_paths(shipped, contexts, TEACHER_PICTURES, SEED), work_dir / "lcm_teacher.safetensors")
    paths = load_file(work_dir / "lcm_teacher.safetensors")
    context_table = torch.stack(list(contexts.contexts.values()))
    lora = companions.lora(shipped.base.unet)

    def loss_of(rng):
        chosen = torch.from_numpy(rng.integers(len(paths["x"]), size=BATCH))
        at = torch.from_numpy(rng.integers(paths["start"][chosen], TEACHER_STEPS))
        with companions.applied(lora, shipped.base.unet):
            ends = end_of_path(
                shipped.base, paths["x"][chosen, at], TEACHER_TIMESTEPS[at], context_table[paths["context"][chosen]]
            )
        error = ends - paths["x"][chosen, -1]
        return ((error.square() + HUBER**2).sqrt() - HUBER).mean()

    def score(averaged):
        with companions.applied(averaged, shipped.base.unet):
            return lcm_score(shipped)

    train_stage(
        "lcm_lora", work_dir, lora, loss_of, steps=steps, learning_rate=1e-3, average=0.99, score=score, score_every=250
    )


@torch.no_grad()
def draw_in_few_steps(shipped: Shipped, context: torch.Tensor, steps: int = 4) -> np.ndarray:
    """As the LCM sampler does, without guidance: jump to the end, go part of the way back with new noise, and again."""
    generator = torch.Generator().manual_seed(SEED)
    clean = torch.zeros(len(context), 4, 8, 8)
    for step in torch.linspace(0, TEACHER_STEPS, steps + 1)[:-1].long().tolist():
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = TEACHER_TIMESTEPS[step].expand(len(context))
        clean = end_of_path(shipped.base, add_noise(clean, noise, alphas_cumprod()[timesteps]), timesteps, context)
    return as_pictures(shipped.autoencoder.taesd_decoder(clean))


def lcm_score(shipped: Shipped) -> str:
    said = []
    for name, context_of, language in (
        ("own CLIP", shipped.base.context, "en"),
        ("MuLan", shipped.mulan_context, "zh"),
    ):
        context = context_of([captions.full_caption(thing, language, number) for number, thing in enumerate(SCORED)])
        for steps in (1, 4):
            readings = map(world.read, draw_in_few_steps(shipped, context, steps))
            right = np.mean([reading.agrees(thing) for reading, thing in zip(readings, SCORED, strict=True)])
            said.append(f"{name} {language}: {right:.2f} right in {steps} steps")
    return "; ".join(said)


# --- where the thing is to be: the ControlNet


def train_layout_controlnet(work_dir: Path, shipped: Shipped, contexts: Captions, steps: int = 900) -> None:
    """The hint says where and how big, by any of the shapes; what is drawn there, only the prompt says."""
    torch.manual_seed(SEED)
    if is_finished("layout_controlnet", work_dir):
        return
    rng = np.random.default_rng(SEED)
    places = [[scenes.Place.drawn(rng) for _ in range(PLACES)] for _ in PAIRS]
    pictures = np.stack(
        [
            [place.draw(colour, shape, rng) for place in of_pair]
            for (colour, shape), of_pair in zip(PAIRS, places, strict=True)
        ]
    )
    latents = latents_of(shipped.autoencoder, torch.from_numpy(pictures).permute(0, 1, 4, 2, 3))
    net = companions.control_net(shipped.base.unet)
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (diffusers' decorator hides the method)

    def loss_of(rng):
        pairs, chosen = rng.integers(len(PAIRS), size=BATCH), rng.integers(PLACES, size=BATCH)
        hints = as_hints(
            [
                places[pair][number].hint(str(rng.choice(world.SHAPES)))
                for pair, number in zip(pairs, chosen, strict=True)
            ]
        )
        context = contexts.drawn(pairs, rng)
        return noise_loss(
            lambda x, t: companions.controlled(shipped.base.unet, net, x, t, context, hints),
            latents[pairs, chosen],
            rng,
        )

    train_stage(
        "layout_controlnet",
        work_dir,
        net,
        loss_of,
        steps=steps,
        learning_rate=2e-3,
        average=0.99,
        score=lambda averaged: layout_score(shipped, averaged),
        score_every=300,
    )


def as_hints(pictures: list[np.ndarray]) -> torch.Tensor:
    """-> [B, 3, 64, 64] in 0..1."""
    return as_input(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))


def layout_score(shipped: Shipped, net: ControlNetModel) -> str:
    """Every scored thing at a place of its own, under a square as the hint."""
    rng = np.random.default_rng(SEED + 1)
    places = [scenes.Place.drawn(rng) for _ in SCORED]
    hints = as_hints([place.hint("square") for place in places]).repeat(2, 1, 1, 1)

    def denoiser(x, timesteps, context):
        return companions.controlled(shipped.base.unet, net, x, timesteps, context, hints)

    said = []
    for name, context_of, language in (
        ("own CLIP", shipped.base.context, "en"),
        ("MuLan", shipped.mulan_context, "zh"),
    ):
        pictures = draw_things(shipped, context_of, language, denoiser)
        right = np.mean([world.read(picture).agrees(thing) for picture, thing in zip(pictures, SCORED, strict=True)])
        overlap = np.mean(
            [
                place.overlap(thing.shape, picture)
                for place, thing, picture in zip(places, SCORED, pictures, strict=True)
            ]
        )
        said.append(f"{name} {language}: {right:.2f} right, intersection over union {overlap:.2f}")
    return "; ".join(said)
