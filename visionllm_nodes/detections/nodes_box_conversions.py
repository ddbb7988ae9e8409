"""Nodes that convert the boxes of any detector: to masks, from masks, to SEGS, to the BBOX of older nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ...nodes import categories
from ..node_io import VisionLLMNode
from .bounding_boxes import box_corners, boxes_per_image
from .keypoints import points_json
from .masks import boxes_to_masks, masks_to_boxes, split_masks_per_image
from .nodes_boxes import BOXES
from .segs import to_segs

OF_IMAGES, OF_OBJECTS = MASKS_ARE = ("one picture each", "objects of one picture")


class VisionLLMBoxesToMask(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMBoxesToMask",
            display_name="Boxes to Mask",
            category=categories.DETECTIONS,
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


class VisionLLMMaskToBoxes(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMMaskToBoxes",
            display_name="Mask to Boxes",
            category=categories.DETECTIONS,
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
        return io.NodeOutput(frames if masks_are == OF_IMAGES else [sum(frames, [])])


class VisionLLMBoxesToSEGS(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMBoxesToSEGS",
            display_name="Boxes to SEGS",
            category=categories.DETECTIONS,
            description="Converts bounding boxes, with or without masks, to SEGS for the Detailer nodes of the Impact "
            "Pack.",
            search_aliases=[
                "bbox to SEGS",
                "impact pack",
                "face detailer",
                "FaceDetailer",
                "DetailerForEach",
                "impact pack detailer",
                "boxes for FaceDetailer",
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
        if masks is None:
            masks_per_image = [None] * len(frames)
        else:
            masks_per_image = split_masks_per_image(masks, frames, (image.shape[1], image.shape[2]))
        return io.NodeOutput(
            [to_segs(*parts, crop_factor) for parts in zip(image, frames, masks_per_image, strict=True)]
        )


class VisionLLMBoxesToBBOX(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMBoxesToBBOX",
            display_name="Boxes to BBOX",
            category=categories.DETECTIONS,
            description="Converts bounding boxes to BBOX, corner coordinates [x1, y1, x2, y2], and to their centers, "
            "for SAM2 and other nodes that do not take BOUNDING_BOX.",
            search_aliases=[
                "bounding box to BBOX",
                "xyxy",
                "SAM2",
                "Sam2Segmentation",
                "segment anything 2",
                "SAM2 boxes",
                "box to points",
                "box center",
                "coordinates_positive",
                "检测框转BBOX",
                "ボックスをBBOXに",
                "상자를 BBOX로",
                "cajas a BBOX",
                "boîtes vers BBOX",
                "рамки в BBOX",
            ],
            inputs=[io.BoundingBox.Input("bboxes", force_input=True, tooltip=BOXES)],
            outputs=[
                io.BBOX.Output(
                    display_name="bbox",
                    is_output_list=True,
                    tooltip="One list of [x1, y1, x2, y2] in pixels per image. Nodes connected here run once per "
                    "image.",
                ),
                io.String.Output(
                    display_name="points",
                    is_output_list=True,
                    tooltip='Centers of the boxes as JSON [{"x": 12, "y": 34}, ...], one string per image, for '
                    "coordinates_positive.",
                ),
            ],
        )

    @classmethod
    def execute(cls, bboxes) -> io.NodeOutput:
        frames = [[box_corners(box) for box in boxes] for boxes in boxes_per_image(bboxes)]
        centers = [[{"x": (x1 + x2) / 2, "y": (y1 + y2) / 2} for x1, y1, x2, y2 in corners] for corners in frames]
        return io.NodeOutput([[[*box] for box in corners] for corners in frames], [*map(points_json, centers)])
