"""Graphs that must fail and how that reads, prompts that look as if they must, files that change, and a user who stops:
the server draws on.
"""

from __future__ import annotations

import os
import random
import shutil
from itertools import count

import numpy as np
import pytest

from mulan_nodes.tools import graphs
from mulan_nodes.tools.comfy_server import GraphFailed, GraphRejected
from mulan_nodes.tools.graphs import differ, picture

WHOLE = "none (a whole MuLan PixArt model)"
WIDE = "random_wide.safetensors"
DOWNLOAD = "download it again"
ENCODER_SOURCE, ADAPTER_SOURCE = "OpenGVLab/InternVL-14B-224px", "mulanai/mulan-lang-adapter"


@pytest.fixture(scope="module")
def base() -> dict:
    return graphs.change(graphs.load("mulan_text_to_image"), "KSampler", steps=2)


@pytest.fixture(scope="module")
def right(server, base) -> np.ndarray:
    """What the server draws before anything failed."""
    return picture(server, base)


@pytest.fixture(scope="module")
def draws_on(server, base, right):
    """draws_on(): the server draws the same picture as before. A weight of 1 in brackets, more every time, so that
    nothing comes from its cache.
    """
    deep = count(1)

    def check():
        depth = next(deep)
        text = base[graphs.find(base, "Prompt")]["inputs"]["text"]
        again = graphs.change(base, "Prompt", text="(" * depth + text + ":1.0)" * depth)
        assert np.array_equal(picture(server, again), right)

    return check


# --- files ---

WRONG_FILES = {
    "wrong_clip_l": (
        {"text_encoder": "wrong_clip_l.safetensors"},
        ["wrong_clip_l.safetensors", "a CLIP-L text encoder", "expected InternVL's LLaMA"],
    ),
    "wrong_t5": ({"text_encoder": "wrong_t5.safetensors"}, ["a T5 text encoder", ENCODER_SOURCE]),
    "wrong_llama3": (
        {"text_encoder": "wrong_llama3.safetensors"},
        ["another large language model", "models/text_encoders"],
    ),
    "cut in the header": (
        {"text_encoder": "wrong_cut_short.safetensors"},
        ["cannot be read as safetensors", "cut short or damaged (9 bytes", DOWNLOAD],
    ),
    "cut in the data": (
        {"text_encoder": "wrong_cut_data.safetensors"},
        ["wrong_cut_data.safetensors (in ", "text_encoders", "cut short", DOWNLOAD],
    ),
    "empty": ({"text_encoder": "wrong_empty.safetensors"}, ["it is empty", DOWNLOAD]),
    "web page": ({"text_encoder": "wrong_web_page.safetensors"}, ["it is a web page, not the file"]),
    "git-lfs pointer": (
        {"text_encoder": "wrong_pointer.safetensors"},
        ["it is git-lfs's pointer to the file", "git lfs pull"],
    ),
    "without a tokenizer": (
        {"text_encoder": "wrong_no_tokenizer.safetensors"},
        ["without its sentencepiece model", "`spiece_model`", ENCODER_SOURCE],
    ),
    "without a tensor": (
        {"text_encoder": "wrong_layer.safetensors"},
        ["is incomplete: it has no tensor model.layers.0.mlp.up_proj.weight"],
    ),
    "absent": ({"text_encoder": "gone.safetensors"}, ["'gone.safetensors' is not in", "text_encoders", ENCODER_SOURCE]),
    "climbing": ({"text_encoder": "../../secret.safetensors"}, ["is not in"]),
    "absolute": ({"text_encoder": "/etc/passwd"}, ["'/etc/passwd' is not in"]),
    "index cut": (
        {"text_encoder": "Broken-index"},
        ["pytorch_model.bin.index.json (in ", "Broken-index) cannot be read as an index of shards", DOWNLOAD],
    ),
    "shard missing": (
        {"text_encoder": "Broken-missing"},
        ["Broken-missing (in ", "lacks 1 of its shards", "pytorch_model-00002-of-00002.bin"],
    ),
    "shard cut": (
        {"text_encoder": "Broken-cut"},
        ["pytorch_model-00002-of-00002.bin (in ", "Broken-cut)", "(1,000 bytes", DOWNLOAD],
    ),
    "shard lacks tensors": (
        {"text_encoder": "Broken-lacking"},
        ["Broken-lacking", "pytorch_model-00002-of-00002.bin does not hold ", "qllama.model."],
    ),
    "shard outside": (
        {"text_encoder": "Broken-outside"},
        ["'../Sharded-bin/pytorch_model-00002-of-00002.bin'", "nothing outside the folder is read"],
    ),
    "narrow sdxl": (
        {"adapter": "wrong_narrow_sdxl.safetensors"},
        ["looks like a MuLan adapter", "contexts of width 40; known are 768", ADAPTER_SOURCE],
    ),
    "narrow pixart": (
        {"adapter": "wrong_narrow_pixart.pth"},
        ["wrong_narrow_pixart.pth reads states of width 64", "gives 128"],
    ),
    "lora": ({"adapter": "wrong_lora.safetensors"}, ["a LoRA (it belongs in models/loras)", ADAPTER_SOURCE]),
    "code": ({"adapter": "wrong_code.pth"}, ["cannot be read as plain weights", "never code"]),
    "width": ({"adapter": "wrong_width.safetensors"}, ["reads states of width 4096", "InternVL-14B-224px"]),
    "adapter cut": (
        {"adapter": "wrong_cut.pth"},
        ["wrong_cut.pth (in ", "mulan)", "cut short or damaged (10,000 bytes", DOWNLOAD],
    ),
    "adapter without tensors": (
        {"adapter": "wrong_incomplete.safetensors"},
        ["incomplete MuLan adapter for Stable Diffusion 1.5", "norm3.weight, is missing"],
    ),
    "adapter absent": ({"adapter": "gone.pth"}, ["'gone.pth' is not in", ADAPTER_SOURCE]),
    "no text projection": (
        {"adapter": "random_sdxl_noembed_textproj.safetensors"},
        [
            "random_sdxl_noembed_textproj.safetensors needs the text encoder's `text_projection` of width 768",
            "tiny_internvl.safetensors (in ",
            "has none",
        ],
    ),
}


@pytest.mark.parametrize(
    "node, choice",
    [
        ("MuLanLoader", {"text_encoder": "wrong_t5.safetensors", "adapter": "wrong_lora.safetensors"}),
        ("InternVLLoader", {"text_encoder": "wrong_t5.safetensors", "checkpoint": "gone.safetensors"}),
    ],
)
def test_two_wrong_files_are_both_named(node, choice, server):
    """ComfyUI shows the text at both inputs: each line begins with the one it belongs to."""
    graph = {"1": {"class_type": node, "inputs": {"prompt_style": "default", **choice}}}
    outputs = {"MuLanLoader": ("MuLanPromptInspector", "clip"), "InternVLLoader": ("InternVLEmbed", "internvl")}
    kind, name = outputs[node]
    graph["2"] = {"class_type": kind, "inputs": {name: ["1", int(node == "MuLanLoader")], "text": "", "texts": "a"}}
    graph["3"] = {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}}
    with pytest.raises(GraphRejected) as refusal:
        server.run(graph)
    errors = refusal.value.node_errors["1"]["errors"]
    for error in errors:
        _, told = error["details"].split(" - ", 1)
        assert {line.split(":")[0] for line in told.splitlines()} == choice.keys(), told
    assert {error["extra_info"]["input_name"] for error in errors} >= choice.keys()


@pytest.mark.parametrize("name", WRONG_FILES)
def test_a_wrong_file_is_named_before_anything_runs(name, server, base):
    choice, words = WRONG_FILES[name]
    with pytest.raises(GraphRejected) as refusal:
        server.run(graphs.change(base, "MuLan Loader", **choice))
    errors = refusal.value.node_errors[graphs.find(base, "MuLanLoader")]["errors"]
    assert {error["type"] for error in errors} == {"custom_validation_failed"}
    for word in words:
        assert word in errors[0]["details"], errors[0]["details"]


SPOILT_FILES = {
    "vocabulary": (
        {"text_encoder": "wrong_vocabulary.safetensors"},
        "MuLanLoader",
        ["wrong_vocabulary.safetensors (in ", "but its embedding has 4000 rows", "tokenizer.model", ENCODER_SOURCE],
    ),
    "tokenizer": (
        {"text_encoder": "wrong_tokenizer.safetensors"},
        "MuLanLoader",
        ["its sentencepiece model cannot be read", ENCODER_SOURCE],
    ),
    "nan in the encoder": (
        {"text_encoder": "wrong_nan.safetensors"},
        "CLIPTextEncode",
        ["the text encoder wrong_nan.safetensors", "not finite", "Download it"],
    ),
    "nan in the adapter": (
        {"adapter": "wrong_nan.safetensors"},
        "CLIPTextEncode",
        ["the adapter wrong_nan.safetensors", "models/mulan", "not finite"],
    ),
}


@pytest.mark.parametrize("name", SPOILT_FILES)
def test_a_spoilt_file_is_named_while_the_graph_runs(name, server, base):
    choice, node_class, words = SPOILT_FILES[name]
    failed(server, graphs.change(base, "MuLan Loader", **choice), node_class, words)


def test_nan_in_the_pooled_part_of_an_sdxl_adapter(server, base):
    graph = model_of(base, "checkpoint", "sd_xl_base_1.0.safetensors")
    failed(
        server,
        graphs.change(graph, "MuLan Loader", adapter="wrong_nan_sdxl.safetensors"),
        "CLIPTextEncode",
        ["the adapter wrong_nan_sdxl.safetensors"],
    )


def test_nan_in_what_a_pixart_adapter_puts_into_the_model(server, base):
    graph = model_of(base, "unet", "PixArt-XL-2-1024-MS.safetensors")
    failed(
        server,
        graphs.change(graph, "MuLan Loader", text_encoder=WIDE, adapter="wrong_nan_pixart.pth"),
        "MuLanLoader",
        [
            "wrong_nan_pixart.pth (in ",
            "is damaged: its weights for diffusion_model.y_embedder.y_proj.fc2.bias contain NaN or infinity",
        ],
    )


def test_the_server_draws_on_after_spoilt_files(draws_on):
    draws_on()


def failed(server, graph: dict, node_class: str, words: list[str]) -> None:
    with pytest.raises(GraphFailed) as failure:
        server.run(graph)
    assert failure.value.node_class == node_class, failure.value
    for word in words:
        assert word in failure.value.message, failure.value.message


# --- families ---


def model_of(base: dict, kind: str, file: str) -> dict:
    """The graph with the MODEL of another checkpoint, or of a transformer of its own; the rest stays the tiny
    checkpoint's.
    """
    loader = (
        ("CheckpointLoaderSimple", {"ckpt_name": file})
        if kind == "checkpoint"
        else ("UNETLoader", {"unet_name": file, "weight_dtype": "default"})
    )
    node = {"class_type": loader[0], "inputs": loader[1], "_meta": {"title": "Other model"}}
    return graphs.change({**base, "20": node}, "MuLan Loader", model=["20", 0])


SD15, SDXL, PIXART, REFINER = (
    ("checkpoint", "tiny_sd15.safetensors"),
    ("checkpoint", "sd_xl_base_1.0.safetensors"),
    ("unet", "PixArt-XL-2-1024-MS.safetensors"),
    ("checkpoint", "sd_xl_refiner_1.0.safetensors"),
)
TINY = "tiny_internvl.safetensors"
PAIRS = {
    "sd21 on sd15": (
        SD15,
        TINY,
        "random_sd21.safetensors",
        [
            "the adapter random_sd21.safetensors is for Stable Diffusion 2.1, but the connected MODEL is a Stable "
            "Diffusion 1.5 model (SD15)",
            "Use one that is made for Stable Diffusion 1.5, or connect a Stable Diffusion 2.1 checkpoint.",
        ],
    ),
    "sdxl on sd15": (
        SD15,
        TINY,
        "random_sdxl_noembed_attnpool.safetensors",
        ["is for SDXL, but the connected MODEL is a Stable Diffusion 1.5 model (SD15)"],
    ),
    "pixart on sd15": (
        SD15,
        WIDE,
        "pixart.pth",
        ["the adapter pixart.pth is for PixArt, but the connected MODEL is a Stable Diffusion 1.5 model"],
    ),
    "none on sd15": (
        SD15,
        TINY,
        WHOLE,
        [
            "the choice adapter = none is for PixArt, but the connected MODEL is a Stable Diffusion 1.5 model (SD15)",
            "Use one that is made for Stable Diffusion 1.5, or connect a PixArt checkpoint.",
        ],
    ),
    "sd15 on sdxl": (
        SDXL,
        TINY,
        "tiny_sd15_adapter.safetensors",
        ["is for Stable Diffusion 1.5, but the connected MODEL is a SDXL model ("],
    ),
    "sd15 on pixart": (
        PIXART,
        TINY,
        "tiny_sd15_adapter.safetensors",
        ["is for Stable Diffusion 1.5, but the connected MODEL is a PixArt model (PixArt"],
    ),
    "none on sdxl": (
        SDXL,
        TINY,
        WHOLE,
        ["the choice adapter = none is for PixArt, but the connected MODEL is a SDXL model"],
    ),
    "sd15 on the refiner": (
        REFINER,
        TINY,
        "tiny_sd15_adapter.safetensors",
        [
            "the connected MODEL is a SDXLRefiner, a model that MuLan has no adapter for",
            "Connect a Stable Diffusion 1.5 checkpoint",
        ],
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_an_adapter_of_another_family_than_the_model(name, server, base):
    (kind, file), text_encoder, adapter, words = PAIRS[name]
    graph = graphs.change(model_of(base, kind, file), "MuLan Loader", text_encoder=text_encoder, adapter=adapter)
    failed(server, graph, "MuLanLoader", words)


@pytest.mark.parametrize(
    "text_encoder, adapter, family",
    [(TINY, "random_sdxl_embed_attnpool.safetensors", "SDXL"), (WIDE, "pixart.pth", "PixArt")],
)
def test_an_adapter_that_changes_the_model_without_one(text_encoder, adapter, family, server, base):
    graph = graphs.change(base, "MuLan Loader", text_encoder=text_encoder, adapter=adapter)
    del graph["2"]["inputs"]["model"]
    failed(
        server,
        graphs.change(graph, "KSampler", model=["1", 0]),
        "MuLanLoader",
        [
            f"the adapter {adapter} replaces weights of the {family} model. Connect the checkpoint's MODEL to "
            "MuLan Loader"
        ],
    )


def test_the_clip_input_is_for_bypassing_alone(server, base, right):
    fails = {"text_encoder": WIDE, "adapter": "pixart.pth", "prompt_style": "default"}  # when it runs: it has no MODEL
    graph = graphs.add(base, ("9", "MuLanLoader", fails), **{"MuLan Loader_clip": ["9", 1]})
    assert np.array_equal(picture(server, graph), right)


def test_the_model_output_without_a_model(server, base, draws_on):
    graph = graphs.change(base, "MuLan Loader")
    del graph["2"]["inputs"]["model"]
    with pytest.raises(GraphFailed, match="no MODEL is connected to the input"):
        server.run(graph)
    draws_on()


# --- prompts ---

PROMPTS = {
    "control characters": "".join(map(chr, range(32))) + "a red\x7f star\x00\u0085\u200b\ufeff\u2028",
    "half a character": "a red \ud83d star",
    "the other half": "\udca9",
    "halves in the wrong order": "\udca9\ud83d" * 40,
    "unbalanced": "((a red (star:1.2)) ) ( :1.5) ((((",
    "closing only": ")))) a star ))",
    "weights that are no numbers": "(a star:nan) (red:inf) (big:1e999) (blue:-1e999) (x:) (:) ()",
    "weights of all sizes": "(a star:0) (red:-3) (big:1e30)",
    "only emoji": "\U0001f98a\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f1ef\U0001f1f5" * 30,
    "right to left among latin": "نجمة حمراء big \u202eeulb\u202c דג red شجرة (كبيرة:1.3) star",
    "nested ten thousand times": "(" * 10_000 + "a red star" + ")" * 10_000,
    "opened ten thousand times": "(" * 10_000 + "a red star",
    "breaks alone": "BREAK BREAK, BREAK",
    "spaces alone": " \n\t \u3000",
    "marks alone": "\u0301" * 3000,
    "markup": "<s> </s> <unk> [PAD] embedding:x <lora:x:1> {a|b}",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_an_absurd_prompt_gives_a_picture(name, server, base):
    """On both sides at once. NaN anywhere would give a picture of one colour."""
    graph = graphs.change(graphs.change(base, "KSampler", steps=1), "Prompt", text=PROMPTS[name])
    assert picture(server, graphs.change(graph, "Negative prompt", text=PROMPTS[name])).std() > 3


def test_absurd_prompts_in_upstream_s_style_give_a_picture(server, base):
    """All of them behind one another in one context."""
    graph = graphs.change(graphs.change(base, "KSampler", steps=1), "MuLan Loader", prompt_style="upstream")
    nodes, last = [], ["3", 0]
    for number, text in enumerate(PROMPTS.values()):
        encoded, joined = f"{100 + number}", f"{200 + number}"
        nodes += [
            (encoded, "CLIPTextEncode", {"clip": ["2", 1], "text": text}),
            (joined, "ConditioningConcat", {"conditioning_to": last, "conditioning_from": [encoded, 0]}),
        ]
        last = [joined, 0]
    assert picture(server, graphs.add(graph, *nodes, KSampler_positive=last)).std() > 3


@pytest.mark.parametrize("style", ["default", "upstream"])
def test_a_hundred_kilobytes(style, server, base):
    chosen, alphabet = random.Random(0), "abcdefg      (((:1.2)))é漢字中文한국어عربيไทย🦊,,..\n"
    text = "".join(chosen.choice(alphabet) for _ in range(62_000))
    size = len(text.encode())
    assert size > 100_000
    graph = graphs.change(graphs.change(base, "KSampler", steps=1), "MuLan Loader", prompt_style=style)
    assert picture(server, graphs.change(graph, "Prompt", text=text)).std() > 3


# --- a user who stops, files that change ---


def test_stopping_an_encode(server, base, draws_on):
    """The graph ends as interrupted, at once; the encoder that was stopped goes on as if nothing had been."""
    large = graphs.change(base, "MuLan Loader", text_encoder="large.safetensors", adapter="large.safetensors")
    before = picture(server, large)
    seen = []

    def stop(node, step, steps):
        if not seen:
            server.interrupt()
        seen.append((node, step, steps))

    prompt = server.post(
        graphs.change(large, "Prompt", text=", ".join(["a big red star over a small blue sea"] * 2000))
    )
    with pytest.raises(GraphFailed) as failure:
        server.wait(prompt, stop)
    assert failure.value.exception == "interrupted" and failure.value.node_class == "CLIPTextEncode"
    node, step, steps = seen[-1]
    assert node == graphs.find(base, "Prompt") and step < steps / 4, f"stopped after {step} of {steps} layers"
    assert np.array_equal(picture(server, graphs.change(large, "Save Image", filename_prefix="again")), before)
    draws_on()


def test_a_file_that_was_downloaded_again_is_read_again(server, base, models):
    """Under the same name, as downloads do it: written beside and renamed."""
    large = graphs.change(base, "MuLan Loader", text_encoder="large.safetensors")
    wanted = [
        picture(server, graphs.change(large, "MuLan Loader", adapter=name))
        for name in ("large.safetensors", "large_too.safetensors")
    ]
    assert differ(*wanted) > 0.1

    graph = graphs.change(large, "MuLan Loader", adapter="replaced.safetensors")
    drawn = []
    for name in ("large.safetensors", "large_too.safetensors"):
        shutil.copy(models / "mulan" / name, models / "mulan" / "replaced.part")
        os.replace(models / "mulan" / "replaced.part", models / "mulan" / "replaced.safetensors")
        drawn.append(picture(server, graph))
    assert np.array_equal(drawn[0], wanted[0]) and np.array_equal(drawn[1], wanted[1])
