"""InternVL's dialogue models against transformers' own classes: prompts, images, logits, answers, and the tensors of
every published size.
"""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from PIL import Image
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from mulan_nodes.mulan.checkpoints.tensor_files import TensorFile
from mulan_nodes.mulan.internvl_chat.chat_files import chat_from_tensors, open_chat, unexpected
from mulan_nodes.mulan.internvl_chat.chat_loader import load_chat
from mulan_nodes.mulan.internvl_chat.chat_preprocessing import MEAN, STD
from mulan_nodes.mulan.internvl_chat.chat_prompts import KEY
from mulan_nodes.mulan.internvl_chat.chat_template import SYSTEM
from mulan_nodes.tools.random_checkpoints import internvl_chat as random_chat

TOLERANCE = 2e-5
LOGITS = 1e-4
WRITTEN = 20  # tokens
NEVER = 10**6  # an id that no vocabulary has
MODELS = [
    ("qwen2", "hf", False),
    ("qwen2", "hf", True),
    ("qwen2", "opengvlab", False),
    ("qwen3", "hf", True),
    ("qwen3", "opengvlab", False),
    ("internlm2", "hf", False),
    ("internlm2", "opengvlab", False),
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENIZED = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
IMAGE, OTHER = (torch.rand(size, generator=torch.Generator().manual_seed(7)) for size in ((40, 90, 3), (43, 61, 3)))
FRAMES = list(torch.rand((3, 20, 30, 3), generator=torch.Generator().manual_seed(8)))
SAID = [("What is left of it?", "The blue square."), ("Où est le chat ?", "Nowhere.")]
QUESTION = "它是什么? It's 12 o'clock."
# name -> what we are asked with, and the same as transformers' messages have it (system, then these).
CASES = {
    "text": ({}, [("user", [QUESTION])]),
    "picture": ({"images": [IMAGE]}, [("user", [IMAGE, QUESTION])]),
    "pictures": ({"images": [IMAGE, OTHER]}, [("user", ["Image-1: ", IMAGE, "Image-2: ", OTHER, QUESTION])]),
    "history": (
        {"images": [IMAGE], "history": SAID},
        [
            ("user", [IMAGE, SAID[0][0]]),
            ("assistant", [SAID[0][1]]),
            ("user", [SAID[1][0]]),
            ("assistant", [SAID[1][1]]),
            ("user", [QUESTION]),
        ],
    ),
    "frames": (
        {"frames": FRAMES},
        [("user", ["Frame1: ", FRAMES[0], "Frame2: ", FRAMES[1], "Frame3: ", FRAMES[2], QUESTION])],
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """checkpoint("qwen2", "hf", False) -> (transformers' model, the folder it was saved in, our CLIP of that)."""

    @cache
    def made(language, layout, tied):
        folder = random_chat.checkpoint(tmp_path_factory.mktemp("chat") / "InternVL", language, layout, tied)
        return random_chat.model(language, tied), folder, load_chat(folder)

    return made


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).numpy())


def part_of(part: str | torch.Tensor) -> dict:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": pil(part)}


def processor(folder, tiles=12) -> InternVLProcessor:
    """transformers' own, on the folder's tokenizer.json.

    Pillow resizes across first, as we always do, in the cases here.
    """
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), extra_special_tokens=named, eos_token="<|im_end|>"
    )
    settings = {"size": {"height": random_chat.TILE, "width": random_chat.TILE}, "image_mean": MEAN, "image_std": STD}
    images = GotOcr2ImageProcessorPil(crop_to_patches=True, min_patches=1, max_patches=tiles, **settings)
    return InternVLProcessor(
        images,
        tokenizer,
        InternVLVideoProcessor(**settings),
        image_seq_length=random_chat.TOKENS,
        chat_template=TEMPLATE,
    )


def ours(clip, name):
    """Our entries, and what they are as ids and pixels."""
    entries = [entry for entry, _ in clip.tokenize(QUESTION, **CASES[name][0])[KEY][0]]
    seen = [entry["data"] for entry in entries if isinstance(entry, dict)]
    place = clip.tokenizer.tokenizer.token_to_id("<IMG_CONTEXT>")
    ids = [
        id
        for entry in entries
        for id in ([entry] if isinstance(entry, int) else [place] * (len(entry["data"]) * random_chat.TOKENS))
    ]
    return entries, torch.tensor([ids]), torch.cat(seen) if seen else None


@pytest.mark.parametrize("name", [name for name in CASES if name != "frames"])
@pytest.mark.parametrize("language", ["qwen2", "qwen3"])
def test_prompt_and_pixels_are_the_processor_s(language, name, checkpoint, close):
    _, folder, clip = checkpoint(language, "hf", True)
    messages = [
        {"role": role, "content": list(map(part_of, parts))} for role, parts in [("system", [SYSTEM]), *CASES[name][1]]
    ]
    theirs = processor(folder).apply_chat_template(messages, **TOKENIZED)
    _, ids, pixels = ours(clip, name)
    assert torch.equal(ids, theirs["input_ids"])
    if pixels is not None:
        close(pixels, theirs["pixel_values"], "internvl chat pixels", 1e-6)


def test_frames_of_a_video_are_one_tile_each(checkpoint, close):
    _, folder, clip = checkpoint("qwen2", "hf", True)
    messages = [
        {"role": role, "content": list(map(part_of, parts))}
        for role, parts in [("system", [SYSTEM]), *CASES["frames"][1]]
    ]
    theirs = processor(folder, tiles=1).apply_chat_template(messages, **TOKENIZED)
    _, ids, pixels = ours(clip, "frames")
    assert torch.equal(ids, theirs["input_ids"]) and len(pixels) == len(FRAMES)
    close(pixels, theirs["pixel_values"], "internvl chat pixels", 1e-6)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("language, layout, tied", MODELS)
def test_logits_and_answers(language, layout, tied, name, checkpoint, close, monkeypatch):
    theirs, _, clip = checkpoint(language, layout, tied)
    entries, ids, pixels = ours(clip, name)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | (
        {} if pixels is None else {"pixel_values": pixels}
    )
    chat = clip.cond_stage_model.chat
    with torch.no_grad():
        golden = theirs(**inputs, output_hidden_states=True)
        prompt = chat.embed(
            [chat.encode_tiles(entry["data"]).flatten(0, 1) if isinstance(entry, dict) else entry for entry in entries]
        )
        states, every = chat.language_model.model(
            None, embeds=prompt, intermediate_output="all", final_layer_norm_intermediate=False
        )[:2]
        logits = torch.stack(
            [chat.language_model.logits(states[:, : length + 1])[:, -1] for length in range(states.shape[1])], dim=1
        )
    close(prompt, golden.hidden_states[0], f"internvl chat {language} prompt", TOLERANCE)
    close(every[:, 1], golden.hidden_states[1], f"internvl chat {language} states", TOLERANCE)
    close(states, golden.hidden_states[-1], f"internvl chat {language} states", TOLERANCE)
    close(logits, golden.logits, f"internvl chat {language} logits", LOGITS)
    monkeypatch.setattr(clip.cond_stage_model, "stop_tokens", [NEVER])
    written = theirs.generate(**inputs, max_new_tokens=WRITTEN, do_sample=False, eos_token_id=NEVER, pad_token_id=0)
    answer = clip.generate(clip.tokenize(QUESTION, **CASES[name][0]), do_sample=False, max_length=WRITTEN)
    assert answer == written[0, ids.shape[1] :].tolist() and len(answer) == WRITTEN


@pytest.mark.parametrize("language", random_chat.LANGUAGES)
def test_both_layouts_are_one_model(language, checkpoint):
    both = [dict(open_chat(checkpoint(language, layout, False)[1]).tensors()) for layout in ("hf", "opengvlab")]
    assert both[0].keys() == both[1].keys() and all(
        torch.equal(tensor, both[1][name]) for name, tensor in both[0].items()
    )


# --- full size ---

QWEN2 = Qwen2Config, dict(vocab_size=151674, rope_theta=1e6, rope_scaling={"type": "dynamic", "factor": 2.0})
QWEN3 = Qwen3Config, dict(vocab_size=151936, rope_theta=1e6, head_dim=128, max_position_embeddings=40960)
INTERNLM2 = (
    LlamaConfig,
    dict(
        vocab_size=92553,
        rope_theta=1e6,
        rms_norm_eps=1e-5,
        max_position_embeddings=32768,
        rope_scaling={"type": "dynamic", "factor": 2.0},
    ),
)
# name -> the language model, its width, feed-forward width, layers, heads, key-value heads; billions of weights, as
# published
PUBLISHED = {
    "InternVL2_5-1B": (QWEN2, 896, 4864, 24, 14, 2, 0.9),
    "InternVL2_5-2B": (INTERNLM2, 2048, 8192, 24, 16, 8, 2.2),
    "InternVL2_5-4B": (QWEN2, 2048, 11008, 36, 16, 2, 3.7),
    "InternVL2_5-8B": (INTERNLM2, 4096, 14336, 32, 32, 8, 8.1),
    "InternVL3-1B": (QWEN2, 896, 4864, 24, 14, 2, 0.9),
    "InternVL3-2B": (QWEN2, 1536, 8960, 28, 12, 2, 2.1),
    "InternVL3-8B": (QWEN2, 3584, 18944, 28, 28, 4, 7.9),
    "InternVL3_5-1B": (QWEN3, 1024, 3072, 28, 16, 8, 1.1),
    "InternVL3_5-2B": (QWEN3, 2048, 6144, 28, 16, 8, 2.3),
    "InternVL3_5-4B": (QWEN3, 2560, 9728, 36, 32, 8, 4.7),
    "InternVL3_5-8B": (QWEN3, 4096, 12288, 36, 32, 8, 8.5),
    "InternVL3-14B": (QWEN2, 5120, 13824, 48, 40, 8, 15.1),
    "InternVL3-38B": (QWEN2, 5120, 27648, 64, 40, 8, 38.4),
    "InternVL3_5-14B": (QWEN3, 5120, 17408, 40, 40, 8, 15.1),
    "InternVL3_5-38B": (QWEN3, 5120, 25600, 64, 64, 8, 38.4),
}
VISION = dict(attention_bias=True)  # InternViT-300M
VISION_6B = dict(
    hidden_size=3200,
    intermediate_size=12800,
    num_hidden_layers=45,
    num_attention_heads=25,
    use_qk_norm=True,
    norm_type="rms_norm",
    attention_bias=False,
)


def full_size(name: str):
    """transformers' model of a published size, on meta."""
    (kind, extra), width, feed_forward, layers, heads, key_value_heads, _ = PUBLISHED[name]
    config = kind(
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        tie_word_embeddings=False,
        **extra,
    )
    vision = InternVLVisionConfig(**(VISION_6B if "38B" in name else VISION))
    full_config = InternVLConfig(vision_config=vision, text_config=config, tie_word_embeddings=False)
    with torch.device("meta"):
        return InternVLForConditionalGeneration(full_config)


def saved(name: str) -> str:
    """How transformers writes the name of a tensor."""
    return (
        name.replace("model.language_model.", "language_model.model.")
        .replace("lm_head.", "language_model.lm_head.")
        .removeprefix("model.")
    )


@pytest.mark.parametrize("layout", ["hf", "hf, as saved", "opengvlab"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_of_every_published_size_nothing_is_missing_and_nothing_unexpected(name, layout, tmp_path):
    made = full_size(name)
    language = {Qwen2Config: "qwen2", Qwen3Config: "qwen3", LlamaConfig: "internlm2"}[PUBLISHED[name][0][0]]
    tensors, config = dict(made.state_dict()), made.config.to_dict()
    if layout != "hf":
        tensors = {saved(key): tensor for key, tensor in tensors.items()}
    if layout == "opengvlab":
        tensors = random_chat.to_opengvlab(tensors, config["text_config"] if language == "internlm2" else None)
        config = random_chat.opengvlab_config(config, language)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    opened = chat_from_tensors(TensorFile(tmp_path, shapes, tensors.__getitem__, {"config": json.dumps(config)}))
    assert unexpected(opened) == []
    assert opened.config.tokens_per_tile == 256 and opened.config.vision.image_size == 448
    built = opened.build(operations=torch.nn, device="meta").state_dict()
    for ours, value in opened.tensors():
        assert value.shape == built.pop(ours).shape, ours
    assert not built and round(sum(tensor.numel() for tensor in tensors.values()) / 1e9, 1) == PUBLISHED[name][-1]
