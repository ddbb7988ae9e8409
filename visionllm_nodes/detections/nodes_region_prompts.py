"""MuLan Region Prompts: a prompt for each labeled box, as one conditioning."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ...mulan.conditioning.clip import encode_prompts
from ...nodes import categories
from ...nodes.common import show_text, validate, with_field_name
from ..node_io import VisionLLMNode
from .bounding_boxes import boxes_per_image
from .nodes_boxes import BOXES
from .prompted_regions import label_masks, match_labels, read_region_prompts, soften

BOUNDS, DEFAULT = AREAS = ("mask bounds", "default")


class MuLanRegionPrompts(VisionLLMNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MuLanRegionPrompts",
            display_name="MuLan Region Prompts",
            category=categories.MULAN,
            description="Gives each labeled box a prompt of its own, in any language, as one conditioning. Draw the "
            "boxes, or detect them and write what should be there.",
            search_aliases=[
                "regional prompt",
                "regional prompting",
                "prompt per region",
                "area composition",
                "attention couple",
                "conditioning mask",
                "boxes to conditioning",
                "layout to image",
                "gligen boxes",
                "分区提示词",
                "区域提示词",
                "領域プロンプト",
                "영역 프롬프트",
                "prompt par zone",
                "Prompt pro Bereich",
                "промпт для области",
                "prompt por región",
            ],
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP that encodes the prompts: MuLan Loader's, or any other."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a park in autumn\nregion1: a red fox\nregion2: 一只白兔",
                    tooltip="Lines 'label: prompt', a space behind the colon, for the boxes with this label. Boxes "
                    "without labels are region1, region2, ... All other lines are the prompt of the whole image.",
                ),
                io.BoundingBox.Input("bboxes", force_input=True, tooltip=BOXES),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Masks of the boxes, one per box in the same order, used instead of the filled boxes.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The image the boxes belong to, for its size. Without it, width and height are used.",
                ),
                io.Int.Input(
                    "width", default=512, min=1, max=16384, tooltip="Width in pixels of the image the boxes lie in."
                ),
                io.Int.Input(
                    "height", default=512, min=1, max=16384, tooltip="Height in pixels of the image the boxes lie in."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    optional=True,
                    tooltip="How much the prompts of the regions count.",
                ),
                io.Float.Input(
                    "whole",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="How much the prompt of the whole image counts inside the regions. 1: as much as outside.",
                ),
                io.Combo.Input(
                    "set_cond_area",
                    options=list(AREAS),
                    default=BOUNDS,
                    optional=True,
                    tooltip="mask bounds: each region is drawn as an image of its own, so that its object lies inside. "
                    "default: each prompt is drawn across the whole image and cut to its region. As in ComfyUI's "
                    "Conditioning (Set Mask).",
                ),
                io.Int.Input(
                    "feather",
                    default=0,
                    min=0,
                    max=1024,
                    optional=True,
                    tooltip="Soft edge in pixels around each region.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="All prompts with their masks, for positive of a sampler."),
                io.Mask.Output(
                    display_name="mask", tooltip="Union mask of the regions that have a prompt, for inpainting."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, prompts):
        return validate(read_region_prompts, prompts, field="prompts")

    @classmethod
    def execute(
        cls,
        clip,
        prompts,
        bboxes,
        width,
        height,
        masks=None,
        image=None,
        strength=1.0,
        whole=0.2,
        set_cond_area=BOUNDS,
        feather=0,
    ) -> io.NodeOutput:
        read = with_field_name("prompts", read_region_prompts, prompts)
        if image is not None:
            height, width = image.shape[1:3]
        frames = with_field_name("bboxes", boxes_per_image, bboxes)
        found = with_field_name("masks" if masks is not None else "bboxes", label_masks, frames, height, width, masks)
        label_of = match_labels(list(read.of_label), list(found))
        used = {label: read.of_label[written] for written, label in label_of.items() if label is not None}
        areas = {label: soften(found[label], feather) for label in used}
        union = torch.stack(list(areas.values())).amax(0) if areas else torch.zeros(len(frames) or 1, height, width)
        encoded_whole, *encoded = encode_prompts(clip, [read.whole, *used.values()])
        conditioning = _masked(encoded_whole, 1 - (1 - whole) * union) if areas else encoded_whole
        for area, of_region in zip(areas.values(), encoded, strict=True):
            conditioning += _masked(of_region, area, strength, set_cond_area == BOUNDS)
        return io.NodeOutput(conditioning, union, ui=show_text(_report(read.whole, used, label_of, list(found))))


def _masked(conditioning: list, mask: torch.Tensor, strength: float = 1.0, to_bounds: bool = False) -> list:
    """Return a conditioning with what ComfyUI's samplers read of a masked one."""
    values = {"mask": mask, "mask_strength": strength, "set_area_to_bounds": to_bounds}
    return [[context, more | values] for context, more in conditioning]


def _report(whole: str, used: dict[str, str], label_of: dict[str, str | None], labels: list[str]) -> str:
    """Return what counts where, labels without a box, and boxes without a prompt."""
    lines = [f"whole image: {whole or '(no prompt)'}", *(f"{label}: {prompt}" for label, prompt in used.items())]
    absent = [label for label, found in label_of.items() if found is None]
    idle = [label for label in labels if label not in used]
    lines += [f"no box: {', '.join(absent)}"] * bool(absent) + [f"no prompt: {', '.join(idle)}"] * bool(idle)
    return "\n".join(lines)
