"""VisionLLM Generate Conditioning and VisionLLM Edit Conditioning: the language model's own prompt for Stable Diffusion 1.5 and InstructPix2Pix."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..nodes.common import for_field, valid
from .model import prompt_templates
from .model.contexts import editing_context, generation_context
from .node_io import each, model_input

CATEGORY = "conditioning"
CLIP_TOOLTIP = (
    "The checkpoint's own CLIP, for the negative. Without it the negative output stops what is connected there: a CLIP Text Encode of "
    "nothing does as well."
)
POSITIVE_TOOLTIP = "In the place of what CLIP Text Encode gives: a context of 77 x 768."
NEGATIVE_TOOLTIP = "For a sampler's negative: the negative text through the CLIP."


class VisionLLMGenerateConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMGenerateConditioning",
            display_name="VisionLLM Generate Conditioning",
            category=CATEGORY,
            description="Lets the language model say what Stable Diffusion 1.5 is to draw: it reads the prompt, and its states take the place of "
            "CLIP's.",
            search_aliases=[
                "text to image llm",
                "llm prompt encoder",
                "visionllm prompt",
                "ella",
                "sd1.5 llm",
                "文生图",
                "画像生成",
                "이미지 생성",
                "генерация картинки",
                "generar imagen",
            ],
            inputs=[
                model_input(),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a red car on a snowy road",
                    tooltip="What to draw, in words of any language. It is cleaned as the training captions were: small letters, no . ! "
                    '" ( ) * # : ; ~, so weights as (word:1.2) mean nothing.',
                ),
                *_negative_inputs(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, prompt):
        return valid(lambda text: for_field("prompt", prompt_templates.generation, text), prompt)

    @classmethod
    def execute(cls, visionllm, prompt, clip=None, negative="") -> io.NodeOutput:
        for_field("prompt", prompt_templates.generation, prompt)
        return io.NodeOutput(_conditioning(generation_context(visionllm, prompt)), _negative(clip, negative))


class VisionLLMEditConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMEditConditioning",
            display_name="VisionLLM Edit Conditioning",
            category=CATEGORY,
            description="Lets the language model, which sees the picture, say how InstructPix2Pix is to change it. The stock "
            "InstructPixToPixConditioning follows.",
            search_aliases=[
                "instruct pix2pix",
                "edit by instruction",
                "image editing",
                "ip2p",
                "instructpix2pix",
                "图像编辑",
                "指令编辑",
                "画像編集",
                "이미지 편집",
                "Bild bearbeiten",
                "редактирование",
                "editar imagen",
            ],
            inputs=[
                model_input(),
                io.Image.Input("image", tooltip="The picture to change. Of a batch each gets its own conditioning."),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    dynamic_prompts=True,
                    default="make it winter",
                    tooltip="What to change, in words of any language.",
                ),
                *_negative_inputs(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, instruction):
        return valid(lambda text: for_field("instruction", prompt_templates.editing, text), instruction)

    @classmethod
    def execute(cls, visionllm, image, instruction, clip=None, negative="") -> io.NodeOutput:
        for_field("instruction", prompt_templates.editing, instruction)
        contexts = each(image, lambda picture: editing_context(visionllm, picture, instruction))
        return io.NodeOutput(_conditioning(torch.cat(contexts)), _negative(clip, negative))


def _negative_inputs() -> list[io.Input]:
    return [
        io.Clip.Input("clip", optional=True, tooltip=CLIP_TOOLTIP),
        io.String.Input(
            "negative",
            multiline=True,
            dynamic_prompts=True,
            default="",
            optional=True,
            tooltip="What not to see, in CLIP's English. Empty, as the model's authors have it.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Conditioning.Output(display_name="positive", tooltip=POSITIVE_TOOLTIP),
        io.Conditioning.Output(display_name="negative", tooltip=NEGATIVE_TOOLTIP),
    ]


def _conditioning(context: torch.Tensor) -> list:
    return [[context, {"pooled_output": None}]]


def _negative(clip, text: str):
    if clip is None:
        return ExecutionBlocker(
            "the negative output is used, but no CLIP goes in. Connect the checkpoint's CLIP, or take a CLIP Text Encode as the "
            "negative."
        )
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))
