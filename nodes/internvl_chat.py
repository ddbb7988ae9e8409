"""InternVL Chat: talks about images, and finds what is named in them."""

from __future__ import annotations

from comfy_api.latest import io

from ..mulan.boundary.interrupts import interruptible
from ..mulan.images.video_frames import sample_frames
from ..mulan.internvl_chat.chat_answer import Sampling, answer
from ..mulan.internvl_chat.chat_history import history_to_json, parse_history
from ..mulan.internvl_chat.chat_preprocessing import MAX_TILES
from . import categories
from .checked_node import CheckedNode
from .common import sampling_inputs, show_progress, show_text, validate, with_field_name
from .internvl_chat_questions import (
    ASK_TASK,
    FIND_TASK,
    ONE_BY_ONE,
    PICTURES,
    TASKS,
    TOGETHER,
    check_chat_clip,
    check_single,
    groups_of,
    questions_of,
    with_name,
)
from .internvl_reports import document

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
                    tooltip=("Images of any size, or batches of them. Leave it unconnected to chat without images."),
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
                io.Combo.Input(
                    "pictures",
                    options=list(PICTURES),
                    default=TOGETHER,
                    optional=True,
                    tooltip=(
                        "all together: asks once about all images and the video. one by one: asks about each image, "
                        "and about the video, by itself and returns a list of answers."
                    ),
                ),
                io.Int.Input(
                    "top_k",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Samples only from this many most likely tokens. 0: no limit. Used when temperature is above 0."
                    ),
                ),
                io.Float.Input(
                    "repetition_penalty",
                    default=1.0,
                    min=1.0,
                    max=2.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip=(
                        "Makes tokens that the answer has already less likely, at any temperature. 1 is off; 1.05 to "
                        "1.2 ends answers that repeat themselves."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="text",
                    is_output_list=True,
                    tooltip=(
                        "List of answers: one about everything, or one per image if pictures is one by one. For find, "
                        "an answer has one line per name."
                    ),
                ),
                io.String.Output(
                    display_name="history",
                    is_output_list=True,
                    tooltip="List of the conversations so far, with these answers, for the next InternVL Chat. JSON.",
                ),
                io.String.Output(
                    display_name="thinking",
                    is_output_list=True,
                    tooltip=(
                        "List of what the model thought before each answer; it is in neither text nor history. If "
                        "text is empty, max_tokens ended the answer while it thought."
                    ),
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, question, images=None, history="", system="", thinking=False, task=ASK_TASK):
        return [
            validate(questions_of, question, system, thinking, task),
            validate(parse_history, history, field="history"),
        ]

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
        pictures=TOGETHER,
        top_k=0,
        repetition_penalty=1.0,
    ) -> io.NodeOutput:
        check_chat_clip(clip)
        questions = questions_of(question, system, thinking, task)
        rounds = with_field_name("history", parse_history, history)
        batches = [images[name] for name in IMAGE_NAMES if images and images.get(name) is not None]
        single_images = [image for batch in batches for image in batch]
        video_frames = sample_frames(video, frames) if video is not None else []
        groups = groups_of(single_images, video_frames, pictures)
        if task == FIND_TASK:
            check_single(groups)
        sampling = Sampling(max_tokens, temperature, top_p, top_k, repetition_penalty, seed)
        texts: list[str] = []
        thoughts: list[str] = []
        histories: list[str] = []
        for of_group, frames_of_group in interruptible(groups):
            replies = []
            for prompt in interruptible(questions):
                before = "".join(f"{text}\n\n" for text in texts) + "".join(f"{text}\n" for _, text in replies)
                thought, said = answer(
                    clip,
                    prompt,
                    of_group,
                    frames_of_group,
                    rounds,
                    system=system if system.strip() else None,
                    thinking=thinking,
                    tiles=tiles,
                    sampling=sampling,
                    with_tags=task == FIND_TASK,
                    on_text=lambda text, before=before: show_progress(cls, before + text),
                )
                replies.append((thought, said if task == ASK_TASK else with_name(said, prompt)))
            texts.append("\n".join(text for _, text in replies))
            thoughts.append("\n\n".join(thought for thought, _ in replies if thought))
            asked = zip(questions, (text for _, text in replies), strict=True)
            histories.append(history_to_json([*rounds, *asked]))
        text, thought = "\n\n".join(texts), "\n\n".join(filter(None, thoughts))
        written = document(
            "chat" if task == ASK_TASK else task,
            model=clip.tokenizer.title,
            prompt=question,
            text=text,
            texts=texts if pictures == ONE_BY_ONE else None,
            thinking=thought or None,
            pictures=[{"width": image.shape[1], "height": image.shape[0]} for image in single_images],
            frames=len(video_frames),
        )
        return io.NodeOutput(texts, histories, thoughts, ui=show_text(text or thought, written))
