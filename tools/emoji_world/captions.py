"""Captions of the emoji world: a thing's name or what describes it, bare or in a sentence of some language.

Twelve languages have sentences here, those of the world of shapes. A name of another language stands bare, or in a
sentence of one of the twelve, as people mix them. `sentences.py` has more sentences, for the text encoder alone.
"""

from __future__ import annotations

import numpy as np

from ..tinyworld.captions import TRAINED as SENTENCES
from .concepts import english, languages
from .pictures import BACKGROUNDS

ENGLISH = (
    "{}",
    "{}",
    "{a}",
    "a picture of {a}",
    "this is {a}",
    "there is {a} here",
    "a drawing of {a}",
    "I want to see {a}",
    "a small {} for my friend",
    "look, {a}",
    "emoji of {a}",
    "an icon: {}",
    "the {} in the middle",
    "draw {a}, please",
)
# A sentence with a thing and the colour behind it, and the colours in the form it needs, in the order of BACKGROUNDS.
COLOURED = {
    "en": ("{} on a {colour} background", "red green blue yellow purple black"),
    "zh": ("{colour}背景上的{}", "红色 绿色 蓝色 黄色 紫色 黑色"),
    "ja": ("{colour}背景の{}", "赤い 緑の 青い 黄色い 紫の 黒い"),
    "ko": ("{colour} 배경의 {}", "빨간 초록색 파란 노란 보라색 검은"),
    "ar": ("{} على خلفية {colour}", "حمراء خضراء زرقاء صفراء بنفسجية سوداء"),
    "ru": ("{} на {colour} фоне", "красном зелёном синем жёлтом фиолетовом чёрном"),
    "hi": ("{colour} पृष्ठभूमि पर {}", "लाल हरी नीली पीली बैंगनी काली"),
    "de": ("{} auf {colour} Hintergrund", "rotem grünem blauem gelbem violettem schwarzem"),
    "es": ("{} sobre un fondo {colour}", "rojo verde azul amarillo morado negro"),
    "fr": ("{} sur un fond {colour}", "rouge vert bleu jaune violet noir"),
    "tr": ("{colour} arka planda {}", "kırmızı yeşil mavi sarı mor siyah"),
    "th": ("{}บนพื้นหลัง{colour}", "สีแดง สีเขียว สีน้ำเงิน สีเหลือง สีม่วง สีดำ"),
}
KEYWORDS_SHARE, MIXED_SHARE, SENTENCE_SHARE = 0.1, 0.15, 0.15


def with_article(name: str) -> str:
    """An English name with "a" or "an", as far as its first letter tells."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def english_sentence(thing: int, template: str) -> str:
    """A thing's English name in a sentence of `ENGLISH`."""
    name = english(thing)
    return template.format(name, a=with_article(name))


def english_caption(thing: int, rng: np.random.Generator, background: str = "") -> str:
    """A thing in an English sentence; a named background is named."""
    if background:
        return coloured(with_article(english(thing)) if rng.random() < 0.5 else english(thing), "en", background)
    return english_sentence(thing, ENGLISH[rng.integers(len(ENGLISH))])


def coloured(name: str, language: str, background: str) -> str:
    """A name in a language's sentence about the colour behind it."""
    sentence, colours = COLOURED[language]
    return sentence.format(name, colour=dict(zip(BACKGROUNDS, colours.split(), strict=True))[background])


def frames(language: str) -> tuple[str, ...]:
    """Sentences of a language around "{}"; without any, its names stand alone."""
    words = SENTENCES.get(language)
    return words.templates[1:] if words else ()


def caption(thing: int, language: str, rng: np.random.Generator, background: str = "") -> str | None:
    """A thing as somebody who writes in this language may say it; None where the language has no name for it."""
    entry = languages()[language]
    name, keywords = entry.names[thing], entry.keywords[thing]
    if name is None:
        return None
    if background:
        return coloured(name, language if language in COLOURED and rng.random() < 0.8 else _other(rng), background)
    if language == "en" and rng.random() < 0.6:
        return english_caption(thing, rng)
    kind = rng.random()
    if kind < KEYWORDS_SHARE and keywords:
        words = list(rng.permutation(keywords)[: rng.integers(1, 4)])
        if kind < 0.6 * KEYWORDS_SHARE:
            words.insert(rng.integers(len(words) + 1), name)
        return (", " if rng.random() < 0.5 else " ").join(words)
    if kind > 1 - MIXED_SHARE:
        return _framed(name, frames(_other(rng)), rng)
    if kind > 1 - MIXED_SHARE - SENTENCE_SHARE:
        return _framed(name, frames(language), rng)
    return name


def _other(rng: np.random.Generator) -> str:
    return str(rng.choice(list(COLOURED)))


def _framed(name: str, sentences: tuple[str, ...], rng: np.random.Generator) -> str:
    return sentences[rng.integers(len(sentences))].format(name) if sentences else name


def vocabulary() -> list[str]:
    """Every name and keyword of the trained languages and every sentence's parts, for the tokenizer."""
    from .concepts import trained_languages

    texts = []
    for code in trained_languages():
        entry = languages()[code]
        texts += [name for name in entry.names if name] * 2
        texts += [word for words in entry.keywords for word in words]
    for sentence, colours in COLOURED.values():
        texts += [sentence.format("", colour=""), *colours.split()]
    return texts + [template.format("", a="") for template in ENGLISH]
