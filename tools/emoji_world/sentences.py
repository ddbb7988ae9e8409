"""Sentences around a name, "{}": those that the text encoder learns to look through, and those that it never sees.

Twelve languages have sentences. Every language has noise: words that mean nothing, of the letters of its own names.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .captions import COLOURED, with_article
from .concepts import languages

# An English sentence is one of each: who, what they do, what kind, and where or when.
WHO = (
    *("my brother", "my mother", "a friend", "the teacher", "our neighbor", "the child", "everybody", "nobody here"),
    *("she", "he", "they", "we", "I", "the old man", "a girl", "their uncle", "some people", "the painter"),
)
DOES = (
    *("has", "saw", "wants", "painted", "bought", "lost", "dreams of", "talks about", "remembers", "sold"),
    *("carries", "looks at", "is afraid of", "waits for", "brought", "photographed", "knows", "will need", "asked for"),
)
KINDS = ("the {}", "{a}", "{a}", "one {}", "that {}", "this old {}", "a big {}", "his new {}", "another {}", "only {a}")
WHERE = (
    *("", "", "", "every day", "in the kitchen", "at school", "on the table", "by the river", "last summer", "again"),
    *("in the city", "for a long time", "and nothing else", "before lunch", "in the dark", "behind the wall"),
)
ENGLISH = (
    *(
        "where is the {}",
        "how much is the {}",
        "photo of {a}, high quality",
        "{}, very detailed, 4k",
        "the best {} ever",
    ),
    *("is this {a} or not", "close-up of {a}", "please paint the {} for me", "a story about {a} and its friends"),
    *("{a} standing alone", "look at that {} over there", "it is just {a}", "who took my {}", "once there was {a}"),
    *("an old photograph of {a}", "{}: a short description", "there was {a} and it was big", "no, I mean the {}"),
)
OTHERS = {
    "zh": (
        *("我喜欢{}", "他昨天看见了{}", "请给我画{}", "桌子上有一个{}", "我们去买{}吧", "{}在哪里？", "这个{}很漂亮"),
        *("老师说的是{}", "高清照片，{}", "她想要一个新的{}", "从前有一个{}", "不是别的，是{}"),
    ),
    "ja": (
        *(
            "私は{}が好きです",
            "昨日{}を見ました",
            "{}を描いてください",
            "机の上に{}がある",
            "{}はどこですか",
            "新しい{}がほしい",
        ),
        *("友達の{}", "{}の写真、高画質", "この{}はきれいですね", "昔々{}がありました", "先生が{}について話した"),
    ),
    "ko": (
        *(
            "나는 {} 좋아해요",
            "어제 {} 보았어요",
            "{} 그려 주세요",
            "책상 위의 {}",
            "{} 어디에 있어요?",
            "새 {} 사고 싶다",
        ),
        *("친구의 {}", "고화질 사진, {}", "정말 예쁜 {}", "옛날 옛적에 {}", "선생님이 말한 {}"),
    ),
    "ar": (
        *("أنا أحب {}", "رأيت {} أمس", "ارسم لي {} من فضلك", "على الطاولة {}", "أين {}؟", "أريد {} جديد"),
        *("صديقي عنده {}", "صورة عالية الجودة، {}", "ما أجمل {}", "كان يا ما كان {}", "تحدث المعلم عن {}"),
    ),
    "ru": (
        *("я люблю {}", "вчера мы видели {}", "нарисуй мне {}, пожалуйста", "на столе лежит {}", "где {}?"),
        *("она хочет новый {}", "у друга есть {}", "фото, высокое качество, {}", "какой красивый {}", "жил-был {}"),
    ),
    "hi": (
        *("मुझे {} पसंद है", "हमने कल {} देखा", "मेरे लिए {} बनाओ", "मेज़ पर {} रखा है", "{} कहाँ है?", "उसे नया {} चाहिए"),
        *("मेरे दोस्त का {}", "अच्छी तस्वीर, {}", "कितना सुंदर {}", "एक समय की बात है, {}", "शिक्षक ने {} के बारे में कहा"),
    ),
    "de": (
        *("ich mag {}", "gestern sahen wir {}", "bitte male mir {}", "auf dem Tisch liegt {}", "wo ist {}?"),
        *(
            "sie will {} kaufen",
            "mein Freund hat {}",
            "Foto in hoher Qualität, {}",
            "so schön ist {}",
            "es war einmal {}",
        ),
    ),
    "es": (
        *("me gusta {}", "ayer vimos {}", "por favor, dibuja {}", "en la mesa está {}", "¿dónde está {}?"),
        *("ella quiere {} nuevo", "mi amigo tiene {}", "foto de alta calidad, {}", "qué bonito {}", "érase una vez {}"),
    ),
    "fr": (
        *(
            "j'aime {}",
            "hier nous avons vu {}",
            "dessine-moi {} s'il te plaît",
            "sur la table il y a {}",
            "où est {} ?",
        ),
        *("elle veut {}", "mon ami a {}", "photo de haute qualité, {}", "quel beau {}", "il était une fois {}"),
    ),
    "tr": (
        *(
            "{} seviyorum",
            "dün {} gördük",
            "lütfen bana {} çiz",
            "masanın üstünde {} var",
            "{} nerede?",
            "o yeni {} istiyor",
        ),
        *("arkadaşımın {}", "yüksek kaliteli fotoğraf, {}", "ne güzel {}", "bir zamanlar {} varmış"),
    ),
    "th": (
        *("ฉันชอบ{}", "เมื่อวานเราเห็น{}", "ช่วยวาด{}ให้หน่อย", "บนโต๊ะมี{}", "{}อยู่ที่ไหน", "เธออยากได้{}ใหม่"),
        *("เพื่อนของฉันมี{}", "ภาพคุณภาพสูง {}", "{}สวยมาก", "กาลครั้งหนึ่งมี{}"),
    ),
}
# In no training, nor most of their words: what is not learned by heart.
NEVER_TRAINED = {
    "en": (
        *("my sister likes the {}", "we found {a} in the garden yesterday", "what about {a} today"),
        *("could you show us {a}", "grandfather once drew {a} with chalk", "nothing beats a good {}"),
        *("between two hills stood {a}", "did somebody hear the {}"),
    ),
    "zh": ("爷爷送给妹妹的{}", "今天下午出现了{}"),
    "ja": ("祖父が{}をくれた", "今日の午後の{}"),
    "ko": ("할아버지께서 주신 {}", "오늘 오후에 나타난 {}"),
    "ar": ("أعطاني جدي {} هدية", "ظهر {} اليوم بعد الظهر"),
    "ru": ("дедушка подарил сестре {}", "сегодня днём появился {}"),
    "hi": ("दादाजी ने बहन को {} दिया", "आज दोपहर {} दिखाई दिया"),
    "de": ("Großvater schenkte der Schwester {}", "heute Nachmittag erschien {}"),
    "es": ("el abuelo regaló a mi hermana {}", "esta tarde apareció {}"),
    "fr": ("grand-père offrit à ma sœur {}", "cet après-midi apparut {}"),
    "tr": ("dedem kardeşime {} hediye etti", "bugün öğleden sonra {} göründü"),
    "th": ("คุณปู่ให้{}กับน้องสาว", "บ่ายวันนี้ปรากฏ{}"),
}
NOISE_WORDS, NOISE_LETTERS = 4, 5  # at most


def in_frame(frame: str, name: str) -> str:
    """A name where a sentence has "{}" or, with an English article, "{a}"."""
    return frame.format(name, a=with_article(name))


def sentence(name: str, language: str, rng: np.random.Generator) -> str:
    """A name in a sentence of its language or, where that has none here, of one of the twelve."""
    if language not in COLOURED:
        language = str(rng.choice(list(COLOURED)))
    if language != "en":
        return in_frame(str(rng.choice(OTHERS[language])), name)
    if rng.random() < 0.4:
        return in_frame(str(rng.choice(ENGLISH)), name)
    parts = (rng.choice(WHO), rng.choice(DOES), in_frame(str(rng.choice(KINDS)), name), rng.choice(WHERE))
    return " ".join(part for part in parts if part)


def in_noise(name: str, language: str, rng: np.random.Generator) -> str:
    """A name between words that mean nothing, in letters of its language."""
    letters = _letters(language)
    words = [
        "".join(rng.choice(letters, size=rng.integers(1, NOISE_LETTERS + 1)))
        for _ in range(rng.integers(1, NOISE_WORDS + 1))
    ]
    place = rng.integers(len(words) + 1)
    return " ".join([*words[:place], name, *words[place:]])


@cache
def _letters(language: str) -> list[str]:
    return sorted(
        {letter.lower() for name in languages()[language].names if name for letter in name if letter.isalpha()}
    )
