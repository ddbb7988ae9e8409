"""Prompts in many languages at once: lines with language labels, each prompt encoded once."""

from __future__ import annotations

import re
from typing import NamedTuple

import comfy.sd

from .clip import encode_prompts

# ISO 639-1, and three longer codes that people write in its place. Closed on purpose: "cat: sleeping" is a prompt, not Catalan.
LANGUAGE_CODES = frozenset(
    """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo es et eu fa ff fi fj fo fr fy
    ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt
    lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn
    so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
    ceb fil yue
""".split()
)

# The code in small letters, then script or region as in zh-Hant, pt-BR, es-419; then at once a colon, which may be a full-width one.
_LABEL = re.compile(r"([a-z]{2,3})((?:[-_](?:[A-Za-z]{2,4}|\d{3}))*)[:：]")


class LabeledPrompt(NamedTuple):
    label: str
    prompt: str


def parse_labeled_prompts(texts: list[str]) -> list[LabeledPrompt]:
    """One text: a prompt per line, empty lines left out. Several texts: each is a prompt, even an empty one. Raises ValueError for none.

    ``zh: 一只猫`` is the prompt ``一只猫`` with the label ``zh``. Without a label of its own a prompt is labelled with its number, from 1.
    """
    prompts = [line.strip() for line in texts[0].splitlines() if line.strip()] if len(texts) == 1 else texts
    if not prompts:
        raise ValueError("there is no prompt: write one per line, such as 'zh: 一只猫', or connect a list of texts.")
    return [_split(prompt, number) for number, prompt in enumerate(prompts, 1)]


def _split(text: str, number: int) -> LabeledPrompt:
    found = _LABEL.match(text)
    if found is None or found[1] not in LANGUAGE_CODES:
        return LabeledPrompt(str(number), text)
    return LabeledPrompt(found[1] + found[2], text[found.end() :].strip())


def encode_unique(clip: comfy.sd.CLIP, prompts: list[str], negative: str) -> tuple[list[list], list]:
    """-> the CONDITIONING of each prompt, and that of one negative, all in one go; a prompt that occurs again is not encoded again."""
    different = list(dict.fromkeys(prompts))
    *encoded, of_negative = encode_prompts(clip, different, [negative])
    of_prompt = dict(zip(different, encoded))
    return [of_prompt[prompt] for prompt in prompts], of_negative
