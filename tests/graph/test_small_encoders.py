"""Chat files and narrow files as text encoders through the queue: what draws, what MuLan Loader lists and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.checkpoints.tensor_files import CONFIG
from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, to_published
from mulan_nodes.mulan.conditioning.clip import encode_prompts, load_clip
from mulan_nodes.mulan.conditioning.encoder_files import open_prompt_encoder
from mulan_nodes.mulan.conditioning.encoder_kinds import FINGERPRINT_KEY, KIND_KEY
from mulan_nodes.mulan.conditioning.model_files import open_text_encoder
from mulan_nodes.mulan.conditioning.saved_conditioning import load_conditioning
from mulan_nodes.mulan.conversion.converters import convert
from mulan_nodes.mulan.tiny_models.unpacking import CHAT, TEXT_ENCODER
from mulan_nodes.mulan.training.students import new_narrow_student, published_tensors
from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import GraphRejected
from mulan_nodes.tools.graphs import differ, picture
from mulan_nodes.tools.random_checkpoints import internvl_chat as random_chat

QWEN3 = "SmallQwen3_int8.safetensors"
ENCODERS = {
    f"internvl_chat/{CHAT.name}": "small_tiny.safetensors",
    f"internvl_chat/{QWEN3}": "small_qwen3.safetensors",
    "internvl_chat/SmallQwen2": "small_qwen2.safetensors",
    "internvl_chat/SmallInternLM2": "small_internlm2.safetensors",
    "SmallBeside": "small_qwen2.safetensors",  # in models/text_encoders
    "narrow.safetensors": "tiny_sd15_adapter.safetensors",  # stands for the tiny text encoder
}
TINY, FROM_QWEN3, *_, NARROW = ENCODERS.items()


@pytest.fixture(scope="module", autouse=True)
def files(models, tiny_models):
    """Chat files of three language models and the tiny chat, each with an SD1.5 adapter of random weights."""
    chats = models / "internvl_chat"
    random_chat.checkpoint(chats / "SmallQwen2")
    random_chat.checkpoint(chats / "SmallInternLM2", "internlm2")
    random_chat.checkpoint(models / "text_encoders" / "SmallBeside", layout="hf")
    convert(random_chat.checkpoint(models / "SmallQwen3", "qwen3"), chats)
    torch.manual_seed(0)
    for path in (tiny_models[CHAT.name], chats / QWEN3, chats / "SmallQwen2", chats / "SmallInternLM2"):
        encoder = open_prompt_encoder(path)
        kind = {CHAT.name: "tiny"}.get(path.name, encoder.kind)
        shape = AdapterShape(encoder.config.hidden_size, context_dim=768, num_queries=24, intermediate_size=64)
        labels = {KIND_KEY: encoder.kind, FINGERPRINT_KEY: encoder.fingerprint(), "text_encoder": path.name}
        tensors = {name: tensor.clone() for name, tensor in to_published(LanguageAdapter(shape).state_dict()).items()}
        save_file(tensors, models / "mulan" / f"small_{kind}.safetensors", metadata=labels)
    whole = open_text_encoder(tiny_models[TEXT_ENCODER.name])
    student = new_narrow_student(whole, layers=2, pad=0, hidden_size=48)
    tensors = {name: tensor.detach().half() for name, tensor in student.state_dict().items()}
    tensors |= published_tensors(student, whole, torch.float16)
    metadata = {CONFIG: json.dumps({"num_attention_heads": student.sizes.num_attention_heads})}
    save_file(tensors, models / "text_encoders" / NARROW[0], metadata)
    other = models / "mulan" / "small_other.safetensors"
    save_file(
        load_file(models / "mulan" / "small_qwen3.safetensors"),
        other,
        metadata={KIND_KEY: "qwen3", FINGERPRINT_KEY: "0" * 16, "text_encoder": "InternVL3_5-1B"},
    )


@pytest.fixture(scope="module")
def base() -> dict:
    return graphs.change(graphs.load("mulan_text_to_image"), "KSampler", steps=2)


def loader(text_encoder: str, adapter: str, **more) -> dict:
    return {"text_encoder": text_encoder, "adapter": adapter, **more}


def options(server, name: str) -> list[str]:
    return server.object_info("MuLanLoader")["input"]["required"][name][1]["options"]


def test_chat_files_are_listed_behind_the_text_encoders(server):
    listed = options(server, "text_encoder")
    first = next(index for index, name in enumerate(listed) if name.startswith("internvl_chat/"))
    assert "tiny_internvl.safetensors" in listed[:first] and "SmallBeside" in listed[:first]
    assert all(name.startswith("internvl_chat/") for name in listed[first:]) and {*ENCODERS} <= {*listed}


@pytest.mark.parametrize(("text_encoder", "adapter"), ENCODERS.items())
def test_an_image_follows_its_prompt(text_encoder, adapter, server, base):
    graph = graphs.change(base, "MuLan Loader", **loader(text_encoder, adapter))
    images = [
        picture(server, graphs.change(graph, "Prompt", text=text)) for text in ("红色的圆", "(红色:1.5)的圆", "a")
    ]
    assert all(np.isfinite(image).all() for image in images)
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


@pytest.mark.parametrize(("text_encoder", "adapter"), [TINY, FROM_QWEN3, NARROW])
def test_every_node_of_mulan_works_with_it(text_encoder, adapter, server, base, tiny_models, models):
    prompts = ["a red circle", "un cercle rouge BREAK 蓝色的大五角星", ""]
    texts = {
        str(20 + i): {"class_type": "PrimitiveStringMultiline", "inputs": {"value": text}}
        for i, text in enumerate(prompts)
    }
    graph = graphs.change(base, "MuLan Loader", **loader(text_encoder, adapter)) | texts
    save = {"filename_prefix": f"small_{adapter}"}
    graph = graphs.add(
        graphs.change(graph, "Prompt", text=prompts[0]),
        ("30", "CreateList", {f"inputs.input{i}": [id, 0] for i, id in enumerate(texts)}),
        ("31", "MuLanEncodeLanguages", {"clip": ["2", 1], "prompts": ["30", 0]}),
        ("32", "MuLanSaveConditioning", {"conditioning": ["31", 0], **save}),
        ("33", "MuLanPromptInspector", {"clip": ["2", 1], "text": "a (red:1.3) 😀 circle"}),
        (
            "34",
            "MuLanWordMaps",
            {
                **{"model": ["2", 0], "clip": ["2", 1], "latent": ["6", 0], "image": ["7", 0]},
                **{"text": prompts[0], "words": "", "steps": 1},
            },
        ),
    )
    outputs = server.run(graph)
    assert "×1.3" in outputs.nodes["33"]["text"][0] and "prefix summarize:" in outputs.nodes["33"]["text"][0]
    words = json.loads(outputs.nodes["34"]["text"][0])["images"][0]
    assert [word["word"] for word in words] == ["a", "red", "circle"]
    saved = sorted((server.folder / "output" / "conditioning").glob(f"{save['filename_prefix']}_[0-9]*.safetensors"))
    path = {TINY: tiny_models[CHAT.name], NARROW: models / "text_encoders" / NARROW[0]}
    path = path.get((text_encoder, adapter), models / "internvl_chat" / QWEN3)
    clip = load_clip(path, tiny_models.get(adapter, models / "mulan" / adapter), device="cpu")
    for file, ((wanted, _),) in zip(saved, encode_prompts(clip, prompts), strict=True):
        assert torch.allclose(
            load_conditioning(file).conditioning[0][0], wanted, atol=2e-3
        )  # int8 rounds what the server adds up otherwise


def test_it_is_remembered_too(server, base):
    graph = graphs.change(base, "MuLan Loader", **loader(*FROM_QWEN3))
    first = picture(server, graph)
    server.free()
    before = server.log.read_text("utf-8", "replace").count("the text encoder is not needed")
    assert np.array_equal(picture(server, graphs.change(graph, "MuLan Loader", device="cpu")), first)
    assert server.log.read_text("utf-8", "replace").count("the text encoder is not needed") > before


REFUSED = {
    "published adapter, small encoder": (
        loader(TINY[0], "tiny_sd15_adapter.safetensors"),
        ["was trained with InternVL's text encoder of 7 billion parameters", "but the text encoder", "(Qwen3)"],
    ),
    "small adapter, InternVL's encoder": (
        loader("tiny_internvl.safetensors", "small_qwen3.safetensors"),
        ["was trained with the language model of an InternVL 3.5 chat file (Qwen3)", "7 billion parameters"],
    ),
    "another kind": (loader("internvl_chat/SmallQwen2", "small_qwen3.safetensors"), ["(Qwen3)", "(Qwen2)"]),
    "another width": (loader(*TINY) | {"adapter": "small_qwen3.safetensors"}, ["reads states of width 48"]),
    "no adapter": (
        loader(TINY[0], "none (a whole MuLan PixArt model)"),
        ["a whole MuLan PixArt model was trained with InternVL's text encoder"],
    ),
    "not there": (loader("internvl_chat/none", "small_qwen3.safetensors"), ["'none' is not in", "internvl_chat"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_the_run(case, server, base):
    chosen, words = REFUSED[case]
    with pytest.raises(GraphRejected) as raised:
        server.run(graphs.change(base, "MuLan Loader", **chosen))
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_another_text_encoder_of_the_kind_draws_with_a_warning(server, base):
    picture(server, graphs.change(base, "MuLan Loader", **loader(FROM_QWEN3[0], "small_other.safetensors")))
    assert "was trained with another text encoder of this kind (InternVL3_5-1B)" in server.log.read_text(
        "utf-8", "replace"
    )


@pytest.mark.parametrize("chosen", [FROM_QWEN3, NARROW], ids=["chat", "narrow"])
def test_what_clip_save_writes_draws_the_same(chosen, server, base, request):
    prefix = f"saved_{request.node.callspec.id}"
    graph = {
        "1": {"class_type": "MuLanLoader", "inputs": loader(*chosen, prompt_style="default")},
        "2": {"class_type": "CLIPSave", "inputs": {"clip": ["1", 1], "filename_prefix": f"clip/{prefix}"}},
    }
    server.run(graph)
    saved = next(name for name in options(server, "text_encoder") if name.startswith(prefix))
    again = graphs.change(base, "MuLan Loader", **loader(saved, chosen[1], remember_prompts=False))
    graph = graphs.change(base, "MuLan Loader", **loader(*chosen))
    first, other = (picture(server, each) for each in (graph, graphs.change(graph, "Prompt", text="ein blauer Stern")))
    # int8 rounds what the server adds up otherwise when other prompts are encoded beside
    assert differ(picture(server, again), first) < 0.2 * differ(other, first)
