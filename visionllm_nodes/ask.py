"""VisionLLM Ask: answers in words, about pictures or without any, round after round."""

from __future__ import annotations

from comfy_api.latest import io

from ..mulan.internvl_chat.chat_history import read_chat, write_chat
from ..nodes.common import for_field, show, show_meanwhile, valid, writing_inputs
from .detections.json_document import document, frame
from .model import prompt_templates
from .model.answers import LIMIT, Reply, answer
from .model.generation import greedy, sampling
from .node_io import JSON_TOOLTIP, each, model_input
from .sockets import CATEGORY

ONE_BY_ONE, TOGETHER = PICTURES = ("one by one", "all together")
FREE, SHORT, LETTER = STYLES = ("free", "a word or phrase", "a letter")
CAPTION = prompt_templates.caption().human.removeprefix(prompt_templates.PICTURE)
IMAGE_NAMES = [f"image_{number}" for number in range(1, 9)]


class VisionLLMAsk(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMAsk",
            display_name="VisionLLM Ask",
            category=CATEGORY,
            description="Describes pictures, answers questions about them, compares several, or just talks; the talk goes on from node to node.",
            search_aliases=[
                "image to text",
                "caption",
                "describe image",
                "interrogate",
                "vqa",
                "visual question answering",
                "chat with image",
                "llava",
                "图像描述",
                "图生文",
                "画像の説明",
                "이미지 설명",
                "légende d'image",
                "Bild beschreiben",
                "описание картинки",
                "describir imagen",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                model_input(),
                io.String.Input(
                    "question",
                    multiline=True,
                    dynamic_prompts=True,
                    default=CAPTION,
                    tooltip="What to say or ask, in any language.",
                ),
                io.Autogrow.Input(
                    "images",
                    optional=True,
                    template=io.Autogrow.TemplateNames(io.Image.Input("image"), names=IMAGE_NAMES, min=0),
                    tooltip="Pictures of any sizes, or batches of them. Without one it is just talk.",
                ),
                io.Combo.Input(
                    "pictures",
                    options=list(PICTURES),
                    default=ONE_BY_ONE,
                    optional=True,
                    tooltip="one by one: the question is asked about each picture, and the answers are a list. all together: once, about "
                    "all of them.",
                ),
                io.Combo.Input(
                    "answer",
                    options=list(STYLES),
                    default=FREE,
                    optional=True,
                    tooltip="How to answer, in the words the model was trained on. a letter: for a question whose lines list choices, A. "
                    "... B. ...",
                ),
                io.String.Input(
                    "history",
                    default="",
                    optional=True,
                    force_input=True,
                    tooltip="The history of another VisionLLM Ask about the same pictures: the question goes on from there. JSON.",
                ),
                *writing_inputs(LIMIT, most=4096),
            ],
            outputs=[
                io.String.Output(
                    display_name="text",
                    is_output_list=True,
                    tooltip="A list: the answer to each picture, or the one about all.",
                ),
                io.String.Output(
                    display_name="history",
                    is_output_list=True,
                    tooltip="A list: the talk so far with this answer, for the next VisionLLM Ask. JSON.",
                ),
                io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, question, images=None, history=""):
        checked = valid(lambda text: for_field("question", prompt_templates.chat, text), question)
        return checked if checked is not True else valid(_history, history)

    @classmethod
    def execute(
        cls,
        visionllm,
        question,
        images=None,
        pictures=ONE_BY_ONE,
        answer=FREE,
        history="",
        max_tokens=LIMIT,
        temperature=0.0,
        top_p=0.9,
        seed=0,
    ) -> io.NodeOutput:
        for_field("question", prompt_templates.chat, question)
        rounds, said = _history(history), _styled(question, answer)
        shown = [picture for batch in map((images or {}).get, IMAGE_NAMES) if batch is not None for picture in batch]

        def ask(about) -> Reply:
            choose = sampling(temperature, top_p, seed) if temperature else greedy
            return _reply(
                visionllm, about, said, rounds, max_tokens, choose, lambda texts: show_meanwhile(cls, texts[0])
            )

        apart = pictures == ONE_BY_ONE and bool(shown)
        texts = [reply.spoken for reply in each([[picture] for picture in shown] if apart else [shown], ask)]
        frames = [
            frame(picture.shape[1], picture.shape[0], text=texts[number] if apart else None)
            for number, picture in enumerate(shown)
        ]
        written = document("ask", said, frames, None if apart else texts[0])
        return io.NodeOutput(
            texts,
            [write_chat([*rounds, (said, text)]) for text in texts],
            written,
            ui=show(cls, "\n\n".join(texts), written),
        )


def _history(text: str) -> list[tuple[str, str]]:
    try:
        rounds = read_chat(text)
        prompt_templates.chat("?", rounds)
    except ValueError as error:
        raise ValueError(f"history: {error}") from error
    return rounds


def _styled(question: str, style: str) -> str:
    if style == FREE:
        return question
    turn = prompt_templates.short_answer(question) if style == SHORT else prompt_templates.letter_answer(question)
    return turn.human.removeprefix(prompt_templates.PICTURE)


def _reply(visionllm, about, said, rounds, limit, choose, on_text) -> Reply:
    """The pictures stand before the first question."""
    first, *others = prompt_templates.chat(said, rounds, picture=False)
    turns = [first._replace(human=prompt_templates.PICTURE * len(about) + first.human), *others]
    return answer(visionllm, about, [turns], limit=limit, choose=choose, on_text=on_text)[0]
