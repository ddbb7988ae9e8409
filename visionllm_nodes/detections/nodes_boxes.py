"""Nodes for boxes of any detector: filter, pick, to masks, from masks, to SEGS."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..sockets import CATEGORY
from .bounding_boxes import boxes_per_image, in_order, score_of, pixel_bounds
from .masks import SET, boxes_to_masks, split_masks_per_image, masks_to_boxes
from .names import split_names
from .segs import to_segs

BOXES = "Bounding boxes from VisionLLM, RT-DETR, SAM3, Create Bounding Boxes or any other node: one "
"box, a list, or a list per image."
OF_PICTURES, OF_OBJECTS = MASKS_ARE = ("one picture each", "objects of one picture")


class VisionLLMFilterBoxes(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMFilterBoxes",
            display_name="Filter Boxes",
            category=CATEGORY,
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
                "过滤检测框",
                "検出を絞り込む",
                "검출 필터",
                "filtrar cajas",
                "фильтр рамок",
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
        of_frames = split_masks_per_image(masks, frames) if masks is not None else [None] * len(frames)
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
                io.Int.Output(display_name="width", tooltip="In pixels."),
                io.Int.Output(display_name="height", tooltip="In pixels."),
                io.String.Output(display_name="label", tooltip="Label of the box. Empty if it has none."),
                io.Float.Output(display_name="score", tooltip="Score of the box. 1 if it has none."),
            ],
        )

    @classmethod
    def execute(cls, bboxes, index, picture, margin, image=None) -> io.NodeOutput:
        frames = boxes_per_image(bboxes, None if image is None else len(image))
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
        pixels = pixel_bounds(box, height, width, margin)
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
            description="Converts bounding boxes to filled masks, for inpainting, regional prompts or as regions.",
            search_aliases=[
                "bbox to mask",
                "bounding box mask",
                "inpaint box",
                "region mask",
                "检测框转遮罩",
                "ボックスをマスクに",
                "상자를 마스크로",
                "caja a máscara",
                "рамки в маску",
            ],
            inputs=[
                io.Image.Input(
                    "image", tooltip="Images the boxes belong to. The masks have their size and batch size."
                ),
                io.BoundingBox.Input("bboxes", force_input=True, tooltip=BOXES),
                io.Int.Input("margin", default=0, min=0, max=16384, tooltip="Pixels to add on each side of every box."),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="Union mask: one per image, covering all its boxes."),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="One mask per box, in the order of the boxes across all images. A single empty mask if "
                    "there is no box.",
                ),
            ],
        )

    @classmethod
    def execute(cls, image, bboxes, margin) -> io.NodeOutput:
        frames = boxes_per_image(bboxes, len(image))
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
            description="Finds the bounding boxes of masks, such as painted areas or masks from SAM, for cropping or "
            "as regions.",
            search_aliases=[
                "mask to bbox",
                "mask bounding box",
                "connected components",
                "split mask",
                "遮罩转检测框",
                "マスクをボックスに",
                "마스크를 상자로",
                "máscara a caja",
                "маска в рамки",
            ],
            inputs=[
                io.Mask.Input("mask", tooltip="One or several masks. Pixels of at least 0.5 count."),
                io.Combo.Input(
                    "masks_are",
                    options=list(MASKS_ARE),
                    tooltip="What a batch of masks stands for. one picture each: each mask belongs to its own image. "
                    "objects of one picture: all masks belong to one image.",
                ),
                io.Boolean.Input(
                    "separate",
                    default=True,
                    tooltip="On: one box per connected area, the largest first. Off: one box per mask.",
                ),
                io.Int.Input(
                    "min_area",
                    default=16,
                    min=1,
                    max=2**31 - 1,
                    tooltip="Drops areas smaller than this many pixels, such as brush specks.",
                ),
                io.String.Input("label", default="", tooltip="Label for the boxes. Can be empty."),
            ],
            outputs=[
                io.BoundingBox.Output(
                    display_name="bboxes", tooltip="Bounding boxes, one list per image. Their score is 1."
                )
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
            description="Converts bounding boxes, with or without masks, to SEGS for the Detailer nodes of the Impact "
            "Pack.",
            search_aliases=[
                "bbox to SEGS",
                "impact pack",
                "face detailer",
                "FaceDetailer",
                "DetailerForEach",
                "检测框转SEGS",
                "ボックスをSEGSに",
                "상자를 SEGS로",
            ],
            inputs=[
                io.Image.Input("image", tooltip="Images the boxes belong to."),
                io.BoundingBox.Input("bboxes", force_input=True, tooltip=BOXES),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Masks of the boxes, one per box in the same order. Without masks, the boxes are filled.",
                ),
                io.Float.Input(
                    "crop_factor",
                    default=3.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Size of the crop relative to the box. Larger values show the Detailer more of the "
                    "surroundings.",
                ),
            ],
            outputs=[
                io.SEGS.Output(
                    display_name="segs",
                    is_output_list=True,
                    tooltip="List of SEGS, one per image. Nodes connected here run once per image.",
                )
            ],
        )

    @classmethod
    def execute(cls, image, bboxes, crop_factor, masks=None) -> io.NodeOutput:
        frames = boxes_per_image(bboxes, len(image))
        of_frames = [None] * len(frames) if masks is None else split_masks_per_image(_of_size(masks, image), frames)
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
    pixels = pixel_bounds(box, *region.shape)
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
