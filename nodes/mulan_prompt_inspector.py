"""MuLan Prompt Inspector: what a prompt becomes before it is encoded, as a picture and as text."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..mulan.conditioning.inspection import inspect, report
from ..mulan.conditioning.inspection_image import draw
from ..mulan.conditioning.prompt_tokenizer import NEGATIVE, PromptTokenizer
from ..mulan.images.text_drawing import TextRenderer
from .common import show


class MulanPromptInspector(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanPromptInspector",
            display_name="MuLan Prompt Inspector",
            category="MuLan",
            description="Shows what MuLan makes of a prompt: its tokens, windows and weights, what is cut away, and how many tokens the language takes. "
            "Nothing is encoded, so it takes no time and no GPU.",
            search_aliases=[
                "token count",
                "tokenizer",
                "count tokens",
                "prompt length",
                "show tokens",
                "token viewer",
                "debug prompt",
                "fertility",
                "词元",
                "トークン",
                "토큰",
                "токены",
            ],
            is_output_node=True,
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="The CLIP of MuLan Loader, or its CLIP (negative): the prompt is read as that one reads it.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, in any language. (words:1.2) sets a weight, BREAK on its own begins another window.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The windows with their tokens, weights and notes; 1024 pixels wide."),
                io.String.Output(display_name="report", tooltip="The same as text."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, clip, text) -> io.NodeOutput:
        inspection = inspect(_tokenizer(clip), text, bool(clip.tokenizer_options.get(NEGATIVE, False)))
        picture = np.asarray(draw(inspection, TextRenderer(sample=text)), dtype=np.float32) / 255
        image = torch.from_numpy(picture).unsqueeze(0)
        written = report(inspection)
        shown = {**ui.PreviewImage(image, cls=cls).as_dict(), **show(cls, written).as_dict()}
        return io.NodeOutput(image, written, ui=shown)


def _tokenizer(clip) -> PromptTokenizer:
    if clip is None:
        raise ValueError(
            "the connected CLIP is empty: its checkpoint has no text encoder. Connect the CLIP of a MuLan Loader."
        )
    if not isinstance(clip.tokenizer, PromptTokenizer):
        raise ValueError(
            f"the connected CLIP is not MuLan's (its tokenizer is {type(clip.tokenizer).__name__}): this node reads prompts as the "
            f"MuLan Loader's CLIP does. Connect CLIP or CLIP (negative) of a MuLan Loader."
        )
    return clip.tokenizer
