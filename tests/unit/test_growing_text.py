"""A text that is generated token by token: the same as if all of it were decoded each time, in every tokenizer."""

import functools
import random

import pytest

from mulan_nodes.mulan.boundary.growing_text import GrowingText
from mulan_nodes.mulan.checkpoints.language_tokenizers import BytePairTokenizer, load_tokenizer
from mulan_nodes.tools.random_checkpoints import internvl_chat as random_chat
from mulan_nodes.visionllm_nodes.model.llama_tokenizer import VisionTokenizer

TEXTS = (
    "The red circle, which is larger than the blue one; it's on the left.",
    "  two  spaces\t\ttab \n\n\n   and a line ",
    "清晨，一位老渔夫在木码头上修补渔网。",
    "霧の港の上をカモメが飛んでいる。 안개 낀 항구",
    "صياد عجوز يصلح شبكته على رصيف خشبي",
    "भोर में एक बूढ़ा मछुआरा नमस्ते ชาวประมงเฒ่า",
    "e\u0301 combined, ﬁ, \u00a0 no-break, a\ufffdb\ufffd",
    "👩‍👩‍👧 🇫🇷 𓀀 €",
    "<|im_start|>user\n<img>hi</img><|im_end|> there<|im_end|>\n",
    "<det>[DET]<p>red star</p>[EMB][EMB2], <p>ship</p> [SEG] .",
)


@pytest.fixture(
    scope="module", params=["Qwen", "LLaMA 3", "InternLM2", "LLaMA legacy", "LLaMA legacy, spelled out", "LLaMA"]
)
def tokenizer(request, tmp_path_factory, comfyui_folder):
    """A tokenizer, how it decodes, and how many ids it has."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "LLaMA 3":
        published = comfyui_folder / "comfy" / "text_encoders" / "llama_tokenizer" / "tokenizer.json"
        made = BytePairTokenizer.from_json(published.read_text("utf-8"))
    elif request.param == "Qwen":
        random_chat.write_qwen_tokenizer(folder, as_json=True)
        made = BytePairTokenizer.from_json((folder / "tokenizer.json").read_text("utf-8"))
    else:
        random_chat.write_internlm2_tokenizer(folder)
        if request.param == "InternLM2":
            made = load_tokenizer(lambda name: (folder / name).read_bytes() if (folder / name).is_file() else None)
        else:
            made = VisionTokenizer((folder / "tokenizer.model").read_bytes(), legacy="legacy" in request.param)
            return made, functools.partial(made.decode, special="spelled out" in request.param), len(made)
    return made, made.decode, made.vocab_size


def grow(decode, ids: list[int], step: int = 1) -> list[int]:
    """Compare the text at every length; return how many ids each decoding took."""
    taken = []

    def counting(some):
        taken.append(len(some))
        return decode(some)

    text = GrowingText(counting)
    for length in range(0, len(ids) + 1, step):
        assert text(ids[:length]) == decode(ids[:length]), ids[:length]
    return taken


@pytest.mark.parametrize("step", [1, 2, 5])
def test_every_length_of_every_script(tokenizer, step):
    made, decode, _ = tokenizer
    for text in TEXTS:
        grow(decode, made.encode(text), step)
    together = made.encode(" ".join(TEXTS))
    assert max(grow(decode, together, step)) < 60 < len(together), "a text of any length costs the same per token"


@pytest.mark.parametrize("seed", range(20))
def test_ids_that_no_text_has(tokenizer, seed):
    """Bytes that make no character, white space alone, special tokens in a row."""
    made, decode, size = tokenizer
    chance = random.Random(seed)
    usual = [id for text in TEXTS for id in made.encode(text)]
    ids = [chance.choice(usual) if chance.random() < 0.5 else chance.randrange(size) for _ in range(120)]
    if seed % 2:  # the first ids of a sentencepiece model are its bytes
        ids = [chance.randrange(3, 259) if chance.random() < 0.5 else id for id in ids]
    grow(decode, ids)
