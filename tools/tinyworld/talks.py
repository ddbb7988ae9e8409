"""Questions about pictures of the tiny world and their answers, in its twelve languages: what the tiny InternVL that
talks is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import world
from .captions import ATTRIBUTES, CHOICES, LANGUAGES
from .world import PALETTE, SIZES, Thing

MOST = 4  # exchanges of a talk
WHETHER = 0.5  # the share of questions to be answered by yes or no, which are the hardest to learn


@dataclass(frozen=True)
class Questions:
    """A language's ways to ask, each list with "|" between its entries. {} stands for what a caption says, or for a
    picture's number.
    """

    describe: str
    attributes: str  # the colour, the shape, the size
    follow: str  # the same, behind another question
    whether: str
    of_picture: str
    colours: str  # as answers, in the world's order
    sizes: str
    yes: str
    no: str


QUESTIONS = {
    "en": Questions(
        "Describe the picture.|Describe the picture in detail.|What is in the picture?|What do you see?|What is "
        "this?|Describe the image.",
        "What colour is it?|What shape is it?|Is it big or small?",
        "And its colour?|And its shape?|And its size?",
        "Is it {}?",
        "What is in picture {}?",
        "red|green|blue|yellow|purple|black",
        "small|big",
        "yes",
        "no",
    ),
    "zh": Questions(
        "描述这张图片。|图里有什么？",
        "它是什么颜色？|它是什么形状？|它是大还是小？",
        "它的颜色呢？|它的形状呢？|它的大小呢？",
        "它是{}吗？",
        "图{}里有什么？",
        "红色|绿色|蓝色|黄色|紫色|黑色",
        "小|大",
        "是",
        "不是",
    ),
    "ja": Questions(
        "絵を説明してください。|何が見えますか？",
        "何色ですか？|どんな形ですか？|大きいですか、小さいですか？",
        "色は？|形は？|大きさは？",
        "{}ですか？",
        "{}枚目の絵には何がありますか？",
        "赤|緑|青|黄色|紫|黒",
        "小さい|大きい",
        "はい",
        "いいえ",
    ),
    "ko": Questions(
        "그림을 설명하세요.|그림에 무엇이 있나요?",
        "무슨 색인가요?|무슨 모양인가요?|큰가요, 작은가요?",
        "색은요?|모양은요?|크기는요?",
        "{}인가요?",
        "{}번 그림에 무엇이 있나요?",
        "빨간색|초록색|파란색|노란색|보라색|검은색",
        "작다|크다",
        "네",
        "아니요",
    ),
    "ar": Questions(
        "صف الصورة.|ماذا في الصورة؟",
        "ما لونه؟|ما شكله؟|هل هو كبير أم صغير؟",
        "وما اللون؟|وما الشكل؟|وما الحجم؟",
        "هل هو {}؟",
        "ماذا في الصورة {}؟",
        "أحمر|أخضر|أزرق|أصفر|بنفسجي|أسود",
        "صغير|كبير",
        "نعم",
        "لا",
    ),
    "ru": Questions(
        "Опиши картинку.|Что на картинке?",
        "Какой это цвет?|Какая это форма?|Это большое или маленькое?",
        "А цвет?|А форма?|А размер?",
        "Это {}?",
        "Что на картинке {}?",
        "красный|зелёный|синий|жёлтый|фиолетовый|чёрный",
        "маленькое|большое",
        "да",
        "нет",
    ),
    "hi": Questions(
        "चित्र का वर्णन करो।|चित्र में क्या है?",
        "इसका रंग क्या है?|यह कौन सी आकृति है?|यह बड़ा है या छोटा?",
        "और इसका रंग?|और इसकी आकृति?|और इसका माप?",
        "क्या यह {} है?",
        "चित्र {} में क्या है?",
        "लाल|हरा|नीला|पीला|बैंगनी|काला",
        "छोटा|बड़ा",
        "हाँ",
        "नहीं",
    ),
    "de": Questions(
        "Beschreibe das Bild.|Was ist auf dem Bild?",
        "Welche Farbe hat es?|Welche Form hat es?|Ist es groß oder klein?",
        "Und die Farbe?|Und die Form?|Und die Größe?",
        "Ist es {}?",
        "Was ist auf Bild {}?",
        "rot|grün|blau|gelb|violett|schwarz",
        "klein|groß",
        "ja",
        "nein",
    ),
    "es": Questions(
        "Describe la imagen.|¿Qué hay en la imagen?",
        "¿De qué color es?|¿Qué forma tiene?|¿Es grande o pequeño?",
        "¿Y el color?|¿Y la forma?|¿Y el tamaño?",
        "¿Es {}?",
        "¿Qué hay en la imagen {}?",
        "rojo|verde|azul|amarillo|morado|negro",
        "pequeño|grande",
        "sí",
        "no",
    ),
    "fr": Questions(
        "Décris l'image.|Qu'y a-t-il sur l'image ?",
        "De quelle couleur est-ce ?|Quelle forme est-ce ?|Est-ce grand ou petit ?",
        "Et la couleur ?|Et la forme ?|Et la taille ?",
        "Est-ce {} ?",
        "Qu'y a-t-il sur l'image {} ?",
        "rouge|vert|bleu|jaune|violet|noir",
        "petit|grand",
        "oui",
        "non",
    ),
    "tr": Questions(
        "Resmi anlat.|Resimde ne var?",
        "Ne renk?|Hangi şekil?|Büyük mü, küçük mü?",
        "Peki rengi?|Peki şekli?|Peki boyutu?",
        "Bu {} mi?",
        "{} numaralı resimde ne var?",
        "kırmızı|yeşil|mavi|sarı|mor|siyah",
        "küçük|büyük",
        "evet",
        "hayır",
    ),
    "th": Questions(
        "อธิบายภาพ|ในภาพมีอะไร",
        "มันสีอะไร|มันรูปทรงอะไร|มันใหญ่หรือเล็ก",
        "แล้วสีล่ะ|แล้วรูปทรงล่ะ|แล้วขนาดล่ะ",
        "มันคือ{}ใช่ไหม",
        "ในภาพที่ {} มีอะไร",
        "สีแดง|สีเขียว|สีน้ำเงิน|สีเหลือง|สีม่วง|สีดำ",
        "เล็ก|ใหญ่",
        "ใช่",
        "ไม่ใช่",
    ),
}
KINDS = ("describe", *ATTRIBUTES, "whether")


@dataclass(frozen=True)
class Exchange:
    question: str
    answer: str


@dataclass(frozen=True)
class Talk:
    """Exchanges about one picture or two, in one language."""

    things: tuple[Thing, ...]
    exchanges: tuple[Exchange, ...]


def answer(thing: Thing, kind: str, language: str) -> str:
    """The answer to any question of `KINDS` but "whether"."""
    words, asked = LANGUAGES[language], QUESTIONS[language]
    if kind == "colour":
        return dict(zip(PALETTE, asked.colours.split("|"), strict=True))[thing.colour]
    if kind == "size":
        return dict(zip(SIZES, asked.sizes.split("|"), strict=True))[thing.size]
    return (
        words.bare_phrase(thing, frozenset({"shape"}))
        if kind == "shape"
        else words.noun_phrase(thing, frozenset(ATTRIBUTES))
    )


def ask(
    thing: Thing, kind: str, language: str, rng: np.random.Generator, others: Sequence[Thing], follows: bool = False
) -> Exchange:
    """One question of a kind; one that `follows` may be short. "whether" names `thing` or, as often, another."""
    asked = QUESTIONS[language]
    if kind == "describe":
        return Exchange(_one(asked.describe, rng), answer(thing, kind, language))
    if kind == "whether":
        named = CHOICES[int(rng.integers(len(CHOICES)))]
        other = thing if rng.random() < 0.5 else others[int(rng.integers(len(others)))]
        same = all(getattr(thing, attribute) == getattr(other, attribute) for attribute in named)
        return Exchange(
            asked.whether.format(LANGUAGES[language].noun_phrase(other, named)), asked.yes if same else asked.no
        )
    ways = asked.follow if follows and rng.random() < 0.5 else asked.attributes
    return Exchange(ways.split("|")[ATTRIBUTES.index(kind)], answer(thing, kind, language))


def ask_of_two(things: Sequence[Thing], number: int, language: str) -> Exchange:
    """What the first (0) or the second (1) picture shows."""
    return Exchange(QUESTIONS[language].of_picture.format(number + 1), answer(things[number], "describe", language))


def draw_talk(rng: np.random.Generator, things: Sequence[Thing], exchanges: int) -> Talk:
    """A talk of so many exchanges about one of the things."""
    language, thing = list(QUESTIONS)[int(rng.integers(len(QUESTIONS)))], things[int(rng.integers(len(things)))]
    kinds = ["whether" if rng.random() < WHETHER else str(kind) for kind in rng.permutation(KINDS[:-1])[:exchanges]]
    return Talk(
        (thing,),
        tuple(ask(thing, kind, language, rng, things, follows=bool(number)) for number, kind in enumerate(kinds)),
    )


def draw_talk_of_two(rng: np.random.Generator, things: Sequence[Thing], exchanges: int) -> Talk:
    """A talk of so many exchanges in which one or the other of two things is described."""
    language = list(QUESTIONS)[int(rng.integers(len(QUESTIONS)))]
    chosen = tuple(things[index] for index in rng.integers(len(things), size=2))
    return Talk(chosen, tuple(ask_of_two(chosen, int(number), language) for number in rng.integers(2, size=exchanges)))


def all_words() -> list[str]:
    """Every text that occurs, for the tokenizer."""
    texts = [part for asked in QUESTIONS.values() for field in vars(asked).values() for part in field.split("|")]
    return texts + [
        LANGUAGES[language].noun_phrase(thing, named)
        for language in QUESTIONS
        for thing in world.THINGS
        for named in CHOICES
    ]


def _one(ways: str, rng: np.random.Generator) -> str:
    choices = ways.split("|")
    return choices[int(rng.integers(len(choices)))]
