"""What InternVL Chat asks: which prompts, and about which images together."""

from __future__ import annotations

from ..mulan.boundary.limits import MAX_NAME_LENGTH, MAX_NAMES
from ..mulan.internvl_chat.chat_prompts import ChatPrompts
from ..mulan.internvl_chat.chat_template import FIND, REF
from ..visionllm_nodes.detections.names import split_names

ASK_TASK, FIND_TASK = TASKS = ("ask", "find")
TOGETHER, ONE_BY_ONE = PICTURES = ("all together", "one by one")


def check_chat_clip(clip) -> None:
    """Raise ValueError for a CLIP that is not InternVL Chat's."""
    if not isinstance(getattr(clip, "tokenizer", None), ChatPrompts):
        raise ValueError("clip: this CLIP cannot generate text. Connect the CLIP output of InternVL Chat Loader.")


def groups_of(images: list, frames: list, pictures: str) -> list[tuple[list, list]]:
    """Return the images and the frames of a video that each answer is about."""
    if pictures == TOGETHER or not (images or frames):
        return [(images, frames)]
    return [*(([image], []) for image in images), *([([], frames)] if frames else [])]


def check_single(groups: list[tuple[list, list]]) -> None:
    """Raise ValueError where several images, or none, would be looked through at a time."""
    for images, frames in groups:
        if len(frames) > 1:
            raise ValueError(f"frames: find looks in one frame of a video, got {len(frames)}. Set frames to 1")
        if (count := len(images) + len(frames)) != 1:
            raise ValueError(
                f"images: find looks in one image at a time, got {count}. Connect one, or set pictures to {ONE_BY_ONE}"
            )


def with_name(answer: str, prompt: str) -> str:
    """Return an answer with the name that it is about, where the model left it out."""
    return answer if REF in answer else prompt[prompt.index(REF) :] + answer


def questions_of(question: str, system: str, thinking: bool, task: str) -> list[str]:
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
