"""Captions of the tiny world's things in the twelve languages it is trained in and two that nothing is trained in."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol

import numpy as np

from .world import PALETTE, SHAPES, SIZES, Thing


class Named(Protocol):
    """A thing, or a description with some of a thing's attributes."""

    @property
    def colour(self) -> str: ...
    @property
    def shape(self) -> str: ...
    @property
    def size(self) -> str: ...


@dataclass(frozen=True)
class Language:
    """The words of one language, each list in the world's own order.

    A word that agrees with the noun's gender is given as its forms, "masculine/feminine" (German:
    "masculine/neuter/feminine"); a noun not of the first gender carries it, "star:1". The last noun stands for a shape
    that is left unnamed.
    """

    name: str
    own_name: str
    colours: str
    sizes: str
    nouns: str
    phrase: str
    templates: tuple[str, ...]
    article: str = ""

    def noun_phrase(self, thing: Named, named: frozenset[str]) -> str:
        """`thing` with the attributes in `named` (of "colour", "shape", "size")."""
        nouns = dict(zip((*SHAPES, ""), self.nouns.split(), strict=False))
        noun, _, gender = nouns[thing.shape if "shape" in named else ""].partition(":")

        def word(forms: str) -> str:
            by_gender = forms.split("/")
            return by_gender[min(int(gender or 0), len(by_gender) - 1)]

        colour = dict(zip(PALETTE, self.colours.split(), strict=True))[thing.colour] if "colour" in named else ""
        size = dict(zip(SIZES, self.sizes.split(), strict=True))[thing.size] if "size" in named else ""
        phrase = self.phrase.format(article=word(self.article), colour=word(colour), size=word(size), noun=noun)
        return " ".join(phrase.split())

    def bare_phrase(self, thing: Named, named: frozenset[str]) -> str:
        """The same without its article or measure word, as many write labels: "red star", "红色的五角星"."""
        return replace(self, phrase="".join(re.findall(r"{\w+}| ", self.phrase)), article="").noun_phrase(thing, named)


TRAINED = {
    "en": Language(
        "English",
        "English",
        colours="red green blue yellow purple black",
        sizes="small big",
        nouns="circle square triangle star shape",
        phrase="a {size} {colour} {noun}",
        templates=("{}", "a picture of {}", "this is {}", "there is {} here", "{} on a light background"),
    ),
    "zh": Language(
        "Chinese",
        "中文",
        colours="红色的 绿色的 蓝色的 黄色的 紫色的 黑色的",
        sizes="小 大",
        nouns="圆形 正方形 三角形 五角星 图形",
        phrase="一个{colour}{size}{noun}",
        templates=("{}", "一张画着{}的图片", "这是{}", "图中有{}", "浅色背景上有{}"),
    ),
    "ja": Language(
        "Japanese",
        "日本語",
        colours="赤い 緑の 青い 黄色い 紫の 黒い",
        sizes="小さな 大きな",
        nouns="円 正方形 三角形 星 図形",
        phrase="{size}{colour}{noun}",
        templates=("{}", "{}の絵", "これは{}です", "ここに{}があります", "明るい背景に{}"),
    ),
    "ko": Language(
        "Korean",
        "한국어",
        colours="빨간 초록색 파란 노란 보라색 검은",
        sizes="작은 큰",
        nouns="원 정사각형 삼각형 별 도형",
        phrase="{size} {colour} {noun}",
        templates=("{}", "{} 그림", "여기에 {}이 있습니다", "그림 속의 {}", "밝은 배경 위의 {}"),
    ),
    "ar": Language(
        "Arabic",
        "العربية",
        colours="أحمر/حمراء أخضر/خضراء أزرق/زرقاء أصفر/صفراء بنفسجي/بنفسجية أسود/سوداء",
        sizes="صغير/صغيرة كبير/كبيرة",
        nouns="دائرة:1 مربع مثلث نجمة:1 شكل",
        phrase="{noun} {colour} {size}",
        templates=("{}", "صورة {}", "هنا {}", "في الصورة {}", "{} على خلفية فاتحة"),
    ),
    "ru": Language(
        "Russian",
        "Русский",
        colours="красный/красная зелёный/зелёная синий/синяя жёлтый/жёлтая фиолетовый/фиолетовая чёрный/чёрная",
        sizes="маленький/маленькая большой/большая",
        nouns="круг квадрат треугольник звезда:1 фигура:1",
        phrase="{size} {colour} {noun}",
        templates=("{}", "на картинке {}", "это {}", "здесь {}", "{} на светлом фоне"),
    ),
    "hi": Language(
        "Hindi",
        "हिन्दी",
        colours="लाल हरा/हरी नीला/नीली पीला/पीली बैंगनी काला/काली",
        sizes="छोटा/छोटी बड़ा/बड़ी",
        nouns="वृत्त वर्ग त्रिभुज तारा आकृति:1",
        phrase="एक {size} {colour} {noun}",
        templates=("{}", "चित्र में {} है", "यह {} है", "यहाँ {} है", "हल्की पृष्ठभूमि पर {}"),
    ),
    "de": Language(
        "German",
        "Deutsch",
        colours="roter/rotes/rote grüner/grünes/grüne blauer/blaues/blaue gelber/gelbes/gelbe "
        "violetter/violettes/violette "
        "schwarzer/schwarzes/schwarze",
        sizes="kleiner/kleines/kleine großer/großes/große",
        nouns="Kreis Quadrat:1 Dreieck:1 Stern Form:2",
        phrase="{article} {size} {colour} {noun}",
        article="ein/ein/eine",
        templates=("{}", "auf dem Bild ist {}", "das ist {}", "hier ist {}", "{} auf hellem Grund"),
    ),
    "es": Language(
        "Spanish",
        "Español",
        colours="rojo/roja verde azul amarillo/amarilla morado/morada negro/negra",
        sizes="pequeño/pequeña grande",
        nouns="círculo cuadrado triángulo estrella:1 figura:1",
        phrase="{article} {noun} {colour} {size}",
        article="un/una",
        templates=("{}", "una imagen de {}", "esto es {}", "aquí hay {}", "{} sobre un fondo claro"),
    ),
    "fr": Language(
        "French",
        "Français",
        colours="rouge vert/verte bleu/bleue jaune violet/violette noir/noire",
        sizes="petit/petite grand/grande",
        nouns="cercle carré triangle étoile:1 forme:1",
        phrase="{article} {size} {noun} {colour}",
        article="un/une",
        templates=("{}", "une image avec {}", "c'est {}", "voici {}", "{} sur un fond clair"),
    ),
    "tr": Language(
        "Turkish",
        "Türkçe",
        colours="kırmızı yeşil mavi sarı mor siyah",
        sizes="küçük büyük",
        nouns="daire kare üçgen yıldız şekil",
        phrase="{size} {colour} bir {noun}",
        templates=("{}", "resimde {} var", "bu {}", "burada {} var", "açık zemin üzerinde {}"),
    ),
    "th": Language(
        "Thai",
        "ไทย",
        colours="สีแดง สีเขียว สีน้ำเงิน สีเหลือง สีม่วง สีดำ",
        sizes="ขนาดเล็ก ขนาดใหญ่",
        nouns="วงกลม สี่เหลี่ยมจัตุรัส สามเหลี่ยม ดาว รูปทรง",
        phrase="{noun}{colour}{size}",
        templates=("{}", "ภาพ{}", "นี่คือ{}", "มี{}อยู่ในภาพ", "{}บนพื้นหลังสว่าง"),
    ),
}
UNSEEN = {
    "it": Language(
        "Italian",
        "Italiano",
        colours="rosso/rossa verde blu giallo/gialla viola nero/nera",
        sizes="piccolo/piccola grande",
        nouns="cerchio quadrato triangolo stella:1 forma:1",
        phrase="{article} {size} {noun} {colour}",
        article="un/una",
        templates=("{}", "un'immagine di {}", "ecco {}"),
    ),
    "fi": Language(
        "Finnish",
        "Suomi",
        colours="punainen vihreä sininen keltainen violetti musta",
        sizes="pieni iso",
        nouns="ympyrä neliö kolmio tähti kuvio",
        phrase="{size} {colour} {noun}",
        templates=("{}", "kuvassa on {}", "tässä on {}"),
    ),
}
LANGUAGES = TRAINED | UNSEEN
ATTRIBUTES = ("colour", "shape", "size")
CHOICES = tuple(
    frozenset(names) for count in (1, 2, 3) for names in combinations(ATTRIBUTES, count)
)  # what a caption may name


def full_caption(thing: Thing, language: str, template: int = 0) -> str:
    """`thing` with colour, shape and size named, in one of the language's templates."""
    words = LANGUAGES[language]
    return words.templates[template % len(words.templates)].format(words.noun_phrase(thing, frozenset(ATTRIBUTES)))


def mixed_caption(thing: Thing, language: str, other: str, template: int = 0) -> str:
    """The same, the colour in another language's word: "a big 红色的 circle"."""
    words = replace(LANGUAGES[language], colours=LANGUAGES[other].colours)
    return words.templates[template % len(words.templates)].format(words.noun_phrase(thing, frozenset(ATTRIBUTES)))


def choose_attributes(rng: np.random.Generator, drop: float) -> frozenset[str]:
    """The attributes a caption names: each is left out with probability `drop`, but never all of them."""
    named = frozenset(name for name in ATTRIBUTES if rng.random() >= drop)
    return named or frozenset(ATTRIBUTES)


def caption(
    thing: Thing, language: str, rng: np.random.Generator, named: frozenset[str] = frozenset(ATTRIBUTES)
) -> str:
    """`thing` in a template drawn by `rng`, naming only the attributes in `named`."""
    words = LANGUAGES[language]
    return words.templates[rng.integers(len(words.templates))].format(words.noun_phrase(thing, named))


def all_captions(things, language: str) -> list[str]:
    """Every caption that `caption` can give of these things, and ""."""
    words = LANGUAGES[language]
    return [
        "",
        *dict.fromkeys(
            template.format(words.noun_phrase(thing, named))
            for thing in things
            for named in CHOICES
            for template in words.templates
        ),
    ]


def vocabulary(language: str) -> list[str]:
    """Every word and every template's fixed part, one by one: what the tokenizer is trained on."""
    words = LANGUAGES[language]
    single = " ".join((words.colours, words.sizes, words.nouns, words.article)).replace("/", " ").split()
    fixed = [
        part
        for template in (*words.templates, words.phrase.format(article="{}", colour="{}", size="{}", noun="{}"))
        for part in template.replace(" ", "{}").split("{}")
    ]
    return [word.partition(":")[0] for word in single] + [part for part in fixed if part]
