"""What VisionLLM v2 is asked, and the answer that is put into its mouth: one question per task, in the words it was trained on.

Source: upstream's evaluation datasets and conversation.py. The words are part of the weights, their mistakes included ("Whis is").
Perception tasks are not generated: the answer with its tool tokens is part of the prompt, and the decoders read the embeddings behind them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from .special_tokens import DETECT, EDIT, GENERATE, GROUND, IMAGE, POSE, SEGMENT, plain, region, slot

COCO_17 = (
    "nose",
    "left eye",
    "right eye",
    "left ear",
    "right ear",
    "left shoulder",
    "right shoulder",
    "left elbow",
    "right elbow",
    "left wrist",
    "right wrist",
    "left hip",
    "right hip",
    "left knee",
    "right knee",
    "left ankle",
    "right ankle",
)
CROWDPOSE_14 = (*COCO_17[5:], "head", "neck")
PICTURE = IMAGE + "\n"
FOREGROUND = "forground object"  # upstream's spelling
CAMOUFLAGE = "camouflage object"


class Turn(NamedTuple):
    """One round: what the human says, and the answer; None where the model is to write it."""

    human: str
    gpt: str | None = None


class Format(NamedTuple):
    """How rounds become one text."""

    opening: str
    human: str
    gpt: str  # ends where the model begins to write
    before_answer: str
    human_end: str
    gpt_end: str

    def prompt(self, turns: Sequence[Turn]) -> str:
        text = self.opening
        for human, gpt in turns:
            text += self.human + human + self.human_end + self.gpt
            text += "" if gpt is None else self.before_answer + gpt + self.gpt_end
        return text


VICUNA = Format(
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    "USER: ",
    "ASSISTANT:",
    " ",
    " ",
    "</s>",
)
INTERNLM2 = Format(
    "<|im_start|>system\nYou are an AI assistant whose name is InternLM (书生·浦语).<|im_end|>",
    "<|im_start|>user\n",
    "<|im_start|>assistant\n",
    "",
    "<|im_end|>",
    "<|im_end|>",
)


def detection(names: Sequence[str]) -> Turn:
    """Every instance of each name; one [DET] per name, in their order. Names are used as they are written."""
    return Turn(
        f"{PICTURE}Can you analyze the image and identify the {_listed(names)} present?", _results(names, DETECT)
    )


def salient(name: str = FOREGROUND) -> Turn:
    """The one object that stands out, or with CAMOUFLAGE the one that hides."""
    return Turn(
        f"{PICTURE}Can you identify and segment all occurrences of {_listed([name])} in the given picture?",
        _results([name], DETECT),
    )


def grounding(expression: str) -> Turn:
    """The one thing that a phrase refers to; the phrase is cleaned as RefCOCO's were."""
    return Turn(
        f"{PICTURE}Where can we locate the {_said(clean_expression(plain(expression)))} in the image?",
        f"Yes, it is {slot(GROUND)}.",
    )


def reasoning(sentence: str) -> Turn:
    """The one thing that a whole question or description, used as it is, asks for."""
    return Turn(PICTURE + _said(sentence), f"Yes, it is {slot(GROUND)}.")


def semantic_segmentation(names: Sequence[str]) -> Turn:
    """A name for every pixel; one [SEG] per name."""
    listed = _listed(names).lower()
    return Turn(
        f"{PICTURE}Could you aid me in generating unique masks for every category present in {listed} in this image?",
        _results(names, SEGMENT),
    )


def pose(objects: Sequence[str], keypoints: Sequence[str]) -> Turn:
    """Keypoints of every instance of the objects: one [DET] per object, then one [POSE] per keypoint; names are cleaned as UniKPT's were."""
    objects, keypoints = _cleaned(objects, "names"), _cleaned(keypoints, "keypoints")
    asked = f"Can you examine the image and pinpoint the keypoint locations of the {_listed(keypoints, 'keypoints')}?"
    found = ", ".join(name + slot(POSE) for name in keypoints)
    human, gpt = detection(objects)
    return Turn(
        f"{human} {asked}", f"{gpt} Utilizing keypoints detection, the image analysis reveals the location of {found}."
    )


def interactive(regions: int) -> Turn:
    """The objects that so many marked regions lie on; one [DET] per region."""
    if regions < 1:
        raise ValueError("there is no region to ask about")
    names = [f"region{number}" for number in range(1, regions + 1)]
    marked = ", ".join(map(region, names))
    return Turn(
        f"{PICTURE}Can you examine the image and segment the corresponding objects denoted as {marked}?",
        f"Sure, these objects are {', '.join(name + slot(DETECT) for name in names)}.",
    )


def region_category(coco: bool = False) -> Turn:
    """What a marked region shows, in a word or phrase; with `coco` one of COCO's 80 names."""
    if coco:
        return Turn(
            f"{PICTURE}Whis is the object category of {region('region1')}? "
            "Answer with the category name from COCO-80, and use single word or phrase."
        )
    return Turn(f"{PICTURE}What is the category of {region('region1')}? Using only one word or phrase.")


def region_caption() -> Turn:
    """A marked region in a sentence."""
    return Turn(f"{PICTURE}Can you provide me with a brief description of {region('region')} in the picture?")


def caption() -> Turn:
    return Turn(f"{PICTURE}Provide a one-sentence caption for the provided image.")


def short_answer(question: str) -> Turn:
    return Turn(f"{PICTURE}{_said(question)} Answer the question using a single word or phrase.")


def letter_answer(question: str) -> Turn:
    """For a question whose lines list the choices: A. ..., B. ..."""
    return Turn(f"{PICTURE}{_said(question)}\nAnswer with the option's letter from the given choices directly.")


def chat(question: str, history: Sequence[tuple[str, str]] = (), picture: bool = True) -> list[Turn]:
    """Free talk: earlier (question, answer) rounds and a new question; the picture stands in the first round."""
    turns = [Turn(plain(human), plain(gpt)) for human, gpt in history] + [Turn(_said(question))]
    return [turns[0]._replace(human=PICTURE + turns[0].human), *turns[1:]] if picture else turns


def generation(prompt: str) -> Turn:
    """A new picture of what the prompt says; no picture goes in."""
    said = _said(re.sub(r"\s+", " ", re.sub(r'[.!"()*#:;~]', " ", plain(prompt).lower())).strip())
    return Turn(f"Generate image with caption: {said}.", f"Here it is {slot(GENERATE)}.")


def editing(prompt: str) -> Turn:
    """The picture changed as the prompt says."""
    return Turn(f"{PICTURE}{_said(prompt.strip().capitalize().strip('.'))}.", f"Here it is {slot(EDIT)}.")


def clean_expression(text: str) -> str:
    """As RefCOCO's expressions were cleaned: lower case, no punctuation, '-' and '/' are spaces."""
    return re.sub(r"[-/]", " ", re.sub(r"[.,'!?\"()*#:;]", "", text.lower()))


def clean_name(text: str) -> str:
    """As UniKPT's names of objects and keypoints were cleaned: like an expression, and '_' is a space."""
    return clean_expression(text).replace("_", " ")


def distinct(names: Sequence[str]) -> list[str]:
    """The names without outer space, without empty ones and without repetitions, in their order."""
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))


def _results(names: Sequence[str], tool: str) -> str:
    return f"Yes, here are the results for {', '.join(name + slot(tool) for name in names)} in the image."


def _listed(names: Sequence[str], what: str = "names") -> str:
    if isinstance(names, str) or not names:
        raise ValueError(f"the list of {what} is empty" if not names else f"{what} must be a list, not one text")
    if not all(name.strip() for name in names):
        raise ValueError(f"one of the {what} is empty")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"among the {what}, {twice[0]!r} stands {Counter(names)[twice[0]]} times")
    return ", ".join(map(plain, names))


def _cleaned(names: Sequence[str], what: str) -> list[str]:
    _listed(names, what)  # says what is wrong with them as they were given
    return [clean_name(name) for name in names]


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("the text to ask about is empty")
    return plain(text)
