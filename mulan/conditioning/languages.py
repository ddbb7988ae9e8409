"""Prompts in many languages at once: lines with language labels, each prompt encoded once."""

from __future__ import annotations

import re
from typing import NamedTuple

import comfy.sd

from ..boundary.limits import MAX_PROMPTS
from ..boundary.texts import split_lines
from .clip import encode_prompts

# ISO 639-1, and three longer codes that people write in its place. Closed on purpose: "cat: sleeping" is a prompt, not
# Catalan.
LANGUAGE_CODES = frozenset(
    """
    aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee
    el en eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is
    it iu ja jv ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms
    mt my na nb nd ne ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk
    sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi
    yo za zh zu ceb fil yue
""".split()
)

# The code in lower case, script or region as in zh-Hant, pt-BR, es-419, then at once a colon, which
# may be a full-width one.
_LABEL = re.compile(r"([a-z]{2,3})((?:[-_](?:[A-Za-z]{2,4}|\d{3}))*)[:：]")


class LabeledPrompt(NamedTuple):
    """A prompt and what it is shown as: its language, or its number."""

    label: str
    prompt: str


def parse_labeled_prompts(texts: list[str]) -> list[LabeledPrompt]:
    """Split one text into a prompt per line, without empty lines; of several texts each is a prompt, even an empty one.

    ``zh: 一只猫`` is the prompt ``一只猫`` with the label ``zh``. A prompt without a label gets its number, from 1.
    Raises ValueError where there is no prompt, or too many are.
    """
    prompts = split_lines(texts[0]) if len(texts) == 1 else texts
    if not prompts:
        raise ValueError("there is no prompt: write one per line, such as 'zh: 一只猫', or connect a list of texts.")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"there are {len(prompts)} prompts, and at most {MAX_PROMPTS} are encoded at once.")
    return [_split_label(prompt, number) for number, prompt in enumerate(prompts, 1)]


def _split_label(text: str, number: int) -> LabeledPrompt:
    match = _LABEL.match(text)
    if match is None or match[1] not in LANGUAGE_CODES:
        return LabeledPrompt(str(number), text)
    return LabeledPrompt(match[1] + match[2], text[match.end() :].strip())


def encode_unique(clip: comfy.sd.CLIP, prompts: list[str], negative: str) -> tuple[list[list], list]:
    """Return the CONDITIONING of each prompt, and that of one negative, encoded in one go and each prompt once."""
    unique = list(dict.fromkeys(prompts))
    *encoded, encoded_negative = encode_prompts(clip, unique, [negative])
    by_prompt = dict(zip(unique, encoded, strict=True))
    return [by_prompt[prompt] for prompt in prompts], encoded_negative
