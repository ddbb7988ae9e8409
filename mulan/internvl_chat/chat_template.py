"""The prompt of a chat model: the turns of a dialogue, and where the images stand in it.

Source: OpenGVLab/InternVL, the template ``internvl2_5``, ``InternVLChatModel.chat`` and its evaluation on RefCOCO; the
model cards of InternVL 2.5, 3 and 3.5 for several pictures, videos and thinking.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoints.language_tokenizers import END, IMAGE_CONTEXT, IMAGE_END, IMAGE_START, START
from .chat_history import ROLES, Exchange

IMAGE = "<image>"  # an image's place in a question
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
THINK, THINK_END = "<think>", "</think>"
REF = "<ref>"  # begins the name of a region, which its box follows
FIND = f"Please provide the bounding box coordinate of the region this sentence describes: {REF}{{}}</ref>"
THINKING = """You are an AI assistant that rigorously follows this response protocol:

1. First, conduct a detailed analysis of the question. Consider different angles, potential solutions, and reason \
through the problem step-by-step. Enclose this entire thinking process within <think> and </think> tags.

2. After the thinking section, provide a clear, concise, and direct answer to the user's question. Separate the \
answer from the think section with a newline.

Ensure that the thinking process is thorough but remains focused on the query. The final answer should be standalone \
and not reference the thinking section."""  # InternVL 3.5


def format_dialogue(question: str, history: Sequence[Exchange] = (), system: str = SYSTEM) -> str:
    """Return the turns up to where the answer begins. An empty `system` is left out."""
    turns = [("system", system)] if system else []
    turns += [turn for exchange in history for turn in zip(ROLES, exchange, strict=True)]
    return (
        "".join(f"{START}{role}\n{text}{END}\n" for role, text in [*turns, (ROLES[0], question)])
        + f"{START}{ROLES[1]}\n"
    )


def insert_images(questions: Sequence[str], image_count: int, frame_count: int = 0) -> list[str]:
    """Return the questions of a dialogue with a place for each image, then for each frame of a video, before the first
    question.

    Questions may have places (`<image>`) themselves. Raises ValueError where these are not as many as images and
    frames.
    """
    own = sum(question.count(IMAGE) for question in questions)
    if own and own != image_count + frame_count:
        raise ValueError(
            f"the text has {own} {IMAGE}, but there are {image_count + frame_count} images: write one for each, or none"
        )
    if not own:
        names = [f"Image-{number}: " for number in range(1, image_count + 1)] if image_count > 1 else [""] * image_count
        names += [f"Frame{number}: " for number in range(1, frame_count + 1)]
        questions = ["".join(f"{name}{IMAGE}\n" for name in names) + questions[0], *questions[1:]]
    return [question.replace(IMAGE, IMAGE_START + IMAGE_CONTEXT + IMAGE_END) for question in questions]


def split_thinking(answer: str) -> tuple[str, str]:
    """Return what a model thought and its answer, without the tags; the answer is empty where thinking has no end.

    An answer that does not begin with a thought is returned as it is.
    """
    if not answer.lstrip().startswith(THINK):
        return "", answer
    thought, _, said = answer.lstrip().removeprefix(THINK).partition(THINK_END)
    return thought.strip(), said.strip()
