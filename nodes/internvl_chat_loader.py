"""InternVL Chat Loader, whose CLIP InternVL Chat takes, and ComfyUI's Generate Text."""

from __future__ import annotations

from comfy_api.latest import io

from ..mulan.internvl_chat.chat_files import SOURCE, open_chat
from ..mulan.internvl_chat.chat_loader import load_chat
from . import categories
from .checked_node import CheckedNode
from .common import device_input, device_of, fingerprint_model, list_models, locate_model, validate

KIND = "internvl_chat"


class InternVLChatLoader(CheckedNode):
    files = ("checkpoint",)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLChatLoader",
            display_name="InternVL Chat Loader",
            category=categories.INTERNVL,
            description=(
                "Loads InternVL 2.5, 3 or 3.5, a vision language model (VLM), as a CLIP for Generate "
                "Text and InternVL Chat."
            ),
            search_aliases=[
                "load internvl",
                "internvl chat",
                "load llm",
                "load vlm",
                "vision language model",
                "multimodal model",
                "chat model",
                "image to text model",
                "caption model",
                "多模态大模型",
                "视觉语言模型",
                "书生万象",
                "視覚言語モデル",
                "画像からテキスト",
                "시각 언어 모델",
                "modèle vision-langage",
                "Vision-Language-Modell",
                "визуально-языковая модель",
                "modelo de visión y lenguaje",
            ],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=list_models(KIND),
                    tooltip=(
                        f"The model in models/internvl_chat: a folder from {SOURCE}, or its -hf version, "
                        "or the single .safetensors file that MuLan Get Model makes of it."
                    ),
                ),
                device_input(),
            ],
            outputs=[
                io.Clip.Output(
                    display_name="CLIP",
                    tooltip=(
                        "The model for Generate Text and InternVL Chat. It makes no conditioning: encode "
                        "prompts with the CLIP of a text encoder. ComfyUI moves it to the GPU and back, "
                        "like any model."
                    ),
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint):
        """Reject a wrong file before the run starts; only names, shapes and the tokenizer are read."""
        return validate(lambda name: open_chat(locate_model(KIND, name, SOURCE)).tokenizer(), checkpoint)

    @classmethod
    def fingerprint_inputs(cls, checkpoint=None, **others):
        """Change when a file does, so that one downloaded again under its name is read again."""
        return fingerprint_model(KIND, checkpoint)

    @classmethod
    def execute(cls, checkpoint, device="default") -> io.NodeOutput:
        return io.NodeOutput(load_chat(locate_model(KIND, checkpoint, SOURCE), device_of(device)))
