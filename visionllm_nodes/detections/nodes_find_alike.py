"""InternVL Find Alike: which boxes of any detector show what an example shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from comfy_api.latest import io

from ...mulan.boundary.interrupts import interruptible
from ...mulan.internvl.ranking import mean_embedding
from ...nodes import categories
from ...nodes.common import show_text, validate, with_field_name
from ...nodes.internvl_inputs import INTERNVL, InternVLNode, model_input
from ..node_io import JSON_TOOLTIP, VisionLLMNode
from ..region_prompts import parse_points
from .bounding_boxes import box_corners, boxes_per_image, sort_boxes
from .json_document import frame_record, write_document
from .looks import FRAMING, crop
from .masks import masks_to_boxes, split_masks_per_image
from .nodes_boxes import BOXES, no_masks


class InternVLFindAlike(VisionLLMNode):
    checks = VisionLLMNode.checks | {INTERNVL.io_type: InternVLNode.checks[INTERNVL.io_type]}

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLFindAlike",
            display_name="InternVL Find Alike",
            category=categories.INTERNVL,
            description="Finds what an example shows in other images: compares it with the boxes of any detector, by "
            "InternVL's embeddings of what lies in them.",
            search_aliases=[
                "find this",
                "find similar object",
                "visual search",
                "search by example",
                "one-shot detection",
                "few-shot detection",
                "re-identification",
                "match boxes",
                "以图找物",
                "按示例查找",
                "似た物を探す",
                "비슷한 물체 찾기",
                "trouver le même objet",
                "Objekt wiederfinden",
                "найти такой же",
                "buscar el mismo objeto",
            ],
            is_output_node=True,
            inputs=[
                model_input(),
                io.Image.Input("image", tooltip="The images to look in: a batch, or the frames of a video."),
                io.BoundingBox.Input("bboxes", force_input=True, tooltip=f"{BOXES} The choice is made among these."),
                io.Image.Input("example", tooltip="The image that shows what to find. Several are averaged."),
                io.BoundingBox.Input(
                    "example_bboxes",
                    optional=True,
                    force_input=True,
                    tooltip="Boxes around it in example: one box, a list, or a list per image, averaged. Without "
                    "them the whole image is the example.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Masks of the boxes, one per box in the same order. They are chosen with the boxes.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Drops boxes less similar than this (cosine similarity). Two images of one thing often "
                    "have 0.8 or more.",
                ),
                io.Int.Input(
                    "top_k", default=1, min=0, max=100000, tooltip="Maximum boxes per image, best first. 0: no limit."
                ),
                io.Int.Input(
                    "margin", default=0, min=0, max=16384, tooltip="Pixels to look at around each box, for its context."
                ),
                io.Mask.Input(
                    "example_mask",
                    optional=True,
                    tooltip="Masks of it in example, instead of or beside boxes: one per image, or several of a single "
                    "image.",
                ),
                io.String.Input(
                    "example_points",
                    default="",
                    optional=True,
                    tooltip='Points on it in pixels: [{"x": 12, "y": 34}]. Only the smallest of example_bboxes under '
                    "each is an example.",
                ),
            ],
            outputs=[
                io.BoundingBox.Output(
                    display_name="bboxes",
                    tooltip="The most similar boxes, one list per image, best first. The score is the similarity.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="Masks of these boxes, in the same order. A single empty mask if no box remains.",
                ),
                io.Int.Output(display_name="count", tooltip="Number of these boxes across all images."),
                io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(cls, example_points=""):
        return validate(parse_points, example_points)

    @classmethod
    def execute(
        cls,
        internvl,
        image,
        bboxes,
        example,
        threshold,
        top_k,
        margin,
        example_bboxes=None,
        masks=None,
        example_mask=None,
        example_points="",
    ) -> io.NodeOutput:
        frames = with_field_name("bboxes", boxes_per_image, bboxes, len(image))
        crops = _examples(example, example_bboxes, example_mask, example_points, margin)
        target = mean_embedding(internvl.embed_images(crops, FRAMING))
        per_image = with_field_name("masks", split_masks_per_image, masks, frames) if masks is not None else None
        kept, kept_masks = [], []
        for index, boxes in enumerate(interruptible(frames)):
            scored = [box | {"score": score} for box, score in _similar(internvl, image[index], boxes, target, margin)]
            best = [box for box in sort_boxes(scored) if box["score"] >= threshold][: top_k or None]
            kept.append([{name: value for name, value in box.items() if name != PLACE} for box in best])
            if per_image is not None:
                kept_masks += [per_image[index][box[PLACE]] for box in best]
        chosen: object = no_masks()
        if masks is not None:
            chosen = torch.stack(kept_masks) if kept_masks else masks.new_zeros(1, *masks.shape[1:])
        records = [frame_record(image.shape[2], image.shape[1], boxes) for boxes in kept]
        lines = [
            f"image {index + 1}: " + (", ".join(f"{box['score']:.3f}" for box in boxes) or "nothing alike")
            for index, boxes in enumerate(kept)
        ]
        record = write_document("find alike", "", records)
        return io.NodeOutput(kept, chosen, sum(map(len, kept)), record, ui=show_text("\n".join(lines), record))


PLACE = "_place"  # of a box among its image's


def _examples(example: torch.Tensor, boxes, mask: torch.Tensor | None, points: str, margin: int) -> list[torch.Tensor]:
    """Return what shows the example: the parts that are marked, or the images themselves. Raise ValueError for none."""
    under = parse_points(points)
    if under and boxes is None:
        raise ValueError(
            "example_points: they choose among example_bboxes, which are not connected. Connect boxes of example"
        )
    marked: list[list[dict]] = [[] for _ in example]
    if boxes is not None:
        found = with_field_name("example_bboxes", boxes_per_image, boxes, len(example))
        marked = [[*_under(of_image, under)] for of_image in found] if under else found
        if under and not any(marked):
            raise ValueError(f"example_points: none of example_bboxes is under {points.strip()[:80]}")
    if mask is not None:
        marked = [[*of_image, *of_mask] for of_image, of_mask in zip(marked, _mask_boxes(mask, example), strict=True)]
    if boxes is None and mask is None:
        return [each[..., :3] for each in example]
    crops = [
        part
        for each, of_image in zip(example, marked, strict=True)
        for box in of_image
        if (part := crop(each, box, margin)) is not None
    ]
    if not crops:
        fields = " and ".join(
            name for name, given in (("example_bboxes", boxes), ("example_mask", mask)) if given is not None
        )
        raise ValueError(f"{fields}: nothing is marked in the example. Mark what to find, or disconnect {fields}")
    return crops


def _under(boxes: Sequence[dict], points: Sequence[tuple[float, float]]) -> Iterator[dict]:
    """Yield the smallest box under each point that has one."""
    for x, y in points:
        under = [
            ((x2 - x1) * (y2 - y1), index)
            for index, (x1, y1, x2, y2) in enumerate(map(box_corners, boxes))
            if x1 <= x <= x2 and y1 <= y <= y2
        ]
        if under:
            yield boxes[min(under)[1]]


def _mask_boxes(mask: torch.Tensor, example: torch.Tensor) -> list[list[dict]]:
    """Return the boxes around the masks of each example, in its pixels."""
    height, width = example.shape[1:3]
    if mask.shape[1:] != (height, width):
        mask = F.interpolate(mask[:, None].float(), (height, width), mode="nearest-exact")[:, 0]
    found = masks_to_boxes(mask, apart=False)
    if len(example) == 1:
        return [sum(found, [])]
    if len(mask) not in (1, len(example)):
        raise ValueError(f"example_mask: got {len(mask)} masks for {len(example)} images. Connect one per image")
    return found * len(example) if len(mask) == 1 else found


def _similar(internvl, image: torch.Tensor, boxes: Sequence[dict], target: torch.Tensor, margin: int):
    """Return the boxes that lie in the image, each with its place, and their similarity 0..1 to the target."""
    crops = [(box | {PLACE: place}, crop(image, box, margin)) for place, box in enumerate(boxes)]
    inside = [(box, part) for box, part in crops if part is not None]
    if not inside:
        return []
    vectors = internvl.embed_images([part for _, part in inside], FRAMING)
    scores = (vectors @ target).clamp(0, 1).tolist()
    return [(box, score) for (box, _), score in zip(inside, scores, strict=True)]
