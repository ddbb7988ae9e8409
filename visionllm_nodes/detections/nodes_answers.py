"""Text to Boxes and Points: what vision-language models of any kind write about places, as detections."""

from __future__ import annotations

from comfy_api.latest import io

from ...mulan.boundary.interrupts import interruptible
from ...nodes import categories
from ...nodes.common import show_text
from ..node_io import JSON_TOOLTIP, KEYPOINTS, VisionLLMNode
from .answer_coordinates import AUTO, COORDINATES, ORDERS, locate
from .json_document import Document, frame_record, write_document
from .keypoints import points_json
from .model_answers import read_answer
from .nodes_files import document_masks


class VisionLLMTextToBoxes(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMTextToBoxes",
            display_name="Text to Boxes and Points",
            category=categories.DETECTIONS,
            description="Reads boxes and points in the answer of any vision-language model (VLM): InternVL, Qwen-VL, "
            "Gemini, Molmo, PaliGemma, Florence-2 and others. Says what could not be read.",
            search_aliases=[
                "text to bbox",
                "parse bbox",
                "parse boxes",
                "vlm to boxes",
                "llm json to bbox",
                "bbox_2d",
                "qwen grounding",
                "internvl grounding",
                "molmo points",
                "string to bbox",
                "grounding to SAM",
                "parse coordinates",
                "pyautogui click",
                "文本转检测框",
                "解析坐标",
                "テキストをボックスに",
                "텍스트를 상자로",
                "texto a cajas",
                "texte en boîtes",
                "Text zu Boxen",
                "текст в рамки",
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    tooltip="Answer of a vision-language model, with any words around the boxes. A list is read as one "
                    "text per image; with a single image, all its texts are read.",
                ),
                io.Image.Input(
                    "image", tooltip="Images the text is about. Only their size is used, to convert to pixels."
                ),
                io.Combo.Input(
                    "coordinates",
                    options=list(COORDINATES),
                    default=AUTO,
                    tooltip="Unit of the numbers. auto: as the form of the answer says (InternVL, Gemini: 0-1000, "
                    "Molmo: 0-100), otherwise by the numbers: decimals up to 1 are 0-1, numbers above 1000 pixels, "
                    "numbers outside the image 0-1000. If pixels and 0-1000 both fit, 0-1000 is used and the report "
                    "says so.",
                ),
                io.Combo.Input(
                    "order",
                    options=list(ORDERS),
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="Which number of each pair comes first. auto: y for Gemini's box_2d and point, x for all "
                    "others. Numbers named x and y, and location tokens, are always read as they are.",
                ),
            ],
            outputs=[
                io.BoundingBox.Output(
                    display_name="bboxes",
                    tooltip="Bounding boxes in pixels, one list per image, in the order of the text. They have a score "
                    "only if the text gives one.",
                ),
                io.Mask.Output(display_name="mask", tooltip="Union mask: one per image, covering all its boxes."),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="One filled mask per box, in the same order. A single empty mask if there is no box.",
                ),
                KEYPOINTS.Output(
                    display_name="keypoints",
                    tooltip="Points as keypoints, one record per image. Each point is an object of its own.",
                ),
                io.String.Output(
                    display_name="points",
                    is_output_list=True,
                    tooltip='Points as JSON [{"x": 12, "y": 34}, ...], one string per image, for positive_coords of '
                    "SAM3 Detect.",
                ),
                io.Int.Output(display_name="count", tooltip="Number of boxes and points across all images."),
                io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
                io.String.Output(
                    display_name="report",
                    tooltip="What was found in each image, and what was not read, cut to the image or could not be "
                    "decided, with the place in the text.",
                ),
            ],
        )

    @classmethod
    def execute(cls, text, image, coordinates, order=(AUTO,)) -> io.NodeOutput:
        sizes = [(each.shape[0], each.shape[1]) for batch in image for each in batch]
        texts = _text_per_image(text, len(sizes))
        answers = [read_answer(each) for each in interruptible(texts)]
        images = locate(answers, sizes, coordinates[0], order[0])
        frames = [
            frame_record(found.size[1], found.size[0], found.boxes, keypoints=found.keypoints, text=each)
            for found, each in zip(images, texts, strict=True)
        ]
        boxes, keypoints = [found.boxes for found in images], [found.keypoints for found in images]
        record, report = write_document("read", "", frames), _report([found.summary() for found in images])
        return io.NodeOutput(
            boxes,
            *document_masks(Document("read", "", "", keypoints), boxes),
            keypoints,
            [points_json(one["keypoints"][0] for one in found.points) for found in images],
            sum(len(found.boxes) + len(found.points) for found in images),
            record,
            report,
            ui=show_text(report, record),
        )


def _text_per_image(texts: list[str], images: int) -> list[str]:
    """Return a text for each image; several about a single image are one."""
    if not images:
        raise ValueError("image: the batch is empty")
    if images == 1:
        return ["\n\n".join(texts)]
    if len(texts) != images:
        raise ValueError(
            f"text: got {len(texts)} text{'s' * (len(texts) != 1)} for {images} images. Connect one text per image, or "
            "a single image"
        )
    return texts


def _report(summaries: list[str]) -> str:
    if len(summaries) == 1:
        return summaries[0]
    return "\n".join(f"image {index}: {summary}" for index, summary in enumerate(summaries))
