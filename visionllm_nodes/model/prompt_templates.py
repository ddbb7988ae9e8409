"""Prompt templates per task, with the forced answer (tool tokens) that perception tasks use.

Source: upstream's evaluation datasets and conversation.py. The words are part of the weights, their mistakes included
("Whis is"). Perception tasks are not generated: the answer with its tool tokens is part of the prompt, and the decoders
read the embeddings behind them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from ..detections.names import clean_expression, clean_name
from .special_tokens import (
    DETECT,
    EDIT,
    GENERATE,
    GROUND,
    IMAGE,
    POSE,
    SEGMENT,
    refuse_special_tokens,
    region,
    tool_text,
)

IMAGE_LINE = IMAGE + "\n"
FOREGROUND = "forground object"  # upstream's spelling
CAMOUFLAGE = "camouflage object"


class Turn(NamedTuple):
    """One round of a conversation; `assistant` is None where the model is to generate the answer."""

    user: str
    assistant: str | None = None


class PromptFormat(NamedTuple):
    """How rounds become one text."""

    system: str
    user_start: str
    assistant_start: str  # the model generates behind it
    before_answer: str
    user_end: str
    assistant_end: str

    def prompt(self, turns: Sequence[Turn]) -> str:
        """Return the text of a conversation."""
        text = self.system
        for user, assistant in turns:
            text += self.user_start + user + self.user_end + self.assistant_start
            text += "" if assistant is None else self.before_answer + assistant + self.assistant_end
        return text


VICUNA = PromptFormat(
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    "USER: ",
    "ASSISTANT:",
    " ",
    " ",
    "</s>",
)
INTERNLM2 = PromptFormat(
    "<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语).<|im_end|>",
    "<|im_start|>user\n",
    "<|im_start|>assistant\n",
    "",
    "<|im_end|>",
    "<|im_end|>",
)


def detection(names: Sequence[str]) -> Turn:
    """Ask for every instance of each name; one [DET] per name, in their order. Names are used as they are written."""
    return Turn(
        f"{IMAGE_LINE}Can you analyze the image and identify the {_comma_list(names)} present?", _results(names, DETECT)
    )


def salient(name: str = FOREGROUND) -> Turn:
    """Ask for the one object that stands out, or with CAMOUFLAGE the one that hides."""
    return Turn(
        f"{IMAGE_LINE}Can you identify and segment all occurrences of {_comma_list([name])} in the given picture?",
        _results([name], DETECT),
    )


def grounding(expression: str) -> Turn:
    """Ask for the one object that a phrase refers to; the phrase is cleaned as RefCOCO's were."""
    phrase = _checked(clean_expression(refuse_special_tokens(expression)))
    return Turn(f"{IMAGE_LINE}Where can we locate the {phrase} in the image?", f"Yes, it is {tool_text(GROUND)}.")


def reasoning(sentence: str) -> Turn:
    """Ask for the one object that a whole question or description, used as it is, refers to."""
    return Turn(IMAGE_LINE + _checked(sentence), f"Yes, it is {tool_text(GROUND)}.")


def semantic_segmentation(names: Sequence[str]) -> Turn:
    """Ask for a name for every pixel; one [SEG] per name."""
    listed = _comma_list(names).lower()
    return Turn(
        f"{IMAGE_LINE}Could you aid me in generating unique masks for every category present in {listed} "
        "in this image?",
        _results(names, SEGMENT),
    )


def pose(objects: Sequence[str], keypoints: Sequence[str]) -> Turn:
    """Ask for keypoints of every instance of the objects: one [DET] per object, then one [POSE] per keypoint.

    Names are cleaned as UniKPT's were.
    """
    objects, keypoints = _cleaned(objects, "names"), _cleaned(keypoints, "keypoints")
    asked = (
        f"Can you examine the image and pinpoint the keypoint locations of the {_comma_list(keypoints, 'keypoints')}?"
    )
    found = ", ".join(name + tool_text(POSE) for name in keypoints)
    user, assistant = detection(objects)
    return Turn(
        f"{user} {asked}",
        f"{assistant} Utilizing keypoints detection, the image analysis reveals the location of {found}.",
    )


def interactive(regions: int) -> Turn:
    """Ask for the objects that so many marked regions lie on; one [DET] per region."""
    if regions < 1:
        raise ValueError("there are no regions to ask about")
    names = [f"region{number}" for number in range(1, regions + 1)]
    marked = ", ".join(map(region, names))
    return Turn(
        f"{IMAGE_LINE}Can you examine the image and segment the corresponding objects denoted as {marked}?",
        f"Sure, these objects are {', '.join(name + tool_text(DETECT) for name in names)}.",
    )


def in_context(examples: int) -> Turn:
    """Ask for the object of the last image that a region marks in each of so many images before it; one [DET].

    Order and tokens are upstream's: images and unnumbered regions in turn. Its words are in training data that is not
    published; these are ours.
    """
    if examples < 1:
        raise ValueError("there are no examples to go by")
    marked = f"{IMAGE_LINE}The object in this image is {region('region')}.\n"
    return Turn(
        f"{marked * examples}{IMAGE_LINE}Can you examine the image and segment the corresponding object?",
        f"Sure, the object is {tool_text(DETECT)}.",
    )


def region_category(closed_list: str | None = None) -> Turn:
    """Ask what a marked region shows, in a word or phrase; one of COCO-80's or LVIS-1203's names."""
    if closed_list is None:
        return Turn(f"{IMAGE_LINE}What is the category of {region('region1')}? Using only one word or phrase.")
    return Turn(
        f"{IMAGE_LINE}Whis is the object category of {region('region1')}? "
        f"Answer with the category name from {closed_list}, and use single word or phrase."
    )


def region_caption() -> Turn:
    """Ask for a marked region in a sentence."""
    return Turn(f"{IMAGE_LINE}Can you provide me with a brief description of {region('region')} in the picture?")


def caption() -> Turn:
    """Ask for the image in a sentence."""
    return Turn(f"{IMAGE_LINE}Provide a one-sentence caption for the provided image.")


def short_answer(question: str) -> Turn:
    """Ask for an answer in a word or phrase."""
    return Turn(f"{IMAGE_LINE}{_checked(question)} Answer the question using a single word or phrase.")


def letter_answer(question: str) -> Turn:
    """Ask a question whose lines list the choices: A. ..., B. ..."""
    return Turn(f"{IMAGE_LINE}{_checked(question)}\nAnswer with the option's letter from the given choices directly.")


def chat(question: str, history: Sequence[tuple[str, str]] = (), with_image: bool = True) -> list[Turn]:
    """Chat: earlier (question, answer) rounds and a new question; the image stands in the first round."""
    turns = [Turn(refuse_special_tokens(user), refuse_special_tokens(assistant)) for user, assistant in history]
    turns.append(Turn(_checked(question)))
    return [turns[0]._replace(user=IMAGE_LINE + turns[0].user), *turns[1:]] if with_image else turns


def generation(prompt: str) -> Turn:
    """Ask for a new image of what the prompt says; no image goes in."""
    said = _checked(re.sub(r"\s+", " ", re.sub(r'[.!"()*#:;~]', " ", refuse_special_tokens(prompt).lower())).strip())
    return Turn(f"Generate image with caption: {said}.", f"Here it is {tool_text(GENERATE)}.")


def editing(prompt: str) -> Turn:
    """Ask for the image changed as the prompt says."""
    return Turn(f"{IMAGE_LINE}{_checked(prompt.strip().capitalize().strip('.'))}.", f"Here it is {tool_text(EDIT)}.")


def _results(names: Sequence[str], tool: str) -> str:
    return f"Yes, here are the results for {', '.join(name + tool_text(tool) for name in names)} in the image."


def _comma_list(names: Sequence[str], what: str = "names") -> str:
    if isinstance(names, str) or not names:
        raise ValueError(f"the list of {what} is empty" if not names else f"{what} must be a list, not a string")
    if not all(name.strip() for name in names):
        raise ValueError(f"one of the {what} is empty")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} appears {Counter(names)[twice[0]]} times among the {what}")
    return ", ".join(map(refuse_special_tokens, names))


def _cleaned(names: Sequence[str], what: str) -> list[str]:
    _comma_list(names, what)  # reports what is wrong with them as they were given
    return [clean_name(name) for name in names]


def _checked(text: str) -> str:
    if not text.strip():
        raise ValueError("the text is empty")
    return refuse_special_tokens(text)
