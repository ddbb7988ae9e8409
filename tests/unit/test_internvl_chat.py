"""InternVL's chat models at their edges: tokenizers, prompts, tiles, what a CLIP must do, unusable checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import comfy.model_management
import comfy.ops
import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    GotOcr2ImageProcessor,
    InternVLVisionConfig,
    Qwen2Tokenizer,
    Qwen3Config,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from mulan_nodes.mulan.checkpoints.language_tokenizers import load_tokenizer
from mulan_nodes.mulan.checkpoints.tensor_files import WrongFileError
from mulan_nodes.mulan.images.tiling import choose_tile_grid
from mulan_nodes.mulan.internvl_chat import chat_template
from mulan_nodes.mulan.internvl_chat.chat_files import open_chat, unexpected
from mulan_nodes.mulan.internvl_chat.chat_language_model import penalize
from mulan_nodes.mulan.internvl_chat.chat_loader import load_chat
from mulan_nodes.mulan.internvl_chat.chat_model import ChatConfig, InternVLChat
from mulan_nodes.mulan.internvl_chat.chat_preprocessing import MEAN, STD, preprocess_tiles
from mulan_nodes.mulan.internvl_chat.chat_prompts import KEY
from mulan_nodes.mulan.internvl_chat.chat_template import split_thinking
from mulan_nodes.tools.random_checkpoints import internvl_chat as random_chat
from mulan_nodes.tools.shards import shard

TEXTS = (
    "",
    " ",
    "What is in the picture?",
    "It's 12 o'clock, don't YOU'LL see?\n\n  two  spaces\t\ttab ",
    "你是书生·万象，英文名是InternVL。",
    "Où est le chat ?",
    "الكلب على اليسار",
    "हिन्दी में नमस्ते",
    "e\u0301 combined, ﬁ ligature, \u00a0 no-break",
    "👩‍👩‍👧 emoji 🇫🇷",
    "1234567.89 €",
    "\r\nline\r\n\r\n",
    "a\u0000b",
    "<|im_start|>user\n<img><IMG_CONTEXT></img>\nhi<|im_end|>\n<|im_start|>assistant\n",
    "x<|im_end|>y <|im_end|> z",
    "<|im_end",
    "<box>[[1, 2]]</box>",
)


def files_of(folder: Path):
    return lambda name: (folder / name).read_bytes() if (folder / name).is_file() else None


# --- tokenizers ---


@pytest.fixture(scope="module", params=["trained", "ComfyUI's"])
def qwen(request, tmp_path_factory, comfyui_folder) -> Path:
    """Folders with vocab.json and merges.txt."""
    if request.param == "trained":
        folder = tmp_path_factory.mktemp("qwen")
        random_chat.write_qwen_tokenizer(folder, as_json=False)
        return folder
    folder = tmp_path_factory.mktemp("qwen25")
    shutil.copytree(comfyui_folder / "comfy" / "text_encoders" / "qwen25_tokenizer", folder, dirs_exist_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    last = max(map(int, config["added_tokens_decoder"]))
    plain = {name: last + number for number, name in enumerate(random_chat.SPECIAL[3:], 1)}
    (folder / "added_tokens.json").write_text(json.dumps(plain), "utf-8")
    return folder


def test_the_byte_pair_tokenizer_equals_transformers(qwen, tmp_path):
    ours = load_tokenizer(files_of(qwen))
    theirs = Qwen2Tokenizer.from_pretrained(str(qwen))
    theirs.add_tokens(list(random_chat.SPECIAL[3:]), special_tokens=True)
    theirs.save_pretrained(tmp_path)
    again = load_tokenizer(files_of(tmp_path))  # tokenizer.json, as transformers saves it
    assert (tmp_path / "tokenizer.json").is_file()
    for text in TEXTS:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == again.encode(text) == ids, text
        assert (
            ours.decode(ids)
            == again.decode(ids)
            == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
        whole = theirs.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special_tokens=False) == whole
    rare = list(range(0, len(theirs), 7))
    assert ours.decode(rare) == theirs.decode(rare, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert ours.vocab_size == again.vocab_size == len(theirs) and ours.token_to_id(
        "<IMG_CONTEXT>"
    ) == theirs.convert_tokens_to_ids("<IMG_CONTEXT>")


def test_the_sentencepiece_tokenizer_of_internlm2(tmp_path):
    """Each part between added tokens by itself, as the slow tokenizer of the published folder; no leading space, one
    token before the text.
    """
    random_chat.write_internlm2_tokenizer(tmp_path)
    words = load_tokenizer(files_of(tmp_path))
    pieces = sentencepiece.SentencePieceProcessor(model_proto=(tmp_path / "tokenizer.model").read_bytes())
    ids = random_chat.folder_words("internlm2")
    start, end = ids["<|im_start|>"], ids["<|im_end|>"]
    assert words.encode("<|im_start|>user\n is it?<|im_end|>\n") == [
        1,
        start,
        *pieces.encode("user\n is it?"),
        end,
        *pieces.encode("\n"),
    ]
    assert words.encode("<s>a</s>") == [1, 1, *pieces.encode("a"), 2] and words.encode("") == [1]
    assert words.vocab_size == random_chat.PIECES + len(random_chat.SPECIAL) - 1
    for text in ("The red circle", "书生·万象 é", "  two"):
        assert words.decode([*words.encode(text), end]) == text
        assert words.decode([*words.encode(text), end], skip_special_tokens=False) == f"<s>{text}<|im_end|>"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"tokenizer.json": b"{}"}, "not a tokenizer that the library"),
        ({"vocab.json": None}, "neither tokenizer.json, nor vocab.json with merges.txt, nor tokenizer.model"),
        ({"merges.txt": None}, "neither tokenizer.json, nor vocab.json"),
        ({"merges.txt": b"no merge\n"}, "merges do not fit"),
        ({"vocab.json": b"["}, "vocab.json is not valid JSON"),
        ({"vocab.json": b"[]"}, "vocab.json holds a list"),
        (
            {"added_tokens.json": None, "tokenizer_config.json": None},
            "vocab.json lacks <|im_start|>, <|im_end|>, <img>",
        ),
        (
            {"added_tokens.json": b'{"<img>": 9}', "tokenizer_config.json": None},
            "<img> must have the id 9, but behind this vocabulary it has 400",
        ),
        ({"tokenizer_config.json": b'{"added_tokens_decoder": {"x": 1}}'}, "expected a token with its `content`"),
        ({"vocab.json": None, "tokenizer.model": b""}, "not a sentencepiece model"),
        ({"vocab.json": None, "tokenizer.model": b"nonsense"}, "not a sentencepiece model"),
    ],
)
def test_tokenizers_that_cannot_serve(tmp_path, change, words):
    random_chat.write_qwen_tokenizer(tmp_path, as_json=False)
    read = files_of(tmp_path)
    with pytest.raises(ValueError, match=words.replace("|", r"\|")):
        load_tokenizer(lambda name: change[name] if name in change else read(name))


# --- prompts ---


def test_prompts_are_the_authors():
    seen = "<img><IMG_CONTEXT></img>"
    assert chat_template.format_dialogue("Hi") == (
        "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat_template.format_dialogue("Why?", [("Hi", "Hello")], "Be brief.") == (
        "<|im_start|>system\nBe "
        "brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert chat_template.format_dialogue("Hi", system="").startswith("<|im_start|>user\nHi")
    assert chat_template.insert_images(["Hi"], 0) == ["Hi"]
    assert chat_template.insert_images(["Hi"], 1) == [f"{seen}\nHi"]
    assert chat_template.insert_images(["Hi", "Why?"], 2) == [f"Image-1: {seen}\nImage-2: {seen}\nHi", "Why?"]
    assert chat_template.insert_images(["Hi"], 0, 2) == [f"Frame1: {seen}\nFrame2: {seen}\nHi"]
    assert chat_template.insert_images(["Hi"], 1, 1) == [f"{seen}\nFrame1: {seen}\nHi"]
    assert chat_template.insert_images(["Is <image> in", "<image>?"], 2) == [f"Is {seen} in", f"{seen}?"]
    for images in (1, 3):
        with pytest.raises(ValueError, match=f"the text has 2 <image>, but there are {images} images"):
            chat_template.insert_images(["Is <image> in", "<image>?"], images)
    assert (
        chat_template.THINKING.count("<think> and </think> tags.\n\n2. After") == 1
        and chat_template.THINKING.count("\n") == 6
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return random_chat.checkpoint(tmp_path_factory.mktemp("chat") / "InternVL3-tiny")


@pytest.fixture(scope="module")
def clip(folder):
    return load_chat(folder)


@pytest.fixture
def changed(folder, tmp_path):
    """changed(config={...}, tensors=function) -> a copy with another config.json and other tensors."""

    def make(config=None, tensors=None, without=()):
        copy = Path(shutil.copytree(folder, tmp_path / "InternVL"))
        if config is not None:
            known = json.loads((copy / "config.json").read_text("utf-8"))
            for name, value in config.items():
                known[name] = {**known[name], **value} if isinstance(value, dict) else value
            (copy / "config.json").write_text(json.dumps(known), "utf-8")
        if tensors is not None:
            save_file(tensors(load_file(copy / "model.safetensors")), copy / "model.safetensors")
        for name in without:
            (copy / name).unlink()
        return copy

    return make


def prompt_of(clip, *arguments, **options) -> tuple[str, list[int]]:
    """The prompt as text, and how many tiles stand at each <IMG_CONTEXT>."""
    entries = [entry for entry, weight in clip.tokenize(*arguments, **options)[KEY][0] if weight == 1.0]
    place = clip.tokenizer.tokenizer.token_to_id("<IMG_CONTEXT>")
    text = clip.tokenizer.tokenizer._tokenizer.decode(
        [entry if isinstance(entry, int) else place for entry in entries], skip_special_tokens=False
    )
    return text, [len(entry["data"]) for entry in entries if isinstance(entry, dict)]


def test_inputs_of_core_s_generate_text(clip):
    options = {"skip_template": False, "min_length": 1, "thinking": False, "video": None, "audio": None}
    assert prompt_of(clip, "Hi", image=None, **options) == (chat_template.format_dialogue("Hi"), [])
    seen = "<img><IMG_CONTEXT></img>"
    batch = torch.rand(2, 28, 60, 3)
    assert prompt_of(clip, "Hi", image=batch, **options) == (
        chat_template.format_dialogue(f"Image-1: {seen}\nImage-2: {seen}\nHi"),
        [3, 3],
    )
    film = torch.rand(49, 28, 60, 3)  # two seconds and a frame
    assert prompt_of(clip, "Hi", **{**options, "video": film}) == (
        chat_template.format_dialogue("".join(f"Frame{number}: {seen}\n" for number in (1, 2, 3)) + "Hi"),
        [1, 1, 1],
    )
    first = clip.tokenize("Hi", video=film)[KEY][0]
    middle = next(
        entry["data"] for entry, _ in clip.tokenize("Hi", video=film[24:25])[KEY][0] if isinstance(entry, dict)
    )
    assert torch.equal([entry["data"] for entry, _ in first if isinstance(entry, dict)][1], middle)
    assert prompt_of(clip, "Hi", image=batch[:1], **{**options, "skip_template": True}) == (f"{seen}\nHi", [3])
    assert prompt_of(clip, "Hi", image=None, **{**options, "thinking": True}) == (
        chat_template.format_dialogue("Hi", system=chat_template.THINKING),
        [],
    )
    with pytest.raises(ValueError, match="cannot use audio"):
        clip.tokenize("Hi", **{**options, "audio": {"waveform": torch.zeros(1, 1, 9), "sample_rate": 9}})


def test_inputs_of_internvl_chat(clip):
    images, said = [torch.rand(28, 60, 3), torch.rand(28, 28, 4)], [("Hi", "Hello <image>")]
    text, tiles = prompt_of(clip, "Why?", images=images, history=said, system="Be brief.", tiles=1)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nImage-1: <img>") and tiles == [
        1,
        1,
    ]
    assert "assistant\nHello <image><|im_end|>" in text and text.count("<IMG_CONTEXT>") == 2
    assert prompt_of(clip, "Hi", system="")[0] == chat_template.format_dialogue("Hi", system="")
    with pytest.raises(ValueError, match="must not contain <IMG_CONTEXT>"):
        clip.tokenize("<IMG_CONTEXT>")
    with pytest.raises(ValueError, match="InternVL3-tiny reads 2048: use fewer images"):
        clip.tokenize("Hi", images=[torch.rand(28, 336, 3)] * 40)
    with pytest.raises(ValueError, match="tiles must be at least 1, not 0"):
        clip.tokenize("Hi", images=images, tiles=0)


def test_the_system_message_of_a_checkpoint_is_used(tmp_path):
    folder = random_chat.checkpoint(tmp_path / "chat")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "system_message": "Speak French."}), "utf-8")
    assert prompt_of(load_chat(folder), "Hi")[0] == chat_template.format_dialogue("Hi", system="Speak French.")


# --- images ---


def test_tiles_are_chosen_as_in_transformers():
    sizes = {
        (width, height) for width in range(1, 1400, 37) for height in (1, 99, 224, 448, 640, 672, 896, 1344, 5000)
    } | {(448, 672), (3000, 2000)}
    for most in (1, 2, 5, 6, 12, 24):
        for width, height in sizes:
            assert choose_tile_grid(width, height, 448, most) == get_optimal_tiled_canvas(
                (height, width), (448, 448), 1, most
            ), (width, height, most)


@pytest.mark.parametrize(
    "height, width", [(448, 448), (333, 500), (500, 333), (1000, 1400), (100, 1000), (1000, 100), (20, 20), (1, 7)]
)
def test_pixels_equal_transformers(height, width):
    """Those of its processor on PIL, where Pillow resizes across first: it always did when InternVL was made, and we
    always do. Noise is the worst case for the order. The processor on torchvision rounds otherwise.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    ours = preprocess_tiles(torch.from_numpy(pixels).float() / 255, 448)
    settings = {
        "size": {"height": 448, "width": 448},
        "image_mean": MEAN,
        "image_std": STD,
        "crop_to_patches": True,
        "max_patches": 12,
    }
    now_down_first = (height, width) in ((500, 333), (1000, 100))
    for processor, levels in (
        (GotOcr2ImageProcessorPil, 30 if now_down_first else 0.01),
        (GotOcr2ImageProcessor, 2.01),
    ):
        theirs = processor(**settings)(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
        assert theirs.shape == ours.shape
        difference = ((ours - theirs).abs().amax((0, 2, 3)) * torch.tensor(STD) * 255).max()
        assert difference < levels, (processor, difference)


# --- settings, thoughts ---


def test_core_s_system_prompt_is_ours(clip):
    said = clip.tokenize("Hi", system="Be brief.")
    assert clip.tokenize("Hi", system_prompt="Be brief.") == said != clip.tokenize("Hi")
    assert clip.tokenize("Hi", system_prompt=" ") == clip.tokenize("Hi", system_prompt=None) == clip.tokenize("Hi")
    with pytest.raises(ValueError, match="system_prompt: leave it empty when thinking is on"):
        clip.tokenize("Hi", system_prompt="Be brief.", thinking=True)
    with pytest.raises(ValueError, match="system_prompt: leave it empty when the default template is off"):
        clip.tokenize("Hi", system_prompt="Be brief.", skip_template=True)


def test_a_setting_that_it_does_not_know_is_refused_where_it_is_set(clip):
    with pytest.raises(ValueError, match="does not know the setting tone, tools: leave it at its default"):
        clip.tokenize("Hi", tone="calm", tools=["search"], other=None)
    core = {"min_length": 1, "audio": None, "tokenizer_options": {"a": 1}, "embeds": [], "enable": False, "prefix": ""}
    assert clip.tokenize("Hi", **core) == clip.tokenize("Hi")


@pytest.mark.parametrize(
    ("answer", "thought", "said"),
    [
        ("<think>\nA cat?\n</think>\n\nA cat.", "A cat?", "A cat."),
        (" <think></think>A cat.", "", "A cat."),
        ("<think>A cat, or", "A cat, or", ""),
        ("A cat. <think>no</think>", "", "A cat. <think>no</think>"),
        ("<think>a</think>b</think>", "a", "b</think>"),
        ("A cat. ", "", "A cat. "),
    ],
)
def test_what_a_model_thinks_is_parted_from_its_answer(answer, thought, said):
    assert split_thinking(answer) == (thought, said)


# --- what a CLIP must do ---


def test_it_gives_no_conditioning(clip):
    with pytest.raises(
        ValueError,
        match="InternVL3-tiny is a chat model and gives no conditioning: connect this CLIP to Generate Text or "
        "InternVL Chat",
    ):
        clip.encode_from_tokens_scheduled(clip.tokenize("a cat"))


@pytest.mark.parametrize("end", ["<|im_end|>", "<|endoftext|>"])
def test_an_answer_ends(tmp_path, end):
    clip = load_chat(random_chat.checkpoint(tmp_path / "chat", writes=end))
    ids = clip.generate(clip.tokenize("Hi"), do_sample=False, max_length=20)
    assert ids == [random_chat.folder_words("qwen2")[end]] and clip.decode(ids) == ""


def test_an_answer_is_no_longer_than_the_model_can_read(tmp_path):
    folder = random_chat.checkpoint(tmp_path / "chat", writes="<box>")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["llm_config"]["max_position_embeddings"] = 100
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    clip = load_chat(folder)
    tokens = clip.tokenize("Hi", system="")
    assert len(clip.generate(tokens, do_sample=False, max_length=500)) == 100 - len(tokens[KEY][0])
    with pytest.raises(ValueError, match="reads 100"):
        clip.tokenize("Hi " * 100)


def test_a_seed_decides_what_is_drawn(clip):
    def drawn(seed):
        return clip.generate(
            clip.tokenize("Hi"), do_sample=True, max_length=12, temperature=1.5, top_k=0, top_p=1.0, seed=seed
        )

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize("penalty", [1.0, 1.1, 2.0])
@pytest.mark.parametrize("token_ids", [[], [3], [3, 5, 3, 19]])
def test_a_penalty_is_transformers_s(penalty, token_ids):
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(0))
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([token_ids], dtype=torch.long), logits.clone())
    assert torch.equal(penalize(logits, token_ids, penalty), theirs)


@pytest.mark.parametrize(("penalty", "chosen"), [(1.0, 1), (1.4, 1), (1.6, 2)])
def test_a_penalty_acts_where_nothing_is_drawn(clip, penalty, chosen):
    logits = torch.tensor([[-1.0, 3.0, 2.0]])
    sample = clip.cond_stage_model.chat.language_model.sample_token
    assert sample(logits, 1.0, 0, 1.0, 0.0, penalty, [1, 0], None, do_sample=False).item() == chosen


def test_every_token_is_streamed(clip):
    streamed = []
    with clip.cond_stage_model.streaming_to(streamed.append):
        ids = clip.generate(clip.tokenize("Hi"), do_sample=False, max_length=5)
    assert streamed == [ids[:count] for count in range(1, len(ids) + 1)]
    clip.generate(clip.tokenize("Hi"), do_sample=False, max_length=5)
    assert len(streamed) == len(ids)


@pytest.mark.parametrize("when", ["seeing", "writing"])
def test_stopping(clip, when):
    """A stop is heeded in the middle of the tower, and between two tokens; afterwards everything works."""

    def stop(*_):
        calls.append(1)
        if len(calls) == (1 if when == "seeing" else 3):
            comfy.model_management.interrupt_current_processing(True)

    calls, chat, options = [], clip.cond_stage_model.chat, {"images": [torch.rand(28, 60, 3)]}
    before = clip.generate(clip.tokenize("Hi", **options), do_sample=False, max_length=5)
    layer = chat.vision_model.layers[0] if when == "seeing" else chat.language_model.model.layers[1]
    hook = layer.register_forward_hook(stop)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            clip.generate(clip.tokenize("Hi", **options), do_sample=False, max_length=50)
    finally:
        hook.remove()
    assert len(calls) == (1 if when == "seeing" else 3)
    assert clip.generate(clip.tokenize("Hi", **options), do_sample=False, max_length=5) == before


@pytest.mark.parametrize(
    "damaged", ["vision_model.encoder.layers.1.mlp.fc1.weight", "language_model.model.layers.2.mlp.up_proj.weight"]
)
def test_damaged_weights_are_reported(changed, damaged):
    clip = load_chat(
        changed(tensors=lambda tensors: {**tensors, damaged: torch.full_like(tensors[damaged], float("nan"))})
    )
    with pytest.raises(ValueError, match=rf"InternVL \(in .* not finite: its {damaged} contains NaN or infinity"):
        clip.generate(clip.tokenize("Hi", images=[torch.rand(28, 60, 3)]), do_sample=False, max_length=5)


def test_numbers_that_overflow_are_not_called_damage(changed):
    large = "language_model.model.layers.2.mlp.up_proj.weight"
    clip = load_chat(
        changed(tensors=lambda tensors: {**tensors, large: torch.full_like(tensors[large], 6e4)}), dtype=torch.float16
    )
    with pytest.raises(ValueError, match="they overflow in float16. Choose device = cpu, where it computes in float32"):
        clip.generate(clip.tokenize("Hi"), do_sample=False, max_length=5)


def test_many_tiles_are_seen_in_batches(clip):
    """40 images of 3 tiles, and each alone."""
    encoder = clip.cond_stage_model
    images = [preprocess_tiles(torch.rand(28, 60, 3), random_chat.TILE) for _ in range(14)]
    with torch.no_grad():
        together = encoder._encode_images(images, torch.device("cpu"), torch.float32)
        for rows, image in zip(together, images, strict=True):
            assert torch.allclose(rows, encoder.chat.encode_tiles(image).flatten(0, 1), atol=1e-5)


def test_weights_stay_mapped_and_memory_is_estimated(folder, clip):
    pages = load_file(folder / "model.safetensors")["mlp1.1.weight"]
    assert clip.cond_stage_model.chat.mlp1[1].weight.dtype == pages.dtype and clip.cond_stage_model.dtypes == {
        torch.float32
    }
    small, large = (
        clip.cond_stage_model.memory_estimation_function(
            clip.tokenize("Hi", images=[torch.rand(28, 60, 3)] * count), device=None
        )
        for count in (1, 8)
    )
    assert 0 < small < large and clip.cond_stage_model.memory_estimation_function({}) > 0


def test_it_computes_in_half_precision_too(folder, clip):
    half = load_chat(folder, dtype=torch.bfloat16)
    tokens = clip.tokenize("Hi", images=[torch.rand(28, 60, 3)])
    assert len(half.generate(tokens, do_sample=False, max_length=3)) == 3
    with torch.no_grad():
        tiles = next(entry["data"] for entry, _ in tokens[KEY][0] if isinstance(entry, dict))
        exact, rounded = (
            clip.cond_stage_model.chat.encode_tiles(tiles),
            half.cond_stage_model.chat.encode_tiles(tiles.bfloat16()),
        )
    assert rounded.dtype == torch.bfloat16 and (exact - rounded).abs().max() < 0.05 * exact.abs().max()


def test_it_can_be_trained(folder):
    """Built from a configuration alone, every weight gets a gradient from a loss on the answer."""
    config = open_chat(folder).config
    assert isinstance(config, ChatConfig)
    chat = InternVLChat(config, operations=comfy.ops.manual_cast, dtype=torch.float32, device="cpu")
    torch.manual_seed(0)
    for parameter in chat.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tiles, before, answer = torch.rand(3, 3, random_chat.TILE, random_chat.TILE), [1, 2, 3], [5, 6, 7]
    prompt = chat.embed([*before, chat.encode_tiles(tiles).flatten(0, 1), *answer])
    states = chat.language_model.model(None, embeds=prompt)[0][0, -len(answer) - 1 : -1]
    torch.nn.functional.cross_entropy(chat.language_model.model.lm_head(states), torch.tensor(answer)).backward()
    assert not [
        name for name, parameter in chat.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]


# --- checkpoints ---


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


WRONG = {
    "another model": (
        dict(tensors=lambda _: {"model.embed_tokens.weight": torch.zeros(2, 2)}),
        "is a large language model's text encoder",
    ),
    "no configuration": (dict(without=["config.json"]), "has no config.json"),
    "a tensor is missing": (
        dict(tensors=without("language_model.model.layers.2.mlp.up_proj.weight")),
        "1 tensors are missing, the first is language_model.model.layers.2.mlp.up_proj.weight",
    ),
    "a first tensor is missing": (
        dict(tensors=without("mlp1.0.weight")),
        "is incomplete: it has no tensor mlp1.0.weight",
    ),
    "no entry": (dict(config={"vision_config": 3}), "vision_config is 3, expected an object"),
    "another shape": (
        dict(tensors=lambda tensors: {**tensors, "mlp1.3.weight": torch.zeros(5, 5)}),
        "mlp1.3.weight [5, 5] cannot be mlp1.3.weight [48, 48]",
    ),
    "heads of another model": (
        dict(config={"llm_config": {"num_attention_heads": 4}}),
        "its config.json is another checkpoint's",
    ),
    "InternLM3": (
        dict(config={"llm_config": {"model_type": "internlm3"}}),
        "llm_config.model_type is 'internlm3', expected one of 'qwen2', 'qwen3', 'llama', 'internlm2'",
    ),
    "a mixture of experts": (
        dict(config={"llm_config": {"model_type": "qwen3_moe"}}),
        "llm_config.model_type is 'qwen3_moe', expected one of 'qwen2', 'qwen3', 'llama', 'internlm2'. Choose another",
    ),
    "GPT-OSS": (
        dict(config={"llm_config": {"model_type": "gpt_oss"}, "template": "internvl3_5_gpt_oss"}),
        "llm_config.model_type is 'gpt_oss', expected one of 'qwen2', 'qwen3', 'llama', 'internlm2'. Choose another",
    ),
    "an older template": (
        dict(config={"template": "Hermes-2"}),
        "template is 'Hermes-2', expected 'internvl2_5'. Choose",
    ),
    "another scaling": (
        dict(config={"llm_config": {"rope_scaling": {"rope_type": "yarn"}}}),
        "llm_config.rope_scaling.rope_type is 'yarn', expected one of 'default', 'dynamic'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_checkpoints_that_cannot_serve(changed, name):
    change, words = WRONG[name]
    copy = changed(**change)
    with pytest.raises(WrongFileError) as failure:
        open_chat(copy)
    assert words in str(failure.value) and f"InternVL (in {copy.parent})" in str(failure.value)


def test_a_missing_tokenizer_and_another_model_s(changed):
    copy = changed(without=["vocab.json"])
    with pytest.raises(
        WrongFileError,
        match="has no tokenizer that can be used: there is neither tokenizer.json.*Keep the tokenizer's files",
    ):
        open_chat(copy).tokenizer()
    random_chat.write_qwen_tokenizer(copy, as_json=False)
    more = {name: 600 + id for name, id in random_chat.folder_words("qwen2").items()}
    vocabulary = json.loads((copy / "vocab.json").read_text("utf-8"))
    vocabulary |= {f"x{number}": number for number in range(400, 1000)}
    (copy / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (copy / "tokenizer_config.json").write_text("{}", "utf-8")
    (copy / "added_tokens.json").write_text(json.dumps(more), "utf-8")
    with pytest.raises(WrongFileError, match="its tokenizer knows 1012 tokens, but its language model embeds 415"):
        open_chat(copy).tokenizer()


def test_what_a_configuration_leaves_out_is_transformers_default(tmp_path):
    path = random_chat.checkpoint(tmp_path / "InternVL", "qwen3", "hf") / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for name in ("rms_norm_eps", "max_position_embeddings", "rope_parameters"):
        del config["text_config"][name]
    del config["vision_config"]["num_attention_heads"]
    path.write_text(json.dumps(config), "utf-8")
    config, qwen3, tower = open_chat(path.parent).config, Qwen3Config(), InternVLVisionConfig()
    assert (
        config.language.rms_norm_eps == qwen3.rms_norm_eps
        and config.language.max_position_embeddings == qwen3.max_position_embeddings
    )
    assert (
        config.language.rope_theta == qwen3.rope_parameters["rope_theta"]
        and config.vision.num_attention_heads == tower.num_attention_heads
    )


def test_tensors_that_are_not_used_are_named(changed):
    opened = open_chat(
        changed(
            tensors=lambda tensors: {
                **tensors,
                "mlp2.0.weight": torch.zeros(1),
                "language_model.model.x.rotary_emb.inv_freq": torch.zeros(1),
            }
        )
    )
    assert unexpected(opened) == ["mlp2.0.weight"]


def test_shards_and_single_files_give_the_same_model(folder, tmp_path, clip):
    sharded = shard(Path(shutil.copytree(folder, tmp_path / "sharded")))
    assert not (sharded / "model.safetensors").exists()
    single = Path(shutil.copytree(folder, tmp_path / "single"))
    for path in (sharded, single / "model.safetensors"):
        other = load_chat(path)
        tokens = clip.tokenize("Hi")
        assert other.generate(tokens, do_sample=False, max_length=5) == clip.generate(
            tokens, do_sample=False, max_length=5
        )
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WrongFileError, match="lacks 1 of its shards, the first is model-00002-of-00002.safetensors"):
        open_chat(sharded)


def test_comfyui_can_build_the_patcher_again(clip):
    make, arguments = clip.patcher.cached_patcher_init
    assert make(*arguments, disable_dynamic=True).model.chat.config == clip.cond_stage_model.chat.config
