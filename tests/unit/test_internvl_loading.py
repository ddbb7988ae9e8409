"""InternVL from its files: what is read and refused, batches, one copy in memory, and ComfyUI's management of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from pathlib import Path

import comfy.model_management
import comfy.sd
import pytest
import torch
from comfy.sd1_clip import SDClipModel
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints.tensor_files import TensorFile, WrongFileError, open_tensors
from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, to_published
from mulan_nodes.mulan.conditioning.clip import load_clip
from mulan_nodes.mulan.internvl import internvl_files, internvl_model
from mulan_nodes.mulan.internvl.internvl_files import open_internvl
from mulan_nodes.mulan.internvl.internvl_loader import load_internvl
from mulan_nodes.mulan.internvl.preprocessing import preprocess
from mulan_nodes.tools.random_checkpoints import internvl as random_internvl

TEXTS = [
    "a red circle",
    "",
    "two blue squares beside a long green line that goes on and on",
    "чёрная собака",
    "circle " * 60,
    "一只猫",
]
DEFAULT_SIZES = dict(
    width=128, heads=1, text_width=128, text_heads=1, pool_heads=16
)  # what a file without a configuration stands for


def images(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(10 + 3 * number % 17, 12 + 5 * number % 23, 3, generator=generator) for number in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return random_internvl.checkpoint(tmp_path_factory.mktemp("published") / "InternVL-small")


@pytest.fixture(scope="module")
def loaded(folder):
    """loaded["C"], loaded["G"]"""
    return {mode: load_internvl(folder, mode) for mode in "CG"}


# --- embeddings ---


@pytest.mark.parametrize("mode", "CG")
def test_embeddings_are_of_unit_length_float32_and_on_the_cpu(loaded, mode):
    for found in (loaded[mode].embed_images(images(3)), loaded[mode].embed_texts(TEXTS)):
        assert found.dtype == torch.float32 and found.device.type == "cpu" and found.shape[1] == 24
        assert torch.allclose(found.norm(dim=1), torch.ones(len(found)), atol=1e-6)
    assert loaded[mode].embed_images([]).shape == loaded[mode].embed_texts([]).shape == (0, 24)


@pytest.mark.parametrize("mode", "CG")
def test_batches_change_nothing(loaded, mode, monkeypatch):
    """More images than a batch and, in mode G, than a round of the tower; texts of all lengths in one call."""
    monkeypatch.setattr(internvl_model, "BATCH_SIZE", 3)
    monkeypatch.setattr(internvl_model, "READER_BATCHES", 2)
    monkeypatch.setattr(internvl_model, "MAX_TEXT_STATES", 90)
    seen, model = images(8), loaded[mode]
    assert torch.allclose(
        model.embed_images(seen), torch.cat([model.embed_images([image]) for image in seen]), atol=1e-5
    )
    assert torch.allclose(model.embed_texts(TEXTS), torch.cat([model.embed_texts([text]) for text in TEXTS]), atol=1e-5)


def test_texts_are_cut_at_80_tokens_and_odd_ones_are_read(loaded):
    long = ["word " * 70 + "red", "word " * 70 + "blue"]
    ids = [internvl_model.text_ids(loaded["C"].tokenizer, text) for text in long]
    assert ids[0] == ids[1] and len(ids[0]) == 80 and ids[0][-1] == 2
    assert loaded["C"].embed_texts(["half a character \ud83d", "\0", "<unk>" * 90]).isfinite().all()


def test_modes_share_texts_and_differ_in_images(loaded):
    assert torch.equal(loaded["C"].embed_texts(TEXTS), loaded["G"].embed_texts(TEXTS))
    assert (loaded["C"].embed_images(images(2)) - loaded["G"].embed_images(images(2))).abs().max() > 0.01
    assert loaded["C"].logit_scale == pytest.approx(loaded["C"].model.logit_scale.exp().item())


@pytest.mark.parametrize("shards", ("bin", "safetensors"))
def test_all_published_layouts_give_the_same_model(loaded, shards, tmp_path):
    other = load_internvl(random_internvl.checkpoint(tmp_path / "sharded", shards=shards), "G")
    assert torch.equal(other.embed_images(images(2)), loaded["G"].embed_images(images(2)))


def test_the_single_pth_is_mode_c(tmp_path):
    folder = load_internvl(random_internvl.checkpoint(tmp_path / "folder", **DEFAULT_SIZES))
    file = random_internvl.single(tmp_path / "pth" / "internvl_c_small.pth", **DEFAULT_SIZES)
    single = load_internvl(file)
    assert torch.allclose(single.embed_images(images(3)), folder.embed_images(images(3)), atol=1e-6)
    assert torch.allclose(single.embed_texts(TEXTS), folder.embed_texts(TEXTS), atol=1e-6)
    assert single.logit_scale == folder.logit_scale
    with pytest.raises(
        WrongFileError,
        match=r"internvl_c_small.pth \(in .*\) holds only InternVL-C.*choose mode C, or the checkpoint OpenGVLab",
    ):
        load_internvl(file, "G")
    (file.parent / "tokenizer.model").unlink()
    with pytest.raises(WrongFileError, match="sentencepiece model is not beside it"):
        load_internvl(file)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 200.0])
def test_a_logit_scale_that_gives_no_scores_is_refused(value, tmp_path):
    file = random_internvl.single(tmp_path / "internvl_c_small.pth", **DEFAULT_SIZES)
    tensors = torch.load(file, weights_only=True)
    tensors["logit_scale"] = torch.full_like(tensors["logit_scale"], value)
    torch.save(tensors, file)
    with pytest.raises(WrongFileError, match=r"internvl_c_small.pth \(in .*\): its logit_scale is "):
        load_internvl(file)


# --- images ---


@pytest.mark.parametrize("height, width", [(224, 224), (224, 300), (500, 375), (37, 800), (225, 224), (1, 1), (3, 700)])
@pytest.mark.parametrize("framing", ("crop", "whole"))
def test_images_are_framed_as_by_torchvision(framing, height, width):
    """Pillow from 12 on goes down before it goes across where that is quicker, which rounds otherwise by a level now
    and then.
    """
    from PIL import Image
    from torchvision import transforms

    pixels = (
        (torch.rand(height, width, 3, generator=torch.Generator().manual_seed(height)) * 255).round().to(torch.uint8)
    )
    how = transforms.InterpolationMode.BICUBIC
    frame = (
        [transforms.Resize((224, 224), how)]
        if framing == "whole"
        else [transforms.Resize(224, how), transforms.CenterCrop(224)]
    )
    upstream = transforms.Compose(
        [*frame, transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    )
    ours, theirs = preprocess(pixels.float() / 255, 224, framing), upstream(Image.fromarray(pixels.numpy()))
    assert ours.shape == theirs.shape
    in_order = height == 224 or width == 224  # one pass, or none
    assert torch.equal(ours, theirs) if in_order else (ours - theirs).abs().max() < 1.01 / 255 / 0.224


def test_what_is_no_image_is_refused(loaded):
    for image, words in ((torch.zeros(0, 4, 3), "must have the shape"), (torch.full((4, 4, 3), float("nan")), "NaN")):
        with pytest.raises(ValueError, match=words):
            loaded["C"].embed_images([image])
    with pytest.raises(ValueError, match="unknown framing 'middle': expected one of crop, whole"):
        loaded["C"].embed_images(images(1), "middle")


# --- one copy of the text encoder ---


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("adapter") / "sd15.safetensors"
    torch.manual_seed(3)
    module = LanguageAdapter(AdapterShape(text_hidden_size=64, context_dim=768, num_queries=8, intermediate_size=64))
    torch.nn.init.normal_(module.queries)
    save_file(to_published(dict(module.state_dict())), path)
    return path


@pytest.mark.parametrize("mode", "CG")
def test_a_mulan_clip_lends_its_text_encoder(folder, loaded, adapter, mode):
    clip = load_clip(folder, adapter)
    before = clip.encode("a cat")
    lent = load_internvl(folder, mode, clip=clip)
    assert lent.clip is clip and lent.encoder is clip.cond_stage_model.internvl
    assert torch.allclose(lent.embed_texts(TEXTS), loaded[mode].embed_texts(TEXTS), atol=1e-6)
    assert torch.allclose(lent.embed_images(images(2)), loaded[mode].embed_images(images(2)), atol=1e-6)
    assert torch.equal(clip.encode("a cat"), before)
    assert lent.identity == loaded[mode].identity


def test_a_clip_whose_last_layers_are_cut_is_read_to_its_end(folder, loaded, adapter):
    clip = load_clip(folder, adapter)
    clip.clip_layer(-2)
    clip.encode("a cat")
    assert torch.allclose(
        load_internvl(folder, clip=clip).embed_texts(TEXTS), loaded["C"].embed_texts(TEXTS), atol=1e-6
    )


def test_the_reader_computes_where_the_lent_llama_does(folder, adapter):
    clip = load_clip(folder, adapter)
    clip.patcher.load_device, clip.patcher.offload_device = (
        torch.device("cpu:0"),
        torch.device("cpu:1"),
    )  # other names of the CPU
    lent = load_internvl(folder, "G", clip=clip)
    assert (lent.reader_patcher.load_device, lent.reader_patcher.offload_device) == (
        torch.device("cpu:0"),
        torch.device("cpu:1"),
    )
    assert lent.patcher.load_device == torch.device("cpu")


def test_another_clip_is_refused(folder, tmp_path, adapter):
    other = comfy.sd.CLIP(no_init=True)
    other.cond_stage_model = SDClipModel.__new__(SDClipModel)
    with pytest.raises(
        ValueError, match="the CLIP's text encoder is a SDClipModel, .* connect a CLIP of the MuLan Loader, or none"
    ):
        load_internvl(folder, clip=other)
    wide = random_internvl.checkpoint(tmp_path / "wide", text_width=128)
    with pytest.raises(WrongFileError, match=r"of hidden size 128 .*InternVL-small of the CLIP has hidden size 64"):
        load_internvl(wide, clip=load_clip(folder, adapter))
    with pytest.raises(WrongFileError, match=r"wide \(in .*\) has hidden size 128"):
        load_internvl(folder, text_encoder=wide)
    short = random_internvl.checkpoint(tmp_path / "short", text_layers=1)
    with pytest.raises(WrongFileError, match="more than 2 layers.* and 1 layers"):
        load_internvl(folder, "G", text_encoder=short)


def test_the_text_encoder_may_be_another_file(folder, loaded, tmp_path):
    text = {
        name.removeprefix("qllama."): value
        for name, value in random_internvl.tensors().items()
        if name.startswith("qllama.model.") and ".cross_attn." not in name
    }
    text["spiece_model"] = torch.frombuffer(bytearray((folder / "tokenizer.model").read_bytes()), dtype=torch.uint8)
    save_file(text, tmp_path / "text.safetensors", metadata={"config": json.dumps({"num_attention_heads": 4})})
    vision = {
        name: value
        for name, value in random_internvl.tensors().items()
        if not name.startswith("qllama.") or ".cross_attn." in name
    }
    save_file(vision, tmp_path / "vision.safetensors", metadata={"config": (folder / "config.json").read_text("utf-8")})
    pair = load_internvl(tmp_path / "vision.safetensors", "G", text_encoder=tmp_path / "text.safetensors")
    assert torch.equal(pair.embed_images(images(2)), loaded["G"].embed_images(images(2)))
    assert torch.equal(pair.embed_texts(TEXTS), loaded["G"].embed_texts(TEXTS))
    with pytest.raises(
        WrongFileError, match=r"vision.safetensors \(in .*\) holds only InternVL's vision side: choose its text encoder"
    ):
        load_internvl(tmp_path / "vision.safetensors")
    with pytest.raises(
        WrongFileError,
        match=r"text.safetensors \(in .*\) is a large language model's text encoder \(it belongs in models/text_enc",
    ):
        load_internvl(tmp_path / "text.safetensors")
    with pytest.raises(
        WrongFileError,
        match=r"is an InternVL-C or -G checkpoint, without its text encoder \(it belongs in models/internvl\)",
    ):
        load_internvl(folder, text_encoder=tmp_path / "vision.safetensors")


# --- what is read, and who keeps it ---


def test_mode_c_reads_nothing_of_mode_g(folder, monkeypatch):
    read = []

    def spied(path):
        file = open_tensors(path)
        return TensorFile(file.path, file.shapes, lambda name: (read.append(name), file.read(name))[1], file.metadata)

    monkeypatch.setattr(internvl_files, "open_tensors", spied)
    load_internvl(folder).embed_texts(["a"])
    assert len(read) == len(set(read))
    parts = re.compile(r"query_tokens|clip_projector2|itm_head|cross_attn\.[qkvo]_proj|lm_head")
    assert not [name for name in read if parts.search(name)]
    read.clear()
    load_internvl(folder, "G")
    assert {
        name for name in random_internvl.tensors() if not name.startswith("itm_head") and "lm_head" not in name
    } == set(read)


def test_images_and_texts_have_only_what_they_need_loaded(loaded, monkeypatch):
    asked = []
    real = comfy.model_management.load_models_gpu

    def load(models, memory_required):
        asked.append((models, memory_required))
        real(models, memory_required=memory_required)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", load)
    c, g = loaded["C"], loaded["G"]
    c.embed_images(images(1))
    c.embed_texts(["a"])
    assert [models for models, _ in asked] == [[c.patcher], [c.clip.patcher]]
    asked.clear()
    g.embed_images(images(40))
    assert [models for models, _ in asked] == [[g.patcher]] * 3 + [[g.clip.patcher, g.reader_patcher]] * 3
    assert all(memory > 0 for _, memory in asked)
    assert asked[0][1] > asked[2][1]  # 16 images, 8


def test_comfyui_can_free_all_of_it(loaded):
    model = loaded["G"]
    model.embed_images(images(1))
    ours = model.patcher, model.reader_patcher, model.clip.patcher
    assert {id(entry.model) for entry in comfy.model_management.current_loaded_models} >= {
        id(patcher) for patcher in ours
    }
    before = model.embed_images(images(1))
    comfy.model_management.unload_all_models()
    assert not comfy.model_management.current_loaded_models
    assert torch.equal(model.embed_images(images(1)), before)


def test_weights_stay_where_the_file_gave_them(folder, monkeypatch):
    """Mapped from it: nothing is copied."""
    given = {}

    def spied(path):
        file = open_tensors(path)
        return TensorFile(file.path, file.shapes, lambda name: given.setdefault(name, file.read(name)), file.metadata)

    monkeypatch.setattr(internvl_files, "open_tensors", spied)
    model = load_internvl(folder, "G")
    model.embed_images(images(1))
    places = {value.data_ptr() for value in given.values()}
    for module in (model.model, model.reader, model.encoder.transformer):
        assert {weight.data_ptr() for weight in module.parameters()} <= places


@pytest.mark.parametrize("dtype, near", [(torch.float16, 5e-3), (torch.bfloat16, 3e-2)])
def test_the_tower_computes_in_the_dtype_asked_for(folder, loaded, dtype, near):
    model = load_internvl(folder, "G", dtype=dtype)
    states = model.model.encode_images(torch.zeros(1, 3, 16, 16, dtype=dtype))
    assert states.dtype == dtype and model.dtype == dtype
    difference = (model.embed_images(images(4)) - loaded["G"].embed_images(images(4))).norm(dim=1).max()
    assert 0 < difference < near


def test_the_identity_tells_files_mode_and_dtype(folder, loaded, tmp_path):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    first = load_internvl(copy).identity
    assert load_internvl(copy).identity == first
    others = [load_internvl(copy, "G").identity, load_internvl(copy, dtype=torch.float16).identity]
    os.utime(copy / "model.safetensors", (1, 1))
    others.append(load_internvl(copy).identity)
    assert len({first, *others}) == 4
    assert loaded["C"].name == folder.name and loaded["C"].mode == "C" and loaded["G"].mode == "G"


def test_an_interrupt_stops_it(loaded):
    for work, given in (
        (loaded["C"].embed_images, images(2)),
        (loaded["C"].embed_texts, TEXTS),
        (loaded["G"].embed_images, images(2)),
    ):
        comfy.model_management.interrupt_current_processing(True)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            work(given)
    assert all(not layer._forward_hooks for layer in loaded["C"].model.vision_model.layers)


class Files:
    """Images that are read when they are asked for; `asked` has their indices."""

    def __init__(self, count: int):
        self.asked: list[int] = []
        self.images = images(count)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index: int):
        self.asked.append(index)
        return self.images[index]


@pytest.mark.parametrize("mode", "CG")
def test_the_next_batch_is_prepared_while_the_tower_works_and_no_further_one(loaded, mode, monkeypatch):
    """So that neither waits for the other, and a folder's files need not all be in memory."""
    monkeypatch.setattr(internvl_model, "BATCH_SIZE", 2)
    expected = loaded[mode].embed_images(images(7))
    files, model, seen = Files(7), loaded[mode].model, []
    encode = model.encode_images

    def waits_for_the_next(pixels):
        seen.append(len(pixels))
        coming = min(sum(seen) + 2, 7)
        deadline = time.monotonic() + 30
        while len(files.asked) < coming and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert files.asked == list(range(coming))
        return encode(pixels)

    monkeypatch.setattr(model, "encode_images", waits_for_the_next)
    assert torch.equal(loaded[mode].embed_images(files), expected) and seen == [2, 2, 2, 1]


@pytest.mark.parametrize("bad", [0, 3, 6])
def test_an_image_that_fails_in_the_thread_is_told_and_nothing_goes_on(loaded, bad, monkeypatch):
    monkeypatch.setattr(internvl_model, "BATCH_SIZE", 2)
    files = Files(20)
    files.images[bad] = torch.full((4, 4, 3), float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        loaded["C"].embed_images(files)
    assert files.asked == list(range(bad + 1))


def test_stop_ends_the_preparing_too(loaded, monkeypatch):
    """Also while it takes long, as it does for large images; and the flag is the caller's to see."""
    model, files, slow = loaded["C"].model, Files(64), threading.Event()
    prepare = internvl_model.preprocess

    def slowly(*image):
        if len(files.asked) == 20:
            comfy.model_management.interrupt_current_processing(True)
            slow.wait(30)
        return prepare(*image)

    monkeypatch.setattr(internvl_model, "preprocess", slowly)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        loaded["C"].embed_images(files)
    slow.set()
    asked = list(files.asked)
    time.sleep(0.1)
    assert files.asked == asked and len(asked) == 20 and not comfy.model_management.processing_interrupted()
    assert all(not layer._forward_hooks for layer in model.vision_model.layers)


def test_damaged_weights_are_reported(tmp_path):
    folder = random_internvl.checkpoint(tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    weights["clip_projector.cross_attn.proj.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    model = load_internvl(folder)
    named = r"damaged \(in .* of images that are not finite: its clip_projector.cross_attn.proj.bias contains NaN or"
    with pytest.raises(ValueError, match=named):
        model.embed_images(images(1))
    weights["clip_projector.cross_attn.proj.bias"][0] = 0
    weights["text_projection"][0, 0] = float("inf")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match="of texts that are not finite: its text_projection contains NaN or infinity"):
        load_internvl(folder).embed_texts(["a"])
    weights["text_projection"][0, 0] = 0
    norm = "qllama.model.layers.0.input_layernorm.weight"
    weights[norm][0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    damaged = load_internvl(folder, "G")
    for embed, given in ((damaged.embed_texts, ["a"]), (damaged.embed_images, images(1))):
        with pytest.raises(ValueError, match="layers.0.input_layernorm.weight of its text encoder"):
            embed(given)


@pytest.mark.parametrize("mode", "CG")
def test_numbers_that_overflow_name_the_precision(tmp_path, mode):
    """The tower of a real file does in float16 what a weight of 60000 does here: the file is as it should be."""
    folder = random_internvl.checkpoint(tmp_path / "large")
    weights = load_file(folder / "model.safetensors")
    large = next(name for name in weights if name.startswith("vision_model.") and name.endswith("mlp.fc1.weight"))
    weights[large] = weights[large].clone().fill_(6e4)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match="overflow in float16. Choose another precision: bf16 or fp32"):
        load_internvl(folder, mode, dtype=torch.float16).embed_images(images(1))
    assert load_internvl(folder, mode, dtype=torch.bfloat16).embed_images(images(1)).isfinite().all()


# --- files that cannot serve ---

OTHERS = {
    "a MuLan adapter": (["queries", "proj.0.weight"], "a MuLan adapter"),
    "VisionLLM": (
        ["llm.model.embed_tokens.weight", "vl_bridge.weight"],
        r"a VisionLLM v2 model \(it belongs in models/visionllm\)",
    ),
    "a chat model": (
        ["vision_model.embeddings.class_embedding", "mlp1.0.weight", "language_model.model.norm.weight"],
        r"an InternVL chat model \(it belongs in models/internvl_chat\)",
    ),
    "a chat model of transformers": (
        [
            "model.vision_tower.embeddings.cls_token",
            "model.multi_modal_projector.linear_1.weight",
            "model.language_model.norm.weight",
        ],
        r"an InternVL chat model \(it belongs in models/internvl_chat\)",
    ),
    "InternViT": (
        ["embeddings.class_embedding", "encoder.layers.0.ls1", "encoder.layers.0.attn.q_norm.weight"],
        "InternViT alone",
    ),
    "a LoRA": (["lora_unet_x.lora_down.weight"], r"a LoRA \(it belongs in models/loras\)"),
    "a checkpoint": (["model.diffusion_model.x"], r"a whole checkpoint \(it belongs in models/checkpoints\)"),
}


@pytest.mark.parametrize("tensors, words", OTHERS.values(), ids=OTHERS)
def test_other_files_are_named_for_what_they_are(tmp_path, tensors, words):
    save_file({name: torch.zeros(4, 4) for name in tensors}, tmp_path / "other.safetensors")
    expected = "expected InternVL-C or -G, from OpenGVLab/InternVL-14B-224px on Hugging Face, in models/internvl"
    with pytest.raises(WrongFileError, match=rf"other.safetensors \(in .*\) is {words}.*; {expected}"):
        open_internvl(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "name",
    (
        "logit_scale",
        "vision_model.encoder.layers.1.attn.q_norm.weight",
        "clip_projector.cross_attn.q_bias",
        "clip_projector2.norm1_k.weight",
        "qllama.model.layers.2.cross_attn.norm2.weight",
        "vision_model.encoder.layers.0.mlp.fc1.weight",
        "vision_model.embeddings.patch_embedding.weight",
    ),
)
def test_a_missing_tensor_is_reported(tmp_path, name):
    folder = random_internvl.checkpoint(tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        WrongFileError,
        match=rf"cut \(in .*\) is incomplete: .*{name.split('.')[-2] if '.' in name else name}.*Download it again",
    ):
        open_internvl(folder)


def test_a_tensor_of_another_shape_is_reported(tmp_path):
    folder = random_internvl.checkpoint(tmp_path / "odd")
    weights = load_file(folder / "model.safetensors")
    weights["clip_projector.cross_attn.k.weight"] = torch.zeros(48, 40)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(
        WrongFileError, match=r"k.weight \[48, 40\] cannot be clip_projector.cross_attn.k.weight \[48, 48\]"
    ):
        open_internvl(folder)


@pytest.mark.parametrize("text, words", [("{", "config.json is not valid JSON"), ("[]", "config.json holds a list")])
def test_a_damaged_configuration_is_reported(tmp_path, text, words):
    folder = random_internvl.checkpoint(tmp_path / "damaged")
    (folder / "config.json").write_text(text)
    with pytest.raises(WrongFileError, match=words):
        open_internvl(folder)


@pytest.mark.parametrize(
    "config, words",
    [
        (
            {"vision_config": {"num_attention_heads": 5}},
            "vision_config.num_attention_heads is 5, expected a divisor of 48, the model's width",
        ),
        ({"attn_pool_num_heads": 7}, "attn_pool_num_heads is 7, expected a divisor of 48"),
        ({"vision_config": 3}, "odd .*vision_config is 3, expected an object"),
        (
            {"qllama_config": {"num_attention_heads": 9}},
            "qllama_config.num_attention_heads is 9, expected a divisor of 64",
        ),
    ],
)
def test_heads_that_cannot_share_the_width_are_reported(tmp_path, config, words):
    folder = random_internvl.checkpoint(tmp_path / "odd")
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, **config}))
    with pytest.raises(WrongFileError, match=words):
        load_internvl(folder, "G")


def test_an_unknown_mode_is_reported(folder):
    with pytest.raises(ValueError, match="unknown mode 'X': expected one of C, G"):
        load_internvl(folder, "X")


def test_a_tensor_nobody_knows_is_logged_and_a_known_useless_one_is_not(tmp_path, caplog):
    folder = random_internvl.checkpoint(tmp_path / "more")
    load_internvl(folder)
    assert "not used" not in caplog.text
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "video_model.x": torch.zeros(1)}, folder / "model.safetensors")
    load_internvl(folder)
    assert (
        "InternVL: more" in caplog.text
        and "holds 1 tensors that are not used, the first is video_model.x" in caplog.text
    )
