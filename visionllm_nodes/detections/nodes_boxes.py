"""Nodes for boxes of any detector: filter, pick, to masks, from masks, to SEGS."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..sockets import CATEGORY
from .bounding_boxes import frames_of, in_order, score_of, whole_pixels
from .masks import SET, boxes_to_masks, for_boxes, masks_to_boxes
from .names import split_names
from .segs import to_segs

BOXES = "Boxes of VisionLLM v2, RT-DETR, SAM3, Create Bounding Boxes or any other node: one, a list, or a list for each picture."
OF_PICTURES, OF_OBJECTS = MASKS_ARE = ("one picture each", "objects of one picture")


class VisionLLMFilterBoxes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMFilterBoxes",
            display_name="Filter Boxes",
            category=CATEGORY,
            description="Keeps boxes by name, score, size, place and rank; their masks go along.",
            search_aliases=[
                "filter detections",
                "filter bbox",
                "confidence threshold",
                "top k",
                "largest",
                "SEGS filter",
                "过滤检测框",
                "検出を絞り込む",
                "필터",
                "filtrar cajas",
                "фильтр рамок",
            ],
            inputs=[
                io.BoundingBox.Input("bboxes", force_input=True, tooltip=BOXES),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="A mask for each box, in their order, as the detectors' nodes give them. They are filtered along.",
                ),
                io.String.Input(
                    "names",
                    default="",
                    multiline=True,
                    tooltip="Keep only these: one per line or separated by commas. Empty keeps every name. Capitals do not matter.",
                ),
                io.Float.Input(
                    "min_score",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Keep boxes with at least this score. One without a score has 1.",
                ),
                io.Int.Input(
                    "min_area",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Keep boxes of at least so many pixels, width times height.",
                ),
                io.Int.Input(
                    "max_area",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    tooltip="Keep boxes of at most so many pixels; 0: of any size.",
                ),
                io.Int.Input(
                    "top_k",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Keep so many boxes of each picture, the best; 0: all.",
                ),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="Keep boxes that lie in this mask: one for all pictures, or one for each. It has the "
                    "picture's size.",
                ),
                io.Float.Input(
                    "in_region",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="The part of a box that must lie in the region. 0: it must touch it.",
                ),
            ],
            outputs=[
                io.BoundingBox.Output(
                    display_name="bboxes",
                    tooltip="What is left, a list for each picture: the highest score first, then from above and from the left.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="The masks of these boxes, in their order; a single empty one where none is left.",
                ),
                io.Int.Output(display_name="count", tooltip="How many boxes are left, in all pictures."),
            ],
        )

    @classmethod
    def execute(
        cls, bboxes, names, min_score, min_area, max_area, top_k, in_region, masks=None, region=None
    ) -> io.NodeOutput:
        frames = frames_of(bboxes)
        wanted = {name.casefold() for name in split_names(names)}
        kept, kept_masks = [], []
        of_frames = for_boxes(masks, frames) if masks is not None else [None] * len(frames)
        for number, (boxes, own) in enumerate(zip(frames, of_frames)):
            place = None if region is None else _of_frame(region, number, len(frames))
            good = [
                box
                for box in boxes
                if _fits(box, wanted, min_score, min_area, max_area)
                and (place is None or _lies_in(box, place, in_region))
            ]
            good = in_order(good)[: top_k or None]
            kept.append(good)
            if own is not None:
                kept_masks += [own[next(index for index, box in enumerate(boxes) if box is one)] for one in good]
        if masks is None:
            filtered = ExecutionBlocker("Filter Boxes has no masks to give: connect the boxes' masks.")
        else:
            filtered = torch.stack(kept_masks) if kept_masks else torch.zeros_like(masks[:1])
        return io.NodeOutput(kept, filtered, sum(map(len, kept)))


class VisionLLMPickBox(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMPickBox",
            display_name="Pick Box",
            category=CATEGORY,
            description="One box out of many, in whole pixels: for Crop Image, Set Area and other nodes that take a single one.",
            search_aliases=[
                "select box",
                "bbox to int",
                "crop region",
                "first box",
                "best detection",
                "index",
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
                    tooltip="The pictures. Connected, the box with its margin stays inside them.",
                ),
                io.Int.Input(
                    "index", default=0, min=0, max=100000, tooltip="Which box of the picture, by score; 0 is the best."
                ),
                io.Int.Input(
                    "picture", default=0, min=0, max=100000, tooltip="Which picture of the batch; 0 is the first."
                ),
                io.Int.Input("margin", default=0, min=0, max=16384, tooltip="Pixels that the box grows to each side."),
            ],
            outputs=[
                io.BoundingBox.Output(
                    display_name="bbox", tooltip="The box, a single one. Crop Image takes it as its crop_region."
                ),
                io.Int.Output(display_name="x", tooltip="Its left side, in pixels."),
                io.Int.Output(display_name="y", tooltip="Its upper side, in pixels."),
                io.Int.Output(display_name="width", tooltip="In pixels."),
                io.Int.Output(display_name="height", tooltip="In pixels."),
                io.String.Output(display_name="label", tooltip="Its name; empty where it has none."),
                io.Float.Output(display_name="score", tooltip="Its score; 1 where it has none."),
            ],
        )

    @classmethod
    def execute(cls, bboxes, index, picture, margin, image=None) -> io.NodeOutput:
        frames = frames_of(bboxes, None if image is None else len(image))
        if image is None and len(frames) == 1:  # boxes for every picture
            picture = 0
        if picture >= len(frames):
            raise ValueError(f"picture {picture} has no boxes: there are {len(frames)} pictures, numbered from 0")
        boxes = in_order(frames[picture])
        if index >= len(boxes):
            found = "no boxes" if not boxes else f"{len(boxes)} box{'es' if len(boxes) > 1 else ''}, numbered from 0"
            raise ValueError(f"there is no box {index}: picture {picture} has {found}")
        box = boxes[index]
        height, width = (2**31, 2**31) if image is None else image.shape[1:3]
        pixels = whole_pixels(box, height, width, margin)
        if pixels is None:
            raise ValueError(f"box {index} of picture {picture} holds no pixel of it: {box}")
        x1, y1, x2, y2 = pixels
        label, score = box.get("label", ""), score_of(box)
        sides = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
        return io.NodeOutput({**sides, "label": label, "score": score}, *sides.values(), label, score)


class VisionLLMBoxesToMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMBoxesToMask",
            display_name="Boxes to Mask",
            category=CATEGORY,
            description="Fills boxes: a mask for inpainting, for a conditioning, or as a region.",
            search_aliases=[
                "bbox to mask",
                "bounding box mask",
                "inpaint box",
                "region mask",
                "检测框转遮罩",
                "ボックスをマスクに",
                "마스크",
                "caja a máscara",
                "рамки в маску",
            ],
            inputs=[
                io.Image.Input(
                    "image", tooltip="The pictures that the boxes belong to: the masks have their size and number."
                ),
                io.BoundingBox.Input("bboxes", force_input=True, tooltip=BOXES),
                io.Int.Input("margin", default=0, min=0, max=16384, tooltip="Pixels that each box grows to each side."),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="For each picture whatever lies in any of its boxes."),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="A mask for each box of all pictures, in their order; a single empty one where there is no box.",
                ),
            ],
        )

    @classmethod
    def execute(cls, image, bboxes, margin) -> io.NodeOutput:
        frames = frames_of(bboxes, len(image))
        grown = [
            [
                {
                    "x": box["x"] - margin,
                    "y": box["y"] - margin,
                    "width": box["width"] + 2 * margin,
                    "height": box["height"] + 2 * margin,
                }
                for box in boxes
            ]
            for boxes in frames
        ]
        return io.NodeOutput(*boxes_to_masks(grown, *image.shape[1:3]))


class VisionLLMMaskToBoxes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMMaskToBoxes",
            display_name="Mask to Boxes",
            category=CATEGORY,
            description="Boxes around what masks show: from painted marks to regions, from SAM's masks to crops.",
            search_aliases=[
                "mask to bbox",
                "mask bounding box",
                "connected components",
                "split mask",
                "遮罩转检测框",
                "マスクをボックスに",
                "máscara a caja",
                "маска в рамки",
            ],
            inputs=[
                io.Mask.Input("mask", tooltip="One mask or several. What is set from 0.5 on counts."),
                io.Combo.Input(
                    "masks_are",
                    options=list(MASKS_ARE),
                    tooltip="Of a batch of masks: each is a picture's, or all are objects of one picture.",
                ),
                io.Boolean.Input(
                    "separate",
                    default=True,
                    tooltip="A box for each area that touches no other, the largest first; else one for each mask.",
                ),
                io.Int.Input(
                    "min_area",
                    default=16,
                    min=1,
                    max=2**31 - 1,
                    tooltip="Areas of fewer pixels are left out: specks of a brush.",
                ),
                io.String.Input("label", default="", tooltip="A name for the boxes; may stay empty."),
            ],
            outputs=[
                io.BoundingBox.Output(display_name="bboxes", tooltip="A list for each picture. The score of all is 1.")
            ],
        )

    @classmethod
    def execute(cls, mask, masks_are, separate, min_area, label) -> io.NodeOutput:
        frames = masks_to_boxes(mask, separate, min_area)
        if label.strip():
            frames = [[{**box, "label": label.strip()} for box in boxes] for boxes in frames]
        return io.NodeOutput(frames if masks_are == OF_PICTURES else [sum(frames, [])])


class VisionLLMBoxesToSEGS(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMBoxesToSEGS",
            display_name="Boxes to SEGS",
            category=CATEGORY,
            description="Boxes, with or without masks, as SEGS for the Detailer nodes of the Impact Pack.",
            search_aliases=[
                "bbox to SEGS",
                "impact pack",
                "detailer",
                "FaceDetailer",
                "DetailerForEach",
                "检测框转SEGS",
                "SEGSに変換",
            ],
            inputs=[
                io.Image.Input("image", tooltip="The pictures that the boxes belong to."),
                io.BoundingBox.Input("bboxes", force_input=True, tooltip=BOXES),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="A mask for each box, in their order. Without them the boxes are filled.",
                ),
                io.Float.Input(
                    "crop_factor",
                    default=3.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How much of its surroundings the Detailer sees: the crop is so many times the box.",
                ),
            ],
            outputs=[
                io.SEGS.Output(
                    display_name="segs",
                    is_output_list=True,
                    tooltip="SEGS, one for each picture: with several, what follows runs once for each.",
                )
            ],
        )

    @classmethod
    def execute(cls, image, bboxes, crop_factor, masks=None) -> io.NodeOutput:
        frames = frames_of(bboxes, len(image))
        of_frames = [None] * len(frames) if masks is None else for_boxes(_of_size(masks, image), frames)
        return io.NodeOutput(
            [to_segs(picture, boxes, own, crop_factor) for picture, boxes, own in zip(image, frames, of_frames)]
        )


def _fits(box: dict, wanted: set[str], min_score: float, min_area: int, max_area: int) -> bool:
    area = box["width"] * box["height"]
    return (
        (not wanted or box.get("label", "").strip().casefold() in wanted)
        and score_of(box) >= min_score
        and min_area <= area
        and (not max_area or area <= max_area)
    )


def _lies_in(box: dict, region: torch.Tensor, part: float) -> bool:
    pixels = whole_pixels(box, *region.shape)
    if pixels is None:
        return False
    x1, y1, x2, y2 = pixels
    inside = (region[y1:y2, x1:x2] >= SET).sum().item()
    return inside > 0 and inside >= part * (x2 - x1) * (y2 - y1)


def _of_frame(masks: torch.Tensor, number: int, frames: int) -> torch.Tensor:
    if len(masks) not in (1, frames):
        raise ValueError(
            f"there are {len(masks)} regions for {frames} picture{'s' if frames > 1 else ''}: connect one for all, or one for each"
        )
    return masks[number if len(masks) > 1 else 0]


def _of_size(masks: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    if masks.shape[1:] != image.shape[1:3]:
        raise ValueError(
            f"the masks are {masks.shape[2]} x {masks.shape[1]} pixels and the pictures {image.shape[2]} x {image.shape[1]}"
        )
    return masks


NODES = [VisionLLMFilterBoxes, VisionLLMPickBox, VisionLLMBoxesToMask, VisionLLMMaskToBoxes, VisionLLMBoxesToSEGS]
