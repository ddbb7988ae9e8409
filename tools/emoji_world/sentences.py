"""Sentences around a name, "{}": those that the text encoder learns to look through, and those that it never sees.

Twelve languages have sentences. Every language has noise: words that mean nothing, of the letters of its own names.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from .captions import COLOURED, with_article
from .concepts import languages
from .contrastive_batches import own_sentences

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
# More sentences of the others: the order, who, what they do, what, and where or when.
PARTS = {
    "zh": (
        "{where}{who}{does}{what}",
        "我弟弟 妈妈 老师 孩子们 她 他们 我们 邻居",
        "看见了 想要 画了 买了 丢了 带来了 在找 害怕 卖了 谈论",
        "{} 一个{} 那个{} 新的{} 旧{} 大{}",
        "昨天 每天 在学校 在厨房里 在城里 夏天",
    ),
    "ja": (
        "{where}{who}{what}{does}",
        "兄は 母は 先生は 子供は 彼女は みんなは 隣の人は",
        "見た 買いました 描いた なくした 持っています 探している 売った 忘れない",
        "{}を 古い{}を その{}を 大きな{}を {}だけを",
        "昨日、 毎日、 学校で 台所で 町で 夏に",
    ),
    "ko": (
        "{where} {who} {what} {does}",
        "동생이 엄마가 선생님은 아이들이 그녀는 우리는 이웃이",
        "보았다 샀어요 그렸어요 잃어버렸다 찾고_있다 팔았다 원해요 기억한다",
        "{}_하나를 그_{}_하나를 오래된_{}_하나를 큰_{}_하나를 {}_사진을",
        "어제 매일 학교에서 부엌에서 도시에서 여름에",
    ),
    "ar": (
        "{does} {who} {what} {where}",
        "أخي المعلم الطفل صديقنا الرجل_العجوز عمي جارنا",
        "رأى اشترى رسم أضاع باع أحضر صور",
        "{} {}_كبيرا هذا_{} {}_واحدا صورة_{}",
        "أمس كل_يوم في_المدرسة في_المطبخ في_المدينة قرب_النهر",
    ),
    "ru": (
        "{where} {who} {does} {what}",
        "мой_брат учитель наш_сосед ребёнок старик дядя художник",
        "увидел хочет нарисовал купил потерял продал принёс ищет",
        "{} этот_{} один_{} старый_{} большой_{}",
        "вчера каждый_день в_школе на_кухне в_городе у_реки летом",
    ),
    "hi": (
        "{where} {who} {what} {does}",
        "मेरे_भाई_ने माँ_ने शिक्षक_ने बच्चे_ने पड़ोसी_ने उसने हमने",
        "देखा खरीदा खो_दिया बेचा चाहा बनाया ढूँढा",
        "{} एक_{} वह_{} पुराना_{} बड़ा_{}",
        "कल हर_दिन स्कूल_में रसोई_में शहर_में गर्मियों_में",
    ),
    "de": (
        "{who} {does} {what} {where}",
        "mein_Bruder die_Mutter der_Lehrer das_Kind unser_Nachbar sie jemand der_alte_Mann",
        "hat sah will malte kaufte verlor sucht verkauft",
        "{} ein_{} eine_{} den_{} die_{} das_{} nur_{}",
        "jeden_Tag in_der_Küche in_der_Schule am_Fluss in_der_Stadt im_Sommer",
    ),
    "es": (
        "{who} {does} {what} {where}",
        "mi_hermano la_madre el_maestro la_niña nuestro_vecino ella alguien el_viejo",
        "tiene vio quiere pintó compró perdió busca vende recuerda",
        "{} un_{} una_{} el_{} la_{} otro_{} solo_{}",
        "cada_día en_la_cocina en_la_escuela junto_al_río en_la_ciudad en_verano",
    ),
    "fr": (
        "{who} {does} {what} {where}",
        "mon_frère la_mère le_professeur l'enfant notre_voisin elle quelqu'un le_vieil_homme",
        "a a_vu veut a_peint a_acheté a_perdu cherche vend",
        "{} un_{} une_{} le_{} la_{} ce_{} seulement_{}",
        "chaque_jour dans_la_cuisine à_l'école près_de_la_rivière en_ville l'été",
    ),
    "tr": (
        "{who} {where} {what} {does}",
        "ablam annem öğretmen çocuk komşumuz o birisi yaşlı_adam",
        "gördü istiyor çizdi aldı kaybetti arıyor sattı getirdi",
        "{} bir_{} bu_{} eski_bir_{} büyük_bir_{} yalnız_{}",
        "her_gün mutfakta okulda nehrin_yanında şehirde yazın",
    ),
    "th": (
        "{who}{does}{what}{where}",
        "พี่ชาย แม่ ครู เด็กๆ เพื่อนบ้าน เธอ เขา พวกเรา",
        "เห็น อยากได้ วาด ซื้อ ทำหาย ขาย กำลังหา จำ",
        "{} {}ตัวหนึ่ง {}อันใหญ่ {}เก่า {}นี้",
        "ทุกวัน ในครัว ที่โรงเรียน ริมแม่น้ำ ในเมือง ในฤดูร้อน",
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
WHOLE_SHARE = 0.4  # the share of sentences that are not put together of parts
NOWHERE_SHARE = 0.3


def in_frame(frame: str, name: str) -> str:
    """A name where a sentence has "{}" or, with an English article, "{a}"."""
    return frame.format(name, a=with_article(name))


def sentence(name: str, language: str, rng: np.random.Generator) -> str:
    """A name in a sentence of its language or, where that has none here, of one of the twelve."""
    whole = own_sentences(language)
    if language not in COLOURED and (not whole or rng.random() < 0.5):
        language = str(rng.choice(list(COLOURED)))
    if language in COLOURED and rng.random() >= WHOLE_SHARE:
        return in_frame(_composed(language, rng), name)
    whole = (ENGLISH if language == "en" else OTHERS.get(language, ())) + tuple(own_sentences(language))
    return in_frame(str(rng.choice(whole)), name)


def _composed(language: str, rng: np.random.Generator) -> str:
    """A sentence of parts around its "{}" or "{a}"."""
    if language == "en":
        parts = (rng.choice(WHO), rng.choice(DOES), rng.choice(KINDS), rng.choice(WHERE))
        return " ".join(part for part in parts if part)
    order, *parts = PARTS[language]
    who, does, what, where = (str(rng.choice(part.split())).replace("_", " ") for part in parts)
    where = "" if rng.random() < NOWHERE_SHARE else where
    return order.format(who=who, does=does, what=what, where=where).strip()


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
