"""InternVL Chat: talks about images, and finds what is named in them."""

from __future__ import annotations

from collections.abc import Callable

from comfy_api.latest import io

from ..mulan.boundary.growing_text import GrowingText
from ..mulan.boundary.interrupts import interruptible
from ..mulan.boundary.limits import MAX_NAME_LENGTH, MAX_NAMES
from ..mulan.images.video_frames import sample_frames
from ..mulan.internvl_chat.chat_history import history_to_json, parse_history
from ..mulan.internvl_chat.chat_preprocessing import MAX_TILES
from ..mulan.internvl_chat.chat_prompts import ChatPrompts
from ..mulan.internvl_chat.chat_template import FIND, REF, split_thinking
from ..visionllm_nodes.detections.names import split_names
from . import categories
from .checked_node import CheckedNode
from .common import sampling_inputs, show_progress, show_text, validate, with_field_name
from .internvl_reports import document

ASK_TASK, FIND_TASK = TASKS = ("ask", "find")
IMAGE_NAMES = [f"image_{number}" for number in range(1, 9)]


class InternVLChat(CheckedNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="InternVLChat",
            display_name="InternVL Chat",
            category=categories.INTERNVL,
            description=(
                "Answers questions about images and videos, describes them, finds what you name, or just "
                "chats, with InternVL. Connect history to the next node to continue the conversation."
            ),
            search_aliases=[
                "image to text",
                "video to text",
                "caption image",
                "image caption",
                "describe image",
                "describe video",
                "image to prompt",
                "ask about image",
                "visual question answering",
                "vqa",
                "chat with image",
                "vision language model",
                "vlm",
                "llm",
                "ocr",
                "read text in image",
                "internvl chat",
                "clip interrogator",
                "video caption",
                "图像描述",
                "图片反推",
                "图生文",
                "画像の説明",
                "画像キャプション",
                "이미지 설명",
                "légende d'image",
                "Bild beschreiben",
                "описание картинки",
                "describir imagen",
                "反推提示词",
                "décrire l'image",
                "описание изображения",
                "internvl grounding",
                "find by sentence",
                "referring expression",
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
                    tooltip=(
                        "The question or message, in any language. Images go before the first question "
                        "of a conversation; write <image> for each of them to place them yourself."
                    ),
                ),
                io.Autogrow.Input(
                    "images",
                    optional=True,
                    template=io.Autogrow.TemplateNames(io.Image.Input("image"), names=IMAGE_NAMES, min=0),
                    tooltip=(
                        "Images of any size, or batches of them, all for one answer. Leave it "
                        "unconnected to chat without images."
                    ),
                ),
                io.Video.Input(
                    "video", optional=True, tooltip="A video to ask about. Evenly spaced frames of it are used."
                ),
                io.Int.Input(
                    "frames",
                    default=8,
                    min=1,
                    max=128,
                    optional=True,
                    tooltip=(
                        "The number of frames to take from the video. A frame takes as many tokens as "
                        "one tile of an image."
                    ),
                ),
                io.String.Input(
                    "history",
                    default="",
                    optional=True,
                    force_input=True,
                    tooltip=(
                        "The history output of another InternVL Chat with the same images, to continue "
                        "that conversation. JSON."
                    ),
                ),
                io.String.Input(
                    "system",
                    multiline=True,
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="System prompt. Empty: the model's default.",
                ),
                io.Boolean.Input(
                    "thinking",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Lets the model reason before it answers. InternVL 3.5 is trained for it; raise "
                        "max_tokens and set temperature to 0.6. Leave system empty."
                    ),
                ),
                io.Int.Input(
                    "tiles",
                    default=MAX_TILES,
                    min=1,
                    max=40,
                    optional=True,
                    tooltip=(
                        "The maximum number of 448-pixel tiles per image; a thumbnail of the whole image "
                        "is added. Fewer tiles are faster; small text needs more."
                    ),
                ),
                *sampling_inputs(max_tokens=512, limit=32768),
                io.Combo.Input(
                    "task",
                    options=list(TASKS),
                    default=ASK_TASK,
                    optional=True,
                    tooltip=(
                        "ask: answers the question. find: asks where each name or description in the question "
                        "is, one per line or separated by commas, in InternVL's own words for it. Connect text to "
                        "Text to Boxes and Points."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The answer; for find, one per line."),
                io.String.Output(
                    display_name="history",
                    tooltip="The conversation so far with this answer, for the next InternVL Chat. JSON.",
                ),
                io.String.Output(
                    display_name="thinking",
                    tooltip=(
                        "What the model thought before it answered; it is in neither text nor history. If "
                        "text is empty, max_tokens ended the answer while it thought."
                    ),
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, question, images=None, history="", system="", thinking=False, task=ASK_TASK):
        return [validate(_check, question, system, thinking, task), validate(parse_history, history, field="history")]

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
        tiles=MAX_TILES,
        max_tokens=512,
        temperature=0.0,
        top_p=0.9,
        seed=0,
        task=ASK_TASK,
    ) -> io.NodeOutput:
        if not isinstance(getattr(clip, "tokenizer", None), ChatPrompts):
            raise ValueError("clip: this CLIP cannot generate text. Connect the CLIP output of InternVL Chat Loader.")
        questions = _check(question, system, thinking, task)
        rounds = with_field_name("history", parse_history, history)
        batches = [images[name] for name in IMAGE_NAMES if images and images.get(name) is not None]
        single_images = [image for batch in batches for image in batch]
        video_frames = sample_frames(video, frames) if video is not None else []
        count = len(single_images) + len(video_frames)
        if task == FIND_TASK and count != 1:
            raise ValueError(f"images: find looks in one image, got {count}. Connect one, or a list of images")
        texts: list[str] = []
        thoughts: list[str] = []
        for prompt in interruptible(questions):
            tokens = clip.tokenize(
                prompt,
                images=single_images,
                frames=video_frames,
                history=rounds,
                system=system or None,
                thinking=thinking,
                tiles=tiles,
            )
            so_far = GrowingText(clip.tokenizer.tokenizer.decode)
            shown = "".join(f"{text}\n" for text in texts)
            with clip.cond_stage_model.streaming_to(_progress(cls, shown, so_far)):
                ids = clip.generate(
                    tokens,
                    do_sample=temperature > 0,
                    max_length=max_tokens,
                    temperature=temperature,
                    top_k=0,
                    top_p=top_p,
                    seed=seed,
                )
            thought, answer = split_thinking(clip.decode(ids) if task == ASK_TASK else _with_tags(clip, ids))
            texts.append(answer if task == ASK_TASK else _named(answer, prompt))
            thoughts += [thought] if thought else []
        text, thought = "\n".join(texts), "\n\n".join(thoughts)
        sizes = [{"width": image.shape[1], "height": image.shape[0]} for image in single_images]
        written = document(
            "chat" if task == ASK_TASK else task,
            model=clip.tokenizer.title,
            prompt=question,
            text=text,
            thinking=thought or None,
            pictures=sizes,
            frames=len(video_frames),
        )
        exchanges = [*rounds, *zip(questions, texts, strict=True)]
        return io.NodeOutput(text, history_to_json(exchanges), thought, ui=show_text(text or thought, written))


def _progress(node: type[InternVLChat], before: str, so_far: GrowingText) -> Callable[[list[int]], None]:
    """Return what shows the answers so far in the node."""
    return lambda ids: show_progress(node, before + so_far(ids).strip())


def _with_tags(clip, ids: list[int]) -> str:
    """Return an answer with its tags, which are special tokens."""
    return clip.decode([id for id in ids if id not in clip.cond_stage_model.stop_tokens], skip_special_tokens=False)


def _named(answer: str, prompt: str) -> str:
    """Return an answer with the name that it is about, where the model left it out."""
    return answer if REF in answer else prompt[prompt.index(REF) :] + answer


def _check(question: str, system: str, thinking: bool, task: str) -> list[str]:
    """Return the prompts: the question, or one for each name to find. Raise ValueError that begins with the field."""
    if not question.strip():
        raise ValueError("question: enter a question" if task == ASK_TASK else "question: enter what to find")
    if system.strip() and thinking:
        raise ValueError("system: leave it empty when thinking is on, which has a system prompt of its own")
    if task == ASK_TASK:
        return [question]
    names = split_names(question)
    if not 0 < len(names) <= MAX_NAMES:
        raise ValueError(f"question: it has {len(names)} names to find, expected 1 to {MAX_NAMES}")
    for name in names:
        if len(name) > MAX_NAME_LENGTH:
            raise ValueError(f"question: a name to find has {len(name)} characters, at most {MAX_NAME_LENGTH} are read")
        if "<" in name or ">" in name:
            raise ValueError(f"question: the name {name[:40]!r} has < or >, which mark its ends for the model")
    return [FIND.format(name) for name in names]
