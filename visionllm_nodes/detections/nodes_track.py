"""Track Detections: the same object has the same name in every frame of a video."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ...nodes import categories
from ...nodes.common import show_text, with_field_name
from ...nodes.internvl_inputs import INTERNVL, InternVLNode
from ..node_io import JSON_TOOLTIP, KEYPOINTS, VisionLLMNode
from .bounding_boxes import boxes_per_image
from .json_document import frame_record, write_document
from .looks import embed_boxes
from .masks import boxes_to_masks, split_masks_per_image
from .nodes_boxes import BOXES, no_masks
from .tracked_objects import follow_boxes, follow_keypoints, follow_masks, name_tracks
from .tracking import track_boxes


class VisionLLMTrackDetections(VisionLLMNode):
    checks = VisionLLMNode.checks | {INTERNVL.io_type: InternVLNode.checks[INTERNVL.io_type]}

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMTrackDetections",
            display_name="Track Detections",
            category=categories.DETECTIONS,
            description="Follows objects through the frames of a video: gives boxes and keypoints of one object the "
            "same name in every frame, fills the gaps and smooths their motion.",
            search_aliases=[
                "object tracking",
                "track objects",
                "video tracking",
                "tracker",
                "sort tracker",
                "bytetrack",
                "track ids",
                "stable ids",
                "smooth keypoints",
                "smooth boxes",
                "interpolate boxes",
                "目标跟踪",
                "物体追跡",
                "객체 추적",
                "suivi d'objets",
                "Objektverfolgung",
                "отслеживание объектов",
                "seguimiento de objetos",
            ],
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="The frames of the video as a batch. Without internvl only their number and size are used.",
                ),
                io.BoundingBox.Input("bboxes", optional=True, force_input=True, tooltip=f"{BOXES} One list per frame."),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Masks of the boxes, one per box in the same order. They follow their boxes.",
                ),
                KEYPOINTS.Input(
                    "keypoints", optional=True, tooltip="Keypoints to follow instead of bboxes, one record per frame."
                ),
                io.Float.Input(
                    "min_overlap",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Least IoU of a box with where the motion of its object takes it.",
                ),
                io.Int.Input(
                    "max_gap",
                    default=15,
                    min=0,
                    max=10000,
                    tooltip="For how many frames an object may be hidden and keep its name.",
                ),
                io.Int.Input(
                    "min_length", default=2, min=1, max=10000, tooltip="Drops objects that are seen in fewer frames."
                ),
                io.Boolean.Input(
                    "fill", default=True, tooltip="Adds the object between two frames in which it is seen, on a line."
                ),
                io.Float.Input(
                    "smooth",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="Smooths positions over about so many frames. 0 leaves them as detected.",
                ),
                INTERNVL.Input(
                    "internvl",
                    optional=True,
                    tooltip="The model from InternVL Loader, to compare looks too: objects that cross keep their "
                    "names, and one that left gets its name back when it returns, after any time and at any place.",
                ),
                io.Float.Input(
                    "min_similarity",
                    default=0.85,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="With internvl: least similarity of looks (cosine) with an object that left.",
                ),
            ],
            outputs=[
                io.BoundingBox.Output(
                    display_name="bboxes",
                    tooltip="Bounding boxes, one list per frame, labeled with the object's name: person 1, person 2, "
                    "dog 1. In the order in which the objects appear.",
                ),
                io.Mask.Output(
                    display_name="masks",
                    tooltip="One mask per box, in the same order. A box that was filled in is a filled rectangle.",
                ),
                KEYPOINTS.Output(display_name="keypoints", tooltip="The keypoints with the objects' names."),
                io.String.Output(
                    display_name="names", is_output_list=True, tooltip="List: the name of each object in order."
                ),
                io.Mask.Output(
                    display_name="first_masks",
                    tooltip="Masks of the objects of the first frame, in order, for initial_mask of SAM3 Video Track.",
                ),
                io.Int.Output(display_name="count", tooltip="Number of objects in the whole video."),
                io.String.Output(display_name="json", tooltip=JSON_TOOLTIP),
            ],
        )

    @classmethod
    def execute(
        cls,
        image,
        min_overlap,
        max_gap,
        min_length,
        fill,
        smooth,
        bboxes=None,
        masks=None,
        keypoints=None,
        internvl=None,
        min_similarity=0.85,
    ) -> io.NodeOutput:
        if (bboxes is None) == (keypoints is None):
            raise ValueError("bboxes, keypoints: connect exactly one of them")
        count, height, width = image.shape[:3]
        if keypoints is not None and masks is not None:
            raise ValueError("masks: they belong to bboxes, but keypoints are connected. Disconnect them")
        if keypoints is not None and len(keypoints) != count:
            raise ValueError(f"keypoints: got keypoints for {len(keypoints)} frames, but {count} frames are connected")
        if keypoints is None:
            frames = with_field_name("bboxes", boxes_per_image, bboxes, count)
        else:
            frames = [
                [obj["box"] | {"label": obj["label"], "score": obj["score"]} for obj in record["objects"]]
                for record in keypoints
            ]
        looks = None if internvl is None else embed_boxes(internvl, image, frames)
        tracks = track_boxes(frames, min_overlap, max_gap, min_length, looks, min_similarity)
        names = name_tracks(tracks)
        seen = follow_boxes(frames, tracks, names, max_gap if fill else 0, smooth)
        boxes = [[one.box for one in objects] for objects in seen]
        first = boxes_to_masks(boxes[:1], height, width)[1]
        followed: object = no_masks()
        if masks is not None:
            followed = follow_masks(
                seen, with_field_name("masks", split_masks_per_image, masks, frames, (height, width))
            )
            first = followed[: max(1, len(boxes[0]))] if boxes[0] else first
        poses: object = ExecutionBlocker("keypoints: not connected, but the keypoints output is used. Connect them.")
        records = [frame_record(width, height, of_frame) for of_frame in boxes]
        if keypoints is not None:
            poses = named = follow_keypoints(keypoints, seen, fill, smooth)
            records = [frame_record(width, height, keypoints=record) for record in named]
        record = write_document("track", "", records)
        lines = [f"{name}: frames {_runs(track.frames, max_gap)}" for name, track in zip(names, tracks, strict=True)]
        return io.NodeOutput(
            boxes,
            followed,
            poses,
            names or [ExecutionBlocker(None)],
            first,
            len(names),
            record,
            ui=show_text("\n".join(lines) or "nothing to follow", record),
        )


def _runs(frames: Sequence[int], max_gap: int) -> str:
    """Return the frames from which to which an object is there: 0 to 12, 40 to 55."""
    starts = [0, *(index for index in range(1, len(frames)) if frames[index] - frames[index - 1] - 1 > max_gap)]
    ends = [*(start - 1 for start in starts[1:]), len(frames) - 1]
    return ", ".join(f"{frames[start]} to {frames[end]}" for start, end in zip(starts, ends, strict=True))
