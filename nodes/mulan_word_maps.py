"""MuLan Word Maps: where in an image each word of its prompt acts, as heat maps, masks and numbers."""

from __future__ import annotations

import json

import torch
from comfy_api.latest import io, ui
from torch.nn import functional as F

from ..mulan.boundary.limits import MAX_MASK_PIXELS
from ..mulan.boundary.values import describe
from ..mulan.conditioning.base_model import check_family
from ..mulan.conditioning.clip import encode_prompts
from ..mulan.conditioning.prompt_tokenizer import PromptTokenizer
from ..mulan.conditioning.prompt_words import chosen_words, prompt_words, unit_splitter
from ..mulan.conditioning.word_maps import map_words
from ..mulan.conditioning.word_maps_image import draw_maps
from ..mulan.images.text_drawing import TextRenderer
from . import categories
from .checked_node import CheckedNode
from .common import show_text, with_field_name


class MulanWordMaps(CheckedNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanWordMaps",
            display_name="MuLan Word Maps",
            category=categories.MULAN,
            description="Shows where each word of a prompt acts in the generated image, in any language: heat maps "
            "over the image, a mask per word, and how strongly each word acts.",
            search_aliases=[
                "attention map",
                "attention heatmap",
                "cross attention maps",
                "word heat map",
                "what each word did",
                "daam",
                "prompt heatmap",
                "visualize prompt",
                "explain prompt",
                "mask from word",
                "注意力图",
                "热力图",
                "アテンションマップ",
                "ヒートマップ",
                "어텐션 맵",
                "히트맵",
                "carte d'attention",
                "Heatmap der Wörter",
                "mapa de atención",
                "карта внимания",
            ],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that generated the image, as KSampler gets it."),
                io.Clip.Input("clip", tooltip="The CLIP that encodes the prompt: MuLan Loader's, or the checkpoint's."),
                io.Latent.Input(
                    "latent", tooltip="The generated latent, from KSampler. VAE Encode makes one of any other image."
                ),
                io.Image.Input("image", tooltip="The same, decoded. The maps have its size and are drawn over it."),
                io.String.Input(
                    "text",
                    multiline=True,
                    tooltip="The prompt of the image. Connect the same text to CLIP Text Encode.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Words or phrases of the prompt to map, separated by commas or line breaks. Empty maps "
                    "each word; where a language writes no spaces, each of the tokenizer's pieces.",
                ),
                io.Int.Input(
                    "steps",
                    default=4,
                    min=1,
                    max=50,
                    optional=True,
                    advanced=True,
                    tooltip="Amounts of noise under which the model is asked. More are slower and smoother.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    tooltip="One image per image: the image itself, then each word's map over it with its strength."
                ),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="One mask per word, 1 where the word acts most and 0 where least; all words of the first "
                    "image, then of the next.",
                ),
                io.String.Output(display_name="words", is_output_list=True, tooltip="List: the words in order."),
                io.String.Output(
                    display_name="json",
                    tooltip="Per image and word: strength, the pixel where it acts most, the share of the image where "
                    "it acts at least half as much.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, model, clip, latent, image, text, words="", steps=4) -> io.NodeOutput:
        samples = with_field_name("latent", _samples, latent, model)
        if len(samples) != len(image):
            raise ValueError(
                f"image: got {len(image)} images for {len(samples)} latents. Connect the image that VAE Decode makes "
                "of this latent"
            )
        height, width = image.shape[1:3]
        split = list
        if isinstance(clip.tokenizer, PromptTokenizer):
            with_field_name("clip", check_family, model, clip.tokenizer.family, "the adapter")
            split = unit_splitter(clip.tokenizer.tokenizer)
        found = (
            with_field_name("words", chosen_words, text, words)
            if words.strip()
            else with_field_name("text", prompt_words, text, split)
        )
        if (pixels := len(found) * len(samples) * height * width) > MAX_MASK_PIXELS:
            raise ValueError(
                f"words: {len(found)} of them for {len(samples)} images of {width} x {height} are {pixels} pixels of "
                f"masks, and at most {MAX_MASK_PIXELS} are made at once. List fewer words"
            )
        names = [word.text for word in found]
        whole, *others = encode_prompts(clip, [text, *(word.left_out(text) for word in found), ""])
        maps = torch.stack([map_words(model, latent[None], whole, others, steps) for latent in samples])
        masks = torch.cat([_masks(of_image[:-1], height, width) for of_image in maps]).unflatten(0, (len(samples), -1))
        # the last map is that of an empty prompt: all words together
        strengths = maps[:, :-1].mean((2, 3)) / maps[:, -1:].mean((2, 3)).clamp_min(1e-12)
        renderer = TextRenderer(sample=text)
        sheets = torch.stack(
            [
                draw_maps(of_image[..., :3], of_words, names, [f"{value:.2f}" for value in values.tolist()], renderer)
                for of_image, of_words, values in zip(image, masks, strengths, strict=True)
            ]
        )
        records = [_record(names, *of_image) for of_image in zip(masks, strengths.tolist(), strict=True)]
        document = json.dumps({"prompt": text, "width": width, "height": height, "images": records}, ensure_ascii=False)
        lines = [f"{word['word']}: {word['strength']:.2f}" for word in records[0]]
        shown = {**ui.PreviewImage(sheets, cls=cls).as_dict(), **show_text("\n".join(lines), document)}
        return io.NodeOutput(sheets, masks.flatten(0, 1), names, document, ui=shown)


def _samples(latent, model) -> torch.Tensor:
    """Return the latents [B, C, h, w] of a LATENT. Raises ValueError where they are none of this MODEL's."""
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, torch.Tensor) or samples.ndim != 4 or not samples.numel():
        found = list(samples.shape) if isinstance(samples, torch.Tensor) else describe(latent)
        raise ValueError(f"expected the latent of an image [batch, channels, height, width], got {found}")
    if samples.shape[1] != (channels := model.get_model_object("latent_format").latent_channels):
        raise ValueError(
            f"it has {samples.shape[1]} channels, and the connected MODEL reads {channels}: connect the latent that "
            "this MODEL generated"
        )
    return samples


def _masks(maps: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return maps [N, h, w] in an image's size, each from 0 where its word acts least to 1 where most."""
    masks = F.interpolate(maps[None], (height, width), mode="bilinear")[0]
    low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
    return (masks - low) / (high - low).clamp_min(1e-12)


def _record(words: list[str], masks: torch.Tensor, strengths: list[float]) -> list[dict]:
    """Return what the JSON says of one image."""
    width = masks.shape[-1]
    peaks = masks.flatten(1).argmax(1).tolist()
    areas = (masks >= 0.5).float().mean((1, 2)).tolist()
    return [
        {"word": word, "strength": round(strength, 4), "x": peak % width, "y": peak // width, "area": round(area, 4)}
        for word, strength, peak, area in zip(words, strengths, peaks, areas, strict=True)
    ]
