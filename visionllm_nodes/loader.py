"""VisionLLM Loader: the model that all VisionLLM nodes use."""

from __future__ import annotations

from comfy_api.latest import io

from ..nodes import categories
from ..nodes.common import (
    PRECISIONS,
    device_input,
    device_of,
    fingerprint_model,
    list_models,
    locate_model,
    precision_input,
    validate,
)
from .model.visionllm_files import SOURCE, open_visionllm
from .model.visionllm_loader import load_visionllm
from .node_io import VISIONLLM, VisionLLMNode

KIND = "visionllm"


class VisionLLMLoader(VisionLLMNode):
    files = ("checkpoint",)

    """Load the model. Nothing is cached here.

    ComfyUI caches a node's outputs by its inputs and fingerprint, so loaders with equal inputs share one model, also
    from workflow to workflow.
    """

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMLoader",
            display_name="VisionLLM Loader",
            category=categories.VISIONLLM,
            description="Loads VisionLLM v2, a vision-language model that detects, segments, finds keypoints, "
            "captions and answers questions in any language.",
            search_aliases=[
                "load visionllm",
                "vision language model",
                "vision llm",
                "vlm",
                "mllm",
                "multimodal llm",
                "load vision model",
                "image to text",
                "grounding dino",
                "视觉语言模型",
                "視覚言語モデル",
                "시각 언어 모델",
                "modèle vision-langage",
                "Bildverstehen",
                "визуальная модель",
            ],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list_models(KIND),
                    tooltip=f"Checkpoint in models/visionllm: the folder of {SOURCE}, or the single .safetensors file "
                    "that MuLan Get Model makes of it.",
                ),
                precision_input(
                    "Computation dtype, independent of the file's dtype. default: bf16 or fp16 where the device "
                    "is fast with it, otherwise fp32."
                ),
                device_input(),
            ],
            outputs=[
                VISIONLLM.Output(
                    display_name="VISIONLLM",
                    tooltip="The model, for the VisionLLM nodes. ComfyUI moves it to and from VRAM like any other "
                    "model.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint):
        """Read only names, shapes and the tokenizer, so that a wrong file is reported before the run starts."""
        return validate(lambda name: open_visionllm(locate_model(KIND, name, SOURCE)).tokenizer(), checkpoint)

    @classmethod
    def fingerprint_inputs(cls, checkpoint=None, **others):
        """Load a file again that was downloaded again under the same name."""
        return fingerprint_model(KIND, checkpoint)

    @classmethod
    def execute(cls, checkpoint, precision="default", device="default") -> io.NodeOutput:
        return io.NodeOutput(
            load_visionllm(locate_model(KIND, checkpoint, SOURCE), device_of(device), PRECISIONS[precision])
        )
