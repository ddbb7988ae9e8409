"""Sentences around a name, "{}": those that the text encoder learns to look through, and those that it never sees.

Twelve languages have sentences. Every language has noise: words that mean nothing, of the letters of its own names.
"""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Parts:
    """What a language's sentences are put together of: `says` has places for {who} and {where}, as far as it needs
    them. They are plain, not always right: names stand in them uninflected, as in a dictionary.
    """

    who: tuple[str, ...]
    where: tuple[str, ...]  # or nothing
    says: tuple[str, ...]

    def frame(self, rng: np.random.Generator) -> str:
        """Return a sentence around "{}"."""
        where = str(rng.choice(self.where)) if rng.random() < 0.7 else ""
        says = str(rng.choice(self.says)).replace("{who}", str(rng.choice(self.who)))
        return " ".join(says.replace("{where}", where).split())


COMPOSED = {
    "zh": Parts(
        ("我哥哥", "妈妈", "老师", "那个孩子", "他们", "我们", "邻居", "一个朋友"),
        ("每天", "在厨房里", "在学校", "昨天", "在河边", "去年夏天"),
        (
            *("{who}{where}看见了{}", "{who}{where}想买{}", "{who}{where}画了一个{}", "{where}{who}的{}很大"),
            *("{who}很怕{}", "{who}找到了那个{}", "{}是{who}的", "{who}{where}说起{}"),
        ),
    ),
    "ja": Parts(
        ("兄", "母", "先生", "あの子", "みんな", "友達", "隣の人", "彼女"),
        ("毎日", "台所で", "学校で", "昨日", "川のそばで", "去年の夏"),
        (
            *("{who}は{where}{}を見た", "{who}は{where}{}を買いたい", "{where}{who}が{}を描いた", "{who}の{}は大きい"),
            *("{who}は{}が怖い", "{who}は古い{}を見つけた", "これは{who}の{}です", "{who}が{where}{}の話をする"),
        ),
    ),
    "ko": Parts(
        ("우리 형", "엄마", "선생님", "그 아이", "사람들", "내 친구", "이웃", "그녀"),
        ("매일", "부엌에서", "학교에서", "어제", "강가에서", "지난여름"),
        (
            *("{who} {where} {} 봤어요", "{who} {where} {} 사고 싶어 해요", "{where} {who} {} 그렸어요"),
            *("{who} 가진 {} 아주 커요", "{who} {} 무서워해요", "{who} 오래된 {} 찾았어요", "이것은 {who} 좋아하는 {}"),
            "{who} {where} {} 이야기를 해요",
        ),
    ),
    "ar": Parts(
        ("أخي", "أمي", "المعلم", "الطفل", "الناس", "صديقي", "جارنا", "هي"),
        ("كل يوم", "في المطبخ", "في المدرسة", "أمس", "قرب النهر", "في الصيف الماضي"),
        (
            *("رأى {who} {} {where}", "يريد {who} شراء {} {where}", "رسم {who} {} {where}", "عند {who} {} كبير"),
            *("يخاف {who} من {}", "وجد {who} {} قديم", "هذا {} ملك {who}", "يتكلم {who} عن {} {where}"),
        ),
    ),
    "ru": Parts(
        ("мой брат", "мама", "учитель", "ребёнок", "они", "мой друг", "сосед", "она"),
        ("каждый день", "на кухне", "в школе", "вчера", "у реки", "прошлым летом"),
        (
            *("{who} видит {} {where}", "{where} {who} хочет купить {}", "{who} рисует {} {where}"),
            *("у нас есть {}, говорит {who}", "{who} боится, там {}", "{who} ищет старый {}", "вот {}, думает {who}"),
            "{who} вспоминает {} {where}",
        ),
    ),
    "hi": Parts(
        ("मेरा भाई", "माँ", "शिक्षक", "वह बच्चा", "लोग", "मेरा दोस्त", "पड़ोसी", "वह"),
        ("हर दिन", "रसोई में", "स्कूल में", "कल", "नदी के पास", "पिछली गर्मियों में"),
        (
            *("{who} {where} {} देखता है", "{who} {where} {} खरीदना चाहता है", "{where} {who} {} बनाता है"),
            *("{who} के पास बड़ा {} है", "{who} {} से डरता है", "{who} पुराना {} ढूँढता है", "यह {who} का {} है"),
            "{who} {where} {} की बात करता है",
        ),
    ),
    "de": Parts(
        ("mein Bruder", "meine Mutter", "der Lehrer", "das Kind", "niemand hier", "ein Freund", "unser Nachbar", "sie"),
        ("jeden Tag", "in der Küche", "in der Schule", "gestern", "am Fluss", "letzten Sommer"),
        (
            *("{who} sieht {} {where}", "{where} kauft {who} {}", "{who} malt {} {where}", "{who} hat einen großen {}"),
            *("{who} hat Angst vor {}", "{who} sucht {} {where}", "das ist {}, sagt {who}"),
            "{who} spricht über {} {where}",
        ),
    ),
    "es": Parts(
        ("mi hermano", "mi madre", "el profesor", "el niño", "todos", "un amigo", "el vecino", "ella"),
        ("cada día", "en la cocina", "en la escuela", "ayer", "junto al río", "el verano pasado"),
        (
            *("{who} ve {} {where}", "{where} {who} quiere comprar {}", "{who} pinta {} {where}"),
            *(
                "{who} tiene {} muy grande",
                "{who} tiene miedo de {}",
                "{who} busca {} {where}",
                "esto es {}, dice {who}",
            ),
            "{who} habla de {} {where}",
        ),
    ),
    "fr": Parts(
        ("mon frère", "ma mère", "le professeur", "l'enfant", "tout le monde", "un ami", "le voisin", "elle"),
        ("chaque jour", "dans la cuisine", "à l'école", "hier", "près de la rivière", "l'été dernier"),
        (
            *(
                "{who} voit {} {where}",
                "{where} {who} achète {}",
                "{who} peint {} {where}",
                "{who} possède {} très grand",
            ),
            *("{who} a peur de {}", "{who} cherche {} {where}", "voilà {}, dit {who}", "{who} parle de {} {where}"),
        ),
    ),
    "tr": Parts(
        ("abim", "annem", "öğretmen", "o çocuk", "herkes", "bir arkadaş", "komşumuz", "ustam"),
        ("her gün", "mutfakta", "okulda", "dün", "nehir kenarında", "geçen yaz"),
        (
            *("{who} {where} {} gördü", "{who} {where} {} almak istiyor", "{where} {who} {} boyadı"),
            *("{who} büyük bir {} sahibi", "{who} için bu {} önemli", "{who} eski {} arıyor", "bu {}, diyor {who}"),
            "{who} {where} {} hakkında konuşuyor",
        ),
    ),
    "th": Parts(
        ("พี่ชาย", "แม่", "คุณครู", "เด็กคนนั้น", "ทุกคน", "เพื่อน", "เพื่อนบ้าน", "เธอ"),
        ("ทุกวัน", "ในครัว", "ที่โรงเรียน", "เมื่อวาน", "ริมแม่น้ำ", "หน้าร้อนที่แล้ว"),
        (
            *("{who}เห็น{}{where}", "{who}อยากซื้อ{}{where}", "{where}{who}วาด{}", "{who}มี{}ตัวใหญ่"),
            *("{who}กลัว{}", "{who}หา{}เก่า", "นี่คือ{}ของ{who}", "{who}พูดถึง{}{where}"),
        ),
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
        learned_whole = rng.random() < 0.4
        return in_frame(str(rng.choice(OTHERS[language])) if learned_whole else COMPOSED[language].frame(rng), name)
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
