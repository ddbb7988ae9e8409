"""Save Detections and Load Detections: boxes, masks, keypoints and texts as JSON in output/detections."""

from __future__ import annotations

import hashlib

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ...mulan.boundary.files import write_text
from ...mulan.boundary.limits import MAX_JSON_LENGTH
from ...nodes import categories
from ...nodes.common import SavedFiles, announce_files, show_text
from ..node_io import KEYPOINTS, VisionLLMNode
from .bounding_boxes import boxes_per_image
from .json_document import Document, frame_record, read_document, write_document
from .masks import NO_SIZE, boxes_to_masks, split_masks_per_image, too_many_pixels

FILES = SavedFiles("detections", ".json", "Save Detections")
TEXT = "the text below"


def read(name: str, text: str | None) -> Document:
    """Read the selected file, or the text. Raise OSError or ValueError that begins with the input's name."""
    source = "json" if name == TEXT else f"file {name!r}"
    try:
        return read_document((text or "") if name == TEXT else _content(name))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _content(name: str) -> bytes:
    file = FILES.locate(name)
    if file.stat().st_size > MAX_JSON_LENGTH:
        raise ValueError(f"it has {file.stat().st_size} bytes, and at most {MAX_JSON_LENGTH} are read")
    return file.read_bytes()


class VisionLLMSaveDetections(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMSaveDetections",
            display_name="Save Detections",
            category=categories.DETECTIONS,
            description="Saves boxes, masks and keypoints from any node as a JSON file in output/detections. Also "
            "shows the JSON and keeps it in the history for API clients.",
            search_aliases=[
                "save json",
                "export bbox",
                "save bounding boxes",
                "save keypoints",
                "save annotations",
                "export dataset",
                "export annotations",
                "export json",
                "保存检测结果",
                "検出を保存",
                "검출 저장",
                "guardar detecciones",
                "сохранить рамки",
            ],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "json",
                    optional=True,
                    force_input=True,
                    tooltip="JSON output of a VisionLLM node, saved unchanged. Cannot be combined with bboxes, masks "
                    "or keypoints.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="Images the boxes belong to. The file records their size."
                ),
                io.BoundingBox.Input(
                    "bboxes", optional=True, force_input=True, tooltip="Bounding boxes from any node."
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Masks of the boxes, one per box in the same order. Saved as run-length encoding (RLE).",
                ),
                KEYPOINTS.Input("keypoints", optional=True, tooltip="Keypoints to save instead of boxes."),
                io.String.Input(
                    "filename_prefix",
                    default="detections",
                    tooltip="File name in output/detections, followed by a number. Can contain subfolders and %year%, "
                    "%month%, %day%.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="json", tooltip="The saved JSON."),
                io.String.Output(display_name="file", tooltip="Name of the file, as listed by Load Detections."),
            ],
        )

    @classmethod
    def execute(cls, filename_prefix, json=None, image=None, bboxes=None, masks=None, keypoints=None) -> io.NodeOutput:
        if json is not None and any(value is not None for value in (bboxes, masks, keypoints)):
            raise ValueError("json: cannot be combined with bboxes, masks or keypoints. Connect either json or those")
        if json is None:
            json = _written(image, bboxes, masks, keypoints)
        else:
            read(TEXT, json)
        if len(json.encode()) >= MAX_JSON_LENGTH:
            raise ValueError(
                f"the file would have {len(json.encode())} bytes, and Load Detections reads at most {MAX_JSON_LENGTH}. "
                "Save fewer images at a time, or leave out the masks"
            )
        file = write_text(FILES.free(filename_prefix.strip() or FILES.folder), json + "\n")
        announce_files()
        return io.NodeOutput(json, FILES.name(file), ui=show_text(json))


class VisionLLMLoadDetections(VisionLLMNode):
    files = ("file",)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMLoadDetections",
            display_name="Load Detections",
            category=categories.DETECTIONS,
            description="Loads boxes, masks, keypoints and texts saved by Save Detections or a VisionLLM node, "
            "without the model.",
            search_aliases=[
                "load json",
                "import bbox",
                "load bounding boxes",
                "load keypoints",
                "parse json",
                "load annotations",
                "import boxes",
                "import annotations",
                "加载检测结果",
                "検出を読み込む",
                "검출 불러오기",
                "cargar detecciones",
                "загрузить рамки",
            ],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[TEXT, *FILES.listed()],
                    tooltip="File saved by Save Detections, in output/detections or the input folder. the text below: "
                    "reads json instead.",
                ),
                io.String.Input(
                    "json",
                    default="",
                    multiline=True,
                    tooltip="JSON text from another node or program. Used only if no file is selected.",
                ),
            ],
            outputs=[
                io.BoundingBox.Output(display_name="bboxes", tooltip="Bounding boxes, one list per image."),
                io.Mask.Output(display_name="mask", tooltip="Union mask: one per image, covering all its objects."),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="One mask per box, in the same order. Filled boxes if the file has no masks.",
                ),
                KEYPOINTS.Output(display_name="keypoints", tooltip="Objects with keypoints, one record per image."),
                io.String.Output(
                    display_name="text",
                    is_output_list=True,
                    tooltip="List of texts, one per image or one for all. Empty if there are none.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file, json):
        """Read the whole file, which is small: a damaged one is reported before the run starts."""
        try:
            if file is not None and (file != TEXT or json is not None):
                read(file, json)
        except (OSError, ValueError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file, json):
        return hashlib.sha256((json or "").encode("utf-8", "replace") if file == TEXT else _content(file)).hexdigest()

    @classmethod
    def execute(cls, file, json) -> io.NodeOutput:
        loaded = read(file, json)
        boxes = loaded.bounding_boxes()
        return io.NodeOutput(boxes, *document_masks(loaded, boxes), loaded.keypoints(), loaded.texts)


def _written(image, bboxes, masks, keypoints) -> str:
    if keypoints is not None:
        if bboxes is not None or masks is not None:
            raise ValueError("keypoints: they have their own boxes. Connect either keypoints or bboxes with masks")
        return write_document(
            "keypoints", "", [frame_record(record["width"], record["height"], keypoints=record) for record in keypoints]
        )
    if bboxes is None:
        raise ValueError("bboxes: nothing to save. Connect json, bboxes or keypoints")
    if image is None:
        raise ValueError("image: not connected, but the file records the images' size. Connect the images")
    frames = boxes_per_image(bboxes, len(image))
    masks_per_image = (
        [None] * len(frames)
        if masks is None
        else split_masks_per_image(masks, frames, (image.shape[1], image.shape[2]))
    )
    return write_document(
        "boxes",
        "",
        [
            frame_record(image.shape[2], image.shape[1], boxes, box_masks)
            for boxes, box_masks in zip(frames, masks_per_image, strict=True)
        ],
    )


def document_masks(loaded: Document, boxes: list) -> tuple:
    """Return union masks and object masks, or what blocks both outputs where they would be too many.

    A single empty one of each where the images differ in size.
    """
    sizes = {(record["height"], record["width"]) for record in loaded.frames}
    if len(sizes) != 1:
        return torch.zeros(1, *NO_SIZE), torch.zeros(1, *NO_SIZE)
    size = sizes.pop()
    error = too_many_pixels(len(boxes) + sum(map(len, boxes)), *size)
    if error:  # boxes, keypoints and texts can be used all the same
        return ExecutionBlocker(f"masks: {error}."), ExecutionBlocker(f"masks: {error}.")
    masks = loaded.masks()
    if masks is None:
        return boxes_to_masks(boxes, *size)
    union = torch.zeros(len(boxes), *size)
    for whole, own in zip(union, split_masks_per_image(masks, boxes), strict=True):
        if len(own):
            torch.amax(own, 0, out=whole)
    return union, masks
