"""What both sides encode. Plain Python: mulankit's environment imports it too."""

from __future__ import annotations

from dataclasses import dataclass

PROMPTS = (
    "a photo of a red fox in the snow, soft morning light",
    "雪地里的一只红色狐狸，清晨柔和的光线",
    "雪の中の赤い狐の写真、やわらかな朝の光",
    "눈 속의 붉은 여우 사진, 부드러운 아침 햇살",
    "صورة ثعلب أحمر في الثلج، ضوء صباح ناعم",
    "фото рыжей лисы на снегу, мягкий утренний свет",
    "बर्फ में एक लाल लोमड़ी, सुबह की कोमल रोशनी",
    "ein roter Fuchs im Schnee, weiches Morgenlicht",
    "una foto de un zorro rojo en la nieve, luz suave",
    "un renard roux dans la neige, douce lumière du matin",
    "karda kızıl bir tilki fotoğrafı, yumuşak sabah ışığı",
    "สุนัขจิ้งจอกสีแดงในหิมะ แสงยามเช้าที่นุ่มนวล",
)
NEGATIVE = "blurry, low quality, watermark"


@dataclass(frozen=True)
class Case:
    """Prompts to encode, with a negative for each (`negatives` is empty without guidance).

    `theirs` is how mulankit is called: with the whole list at once, or one prompt after another.
    """

    title: str
    prompts: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    theirs: str = "list"
    goal: float | None = None  # ours / theirs, at most


CASES = {
    "one": Case("one prompt", PROMPTS[:1]),
    "two": Case("two prompts, mulankit one after another", PROMPTS[:2], theirs="singly"),
    "empty_negative": Case("a prompt and the empty negative", PROMPTS[:1], ("",), goal=0.55),
    "other_negative": Case("a prompt and another negative", PROMPTS[:1], (NEGATIVE,), goal=0.85),
    "twelve": Case("twelve prompts, mulankit one after another", PROMPTS, theirs="singly", goal=0.8),
    "twelve_as_list": Case("twelve prompts, mulankit with the list", PROMPTS),
    "twelve_guided": Case(
        "twelve prompts and their empty negatives, mulankit with the lists", PROMPTS, ("",) * len(PROMPTS)
    ),
}
