"""Boxes and points in what vision-language models write, wherever they stand in it.

InternVL and Qwen-VL: <ref>name</ref><box>[[x1, y1, x2, y2]]</box>, also where the tags are gone. Qwen2.5-VL, Qwen3-VL,
Gemini: JSON with bbox_2d, box_2d, point_2d, point. Molmo: <point x="10" y="20">, <points x1= y1=>, <points coords=>.
PaliGemma, Florence-2: <loc0123>, <loc_123>. Models that operate a screen: pyautogui.click(x=0.2, y=0.4). Bare lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ...mulan.boundary.interrupts import interruptible
from ...mulan.boundary.limits import MAX_ANSWER_PLACES
from .answer_groups import NO_NAMES, is_list_of_numbers, read_places
from .answer_places import CUT_OFF, PERCENT, SHOWN, THOUSAND, Answer, Form
from .answer_syntax import NUMBER, NUMBERS, plain_marks, read_group

_START = re.compile(
    r"<(?:ref|\|ref\||\|object_ref_start\|)>(?P<ref>[^<]{0,1000})(?:</ref>|<\|/ref\|>|<\|object_ref_end\|>)?"
    r"|(?P<box><(?:box|\|box_start\||\|det\|)>)\s*"
    r"|<points?\b(?P<point>[^<>]*)>?"
    r"|(?P<loc>(?:<loc_?\d{1,4}>\s*)+)"
    r"|(?P<group>[\[({])"
)
_BARE = re.compile(rf"\s*(?P<numbers>{NUMBER}(?:[\s,]+{NUMBER}){{1,3}})\s*(?=<)")
_ATTRIBUTE = re.compile(rf"\b([xy])(\d{{0,5}})\s?=\s?[\"']?\s?({NUMBER})")
_ALT = re.compile(r"\balt\s?=\s?\"([^\"]*)\"")
_COORDS = re.compile(r"\bcoords\s?=\s?[\"']([^\"']*)")
_BEHIND_LOC = re.compile(r"(?:<seg\d{1,4}>\s*)*[^;<\n]{0,200}")
_NEXT_PAIR = re.compile(r"\s*,?\s*(?=\()")
_TOUCHING_PAIR = re.compile(r",?(?=\()")
_NEXT_GROUP = re.compile(r"\s*,?\s*(?=[\[(])")
_THINKING = re.compile(r"</think(?:ing)?>")
_FILLER = re.compile(r"(?:(?:and|the|an?)\s+)+", re.IGNORECASE)
_BREAKS = re.compile(r"[.;!?,；，。、](?:\s|$)|[；，。、]|<[^<>]{0,40}>|[\])}]")


def read_answer(text: str) -> Answer:
    """Return all boxes and points of a text, in its order. What cannot be read is told there, never raised."""
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str):
        self.answer = Answer(text)
        self.text = text
        self.plain = plain_marks(text)
        self.read_to = 0
        self.ref = ""
        self.pair_end = -1

    def read(self) -> Answer:
        if thinking := list(_THINKING.finditer(self.plain)):
            self.read_to = thinking[-1].end()
            self.answer.problems.append("not read: what the model thought, before </think>")
        readers = {
            "ref": self._read_ref,
            "box": self._read_box,
            "point": self._read_point,
            "loc": self._read_loc,
            "group": self._read_group,
        }
        for match in interruptible(self._starts()):
            self.read_to = readers[str(match.lastgroup)](match)
            if self.answer.full:
                self.answer.problems.append(f"only the first {MAX_ANSWER_PLACES} boxes and points are read")
                break
        if self.answer.repeated:
            self.answer.problems.append(f"left out: {self.answer.repeated} repetitions")
        return self.answer

    def _starts(self) -> Iterator[re.Match]:
        while match := _START.search(self.plain, self.read_to):
            yield match

    # Each reads what begins with a match and returns where it ends.

    def _read_ref(self, match: re.Match) -> int:
        self.ref = self.text[slice(*match.span("ref"))].strip()
        return match.end()

    def _read_box(self, match: re.Match) -> int:
        form, end = Form(self.ref, whole=THOUSAND, expected=True, box=True), match.end()
        if bare := _BARE.match(self.plain, end):
            self.answer.add(_numbers(bare["numbers"]), bare.span("numbers"), form)
            return bare.end()
        if self.plain[end : end + 1] not in ("[", "("):
            self.answer.problem(CUT_OFF if end == len(self.plain) else "no numbers", (match.start(), end + SHOWN))
        while _NEXT_GROUP.match(self.plain, end) and not self.answer.full:
            end = self._read_list(_end(_NEXT_GROUP, self.plain, end), form, _NEXT_PAIR)
        return end

    def _read_point(self, match: re.Match) -> int:
        attributes, closed, end = match["point"], match[0].endswith(">"), match.end()
        alt, inner = _ALT.search(attributes), self.text[end : end + SHOWN + 1].split("<")[0].strip()
        label = alt[1] if alt else inner if closed and len(inner) <= SHOWN else ""
        if coords := _COORDS.search(attributes):
            self._read_tracks(coords[1], label, match.span())
            return end
        sides: dict[str, dict[str, float]] = {}
        for side, index, number in _ATTRIBUTE.findall(attributes):
            sides.setdefault(index, {})[side] = float(number)
        for pair in interruptible(sides.values()):
            if len(pair) == 2:
                self.answer.add((pair["x"], pair["y"]), match.span(), Form(label, whole=PERCENT), named=True)
            else:
                self.answer.problem("a point without x or y", match.span())
        bare = _BARE.match(self.plain, end)
        if bare and not sides:
            self.answer.add(_numbers(bare["numbers"]), bare.span("numbers"), Form())
            return bare.end()
        if not sides and self.plain[end : end + 1] not in ("[", "("):
            self.answer.problem("a point without numbers", match.span())
        return end

    def _read_tracks(self, coords: str, label: str, span: tuple[int, int]) -> None:
        """Read Molmo 2's points: the index of an image or a time, then id, x and y of each, in thousandths."""
        for part in interruptible(re.split(r"[\t:;,]", coords)):
            numbers = _numbers(part)[1:]
            if not numbers or len(numbers) % 3:
                self.answer.problem(f"{len(numbers)} numbers where each point has an id, x and y", span)
                continue
            for first in range(0, len(numbers), 3):
                self.answer.add(numbers[first + 1 : first + 3], span, Form(label, whole=THOUSAND), named=True)

    def _read_loc(self, match: re.Match) -> int:
        florence = match[0].startswith("<loc_")
        if florence:  # x first, in a thousand bins, behind the name
            numbers, end = [number + 0.5 for number in _numbers(match[0])], match.end()
            form = Form(self._name_before(match.start(), any_end=True), whole=THOUSAND)
        else:  # y first, before the name
            numbers, end = _numbers(match[0]), _end(_BEHIND_LOC, self.plain, match.end())
            form = Form(self.text[match.end() : end].rsplit(">", 1)[-1].strip(), whole=1024.0, y_first=True)
        if len(numbers) % 4:
            self.answer.problem(f"{len(numbers)} location tokens, but a box has 4", match.span())
        for first in range(0, len(numbers) - 3, 4):
            self.answer.add(numbers[first : first + 4], match.span(), form, settled=True)
        return end

    def _read_group(self, match: re.Match) -> int:
        start, before = match.start(), self.plain[self.read_to : match.start()]
        if self.ref and not before.strip():  # InternVL's, whose decoder took the tag away
            return self._read_list(start, Form(self.ref, whole=THOUSAND, expected=True, box=True), _NEXT_PAIR)
        nested = self.plain.startswith("[[", start)
        touches = before[-1:].isalnum() or before[-1:] == "_"
        label = self._name_before(start, any_end=touches and (nested or match[0] == "("))
        return self._read_list(start, Form(label, whole=THOUSAND if nested and touches else None), _TOUCHING_PAIR)

    def _read_list(self, start: int, form: Form, next_pair: re.Pattern) -> int:
        """Read a group, with the next one where both are corners of a box: (x1,y1),(x2,y2)."""
        group = read_group(self.plain, start)
        runs_on = self.plain[self.pair_end : start] in ("", ",") and self.pair_end >= 0  # (x,y),(x,y),(x,y): points
        self.pair_end = group.end if group.is_pair else -1
        if group.is_pair and next_pair.match(self.plain, group.end) and not (runs_on and not form.box):
            other = read_group(self.plain, _end(next_pair, self.plain, group.end))
            if other.is_pair and (form.box or not _NEXT_PAIR.match(self.plain, other.end)):
                self.pair_end = -1
                self.answer.add([*(group.numbers or ()), *(other.numbers or ())], (start, other.end), form)
                return other.end
        if not (form.box or group.opener == "(" or is_list_of_numbers(group)):
            form = Form(whole=form.whole)  # words before objects are a sentence, not their name
        read_places(group, form, self.answer, at_end=group.end == len(self.plain))
        return group.end

    def _name_before(self, start: int, any_end: bool) -> str:
        """Return the name in front of a list: it ends with a colon, or in any way."""
        before = self.text[max(self.read_to, start - 200) : start].split("\n")[-1].rstrip()
        if not (any_end or before.endswith((":", "：", "="))):
            return ""
        name = _BREAKS.split(before.rstrip(" :：="))[-1].strip(" \t*_`#>-•\"'“”([{")
        name = name.rsplit(".", 1)[-1] if re.fullmatch(r"[\w.]+", name) else name  # of pyautogui.click
        name = name[_end(_FILLER, name, 0) :]
        usable = len(name) <= SHOWN and len(name.split()) <= 6 and name.lower() not in NO_NAMES
        return name if usable and any(map(str.isalnum, name)) else ""


def _numbers(text: str) -> list[float]:
    return [float(one) for one in NUMBERS.findall(text)]


def _end(pattern: re.Pattern, text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start
