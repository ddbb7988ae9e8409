"""VisionLLM Loader: the model that all questions are put to."""

from __future__ import annotations

from comfy_api.latest import io

from ..nodes.common import PRECISIONS, device_input, device_of, locate, names, precision_input, stamp, valid
from .model.visionllm_files import SOURCE, open_visionllm
from .model.visionllm_loader import load_visionllm
from .node_io import VISIONLLM

KIND = "visionllm"


class VisionLLMLoader(io.ComfyNode):
    """Nothing is kept here: ComfyUI keeps a node's outputs by its inputs and fingerprint, so loaders that say the same are one, in one graph and
    from graph to graph."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VisionLLMLoader",
            display_name="VisionLLM Loader",
            category="loaders",
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
                    options=names(KIND),
                    tooltip=f"Checkpoint in models/visionllm: the folder of {SOURCE}, or a single .safetensors file "
                    "converted from it (see the help page).",
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
        """Only names, shapes and the tokenizer are read, so a wrong file is told before the queue starts."""
        return valid(lambda name: open_visionllm(locate(KIND, name, SOURCE)).tokenizer(), checkpoint)

    @classmethod
    def fingerprint_inputs(cls, checkpoint=None, **others):
        """A file that was downloaded again under its name is read again."""
        return stamp(KIND, checkpoint)

    @classmethod
    def execute(cls, checkpoint, precision="default", device="default") -> io.NodeOutput:
        return io.NodeOutput(load_visionllm(locate(KIND, checkpoint, SOURCE), device_of(device), PRECISIONS[precision]))
