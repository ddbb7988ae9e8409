"""VisionLLM Generate / Edit Conditioning: prompts for Stable Diffusion 1.5 and InstructPix2Pix."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..nodes import categories
from ..nodes.common import validate, with_field_name
from .model import prompt_templates
from .model.contexts import editing_context, generation_context
from .node_io import VisionLLMNode, for_each_image, model_input, to_conditioning

CLIP_TOOLTIP = (
    "CLIP of the checkpoint, for the negative prompt. If not connected, nodes behind the negative "
    "output do not run; an empty CLIP Text Encode works too."
)
POSITIVE_TOOLTIP = "Positive conditioning (77 x 768). Use it instead of the output of CLIP Text Encode."
NEGATIVE_TOOLTIP = "Negative conditioning: the negative prompt encoded by the connected CLIP."


class VisionLLMGenerateConditioning(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMGenerateConditioning",
            display_name="VisionLLM Generate Conditioning",
            category=categories.VISIONLLM,
            description="Encodes a prompt for Stable Diffusion 1.5 with the VisionLLM language model instead of CLIP.",
            search_aliases=[
                "text to image llm",
                "llm prompt encoder",
                "llm text encoder",
                "visionllm prompt",
                "ella",
                "sd1.5 llm",
                "encode prompt with llm",
                "文生图",
                "画像生成",
                "이미지 생성",
                "генерация изображения",
                "generar imagen",
            ],
            inputs=[
                model_input(),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a red car on a snowy road",
                    tooltip='Prompt, in any language. It is lowercased and . ! " ( ) * # : ; ~ are removed, as in '
                    "training, so weights such as (word:1.2) have no effect.",
                ),
                *_negative_inputs(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, prompt):
        return validate(prompt_templates.generation, prompt, field="prompt")

    @classmethod
    def execute(cls, visionllm, prompt, clip=None, negative="") -> io.NodeOutput:
        with_field_name("prompt", prompt_templates.generation, prompt)
        return io.NodeOutput(to_conditioning(generation_context(visionllm, prompt)), _negative(clip, negative))


class VisionLLMEditConditioning(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMEditConditioning",
            display_name="VisionLLM Edit Conditioning",
            category=categories.VISIONLLM,
            description="Encodes an edit instruction for InstructPix2Pix: the VisionLLM language model reads the "
            "instruction and the image. Connect to InstructPixToPixConditioning.",
            search_aliases=[
                "instruct pix2pix",
                "instructpix2pix",
                "ip2p",
                "edit by instruction",
                "edit image by text",
                "image editing",
                "edit image by instruction",
                "图像编辑",
                "指令编辑",
                "画像編集",
                "이미지 편집",
                "Bild bearbeiten",
                "редактирование изображения",
                "editar imagen",
            ],
            inputs=[
                model_input(),
                io.Image.Input("image", tooltip="Images to edit. Each image of a batch gets its own conditioning."),
                io.String.Input(
                    "instruction",
                    multiline=True,
                    dynamic_prompts=True,
                    default="make it winter",
                    tooltip="Edit instruction, in any language.",
                ),
                *_negative_inputs(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(cls, instruction):
        return validate(prompt_templates.editing, instruction, field="instruction")

    @classmethod
    def execute(cls, visionllm, image, instruction, clip=None, negative="") -> io.NodeOutput:
        with_field_name("instruction", prompt_templates.editing, instruction)
        contexts = for_each_image(image, lambda frame: editing_context(visionllm, frame, instruction))
        return io.NodeOutput(to_conditioning(torch.cat(contexts)), _negative(clip, negative))


def _negative_inputs() -> list[io.Input]:
    return [
        io.Clip.Input("clip", optional=True, tooltip=CLIP_TOOLTIP),
        io.String.Input(
            "negative",
            multiline=True,
            dynamic_prompts=True,
            default="",
            optional=True,
            tooltip="Negative prompt, in English, encoded by the connected CLIP. Empty is the authors' setting.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Conditioning.Output(display_name="positive", tooltip=POSITIVE_TOOLTIP),
        io.Conditioning.Output(display_name="negative", tooltip=NEGATIVE_TOOLTIP),
    ]


def _negative(clip, text: str):
    if clip is None:
        return ExecutionBlocker(
            "clip: not connected, but the negative output is used. Connect the checkpoint's CLIP, or use a CLIP Text "
            "Encode as the negative."
        )
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))
