"""What the tiny VisionLLM is asked about a scene, in the words of every task, and what it should answer.

The words around names and sentences are those of `model.prompt_templates`, where the nodes take theirs from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mulan_nodes.visionllm_nodes.model import prompt_templates, special_tokens
from mulan_nodes.visionllm_nodes.model.prompt_templates import Turn

from ..tinyworld.world import HELD_OUT, PALETTE, SHAPES
from .descriptions import OTHER_LANGUAGES, SIDES, Description, names_for, referring
from .scenes import KEYPOINTS, SIZES, Scene

COUNTS = ("zero", "one", "two", "three", "four", "five")
MOST_NAMES = 5
_PLACES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}


@dataclass(frozen=True)
class Exercise:
    """A question with its answer.

    found: per name, sentence or region that a decoder is asked for, the items of the scene that it means; meant: the
    same as descriptions (None: a region). keypoints: the names of the asked ones, of `shape`. regions: the items that
    the question's regions lie on. history: the rounds before.
    """

    turn: Turn
    found: tuple[tuple[int, ...], ...] = ()
    meant: tuple[Description | None, ...] = ()
    shape: str = ""
    keypoints: tuple[str, ...] = ()
    regions: tuple[int, ...] = ()
    history: tuple[Turn, ...] = ()

    @property
    def described(self) -> list[Description]:
        """What is meant, without regions."""
        return [one for one in self.meant if one is not None]


def detection(scene: Scene, rng: np.random.Generator) -> Exercise:
    return _of_names(scene, names_for(scene, rng, int(rng.integers(1, MOST_NAMES + 1))), rng)


def _of_names(
    scene: Scene, described: list[Description], rng: np.random.Generator, ask: Callable = prompt_templates.detection
) -> Exercise:
    """English names, or those of one other language."""
    language = OTHER_LANGUAGES[rng.integers(len(OTHER_LANGUAGES))] if rng.random() < 0.15 else ""
    names = [one.sentence_in(language) if language else one.name for one in described]
    if len(set(names)) < len(names):  # two descriptions may read alike in a language
        names = [one.name for one in described]
    return Exercise(ask(names), tuple(one.found(scene) for one in described), tuple(described))


def grounding(scene: Scene, rng: np.random.Generator) -> Exercise:
    described = referring(scene, rng)
    return Exercise(prompt_templates.grounding(_sentence(described, rng)), (described.found(scene),), (described,))


def _sentence(described: Description, rng: np.random.Generator) -> str:
    if not described.side and rng.random() < 0.25:
        return described.sentence_in(OTHER_LANGUAGES[rng.integers(len(OTHER_LANGUAGES))])
    sentences = described.sentences()
    sentence = sentences[rng.integers(len(sentences))]
    return sentence.removeprefix("the ") if rng.random() < 0.5 else sentence


def pose(scene: Scene, rng: np.random.Generator) -> Exercise:
    """Some or all of one shape's keypoints, in any order; the object by its shape, now and then with its colour."""
    thing = scene.items[rng.integers(len(scene.items))].thing
    names = KEYPOINTS[thing.shape]
    if rng.random() < 0.5:
        names = tuple(rng.permutation(names)[: rng.integers(1, len(names) + 1)].tolist())
    return keypoints_of(scene, Description(thing.colour if rng.random() < 0.25 else "", thing.shape), names)


def keypoints_of(scene: Scene, described: Description, names: tuple[str, ...]) -> Exercise:
    return Exercise(
        prompt_templates.pose([described.name], names), (described.found(scene),), (described,), described.shape, names
    )


def interactive(scene: Scene, rng: np.random.Generator) -> Exercise:
    regions = rng.permutation(len(scene.items))[: rng.integers(1, 4)].tolist()
    return Exercise(
        prompt_templates.interactive(len(regions)),
        tuple((item,) for item in regions),
        (None,) * len(regions),
        regions=tuple(regions),
    )


def segmentation(scene: Scene, rng: np.random.Generator) -> Exercise:
    """Only its words are special: the decoder is asked as for names."""
    return _of_names(
        scene, names_for(scene, rng, int(rng.integers(2, MOST_NAMES + 1))), rng, prompt_templates.semantic_segmentation
    )


def region_category(scene: Scene, rng: np.random.Generator) -> Exercise:
    item = int(rng.integers(len(scene.items)))
    user, _ = prompt_templates.region_category()
    return Exercise(Turn(user, scene.items[item].thing.shape), regions=(item,))


def region_caption(scene: Scene, rng: np.random.Generator) -> Exercise:
    item = int(rng.integers(len(scene.items)))
    thing = scene.items[item].thing
    user, _ = prompt_templates.region_caption()
    return Exercise(Turn(user, f"a {thing.size} {thing.colour} {thing.shape}"), regions=(item,))


def caption(scene: Scene, rng: np.random.Generator) -> Exercise:
    """All shapes, from the left to the right."""
    items = sorted(scene.items, key=lambda item: item.x)
    user, _ = prompt_templates.caption()
    return Exercise(Turn(user, _enumerated([f"a {item.thing.colour} {item.thing.shape}" for item in items])))


def _enumerated(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def visual_question(scene: Scene, rng: np.random.Generator) -> Exercise:
    """A question with an answer of one word."""
    while True:
        asked = QUESTIONS[_QUESTION_ORDER[rng.integers(len(_QUESTION_ORDER))]](scene, rng)
        if asked:
            return answered(*asked)


def answered(question: str, answer: str) -> Exercise:
    user, _ = prompt_templates.short_answer(question)
    return Exercise(Turn(user, answer))


def _ask_colour(scene: Scene, rng: np.random.Generator):
    described = referring(scene, rng)
    described = Description("", described.shape, described.size, described.side)
    if len(described.found(scene)) != 1 or not (described.shape or described.size or described.side):
        return None
    sentences = described.sentences()
    return f"What colour is {sentences[rng.integers(len(sentences))]}?", scene.items[
        described.found(scene)[0]
    ].thing.colour


def _ask_shape(scene: Scene, rng: np.random.Generator):
    colour = scene.items[rng.integers(len(scene.items))].thing.colour
    size = SIZES[rng.integers(2)] if rng.random() < 0.3 else ""
    described = Description(colour, "", size)
    found = described.found(scene)
    return (
        (f"What shape is the {size} {colour} one?".replace("  ", " "), scene.items[found[0]].thing.shape)
        if len(found) == 1
        else None
    )


def _ask_place(scene: Scene, rng: np.random.Generator):
    side = SIDES[rng.integers(4)]
    found = Description(side=side).found(scene)
    return (f"What shape is {_PLACES[side]}?", scene.items[found[0]].thing.shape) if found else None


def _ask_count(scene: Scene, rng: np.random.Generator):
    kind = rng.random()
    if kind < 0.1:
        return "How many shapes are there?", COUNTS[len(scene.items)]
    common = Counter(item.thing.shape for item in scene.items).most_common(1)[0][
        0
    ]  # often the shape that there are several of
    shape = common if rng.random() < 0.5 else SHAPES[rng.integers(len(SHAPES))]
    if kind < 0.8:
        return f"How many {shape}s are there?", COUNTS[len(Description(shape=shape).found(scene))]
    colour = scene.items[rng.integers(len(scene.items))].thing.colour
    return f"How many {colour} shapes are there?", COUNTS[len(Description(colour).found(scene))]


def _ask_whether(scene: Scene, rng: np.random.Generator):
    """Half of the answers are yes; where it is no, either half of the pair is there, if the pair may be said."""
    yes = rng.random() < 0.5
    thing = scene.items[rng.integers(len(scene.items))].thing
    described = Description(thing.colour, thing.shape)
    if not yes:
        if rng.random() < 0.5:
            described = Description(list(PALETTE)[rng.integers(len(PALETTE))], thing.shape)
        else:
            described = Description(thing.colour, SHAPES[rng.integers(len(SHAPES))])
        if described.found(scene) or (described.colour, described.shape) in HELD_OUT:
            return None
    return f"Is there a {described.name}?", "yes" if yes else "no"


QUESTIONS = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "place": _ask_place,
    "count": _ask_count,
    "whether": _ask_whether,
}
_QUESTION_ORDER = ("colour", "shape", "place", "count", "count", "whether", "whether")

# What people say without a form, per tool: the answer is the model's own, so it is the model that decides which decoder
# runs.
_FREE_NAMES = (
    "Find the {names}.",
    "Show me every {names}.",
    "Please detect the {names} in this picture.",
    "Where are the {names}?",
)
_FREE_SENTENCES = ("Find {one}.", "Point at {one}, please.", "Which one is {one}?", "Show me {one}.")
_FREE_MASKS = ("Segment the {names}.", "Cut out the {names}, please.", "Draw masks of the {names}.")
_FREE_POSES = ("Where are the {points} of the {names}?", "Mark the {points} of every {names}.")
_POINTS = {"circle": "edge points", "square": "corners", "triangle": "corners", "star": "tips"}


def instruction(scene: Scene, rng: np.random.Generator) -> Exercise:
    """A free sentence that one of the tools answers."""
    kind = rng.integers(4)
    if kind == 0:
        described = referring(scene, rng)
        sentences = described.sentences()
        said = _choose(_FREE_SENTENCES, rng).format(one=sentences[rng.integers(len(sentences))])
        return Exercise(
            Turn(prompt_templates.IMAGE_LINE + said, f"Yes, it is {special_tokens.tool_text(special_tokens.GROUND)}."),
            (described.found(scene),),
            (described,),
        )
    if kind == 1:
        return _free(
            pose(scene, rng),
            lambda asked: _choose(_FREE_POSES, rng).format(points=_POINTS[asked.shape], names=asked.described[0].name),
        )
    described = names_for(scene, rng, int(rng.integers(1, 4)))
    exercise = Exercise(
        prompt_templates.detection([one.name for one in described]),
        tuple(one.found(scene) for one in described),
        tuple(described),
    )
    if kind == 2:
        exercise = Exercise(
            prompt_templates.semantic_segmentation([one.name for one in described]), exercise.found, exercise.meant
        )
    forms = _FREE_NAMES if kind == 3 else _FREE_MASKS
    return _free(
        exercise, lambda asked: _choose(forms, rng).format(names=_enumerated([one.name for one in asked.described]))
    )


def _free(exercise: Exercise, said: Callable[[Exercise], str]) -> Exercise:
    if exercise.shape:  # all of the shape's keypoints, in their order: nothing in the sentence says otherwise
        (described,) = exercise.described
        answer = prompt_templates.pose([described.name], KEYPOINTS[described.shape]).assistant
        return Exercise(
            Turn(prompt_templates.IMAGE_LINE + said(exercise), answer),
            exercise.found,
            exercise.meant,
            described.shape,
            KEYPOINTS[described.shape],
        )
    return Exercise(
        Turn(prompt_templates.IMAGE_LINE + said(exercise), exercise.turn.assistant), exercise.found, exercise.meant
    )


def _choose(forms: tuple[str, ...], rng: np.random.Generator) -> str:
    return forms[rng.integers(len(forms))]


TASKS: dict[str, Callable[[Scene, np.random.Generator], Exercise]] = {
    "detection": detection,
    "grounding": grounding,
    "pose": pose,
    "interactive": interactive,
    "segmentation": segmentation,
    "region_category": region_category,
    "region_caption": region_caption,
    "caption": caption,
    "vqa": visual_question,
    "instruction": instruction,
}
