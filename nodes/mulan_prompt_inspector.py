"""MuLan Prompt Inspector: how MuLan reads a prompt, as an image and as text."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..mulan.conditioning.inspection import format_report, inspect_prompt
from ..mulan.conditioning.inspection_image import draw_inspection
from ..mulan.conditioning.prompt_tokenizer import NEGATIVE, PromptTokenizer
from ..mulan.images.text_drawing import TextRenderer
from . import categories
from .checked_node import CheckedNode
from .common import show_text


class MulanPromptInspector(CheckedNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanPromptInspector",
            display_name="MuLan Prompt Inspector",
            category=categories.MULAN,
            description=(
                "Shows how MuLan reads a prompt: tokens, windows, weights, dropped text, and the "
                "number of tokens the language needs. Only runs the tokenizer, so it takes no time "
                "and no GPU."
            ),
            search_aliases=[
                "count tokens",
                "token count",
                "token counter",
                "show tokens",
                "token viewer",
                "tokenize prompt",
                "prompt length",
                "prompt too long",
                "debug prompt",
                "inspect prompt",
                "prompt weights",
                "analyze prompt",
                "prompt analysis",
                "tokenizer",
                "查看词元",
                "提示词长度",
                "トークン数",
                "プロンプトの長さ",
                "토큰 수",
                "nombre de tokens",
                "Token zählen",
                "число токенов",
                "contar tokens",
            ],
            is_output_node=True,
            inputs=[
                io.Clip.Input(
                    "clip",
                    tooltip="CLIP or CLIP (negative) of MuLan Loader. The prompt is read as that output reads it.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip=(
                        "The prompt to inspect, in any language. (words:1.2) sets a weight; BREAK on its "
                        "own starts a new window."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The windows with their tokens, weights and notes, drawn 1024 pixels wide."),
                io.String.Output(display_name="report", tooltip="The same as text."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, clip, text) -> io.NodeOutput:
        inspection = inspect_prompt(_tokenizer(clip), text, bool(clip.tokenizer_options.get(NEGATIVE, False)))
        pixels = np.asarray(draw_inspection(inspection, TextRenderer(sample=text)), dtype=np.float32) / 255
        image = torch.from_numpy(pixels).unsqueeze(0)
        written = format_report(inspection)
        shown = {**ui.PreviewImage(image, cls=cls).as_dict(), **show_text(written)}
        return io.NodeOutput(image, written, ui=shown)


def _tokenizer(clip) -> PromptTokenizer:
    if clip is None:
        raise ValueError(
            "clip: the connected CLIP is empty, its checkpoint has no text encoder. Connect the CLIP of a MuLan Loader."
        )
    if not isinstance(clip.tokenizer, PromptTokenizer):
        raise ValueError(
            f"clip: the connected CLIP is not MuLan's (its tokenizer is {type(clip.tokenizer).__name__}). "
            "Connect CLIP or CLIP (negative) of a MuLan Loader."
        )
    return clip.tokenizer
