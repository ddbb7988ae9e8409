"""What a dialogue model is told: the turns of a talk, and where the pictures stand in it.

Source: OpenGVLab/InternVL, the template ``internvl2_5`` and ``InternVLChatModel.chat``; the model cards of InternVL 2.5, 3 and 3.5 for several
pictures, videos and thinking.
"""

from __future__ import annotations

from collections.abc import Sequence

from .chat_history import ROLES, Round

START, END = "<|im_start|>", "<|im_end|>"
IMAGE = "<image>"  # a picture's place in a question
SEEN_START, SEEN, SEEN_END = (
    "<img>",
    "<IMG_CONTEXT>",
    "</img>",
)  # the same as the model knows it; the middle one is replaced by what is seen
SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
THINKING = """You are an AI assistant that rigorously follows this response protocol:

1. First, conduct a detailed analysis of the question. Consider different angles, potential solutions, and reason through the problem step-by-step. \
Enclose this entire thinking process within <think> and </think> tags.

2. After the thinking section, provide a clear, concise, and direct answer to the user's question. Separate the answer from the think section with a \
newline.

Ensure that the thinking process is thorough but remains focused on the query. The final answer should be standalone and not reference the thinking \
section."""  # InternVL 3.5


def dialogue(question: str, history: Sequence[Round] = (), system: str = SYSTEM) -> str:
    """The turns up to where the answer begins. An empty `system` is left out."""
    turns = [("system", system)] if system else []
    turns += [turn for said in history for turn in zip(ROLES, said)]
    return (
        "".join(f"{START}{role}\n{text}{END}\n" for role, text in [*turns, (ROLES[0], question)])
        + f"{START}{ROLES[1]}\n"
    )


def with_places(questions: Sequence[str], pictures: int, frames: int = 0) -> list[str]:
    """The questions of a talk, with a place for each picture and then each frame of a video; they stand before the first question.

    Where questions have places (`<image>`) themselves, these are taken. ValueError where there are not as many as pictures and frames.
    """
    own = sum(question.count(IMAGE) for question in questions)
    if own and own != pictures + frames:
        raise ValueError(
            f"there are {own} {IMAGE} in the text, and {pictures + frames} pictures: write one for each, or none"
        )
    if not own:
        names = [f"Image-{number}: " for number in range(1, pictures + 1)] if pictures > 1 else [""] * pictures
        names += [f"Frame{number}: " for number in range(1, frames + 1)]
        questions = ["".join(f"{name}{IMAGE}\n" for name in names) + questions[0], *questions[1:]]
    return [question.replace(IMAGE, SEEN_START + SEEN + SEEN_END) for question in questions]
