"""VisionLLM Ask: answers about images, or chat without them, over several rounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy_api.latest import io

from ..mulan.internvl_chat.chat_history import Exchange, history_to_json, parse_history
from ..nodes import categories
from ..nodes.common import sampling_inputs, show_progress, show_text, validate, with_field_name
from .detections.bounding_boxes import to_bounding_boxes
from .detections.json_document import frame_record, write_document
from .model import prompt_templates
from .model.answers import MAX_TOKENS, Reply
from .model.answers import answer as generate
from .model.generation import greedy, nucleus_sampler
from .model.prompt_templates import Turn
from .model.region_mentions import place_regions
from .node_io import JSON_TOOLTIP, VisionLLMNode, for_each_image, model_input
from .region_prompts import Regions, parse_points, region_inputs, regions_per_image

ONE_BY_ONE, TOGETHER = PICTURES = ("one by one", "all together")
FREE, SHORT, LETTER = STYLES = ("free", "a word or phrase", "a letter")
CAPTION = prompt_templates.caption().user.removeprefix(prompt_templates.IMAGE_LINE)
IMAGE_NAMES = [f"image_{number}" for number in range(1, 9)]


class VisionLLMAsk(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMAsk",
            display_name="VisionLLM Ask",
            category=categories.VISIONLLM,
            description="Captions images, answers questions about one or several images, or chats without an image. "
            "Connect history to continue the conversation in another node.",
            search_aliases=[
                "image to text",
                "image captioning",
                "caption image",
                "describe image",
                "interrogate image",
                "visual question answering",
                "vqa",
                "chat with image",
                "compare images",
                "vision llm",
                "llava",
                "clip interrogator",
                "image to prompt",
                "ask about image",
                "interrogator",
                "ask question",
                "question sur l'image",
                "图像描述",
                "图生文",
                "画像の説明",
                "이미지 설명",
                "légende d'image",
                "Bild beschreiben",
                "описание изображения",
                "describir imagen",
                "反推提示词",
                "画像キャプション",
                "décrire l'image",
                "이미지 질문",
                "описать изображение",
                "图片描述",
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
                    tooltip="Question or instruction, in any language.",
                ),
                io.Autogrow.Input(
                    "images",
                    optional=True,
                    template=io.Autogrow.TemplateNames(io.Image.Input("image"), names=IMAGE_NAMES, min=0),
                    tooltip="Images of any size, or batches. Without images, the model just chats.",
                ),
                io.Combo.Input(
                    "pictures",
                    options=list(PICTURES),
                    default=ONE_BY_ONE,
                    optional=True,
                    tooltip="one by one: asks about each image and returns a list of answers. all together: asks once "
                    "about all images.",
                ),
                io.Combo.Input(
                    "answer",
                    options=list(STYLES),
                    default=FREE,
                    optional=True,
                    tooltip="Style of the answer, requested in the wording the model was trained on. free: no "
                    "request. a letter: for multiple-choice questions with the lines A. ... B. ...",
                ),
                io.String.Input(
                    "history",
                    default="",
                    optional=True,
                    force_input=True,
                    tooltip="Conversation history (JSON) from another VisionLLM Ask about the same images. The "
                    "question continues this conversation.",
                ),
                *sampling_inputs(MAX_TOKENS, limit=4096),
                *region_inputs(),
            ],
            outputs=[
                io.String.Output(
                    display_name="text",
                    is_output_list=True,
                    tooltip="List of answers: one per image, or a single one about all images.",
                ),
                io.String.Output(
                    display_name="history",
                    is_output_list=True,
                    tooltip="List of conversation histories (JSON), including this answer. Connect to the next "
                    "VisionLLM Ask.",
                ),
                io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
                io.BoundingBox.Output(
                    display_name="regions",
                    tooltip="The marked regions as bounding boxes in pixels with the names region1, region2, ... that "
                    "the question may use, one list per image. Draw Detections shows which is which.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, question, images=None, history="", points=""):
        return [
            validate(prompt_templates.chat, question, field="question"),
            validate(_history, history),
            validate(parse_points, points),
        ]

    @classmethod
    def execute(
        cls,
        visionllm,
        question,
        images=None,
        pictures=ONE_BY_ONE,
        answer=FREE,
        history="",
        max_tokens=MAX_TOKENS,
        temperature=0.0,
        top_p=0.9,
        seed=0,
        mask=None,
        bboxes=None,
        points="",
    ) -> io.NodeOutput:
        with_field_name("question", prompt_templates.chat, question)
        rounds, prompt = _history(history), _with_style(question, answer)
        batches = [batch for name in IMAGE_NAMES if (batch := (images or {}).get(name)) is not None]
        images_in_order = [image for batch in batches for image in batch]
        one_by_one = pictures == ONE_BY_ONE and bool(images_in_order)
        groups = [[image] for image in images_in_order] if one_by_one else [images_in_order]
        sizes = [(image.shape[0], image.shape[1]) for image in images_in_order]
        marked = mask is not None or bboxes is not None or points.strip()
        if marked and any(len(group) != 1 for group in groups):
            what = "one image at a time. Set pictures to one by one" if images_in_order else "an image. Connect one"
            raise ValueError(f"mask, bboxes, points: regions are asked about in {what}")
        regions = regions_per_image(sizes, visionllm.settings.tower, mask, bboxes, points) if marked else None

        def ask(index: int) -> Reply:
            turns, marks = _conversation(groups[index], prompt, rounds, regions[index] if regions else None, index)
            sampler = nucleus_sampler(temperature, top_p, seed) if temperature else greedy
            return generate(
                visionllm,
                groups[index],
                [turns],
                region_masks=marks,
                max_tokens=max_tokens,
                sampler=sampler,
                on_text=lambda texts: show_progress(cls, texts[0]),
            )[0]

        texts = [reply.plain_text for reply in for_each_image(range(len(groups)), ask)]
        detections = [of_image.to_detections(_region_names(len(of_image))) for of_image in regions or ()]
        boxes = to_bounding_boxes(detections) or [[] for _ in sizes]
        frames = [
            frame_record(width, height, boxes[index], text=texts[index] if one_by_one else None)
            for index, (height, width) in enumerate(sizes)
        ]
        record = write_document("ask", prompt, frames, None if one_by_one else texts[0])
        return io.NodeOutput(
            texts,
            [history_to_json([*rounds, (prompt, text)]) for text in texts],
            record,
            boxes,
            ui=show_text("\n\n".join(texts), record),
        )


def _history(text: str) -> list[tuple[str, str]]:
    rounds = with_field_name("history", parse_history, text)
    with_field_name("history", prompt_templates.chat, "?", rounds)
    return rounds


def _with_style(question: str, style: str) -> str:
    if style == FREE:
        return question
    turn = prompt_templates.short_answer(question) if style == SHORT else prompt_templates.letter_answer(question)
    return turn.user.removeprefix(prompt_templates.IMAGE_LINE)


def _region_names(count: int) -> list[str]:
    return [f"region{number}" for number in range(1, count + 1)]


def _conversation(
    images: Sequence[torch.Tensor], prompt: str, rounds: Sequence[Exchange], regions: Regions | None, index: int
) -> tuple[list[Turn], torch.Tensor | None]:
    """Return the turns, with the images before the first question, and the marks of the regions that they name."""
    turns, marks = prompt_templates.chat(prompt, rounds, with_image=False), None
    if regions is not None:
        turns, named = with_field_name(f"question about image {index + 1}", place_regions, turns, len(regions))
        marks = regions.marks[named]
    return [turns[0]._replace(user=prompt_templates.IMAGE_LINE * len(images) + turns[0].user), *turns[1:]], marks
