"""Check Images: holds images against a checklist, chooses the best, and masks what to draw anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..mulan.boundary.interrupts import interruptible
from ..mulan.internvl_chat.chat_answer import Sampling
from ..mulan.internvl_chat.chat_answer import answer as chat_answer
from ..nodes import categories
from ..nodes.common import show_text, validate, with_field_name
from ..nodes.internvl_chat_questions import check_chat_clip
from .detections.bounding_boxes import box_score, boxes_per_image, to_bounding_boxes
from .detections.checked_images import best_first, check_image
from .detections.checklist import Question, questions_of, read_checklist, things_of
from .detections.json_document import frame_record, write_document
from .detections.masks import boxes_to_masks, object_masks, split_masks_per_image
from .detections.nodes_boxes import BOXES
from .model import prompt_templates
from .model.answers import answer
from .model.perception import check_names, detect
from .node_io import JSON_TOOLTIP, VISIONLLM, VisionLLMNode, for_each_image, threshold_input

ANSWER_TOKENS = 16
SAME_OBJECT = 0.5  # IoU from which two boxes of one name are one object
SHORT = prompt_templates.short_answer("?").user.removeprefix(f"{prompt_templates.IMAGE_LINE}?")


class VisionLLMCheckImages(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMCheckImages",
            display_name="Check Images",
            category=categories.VISIONLLM,
            description="Holds images against a checklist of things, counts and questions. Returns the best image of a "
            "batch, what is missing or wrong in it, and a mask to draw that anew.",
            search_aliases=[
                "prompt adherence",
                "prompt check",
                "check prompt",
                "verify image",
                "image validation",
                "quality check",
                "best of n",
                "pick best image",
                "choose best image",
                "count check",
                "missing objects",
                "image judge",
                "vqa score",
                "auto inpaint",
                "检查图像",
                "挑选最佳图片",
                "画像を検査",
                "이미지 검사",
                "vérifier l'image",
                "Bild prüfen",
                "проверить изображение",
                "comprobar imagen",
            ],
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The images to check: a batch, such as several drawn from one prompt."),
                io.String.Input(
                    "checklist",
                    multiline=True,
                    default="red fox\nwhite rabbit: 2\nIs it snowing?",
                    tooltip="One item per line, in any language: a thing; a thing, a colon and its number (2, 2+, 0); "
                    "or a question, with the expected answer behind the question mark (none: yes).",
                ),
                VISIONLLM.Input(
                    "visionllm",
                    optional=True,
                    tooltip="The model from VisionLLM Loader. It finds the things and answers the questions.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The CLIP of InternVL Chat Loader. It answers the questions instead of VisionLLM.",
                ),
                io.BoundingBox.Input(
                    "bboxes",
                    optional=True,
                    force_input=True,
                    tooltip=f"{BOXES} They are used instead of VisionLLM's: labels are the names of the checklist.",
                ),
                io.Mask.Input("masks", optional=True, tooltip="Masks of the boxes, one per box in the same order."),
                io.BoundingBox.Input(
                    "places",
                    optional=True,
                    force_input=True,
                    tooltip="Labeled boxes where the things belong, for the mask of what is missing. One list for all "
                    "images, or a list per image.",
                ),
                threshold_input(0.3, "Drops detections below this score."),
                io.Int.Input(
                    "top_k",
                    default=1,
                    min=0,
                    max=100000,
                    tooltip="Returns at most this many images, best first. 0 returns all.",
                ),
                io.Int.Input(
                    "grow",
                    default=8,
                    min=0,
                    max=1024,
                    tooltip="Pixels that the mask adds around wrong objects, and keeps around right ones.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The images, best first."),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="What to draw anew, one mask per image: objects that are wrong or too many, and where "
                    "missing ones belong. Without a place for them: all but the objects that are right.",
                ),
                io.Float.Output(
                    display_name="scores",
                    is_output_list=True,
                    tooltip="List: the share of the checklist that holds in each image, 0 to 1.",
                ),
                io.String.Output(
                    display_name="failed",
                    is_output_list=True,
                    tooltip="List: what does not hold in each image and what was seen instead, one item per line.",
                ),
                io.Int.Output(
                    display_name="order",
                    is_output_list=True,
                    tooltip="List: the index of each image in the input, starting at 0.",
                ),
                io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, checklist):
        return validate(_read, checklist)

    @classmethod
    def execute(
        cls,
        image,
        checklist,
        threshold,
        top_k,
        grow,
        visionllm: Any = None,
        clip=None,
        bboxes=None,
        masks=None,
        places=None,
    ) -> io.NodeOutput:
        items = _read(checklist)
        names, questions = [thing.name for thing in things_of(items)], questions_of(items)
        _check_models(names, questions, visionllm, clip, bboxes)
        if masks is not None and bboxes is None:
            raise ValueError("masks: they belong to bboxes, which are not connected")
        height, width = image.shape[1:3]
        belonging = with_field_name("places", boxes_per_image, [] if places is None else places, len(image))
        given = None if bboxes is None else with_field_name("bboxes", boxes_per_image, bboxes, len(image))
        given_masks = None
        if given is not None and masks is not None:
            given_masks = with_field_name("masks", split_masks_per_image, masks, given, (height, width))

        def check(index: int):
            if given is not None:
                filled = boxes_to_masks([given[index]], height, width)[1] if given_masks is None else given_masks[index]
                kept = [number for number, box in enumerate(given[index]) if box_score(box) >= threshold]
                boxes, filled = [given[index][number] for number in kept], filled[kept]
            elif names:
                found = detect(visionllm, image[index], names, threshold=threshold, iou_threshold=SAME_OBJECT)
                boxes, filled = to_bounding_boxes([found])[0], object_masks([found])
            else:
                boxes, filled = [], torch.zeros(0, height, width)
            answers = _answers(visionllm, clip, image[index], questions)
            return boxes, check_image(items, answers, boxes, filled, belonging[index], grow)

        results = for_each_image(range(len(image)), check)
        boxes, checked = [boxes for boxes, _ in results], [result for _, result in results]
        order = best_first(checked)[: top_k or None]
        failed = ["\n".join(each.failed) for each in checked]
        lines = [
            f"image {index + 1}: {checked[index].score:.2f}" + "".join(f"\n  {text}" for text in checked[index].failed)
            for index in order
        ]
        frames = [frame_record(width, height, boxes[index], text=failed[index]) for index in range(len(image))]
        record = write_document("check", checklist, frames)
        return io.NodeOutput(
            image[order],
            torch.stack([checked[index].mask.float() for index in order]),
            [checked[index].score for index in order],
            [failed[index] for index in order],
            order,
            record,
            ui=show_text("\n".join(lines), record),
        )


def _read(checklist: str):
    items = with_field_name("checklist", read_checklist, checklist)
    if things := things_of(items):
        with_field_name("checklist", check_names, [thing.name for thing in things])
    for question in questions_of(items):
        with_field_name("checklist", prompt_templates.short_answer, question.question)
    return items


def _check_models(names, questions, visionllm, clip, bboxes) -> None:
    if names and visionllm is None and bboxes is None:
        raise ValueError(
            f"checklist: it names things, such as {names[0]!r}. Connect visionllm, or bboxes of another detector"
        )
    if questions and visionllm is None and clip is None:
        raise ValueError(
            f"checklist: it has questions, such as {questions[0].question!r}. Connect visionllm, or clip of InternVL "
            "Chat Loader"
        )
    if clip is not None:
        check_chat_clip(clip)


def _answers(visionllm, clip, image: torch.Tensor, questions: Sequence[Question]) -> dict[Question, str]:
    """Ask all questions about one image, in the words both models were trained on for short answers."""
    if clip is not None:
        sampling = Sampling(max_tokens=ANSWER_TOKENS)
        return {
            question: chat_answer(
                clip, question.question + SHORT, [image], [], [], sampling=sampling, on_text=lambda text: None
            )[1]
            for question in interruptible(questions)
        }
    if not questions:
        return {}
    turns = [[prompt_templates.short_answer(question.question)] for question in questions]
    replies = answer(visionllm, [image], turns, max_tokens=ANSWER_TOKENS)
    return {question: reply.plain_text for question, reply in zip(questions, replies, strict=True)}
