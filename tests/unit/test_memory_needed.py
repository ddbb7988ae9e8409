"""Memory that is asked of ComfyUI is memory that is needed: every model at full size, on a card that is not there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.ops
import numpy as np
import pytest
import torch

from mulan_nodes.mulan.checkpoints.devices import streaming_memory
from mulan_nodes.mulan.checkpoints.language_model import HEAD_NORM, LanguageConfig
from mulan_nodes.mulan.checkpoints.tensor_files import TensorFile
from mulan_nodes.mulan.conditioning import internvl_llama
from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter
from mulan_nodes.mulan.conditioning.internvl_llama import InternVLEncoder
from mulan_nodes.mulan.conditioning.text_config import TextConfig
from mulan_nodes.mulan.internvl import internvl_model
from mulan_nodes.mulan.internvl.contrastive import ContrastiveConfig, ContrastiveModel, QueryReader, ReaderConfig
from mulan_nodes.mulan.internvl.intern_vit import InternViTConfig
from mulan_nodes.mulan.internvl_chat import chat_clip
from mulan_nodes.mulan.internvl_chat.chat_model import ChatConfig, InternVLChat
from mulan_nodes.mulan.internvl_chat.chat_prompts import KEY
from mulan_nodes.tests.parity.visionllm_case import listed
from mulan_nodes.tools.comfyui import ROOT
from mulan_nodes.tools.fake_card import CARD, FakeCard
from mulan_nodes.tools.random_checkpoints.visionllm import sentencepiece_model
from mulan_nodes.visionllm_nodes.model import answers, decoding, perception, prompt_templates
from mulan_nodes.visionllm_nodes.model.prefill import ImageView, load_weights
from mulan_nodes.visionllm_nodes.model.selection import Limits
from mulan_nodes.visionllm_nodes.model.visionllm_files import visionllm_from_tensors
from mulan_nodes.visionllm_nodes.model.visionllm_loader import LoadedVisionLLM

GIB = 2**30
MANIFESTS = ROOT / "tests" / "parity" / "manifests" / "visionllm"
CPU = torch.device("cpu")
NO_FILE = TensorFile(ROOT, {}, lambda name: torch.empty(0), {})
FULL_HD = np.zeros((1080, 1440, 3), np.uint8)  # five views
TEXT = TextConfig(49954, 4096, 11008, 32, 32, 1e-6)
TOWER = InternViTConfig(3200, 12800, 48, 25, 14, 224)
CHAT_TOWER = InternViTConfig(1024, 4096, 24, 16, 14, 448, rms_norm=False, qk_norm=False, qkv_bias=True)
CHATS = {
    "1B": LanguageConfig(
        vocab_size=151674, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=32768, qkv_bias=True, lm_head=True,
    ),
    "8B": LanguageConfig(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, max_position_embeddings=40960, q_norm=HEAD_NORM, k_norm=HEAD_NORM,
        lm_head=True,
    ),
}  # fmt: skip


@pytest.fixture
def card():
    with FakeCard() as entered:
        yield entered


@pytest.fixture
def asked(monkeypatch):
    """The bytes that ComfyUI was last asked for."""
    last = SimpleNamespace(memory=0, total=80 * GIB)
    monkeypatch.setattr(
        comfy.model_management, "load_models_gpu", lambda _, memory_required: setattr(last, "memory", memory_required)
    )
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_: last.total)
    return last


@pytest.fixture
def visionllm(card, asked, tmp_path):
    """visionllm(size, decoder, weights, kept) -> the published model; `kept` is the dtype of its weights."""

    def load(size="7b", *instead, weights=CARD, kept=torch.bfloat16, dtype=torch.bfloat16):
        tensors = listed(MANIFESTS / f"visionllmv2_{size}_swin_t.json")["tensors"]
        for manifest in (listed(MANIFESTS / f"{name}.json") for name in instead):
            others = {name: shape for name, shape in tensors.items() if not name.startswith(manifest["prefix"])}
            tensors = others | manifest["tensors"]
        shapes = {name: tuple(shape) for name, shape in tensors.items()}
        (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(320))
        file = visionllm_from_tensors(
            TensorFile(tmp_path, shapes, lambda name: torch.empty(shapes[name], device="meta"), {})
        )
        model = file.build(operations=comfy.ops.manual_cast, device=weights, dtype=kept).requires_grad_(False)
        bytes_of_weights = sum(parameter.nbytes for parameter in model.parameters())
        asked.total = 80 * GIB if weights == CARD else bytes_of_weights // 2
        patcher: Any = SimpleNamespace(
            load_device=CARD, add_callback=lambda *_: None, model_size=lambda: bytes_of_weights
        )
        return LoadedVisionLLM(file, model, patcher, dtype, torch.float32)

    return load


@pytest.fixture(params=["on the card", "sent over"])
def weights(request, monkeypatch):
    """Where the weights are: on the card, or in main memory, because the card is too small for them."""
    on_card = request.param == "on the card"
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_: (80 if on_card else 0) * GIB)
    return CARD if on_card else CPU


def within(card, asked: int) -> None:
    peak = card.peak_since_start
    print(f"peak {peak / GIB:.2f} asked {asked / GIB:.2f}: {asked / peak:.2f}")
    assert 0.8 <= asked / peak <= 1.5, f"the peak is {peak / GIB:.2f} GiB, asked for are {asked / GIB:.2f}"


# --- VisionLLM ---


@pytest.mark.parametrize(
    "size, count, weights, kept",
    [
        ("7b", 1, CARD, torch.bfloat16),
        ("7b", 4, CARD, torch.bfloat16),
        ("7b", 1, CPU, torch.float16),
        ("26b", 1, CARD, torch.bfloat16),
        ("26b", 1, CPU, torch.bfloat16),
    ],
)
def test_an_answer_about_an_image(visionllm, card, asked, size, count, weights, kept):
    loaded = visionllm(size, weights=weights, kept=kept)
    card.start()
    questions = [prompt_templates.chat(f"What is it {index}?") for index in range(count)]
    said = answers.Conversation(loaded, [FULL_HD], questions)
    tokens = iter(said)
    for _ in range(2):
        next(tokens)
    within(card, asked.memory)


def test_a_token_waits_for_the_card_once(visionllm, card):
    """For its id and a flag that the logits are finite, which come together; and its operations do not become more."""
    said = iter(answers.Conversation(visionllm(), [FULL_HD], [prompt_templates.chat("What is it?")])._generation)
    next(said)
    card.start()
    next(said)
    print(card.operation_count, card.syncs, card.operations.most_common(8))
    assert card.syncs == 2 and card.operation_count < 2200


@pytest.mark.parametrize("words", [10, 900])
def test_a_question_behind_the_cache(visionllm, card, asked, words):
    loaded = visionllm()
    question = prompt_templates.chat("a" + " a" * words)
    answers.Conversation(loaded, [FULL_HD], [question], max_tokens=1)
    card.start()
    answers.Conversation(loaded, [FULL_HD], [question], max_tokens=1)
    within(card, asked.memory)


@pytest.mark.parametrize(
    "decoder, dtype, count, size",
    [
        ("swin_t", torch.bfloat16, 0, (1080, 1440)),
        ("swin_t", torch.float32, 100, (3000, 4000)),
        ("swin_t", torch.bfloat16, 160, (2160, 3840)),  # the most masks that one answer may have
        ("internimage_h", torch.bfloat16, 100, (1080, 1440)),
        ("internimage_h", torch.float32, 900, (1080, 1080)),
    ],
)
def test_detection_with_masks(visionllm, card, asked, decoder, count, size, dtype):
    loaded = visionllm("7b", f"gdino_{decoder}", dtype=dtype, kept=dtype)
    view = ImageView(loaded, np.zeros((*size, 3), np.uint8))
    canvas = decoding.grounding_canvas(loaded, view)
    queries = torch.empty(80, 4, 4096, dtype=dtype, device=CARD)
    names = [f"name {index}" for index in range(80)]
    load_weights(loaded, [], 0, canvas.memory)
    card.start()
    decoding.detect(loaded, canvas, queries, names, Limits(max_detections=count), masks=bool(count))
    within(card, asked.memory)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_name_for_every_pixel(visionllm, card, asked, dtype):
    loaded = visionllm(dtype=dtype, kept=dtype)
    canvas = decoding.grounding_canvas(loaded, ImageView(loaded, FULL_HD), semantic=True)
    load_weights(loaded, [], 0, canvas.memory)
    card.start()
    decoding.segment_pixels(loaded, canvas, torch.empty(20, 4, 4096, dtype=dtype, device=CARD), ["name"] * 20)
    within(card, asked.memory)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_keypoints(visionllm, card, asked, dtype):
    loaded = visionllm(dtype=dtype, kept=dtype)
    canvas = decoding.pose_canvas(loaded, ImageView(loaded, FULL_HD))
    queries = torch.empty(18, 4, 4096, dtype=dtype, device=CARD)
    load_weights(loaded, [], 0, canvas.memory)
    card.start()
    points = [str(index) for index in range(17)]
    decoding.detect_keypoints(loaded, canvas, queries, ["person"], points, Limits())
    within(card, asked.memory)


def test_a_perception_as_a_whole(visionllm, card, asked):
    loaded = visionllm()
    card.start()
    perception.detect(loaded, FULL_HD, ["star"])
    within(card, asked.memory)


# --- MuLan ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("count", [1, 12, 16])
def test_prompts(card, count, dtype, weights, monkeypatch):
    monkeypatch.setattr(internvl_llama, "compute_dtype", lambda device: dtype)
    encoder = text_encoder(weights)
    card.start()
    encoder.hidden_states([[1, *range(5, 82), 2, 0][:80]] * count)
    within(card, encoder.memory_required(count * 80, CARD))


def text_encoder(weights) -> InternVLEncoder:
    adapter = LanguageAdapter(
        AdapterShape(4096, 768, 120, 3072), dtype=torch.float32, device=weights, operations=comfy.ops.manual_cast
    )
    encoder = InternVLEncoder(TEXT, adapter, None, dtype=torch.float16, device=weights, model_options={})
    encoder.set_clip_options({"execution_device": CARD})
    return encoder.requires_grad_(False)


# --- InternVL ---


@pytest.mark.parametrize("count", [1, 16])
def test_the_tower(card, count, weights):
    model = ContrastiveModel(
        ContrastiveConfig(TOWER, 4096, 768, 16), operations=comfy.ops.manual_cast, dtype=torch.float16, device=weights
    ).requires_grad_(False)
    images = torch.empty(count, 3, 224, 224, dtype=torch.float16)
    card.start()
    model.pool_images(model.encode_images(images.to(CARD)))
    asked = internvl_model._memory(TOWER, count, torch.float16)
    within(card, asked + streaming_memory(model, CARD, asked))


def test_the_reader(card, weights):
    count, encoder = internvl_model.BATCH_SIZE, text_encoder(weights)
    config = ReaderConfig(4096, 3200, 96, 32, tuple(range(0, 32, 2)), 768, 16, 1e-6)
    reader = QueryReader(config, operations=comfy.ops.manual_cast, dtype=torch.float16, device=weights)
    states = torch.empty(count, 257, 3200, dtype=torch.float16)
    card.start()
    reader.requires_grad_(False)(states.to(CARD), encoder.transformer.model)
    within(card, encoder.memory_required(count * 96, CARD) + states.numel() * internvl_model.BYTES_PER_STATE)


# --- chat ---


@pytest.mark.parametrize("tiles", [1, 13])
@pytest.mark.parametrize("size", CHATS)
def test_a_talk(card, size, weights, tiles):
    chat = InternVLChat(
        ChatConfig(CHAT_TOWER, CHATS[size]), operations=comfy.ops.manual_cast, dtype=torch.bfloat16, device=weights
    )
    model = chat_clip.InternVLChatEncoder(chat.requires_grad_(False), [1], NO_FILE, torch.bfloat16)
    model.set_clip_options({"execution_device": CARD})
    image = {"type": "image", "data": torch.empty(tiles, 3, 448, 448)}
    tokens = {KEY: [[(image, 1.0), *((index, 1.0) for index in range(60))]]}
    card.start()
    model.generate(tokens, max_length=chat_clip.ANSWER_TOKENS, do_sample=False)  # the first token ends it
    within(card, model.memory_estimation_function(tokens, CARD))
