"""Draw Detections: boxes, masks and keypoints on images, with labels in any script."""

from __future__ import annotations

import comfy.utils
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import io

from ...mulan.images.text_drawing import TextRenderer
from ...nodes import categories
from ..node_io import KEYPOINTS, VisionLLMNode
from .bounding_boxes import boxes_per_image
from .drawing import COLOR_MODES, ColorMap, Style, draw
from .masks import check_mask_pixels, fit_masks, split_masks_per_image


class VisionLLMDrawDetections(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMDrawDetections",
            display_name="Draw Detections",
            category=categories.DETECTIONS,
            description="Draws bounding boxes, masks and keypoints on images, or on black for ControlNet. Labels can "
            "be in any script.",
            search_aliases=[
                "draw bbox",
                "draw boxes",
                "visualize detections",
                "annotate image",
                "overlay mask",
                "draw keypoints",
                "draw skeleton",
                "draw labels",
                "draw bounding boxes",
                "draw mask",
                "绘制检测结果",
                "検出を描画",
                "검출 그리기",
                "dibujar detecciones",
                "нарисовать рамки",
                "画框标注",
            ],
            inputs=[
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="Images to draw on. If not connected, draws on black images of the size of the masks or "
                    "keypoints.",
                ),
                io.BoundingBox.Input(
                    "bboxes",
                    optional=True,
                    force_input=True,
                    tooltip="Bounding boxes from any node, with their labels and scores.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Masks of the boxes, one per box in the same order. Without boxes: one mask per image, "
                    "or all masks on a single image.",
                ),
                KEYPOINTS.Input(
                    "keypoints",
                    optional=True,
                    tooltip="Keypoints of any skeleton. Convert a POSE_KEYPOINT with Pose to Keypoints first.",
                ),
                io.Boolean.Input("names", default=True, tooltip="Draws the label of each object."),
                io.Boolean.Input("scores", default=True, tooltip="Draws the score of each object."),
                io.Boolean.Input("keypoint_names", default=False, tooltip="Draws the name of each keypoint."),
                io.Combo.Input(
                    "colours",
                    options=list(COLOR_MODES),
                    tooltip="by name: one color per label, the same in all images. by object: one color per object.",
                ),
                io.Float.Input(
                    "mask_opacity", default=0.4, min=0.0, max=1.0, step=0.05, tooltip="Opacity of the masks."
                ),
                io.Int.Input(
                    "line_width",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="Line width in pixels. 0: chosen from the image size.",
                ),
                io.Int.Input(
                    "text_size",
                    default=0,
                    min=0,
                    max=500,
                    tooltip="Text size in pixels. 0: chosen from the image size.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="Images with the detections drawn on them.")],
        )

    @classmethod
    def execute(
        cls,
        names,
        scores,
        keypoint_names,
        colours,
        mask_opacity,
        line_width,
        text_size,
        image=None,
        bboxes=None,
        masks=None,
        keypoints=None,
    ) -> io.NodeOutput:
        poses = keypoints
        image = _canvas(image, masks, poses, None if bboxes is None else len(bboxes))
        count = len(image)
        boxes = [[] for _ in range(count)] if bboxes is None else boxes_per_image(bboxes, count)
        if poses is not None and len(poses) != count:
            raise ValueError(
                f"keypoints: got keypoints for {len(poses)} image{'s' if len(poses) != 1 else ''}, but {count} "
                f"image{'s are' if count > 1 else ' is'} connected"
            )
        masks_per_image = (
            [None] * count if masks is None else _masks_per_image(masks, boxes if bboxes is not None else None, image)
        )
        style = Style(line_width, text_size, mask_opacity, names, scores, keypoint_names, colours)
        objects_per_image = boxes if bboxes is not None else [pose["objects"] for pose in poses or ()]
        labels = [found.get("label", "") for objects in objects_per_image for found in objects]
        color_map, lettering = ColorMap(colours, labels), TextRenderer(sample=" ".join(labels))
        bar, drawn = comfy.utils.ProgressBar(count), torch.empty(*image.shape[:3], 3)
        for index in range(count):
            throw_exception_if_processing_interrupted()
            pose = None if poses is None else poses[index]
            if pose is not None and (pose["height"], pose["width"]) != tuple(image.shape[1:3]):
                raise ValueError(
                    f"keypoints: they belong to images of {pose['width']} x {pose['height']} pixels, but the images "
                    f"have {image.shape[2]} x {image.shape[1]}"
                )
            drawn[index] = draw(image[index], boxes[index], masks_per_image[index], pose, style, color_map, lettering)
            bar.update(1)
        return io.NodeOutput(drawn)


def _canvas(image, masks, poses, frames: int | None) -> torch.Tensor:
    """Return the images to draw on, or black ones."""
    if image is not None:
        return image
    if poses:
        size = poses[0]["height"], poses[0]["width"]
        check_mask_pixels(3 * len(poses), *size)
        return torch.zeros(1, *size, 3).expand(len(poses), -1, -1, -1)
    if masks is not None:
        return torch.zeros(1, *masks.shape[1:], 3).expand(frames or max(1, len(masks)), -1, -1, -1)
    raise ValueError("image: nothing to draw on. Connect images, masks or keypoints")


def _masks_per_image(masks: torch.Tensor, boxes: list | None, image: torch.Tensor) -> list[torch.Tensor]:
    """Return the masks of each image."""
    size, count = (image.shape[1], image.shape[2]), len(image)
    if boxes is not None:
        return split_masks_per_image(masks, boxes, size)
    if len(masks) not in (0, 1, count) and count > 1:
        raise ValueError(
            f"masks: got {len(masks)} masks for {count} images. Connect bboxes as well, which tell the image of each "
            "mask"
        )
    masks = fit_masks(masks, *size)
    return [masks[index][None] for index in range(count)] if 1 < count == len(masks) else [masks] * count
