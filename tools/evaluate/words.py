"""`dev.py eval words`: where Word Maps sees the words of color, shape and size act, and what a prompt weight does.

The images are shapes that a program draws anywhere, so that the middle is no answer.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from ..comfyui import open_comfyui
from ..tinyworld import world
from ..tinyworld.captions import ATTRIBUTES, LANGUAGES, TRAINED, full_caption
from .telling import Ticker, located, table, tell

FILE = "words_scores.md"
STEPS = 4  # the node's default
WEIGHTS = (0.5, 1.2, 1.5, 2)
NOISE = 0.1  # the share of the noise schedule that is gone where weights are compared: much noise
SEED = 40_000
MULAN, OWN_CLIP = "MuLan", "own CLIP, in English"


def evaluation(comfyui: Path, cpu: bool, output: Path, options: Namespace) -> None:
    """Write output/words_scores.md; `options.scenes` images in each language."""
    open_comfyui(*(["--cpu"] if cpu else []))
    import comfy.sd

    from mulan_nodes.mulan.conditioning.clip import load_clip
    from mulan_nodes.mulan.tiny_models.unpacking import ADAPTER, CHECKPOINT, TEXT_ENCODER

    model, own, vae, *_ = comfy.sd.load_checkpoint_guess_config(str(located(comfyui, CHECKPOINT)))
    mulan = load_clip(located(comfyui, TEXT_ENCODER), located(comfyui, ADAPTER))
    ticker, found, moved = Ticker(), {}, {}
    for row, clip, codes in ((MULAN, mulan, list(TRAINED)), (OWN_CLIP, own, ["en"] * len(TRAINED))):
        rng = np.random.default_rng(SEED)
        for number in range((options.scenes or 1) * len(codes)):
            ticker.show(f"{row}: image {number + 1} of {(options.scenes or 1) * len(codes)}")
            code, thing = codes[number % len(codes)], world.SEEN_THINGS[rng.integers(len(world.SEEN_THINGS))]
            caption = full_caption(thing, code)
            words = words_of(thing, code, caption)
            look(model, clip, vae, thing, caption, words, rng, found.setdefault(row, []))
            for word in words.values():
                weigh(model, clip, caption, word, moved.setdefault(row, []))
    ticker.end()
    heads = [f"{name}: in the shape" for name in ATTRIBUTES]
    heads += ["covered by the shape", *(f"{name}: strength" for name in ATTRIBUTES)]
    rows = [[row, str(len(each)), *(f"{value:.2f}" for value in np.mean(each, 0))] for row, each in found.items()]
    weights = [[row, *(f"{value:.3f}" for value in np.median(each, 0))] for row, each in moved.items()]
    parts = [
        table(("words read by", "images", *heads), rows),
        "How far a weight moves what the UNet predicts in much noise, as a share of what leaving the word out does "
        "(median of all these words):\n",
        table(("words read by", *map(str, WEIGHTS)), weights),
    ]
    tell("\n".join(parts), output / FILE)


def words_of(thing: world.Thing, code: str, caption: str) -> dict[str, str]:
    """The word of each attribute as it stands in the caption."""
    language = LANGUAGES[code]
    forms = {
        "colour": language.colours.split()[list(world.PALETTE).index(thing.colour)],
        "shape": language.nouns.split()[world.SHAPES.index(thing.shape)].partition(":")[0],
        "size": language.sizes.split()[list(world.SIZES).index(thing.size)],
    }
    return {name: max((word for word in of.split("/") if word in caption), key=len) for name, of in forms.items()}


def look(
    model, clip, vae, thing: world.Thing, caption: str, words: dict[str, str], rng: np.random.Generator, found: list
) -> None:
    """Add whether the maps' highest points lie in the shape, the share that it covers, and the words' strengths."""
    import torch

    from mulan_nodes.mulan.conditioning.clip import encode_prompts
    from mulan_nodes.mulan.conditioning.prompt_words import chosen_words
    from mulan_nodes.mulan.conditioning.word_maps import map_words

    from ..tinyworld.contrastive_training import draw_anywhere

    picture = draw_anywhere(thing, rng)
    latent = vae.encode(torch.from_numpy(picture).float()[None] / 255)
    chosen = [chosen_words(caption, words[name])[0] for name in ATTRIBUTES]
    whole, *without = encode_prompts(clip, [caption, *(word.left_out(caption) for word in chosen), ""])
    maps = map_words(model, latent, whole, without, STEPS)
    shape = world.find_foreground(picture)
    large = torch.nn.functional.interpolate(maps[None, :-1], shape.shape, mode="bilinear")[0]
    hits = [float(shape.ravel()[of_word.argmax()]) for of_word in large]
    strengths = (maps[:-1].mean((1, 2)) / maps[-1].mean()).tolist()
    found.append([*hits, float(shape.mean()), *strengths])


def weigh(model: Any, clip, caption: str, word: str, moved: list) -> None:
    """Add how far each weight of a word moves the prediction, as a share of what leaving the word out does."""
    import comfy.model_management
    import torch

    from mulan_nodes.mulan.conditioning.clip import encode_prompts
    from mulan_nodes.mulan.conditioning.prompt_words import chosen_words

    (chosen,) = chosen_words(caption, word)
    first, end = chosen.spans[0]
    weighted = [f"{caption[:first]}({word}:{weight}){caption[end:]}" for weight in WEIGHTS]
    contexts = [conds[0][0] for conds in encode_prompts(clip, [caption, chosen.left_out(caption), *weighted])]
    comfy.model_management.load_models_gpu([model])
    sigma = torch.tensor([model.get_model_object("model_sampling").percent_to_sigma(NOISE)])
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(SEED)) * sigma
    with torch.no_grad():
        plain, without, *others = [
            model.model.apply_model(noise.to(model.load_device), sigma.to(model.load_device),
                                    c_crossattn=context.to(model.load_device))
            for context in contexts
        ]  # fmt: skip
    moved.append([float((other - plain).norm() / (without - plain).norm()) for other in others])
