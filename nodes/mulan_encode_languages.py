"""MuLan Encode Languages: many prompts, one pass through the text encoder, a list of conditionings."""

from __future__ import annotations

from comfy_api.latest import io

from ..mulan.conditioning.languages import encode_once, labelled_prompts


class MulanEncodeLanguages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanEncodeLanguages",
            display_name="MuLan Encode Languages",
            category="MuLan",
            description="Encodes many prompts and a negative at once, and gives the prompts as a list: what follows, such as KSampler, runs once for each.",
            search_aliases=[
                "prompt list",
                "batch prompts",
                "multiline prompts",
                "many languages",
                "language grid",
                "prompts from text",
                "multilingual",
                "提示词列表",
                "プロンプト一覧",
                "프롬프트 목록",
            ],
            is_input_list=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of MuLan Loader, or any other."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    dynamic_prompts=True,
                    default="en: a red circle\nde: ein roter Kreis\nzh: 红色的圆形",
                    tooltip="One prompt per line. A language code and a colon before it is its label: 'zh: 一只猫', 'pt-BR: um gato'. "
                    "Connected, a list of texts is a list of prompts.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip="One negative prompt for all, encoded as MuLan Loader's CLIP (negative) does.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    is_output_list=True, tooltip="A list: for each prompt what CLIP Text Encode gives."
                ),
                io.Conditioning.Output(
                    display_name="negative",
                    tooltip="The negative prompt, a single one: it goes with every item of the lists.",
                ),
                io.String.Output(
                    display_name="labels",
                    is_output_list=True,
                    tooltip="A list: the language code before each prompt, or the prompt's number where there is none.",
                ),
                io.String.Output(
                    display_name="prompts", is_output_list=True, tooltip="A list: the prompts without their labels."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompts):
        if isinstance(prompts[0], str):  # None: it is connected
            try:
                labelled_prompts(prompts)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(cls, clip, prompts, negative=("",)) -> io.NodeOutput:
        clip, negative = _only("clip", clip), _only("negative", negative)
        if clip is None:
            raise ValueError(
                "the connected CLIP is empty: its checkpoint has no text encoder. Connect MuLan Loader's CLIP."
            )
        labels, texts = map(list, zip(*labelled_prompts(prompts)))
        conditionings, of_negative = encode_once(clip, texts, negative)
        return io.NodeOutput(conditionings, of_negative, labels, texts)


def _only(name: str, values):
    if len(values) != 1:
        raise ValueError(f"{name} takes one, and a list of {len(values)} is connected. Only prompts takes a list.")
    return values[0]
