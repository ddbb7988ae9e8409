"""InternVL's dialogue: a loader whose CLIP core's Generate Text takes, and a node that talks on about several pictures."""

from __future__ import annotations

from comfy_api.latest import io

from ..mulan.images.video_frames import spread_frames
from ..mulan.internvl_chat.chat_files import SOURCE, open_chat
from ..mulan.internvl_chat.chat_history import read_chat, write_chat
from ..mulan.internvl_chat.chat_loader import load_chat
from ..mulan.internvl_chat.chat_preprocessing import MOST_TILES
from ..mulan.internvl_chat.chat_prompts import ChatPrompts
from .common import (
    device_input,
    device_of,
    for_field,
    locate,
    names,
    show,
    show_meanwhile,
    stamp,
    valid,
    writing_inputs,
)
from .internvl_reports import document

KIND = "internvl_chat"
IMAGE_NAMES = [f"image_{number}" for number in range(1, 9)]


class InternVLChatLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLChatLoader",
            display_name="InternVL Chat Loader",
            category="loaders",
            description="Loads InternVL 2.5, 3 or 3.5, a language model that is shown pictures, as a CLIP: for Generate Text and InternVL Chat.",
            search_aliases=[
                "internvl",
                "load llm",
                "load vlm",
                "vision language model",
                "chat model",
                "image to text",
                "多模态大模型",
                "書生",
                "视觉语言模型",
                "視覚言語モデル",
                "시각 언어 모델",
                "modèle vision-langage",
                "Bildverstehen",
                "визуальная модель",
                "modelo visual",
            ],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=names(KIND),
                    tooltip=f"In models/internvl_chat: the folder of one of {SOURCE}, or its -hf counterpart, or one .safetensors that "
                    "dev.py convert made of it.",
                ),
                device_input(),
            ],
            outputs=[
                io.Clip.Output(
                    display_name="CLIP",
                    tooltip="For Generate Text and InternVL Chat. It gives no conditioning: prompts need a text "
                    "encoder's CLIP. ComfyUI moves it to the GPU and away as it does models.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, checkpoint):
        """Only names, shapes and the tokenizer are read, so a wrong file is told before the queue starts."""
        return valid(lambda name: open_chat(locate(KIND, name, SOURCE)).words(), checkpoint)

    @classmethod
    def fingerprint_inputs(cls, checkpoint=None, **others):
        """A file that was downloaded again under its name is read again."""
        return stamp(KIND, checkpoint)

    @classmethod
    def execute(cls, checkpoint, device="default") -> io.NodeOutput:
        return io.NodeOutput(load_chat(locate(KIND, checkpoint, SOURCE), device_of(device)))


class InternVLChat(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLChat",
            display_name="InternVL Chat",
            category="text",
            description="Talks with InternVL about pictures and videos, or just talks; the talk goes on from node to node.",
            search_aliases=[
                "image to text",
                "caption",
                "describe image",
                "describe video",
                "vqa",
                "visual question answering",
                "chat with image",
                "ocr",
                "llm",
                "internvl",
                "图像描述",
                "图生文",
                "画像の説明",
                "이미지 설명",
                "légende d'image",
                "Bild beschreiben",
                "описание картинки",
                "describir imagen",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of InternVL Chat Loader."),
                io.String.Input(
                    "question",
                    multiline=True,
                    dynamic_prompts=True,
                    default="Describe the picture in detail.",
                    tooltip="What to say or ask, in any language. Pictures stand before the first question of a talk; write <image> for "
                    "each to place them yourself.",
                ),
                io.Autogrow.Input(
                    "images",
                    optional=True,
                    template=io.Autogrow.TemplateNames(io.Image.Input("image"), names=IMAGE_NAMES, min=0),
                    tooltip="Pictures of any sizes, or batches of them, all for one answer. Without one it is just talk.",
                ),
                io.Video.Input(
                    "video", optional=True, tooltip="A video, of which frames are looked at, evenly spread over it."
                ),
                io.Int.Input(
                    "frames",
                    default=8,
                    min=1,
                    max=128,
                    optional=True,
                    tooltip="How many frames of the video. Each takes as much as a tile of a picture.",
                ),
                io.String.Input(
                    "history",
                    default="",
                    optional=True,
                    force_input=True,
                    tooltip="The history of another InternVL Chat with the same pictures: the talk goes on from there. JSON.",
                ),
                io.String.Input(
                    "system",
                    multiline=True,
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="What the model is told before the talk, such as who it is and how to answer. Empty: its authors' words.",
                ),
                io.Boolean.Input(
                    "thinking",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="It reasons at length before it answers, between <think> and </think>. InternVL 3.5 has learned that; give "
                    "it tokens, and a temperature of 0.6.",
                ),
                io.Int.Input(
                    "tiles",
                    default=MOST_TILES,
                    min=1,
                    max=40,
                    optional=True,
                    tooltip="A picture is cut into at most so many tiles of 448 pixels, and seen once more as a whole. Fewer are faster; "
                    "small writing needs more.",
                ),
                *writing_inputs(limit=512, most=32768),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The answer."),
                io.String.Output(
                    display_name="history",
                    tooltip="The talk so far with this answer, for the next InternVL Chat. JSON.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, question, images=None, history="", system="", thinking=False):
        checked = valid(_check, question, system, thinking)
        return checked if checked is not True else valid(lambda text: for_field("history", read_chat, text), history)

    @classmethod
    def execute(
        cls,
        clip,
        question,
        images=None,
        video=None,
        frames=8,
        history="",
        system="",
        thinking=False,
        tiles=MOST_TILES,
        max_tokens=512,
        temperature=0.0,
        top_p=0.9,
        seed=0,
    ) -> io.NodeOutput:
        if not isinstance(getattr(clip, "tokenizer", None), ChatPrompts):
            raise ValueError("clip: this CLIP does not talk. Connect that of InternVL Chat Loader.")
        _check(question, system, thinking)
        rounds = for_field("history", read_chat, history)
        pictures = [picture for batch in map((images or {}).get, IMAGE_NAMES) if batch is not None for picture in batch]
        shown = spread_frames(video, frames) if video is not None else []
        tokens = clip.tokenize(
            question,
            pictures=pictures,
            frames=shown,
            history=rounds,
            system=system or None,
            thinking=thinking,
            tiles=tiles,
        )
        with clip.cond_stage_model.heard_by(lambda ids: show_meanwhile(cls, clip.decode(ids))):
            ids = clip.generate(
                tokens,
                do_sample=temperature > 0,
                max_length=max_tokens,
                temperature=temperature,
                top_k=0,
                top_p=top_p,
                seed=seed,
            )
        text = clip.decode(ids)
        sizes = [{"width": picture.shape[1], "height": picture.shape[0]} for picture in pictures]
        written = document(
            "chat", model=clip.tokenizer.title, prompt=question, text=text, pictures=sizes, frames=len(shown)
        )
        return io.NodeOutput(text, write_chat([*rounds, (question, text)]), ui=show(cls, text, written))


def _check(question: str, system: str, thinking: bool) -> None:
    """Raises ValueError that begins with the field."""
    if not question.strip():
        raise ValueError("question: it is empty")
    if system.strip() and thinking:
        raise ValueError("system: leave it empty with thinking, which is asked for in its place")
