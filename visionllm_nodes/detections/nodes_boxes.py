"""Nodes that choose among the boxes of any detector: filter them, pick one."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ...mulan.boundary.interrupts import interruptible
from ...nodes import categories
from ..node_io import VisionLLMNode
from .bounding_boxes import SIDES, box_score, boxes_per_image, pixel_bounds, sort_boxes
from .masks import MASK_THRESHOLD, split_masks_per_image
from .names import split_names

BOXES = (
    "Bounding boxes from VisionLLM, RT-DETR, SAM3, Create Bounding Boxes or any other node: one box, a list, or a list "
    "per image."
)


def no_masks() -> ExecutionBlocker:
    """Return what a masks output gives where the masks of the boxes are not connected."""
    return ExecutionBlocker("masks: not connected, but the masks output is used. Connect the boxes' masks.")


class VisionLLMFilterBoxes(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMFilterBoxes",
            display_name="Filter Boxes",
            category=categories.DETECTIONS,
            description="Filters bounding boxes by name, score, area, region and rank. Their masks are filtered with "
            "them.",
            search_aliases=[
                "filter detections",
                "filter bbox",
                "confidence threshold",
                "score threshold",
                "top k boxes",
                "largest box",
                "SEGS filter",
                "remove duplicate boxes",
                "remove duplicates boxes",
                "non-maximum suppression",
                "nms boxes",
                "sort boxes",
                "overlapping boxes",
                "doppelte Boxen",
                "过滤检测框",
                "検出を絞り込む",
                "검출 필터",
                "filtrar cajas",
                "фильтр рамок",
                "去除重复框",
                "重複ボックスを削除",
                "중복 상자 제거",
                "doublons de boîtes",
                "удалить дубликаты рамок",
            ],
            inputs=[
                io.BoundingBox.Input("bboxes", force_input=True, tooltip=BOXES),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Masks of the boxes, one per box in the same order. They are filtered with the boxes.",
                ),
                io.String.Input(
                    "names",
                    default="",
                    multiline=True,
                    tooltip="Names to keep, one per line or separated by commas. Empty keeps all names. Case does not "
                    "matter.",
                ),
                io.Float.Input(
                    "min_score",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Drops boxes below this score. Boxes without a score count as 1.",
                ),
                io.Int.Input(
                    "min_area",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Minimum area of a box in pixels (width x height).",
                ),
                io.Int.Input(
                    "max_area",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Maximum area of a box in pixels (width x height). 0: no limit.",
                ),
                io.Int.Input(
                    "top_k", default=0, min=0, max=100000, tooltip="Maximum boxes per image, best first. 0: no limit."
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="Keeps only boxes inside this mask. One mask for all images or one per image, in the "
                    "size of the images.",
                ),
                io.Float.Input(
                    "in_region",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Minimum fraction of a box that must lie inside the region. 0: touching it is enough.",
                ),
            ],
            outputs=[
                io.BoundingBox.Output(
                    display_name="bboxes",
                    tooltip="Remaining boxes, one list per image: highest score first, then top to bottom and left to "
                    "right.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="Masks of the remaining boxes, in the same order. A single empty mask if no box remains.",
                ),
                io.Int.Output(display_name="count", tooltip="Number of remaining boxes across all images."),
            ],
        )

    @classmethod
    def execute(
        cls, bboxes, names, min_score, min_area, max_area, top_k, in_region, masks=None, region=None
    ) -> io.NodeOutput:
        frames = boxes_per_image(bboxes)
        wanted = {name.casefold() for name in split_names(names)}
        kept, kept_masks = [], []
        masks_per_image = split_masks_per_image(masks, frames) if masks is not None else [None] * len(frames)
        for index, (boxes, box_masks) in enumerate(zip(frames, masks_per_image, strict=True)):
            image_region = None if region is None else _region_of_image(region, index, len(frames))
            matching = [
                box
                for box in interruptible(boxes)
                if _matches(box, wanted, min_score, min_area, max_area)
                and (image_region is None or _lies_in(box, image_region, in_region))
            ]
            matching = sort_boxes(matching)[: top_k or None]
            kept.append(matching)
            if box_masks is not None:
                positions = {id(box): position for position, box in enumerate(boxes)}
                kept_masks += [box_masks[positions[id(box)]] for box in matching]
        if masks is None:
            filtered = no_masks()
        else:
            filtered = torch.stack(kept_masks) if kept_masks else masks.new_zeros(1, *masks.shape[1:])
        return io.NodeOutput(kept, filtered, sum(map(len, kept)))


class VisionLLMPickBox(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMPickBox",
            display_name="Pick Box",
            category=categories.DETECTIONS,
            description="Picks one bounding box and returns it in whole pixels, for Crop Image, Conditioning (Set "
            "Area) and other nodes that take a single box.",
            search_aliases=[
                "select box",
                "pick bbox",
                "bbox to int",
                "crop region",
                "first box",
                "best detection",
                "box by index",
                "crop to box",
                "crop detected object",
                "选择检测框",
                "ボックスを選ぶ",
                "상자 선택",
                "elegir caja",
                "выбрать рамку",
            ],
            inputs=[
                io.BoundingBox.Input("bboxes", force_input=True, tooltip=BOXES),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Images the boxes belong to. If connected, the box and its margin are clipped to the "
                    "image.",
                ),
                io.Int.Input(
                    "index", default=0, min=0, max=100000, tooltip="Index of the box, sorted by score. 0 is the best."
                ),
                io.Int.Input(
                    "picture", default=0, min=0, max=100000, tooltip="Index of the image in the batch. 0 is the first."
                ),
                io.Int.Input("margin", default=0, min=0, max=16384, tooltip="Pixels to add on each side of the box."),
            ],
            outputs=[
                io.BoundingBox.Output(
                    display_name="bbox", tooltip="The picked box. Connect to crop_region of Crop Image."
                ),
                io.Int.Output(display_name="x", tooltip="Left edge of the box in pixels."),
                io.Int.Output(display_name="y", tooltip="Top edge of the box in pixels."),
                io.Int.Output(display_name="width", tooltip="Width of the box in pixels."),
                io.Int.Output(display_name="height", tooltip="Height of the box in pixels."),
                io.String.Output(display_name="label", tooltip="Label of the box. Empty if it has none."),
                io.Float.Output(display_name="score", tooltip="Score of the box. 1 if it has none."),
            ],
        )

    @classmethod
    def execute(cls, bboxes, index, picture, margin, image=None) -> io.NodeOutput:
        frames = boxes_per_image(bboxes, None if image is None else len(image))
        if image is None and len(frames) == 1:  # one list of boxes, for every image
            picture = 0
        if picture >= len(frames):
            raise ValueError(f"picture: {picture} is out of range: there are {len(frames)} images, counted from 0")
        boxes = sort_boxes(frames[picture])
        if index >= len(boxes):
            count = "no boxes" if not boxes else f"{len(boxes)} box{'es' if len(boxes) > 1 else ''}, counted from 0"
            raise ValueError(f"index: there is no box {index}: image {picture} has {count}")
        box = boxes[index]
        height, width = (2**31, 2**31) if image is None else image.shape[1:3]
        pixels = pixel_bounds(box, height, width, margin)
        if pixels is None:
            raise ValueError(f"index: box {index} lies outside image {picture}: {[box[side] for side in SIDES]}")
        x1, y1, x2, y2 = pixels
        label, score = box.get("label", ""), box_score(box)
        sides = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        return io.NodeOutput({**sides, "label": label, "score": score}, *sides.values(), label, score)


def _matches(box: dict, wanted: set[str], min_score: float, min_area: int, max_area: int) -> bool:
    area = box["width"] * box["height"]
    return (
        (not wanted or box.get("label", "").strip().casefold() in wanted)
        and box_score(box) >= min_score
        and min_area <= area
        and (not max_area or area <= max_area)
    )


def _lies_in(box: dict, region: torch.Tensor, fraction: float) -> bool:
    pixels = pixel_bounds(box, *region.shape)
    if pixels is None:
        return False
    x1, y1, x2, y2 = pixels
    inside = (region[y1:y2, x1:x2] >= MASK_THRESHOLD).sum().item()
    return inside > 0 and inside >= fraction * (x2 - x1) * (y2 - y1)


def _region_of_image(masks: torch.Tensor, index: int, frames: int) -> torch.Tensor:
    if len(masks) not in (1, frames):
        raise ValueError(
            f"region: got {len(masks)} masks for {frames} image{'s' if frames > 1 else ''}. "
            "Connect one mask for all images, or one per image"
        )
    return masks[index if len(masks) > 1 else 0]
