"""Boxes and points in lists and objects, by their keys: as Qwen, Gemini, Florence-2 and many others write them."""

from __future__ import annotations

from dataclasses import replace

from ...mulan.boundary.interrupts import interruptible
from .answer_places import CUT_OFF, THOUSAND, Answer, Form
from .answer_syntax import NUMBERS, Group, Value

BOX_KEYS = {"bbox_2d", "box_2d", "bbox", "box", "boxes", "bboxes", "bounding_box", "bounding_boxes", "boundingbox"}
BOX_KEYS |= {"rect", "start_box", "end_box"}
PLACE_KEYS = BOX_KEYS | {"point_2d", "points_2d", "point", "points", "start_point", "end_point", "click"}
PLACE_KEYS |= {"coordinates", "coordinate", "coords", "location", "position"}
OTHER_KEYS = {"size", "image_size", "resolution", "shape", "color", "colour", "id", "bbox_3d", "area"}
LABEL_KEYS = ("label", "name", "text", "text_content", "object", "category", "class", "caption", "phrase")
LABEL_KEYS += ("description", "desc", "title", "element")
LABELS_KEYS = ("labels", "names", "classes")
SCORE_KEYS = ("score", "confidence", "probability")
CORNERS = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
)
SIDES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
# Words before a list that name nothing in the image
NO_NAMES = PLACE_KEYS - {"click"} | {
    "bounding box",
    "bounding boxes",
    "answer",
    "final answer",
    "output",
    "result",
    "results",
}
NO_NAMES |= {"object", "objects", "detections", "items", "annotations", "regions", "predictions", "json", "data"}


def read_places(group: Group, form: Form, answer: Answer, at_end: bool) -> None:
    """Add all boxes and points of a group to `answer`; at_end: the text ends with the group."""
    numbers, children = group.numbers, [value for value in group.values if isinstance(value, Group)]
    words = [value for value in group.values if isinstance(value, str)]
    if numbers is not None:
        if not (form.expected or len(numbers) > 1):
            pass  # [1]: a footnote
        elif at_end and not group.closed:
            answer.problem(CUT_OFF, group.span)
        else:
            answer.add(numbers, group.span, form)
    elif len(group.items) != len(group.values):
        _read_object(group, form, answer, at_end)
    elif form.box and not words and [len(child.numbers or ()) for child in children] == [2, 2]:
        answer.add([number for child in children for number in child.numbers or ()], group.span, form)
    else:
        inner = replace(form, label=words[0]) if len(words) == 1 else form
        beside = [value for value in group.values if isinstance(value, float)]
        if words and not children and len(beside) in (2, 4):  # ["cat", 10, 20, 30, 40]
            answer.add(beside, group.span, inner)
        for child in interruptible(children):
            read_places(child, inner, answer, at_end and child is children[-1])


def is_list_of_numbers(group: Group) -> bool:
    """Return whether a group is a list of numbers, or of such lists."""
    return bool(group.numbers) or all(isinstance(one, Group) and bool(one.numbers) for _, one in group.items)


def _read_object(group: Group, form: Form, answer: Answer, at_end: bool) -> None:
    given = {_normalized(key): value for key, value in group.items}
    label = next((given[key] for key in LABEL_KEYS if isinstance(given.get(key), (str, float))), form.label)
    score = next((one for key in SCORE_KEYS if isinstance(one := given.get(key), float) and 0 <= one <= 1), form.score)
    form = replace(form, label=f"{label:g}" if isinstance(label, float) else str(label), score=score, expected=False)
    _read_named(group, given, form, answer)
    labels = next((given[key] for key in LABELS_KEYS if isinstance(given.get(key), Group)), None)
    has_place = bool(PLACE_KEYS & given.keys())
    for key, value in interruptible(group.items):
        name, last = _normalized(key), at_end and value is group.items[-1][1]
        if name in PLACE_KEYS:
            _read_value(value, _form_of(name, value, form), labels, group, answer, last)
        elif isinstance(value, Group) and value is not labels and name not in OTHER_KEYS:
            numbers = is_list_of_numbers(value)
            if not (numbers and has_place):  # {"cat": [10, 20, 30, 40]}
                named = numbers and name not in NO_NAMES and key
                read_places(value, replace(form, label=key or "") if named else form, answer, last)


def _read_value(value: Value, form: Form, labels: Value | None, group: Group, answer: Answer, at_end: bool) -> None:
    """Read what stands under a key of places; `labels`: a name for each of several."""
    if isinstance(value, str):
        if numbers := [float(one) for one in NUMBERS.findall(value)]:  # "10, 20, 30, 40"
            answer.add(numbers, group.span, form)
    elif isinstance(value, Group):
        children = [one for one in value.values if isinstance(one, Group)]
        names = labels.values if isinstance(labels, Group) else []
        if children and len(children) == len(names):
            for child, name in zip(interruptible(children), names, strict=True):
                read_places(child, replace(form, label=str(name)), answer, at_end and child is children[-1])
        else:
            read_places(value, form, answer, at_end)


def _form_of(key: str, value: Value, form: Form) -> Form:
    """Gemini writes box_2d and point, y first and in thousandths."""
    gemini = key == "box_2d" or (key == "point" and isinstance(value, Group) and value.numbers is not None)
    whole = THOUSAND if gemini else form.whole
    return replace(form, expected=True, box=key in BOX_KEYS, y_first=gemini, whole=whole)


def _read_named(group: Group, given: dict[str, Value], form: Form, answer: Answer) -> None:
    """Read coordinates that have a key each."""

    def numbers(*names: str) -> list[float]:
        return [one for name in names if isinstance(one := given.get(name), float)]

    for names in CORNERS:
        if len(corners := numbers(*names)) == 4:
            return answer.add(corners, group.span, form, named=True)
    for names in SIDES:
        if len(sides := numbers(*names)) == 4:
            x, y, width, height = sides
            return answer.add((x, y, x + width, y + height), group.span, form, named=True)
    if len(point := numbers("x", "y")) == 2:
        return answer.add(point, group.span, form, named=True)
    return None


def _normalized(key: str | None) -> str:
    return (key or "").strip().lower().replace("-", "_")
