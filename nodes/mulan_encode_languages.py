"""MuLan Encode Languages: many prompts, one pass through the text encoder, a list of conditionings."""

from __future__ import annotations

from comfy_api.latest import io

from ..mulan.conditioning.languages import encode_unique, parse_labeled_prompts
from . import categories
from .checked_node import CheckedNode
from .common import validate, with_field_name


class MulanEncodeLanguages(CheckedNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanEncodeLanguages",
            display_name="MuLan Encode Languages",
            category=categories.MULAN,
            description=(
                "Encodes several prompts, one per line and each in any language, in one pass. Returns "
                "the conditionings as a list: nodes after it, such as KSampler, run once per prompt."
            ),
            search_aliases=[
                "prompt list",
                "multiple prompts",
                "batch prompts",
                "multiline prompts",
                "one prompt per line",
                "prompts from text",
                "encode multiple prompts",
                "multilingual prompts",
                "compare languages",
                "language grid",
                "several prompts",
                "translate prompts",
                "prompt in several languages",
                "批量提示词",
                "提示词列表",
                "多语言提示词",
                "プロンプト一覧",
                "複数プロンプト",
                "프롬프트 목록",
                "여러 프롬프트",
                "liste de prompts",
                "Prompt-Liste",
                "список промптов",
                "lista de prompts",
            ],
            is_input_list=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP that encodes the prompts: MuLan Loader's, or any other."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    dynamic_prompts=True,
                    default="en: a red circle\nde: ein roter Kreis\nzh: 红色的圆形",
                    tooltip=(
                        "The prompts, one per line. A language code and a colon in front label a prompt: "
                        "'zh: 一只猫', 'pt-BR: um gato'. A connected list of texts is a list of prompts."
                    ),
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip="One negative prompt for all prompts, encoded as by MuLan Loader's CLIP (negative).",
                ),
            ],
            outputs=[
                io.Conditioning.Output(is_output_list=True, tooltip="List: the conditioning of each prompt."),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The conditioning of the negative prompt. It is used with every prompt of the list.",
                ),
                io.String.Output(
                    display_name="labels",
                    is_output_list=True,
                    tooltip="List: the language code of each prompt, or its number if it has none.",
                ),
                io.String.Output(
                    display_name="prompts", is_output_list=True, tooltip="List: the prompts without their labels."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompts):
        return True if prompts[0] is None else validate(parse_labeled_prompts, prompts, field="prompts")

    @classmethod
    def execute(cls, clip, prompts, negative=("",)) -> io.NodeOutput:
        clip, negative = _single("clip", clip), _single("negative", negative)
        if clip is None:
            raise ValueError(
                "clip: the connected CLIP is empty, its checkpoint has no text encoder. Connect MuLan Loader's CLIP."
            )
        labels, texts = map(list, zip(*with_field_name("prompts", parse_labeled_prompts, prompts), strict=True))
        conditionings, negative_conditioning = encode_unique(clip, texts, negative)
        return io.NodeOutput(conditionings, negative_conditioning, labels, texts)


def _single(field: str, values):
    if len(values) != 1:
        raise ValueError(
            f"{field}: takes one value, but a list of {len(values)} is connected. Only prompts takes a list."
        )
    return values[0]
