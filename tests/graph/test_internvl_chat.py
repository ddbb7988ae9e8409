"""InternVL's dialogue through the queue, on checkpoints of random weights: core's Generate Text, our node, memory,
stops and errors. Not sense.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mulan_nodes.mulan.conversion.converters import convert
from mulan_nodes.tests.parity import internvl_flash_recipe as flash_recipe
from mulan_nodes.tools.comfy_server import GraphFailed, GraphRejected
from mulan_nodes.tools.random_checkpoints import internvl_chat as random_chat
from mulan_nodes.tools.shards import shard

FOLDER, AS_TRANSFORMERS, OLDER, ENDLESS = "InternVL3-random", "InternVL3_5-random-hf", "InternVL2_5-random", "Endless"
CONVERTED = f"{FOLDER}_int8.safetensors"
TALKERS = (FOLDER, AS_TRANSFORMERS, OLDER, CONVERTED)
FLASH, FLASH_GOLDENS = "InternVL3_5-Flash", Path(flash_recipe.__file__).parent / "goldens" / "internvl_chat"
OTHER_LANGUAGES = {
    "InternVL3-9B": "internlm3",
    "InternVL3_5-30B-A3B": "qwen3_moe",
    "InternVL3_5-GPT-OSS-20B-A4B": "gpt_oss",
}
WIDTH, HEIGHT = 96, 64
DRAWN = {
    "sampling_mode": "on",
    "sampling_mode.temperature": 1.5,
    "sampling_mode.top_k": 64,
    "sampling_mode.top_p": 0.95,
    "sampling_mode.min_p": 0.0,
    "sampling_mode.repetition_penalty": 1.05,
    "sampling_mode.presence_penalty": 0.0,
    "sampling_mode.seed": 1,
}


@pytest.fixture(scope="module", autouse=True)
def checkpoints(models):
    """Published folders of three language models in both layouts, one converted; one that never ends an answer; and
    folders that cannot serve.
    """
    folder = models / "internvl_chat"
    folder.mkdir(exist_ok=True)
    convert(shard(random_chat.checkpoint(folder / FOLDER)), folder)
    random_chat.checkpoint(folder / AS_TRANSFORMERS, "qwen3", "hf")
    random_chat.checkpoint(folder / OLDER, "internlm2")
    random_chat.checkpoint(folder / ENDLESS, writes="<box>")
    save_file({"something": torch.zeros(2, 2)}, folder / "wrong.safetensors")
    random_chat.checkpoint(folder / "Mute")
    (folder / "Mute" / "vocab.json").unlink()
    (shard(random_chat.checkpoint(folder / "Torn")) / "model-00002-of-00002.safetensors").unlink()
    for name, language in OTHER_LANGUAGES.items():
        told = random_chat.checkpoint(folder / name) / "config.json"
        told.write_text(
            told.read_text("utf-8").replace('"model_type": "qwen2"', f'"model_type": "{language}"'), "utf-8"
        )
    facts = json.loads((FLASH_GOLDENS / "flash.json").read_text("utf-8"))
    shutil.copy(FLASH_GOLDENS / "tokenizer.json", flash_recipe.published(folder / FLASH, facts, {}))


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loader(checkpoint: str = FOLDER, **more) -> dict:
    return node("InternVLChatLoader", checkpoint=checkpoint, **more)


def picture(width: int = WIDTH, count: int = 1, color: int = 0x3366AA) -> dict:
    return node("EmptyImage", width=width, height=HEIGHT, batch_size=count, color=color)


def chat(checkpoint: str = FOLDER, /, **inputs) -> dict:
    """Loader 1, picture 2, question 3."""
    asked = node("InternVLChat", **{"clip": ["1", 0], "question": "What is it?", "max_tokens": 6, **inputs})
    return {"1": loader(checkpoint), "2": picture(), "3": asked}


def generate(checkpoint: str = FOLDER, /, **inputs) -> dict:
    """The same with core's node, whose text 4 shows."""
    asked = node(
        "TextGenerate", clip=["1", 0], **{"prompt": "What is it?", "max_length": 6, "sampling_mode": "off", **inputs}
    )
    return {"1": loader(checkpoint), "2": picture(), "3": asked, "4": node("PreviewAny", source=["3", 0])}


def shown(outputs, id: str = "3") -> dict:
    """What a node's JSON says."""
    return json.loads(outputs.nodes[id]["text"][0])


def written(server, graph: dict) -> str:
    return server.run(graph).nodes["4"]["text"][0]


# --- what each gives ---


def test_a_folder_is_listed_once(server):
    listed = server.object_info("InternVLChatLoader")["input"]["required"]["checkpoint"][1]["options"]
    assert {*TALKERS, "wrong.safetensors"} <= set(listed) and not [name for name in listed if "/" in name]


@pytest.mark.parametrize("checkpoint", TALKERS)
def test_core_s_node_and_ours_say_the_same(server, checkpoint):
    alone, seeing = written(server, generate(checkpoint)), written(server, generate(checkpoint, image=["2", 0]))
    assert alone and seeing and alone != seeing
    assert shown(server.run(chat(checkpoint)))["text"] == alone
    told = shown(server.run(chat(checkpoint, **{"images.image_1": ["2", 0]})))
    assert told == {
        "format": "internvl-nodes/1",
        "task": "chat",
        "model": checkpoint,
        "prompt": "What is it?",
        "text": seeing,
        "pictures": [{"width": WIDTH, "height": HEIGHT}],
        "frames": 0,
    }


def test_a_flash_model_answers_as_upstream(server):
    """Its goldens' question about an image of several tiles, some of them compressed."""
    case = json.loads((FLASH_GOLDENS / "flash.json").read_text("utf-8"))["cases"]["tiles"]
    (image,), _ = flash_recipe.pictures("tiles")
    Image.fromarray(image).save(server.folder / "input" / "flash.png")
    graph = chat(
        FLASH, question=flash_recipe.CASES["tiles"][0], max_tokens=flash_recipe.WRITTEN, **{"images.image_1": ["2", 0]}
    )
    assert any(case["compressed"])
    assert shown(server.run(graph | {"2": node("LoadImage", image="flash.png")}))["text"] == case["answer"]


def test_what_core_s_node_can_be_asked(server):
    plain = written(server, generate())
    batch = generate(image=["2", 0]) | {"2": picture(count=2)}
    film = generate(video=["2", 0]) | {"2": picture(count=30)}
    different = {
        plain,
        written(server, batch),
        written(server, film),
        written(server, generate(thinking=True)),
        written(server, generate(use_default_template=False)),
        written(server, generate(prompt="Où est le chat ?")),
    }
    assert len(different) == 6
    assert written(server, generate(**DRAWN)) != written(server, generate(**DRAWN | {"sampling_mode.seed": 2}))


def test_several_pictures_of_different_sizes(server):
    graph = chat(**{"images.image_1": ["2", 0], "images.image_2": ["20", 0]}) | {"20": picture(200, count=2)}
    told = shown(server.run(graph))
    assert [size["width"] for size in told["pictures"]] == [WIDTH, 200, 200]
    fewer = chat(**{"images.image_1": ["2", 0], "images.image_2": ["20", 0]}, tiles=1) | {"20": picture(200, count=2)}
    assert shown(server.run(fewer))["text"] != told["text"]


def test_one_by_one_is_a_list_of_images(server):
    """Three images of a batch give the three answers that a list of them gives, and their histories go on in order."""
    pictures = {f"2{index}": picture(color=color) for index, color in enumerate((0x3366AA, 0xFFFFFF, 0x101010))}
    pictures["2"] = node("BatchImagesNode", **{f"images.image{index}": [f"2{index}", 0] for index in range(3)})
    seen = {"images.image_1": ["2", 0]}
    graph = chat(pictures="one by one", **seen) | pictures | {"4": node("PreviewAny", source=["3", 1])}
    outputs = server.run(graph)
    told, histories = shown(outputs), [json.loads(text) for text in outputs.nodes["4"]["text"]]
    apart = [shown(server.run(chat(**seen) | {"2": pictures[f"2{index}"]}))["text"] for index in range(3)]
    assert told["texts"] == apart and len(set(apart)) == 3 and told["text"] == "\n\n".join(apart)
    assert [history[1]["content"] for history in histories] == apart
    together = shown(server.run(chat(**seen) | pictures))
    assert "texts" not in together and together["text"] not in apart


def test_a_video_beside_images_has_an_answer_of_its_own(server):
    of_video = {"5": node("CreateVideo", images=["6", 0], fps=12.0), "6": picture(count=12, color=0x10AA10)}
    graph = chat(pictures="one by one", video=["5", 0], frames=3, **{"images.image_1": ["2", 0]}) | of_video
    alone = shown(server.run(chat(video=["5", 0], frames=3) | of_video))["text"]
    assert shown(server.run(graph))["texts"] == [shown(server.run(chat(**{"images.image_1": ["2", 0]})))["text"], alone]


def test_how_tokens_are_chosen(server):
    """A penalty acts without drawing; drawing from one token is as greedy."""
    texts = [
        shown(server.run(chat(max_tokens=40, **how)))["text"]
        for how in ({}, {"temperature": 2.0, "top_k": 1}, {"repetition_penalty": 2.0})
    ]
    assert texts[0] == texts[1] != texts[2]


# --- find ---


def test_each_name_is_asked_for_with_the_published_prompt(server):
    prompt = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>"
    seen = {"images.image_1": ["2", 0]}
    graph = chat(ENDLESS, task="find", question="red circle, 猫", **seen)
    graph["4"] = node("PreviewAny", source=["3", 1])
    outputs = server.run(graph)
    lines = ["<ref>red circle</ref>" + "<box>" * 6, "<ref>猫</ref>" + "<box>" * 6]
    told = shown(outputs)
    assert told["task"] == "find" and told["prompt"] == "red circle, 猫" and told["text"].split("\n") == lines
    turns = json.loads(outputs.nodes["4"]["text"][0])
    assert [turn["content"] for turn in turns[::2]] == [prompt.format("red circle"), prompt.format("猫")]
    assert [turn["content"] for turn in turns[1::2]] == lines


def test_the_same_question_asked_is_answered_as_before(server):
    """What `find` sends is a question like any other; its answer alone is shown without special tokens."""
    prompt = "Please provide the bounding box coordinate of the region this sentence describes: <ref>cat</ref>"
    seen = {"images.image_1": ["2", 0]}
    found = shown(server.run(chat(task="find", question="cat", **seen)))["text"]
    asked = shown(server.run(chat(question=prompt, **seen)))["text"]
    assert asked and asked in found


def test_what_it_finds_becomes_boxes(server):
    graph = chat(ENDLESS, task="find", question="cat", **{"images.image_1": ["2", 0]})
    graph["4"] = node("VisionLLMTextToBoxes", text=["3", 0], image=["2", 0], coordinates="auto")
    outputs = server.run(graph)
    assert "not read, it breaks off: <box>" in outputs.nodes["4"]["mulan_text"][0]


@pytest.mark.parametrize(
    ("question", "message"),
    [(" , ,", "it has 0 names to find"), ("<box>", "the name '<box>' has < or >"), (" ", "enter what to find")],
)
def test_names_that_cannot_be_found_are_refused_before_the_run(server, question, message):
    with pytest.raises(GraphRejected, match=message):
        server.run(chat(task="find", question=question, **{"images.image_1": ["2", 0]}))


@pytest.mark.parametrize("count", [0, 2])
def test_finding_needs_one_image(server, count):
    graph = chat(task="find", question="cat", **({"images.image_1": ["2", 0]} if count else {}))
    with pytest.raises(GraphFailed, match=f"images: find looks in one image at a time, got {count}"):
        server.run(graph | {"2": picture(count=max(1, count))})


@pytest.mark.parametrize("pictures", ["all together", "one by one"])
def test_finding_in_a_video_needs_one_frame(server, pictures):
    film = {"5": node("CreateVideo", images=["2", 0], fps=12.0), "2": picture(count=3)}
    with pytest.raises(GraphFailed, match="frames: find looks in one frame of a video, got 8. Set frames to 1"):
        server.run(chat(task="find", question="cat", video=["5", 0], pictures=pictures) | film)
    found = chat(ENDLESS, task="find", question="cat", video=["5", 0], frames=1, pictures=pictures)
    assert shown(server.run(found | film))["text"].startswith("<ref>cat</ref>")


def test_one_by_one_it_finds_in_each_image(server):
    graph = chat(ENDLESS, task="find", question="cat, dog", pictures="one by one", **{"images.image_1": ["2", 0]})
    graph |= {
        "2": picture(count=2),
        "4": node("VisionLLMTextToBoxes", text=["3", 0], image=["2", 0], coordinates="auto"),
    }
    outputs = server.run(graph)
    lines = "<ref>cat</ref>" + "<box>" * 6 + "\n<ref>dog</ref>" + "<box>" * 6
    assert shown(outputs)["texts"] == [lines] * 2
    read = json.loads(outputs.nodes["4"]["text"][0])
    assert [frame["text"] for frame in read["frames"]] == [lines] * 2


def test_frames_of_a_video(server):
    graph = chat(video=["5", 0], frames=3) | {
        "2": picture(count=12),
        "5": node("CreateVideo", images=["2", 0], fps=12.0),
    }
    told = shown(server.run(graph))
    assert told["frames"] == 3 and told["pictures"] == [] and told["text"] != shown(server.run(chat()))["text"]


def test_a_talk_goes_on(server):
    graph = chat(**{"images.image_1": ["2", 0]})
    graph["5"] = node(
        "InternVLChat", clip=["1", 0], question="Why?", max_tokens=6, history=["3", 1], **{"images.image_1": ["2", 0]}
    )
    graph |= {"6": node("PreviewAny", source=["5", 1]), "7": node("PreviewAny", source=["3", 0])}
    outputs = server.run(graph)
    said = json.loads(outputs.nodes["6"]["text"][0])
    assert [entry["role"] for entry in said] == ["user", "assistant"] * 2
    assert [entry["content"] for entry in said] == [
        "What is it?",
        outputs.nodes["7"]["text"][0],
        "Why?",
        shown(outputs, "5")["text"],
    ]
    fresh = server.run(chat(question="Why?", **{"images.image_1": ["2", 0]}))
    assert shown(fresh)["text"] != shown(outputs, "5")["text"]


def test_what_the_model_is_told_before_the_talk_matters(server):
    texts = {shown(server.run(chat(**told)))["text"] for told in ({}, {"system": "Be brief."}, {"thinking": True})}
    assert len(texts) == 3
    blank, none = (shown(server.run(chat(system=system)))["text"] for system in (" \n", ""))
    assert blank == none


def test_a_temperature_draws_by_the_seed(server):
    def text(seed):
        return shown(server.run(chat(temperature=1.5, top_p=1.0, seed=seed)))["text"]

    assert text(1) != text(2)


def test_an_answer_becomes_a_prompt(server):
    """Its text goes where a text goes."""
    graph = chat() | {
        "4": node("StringConcatenate", string_a=["3", 0], string_b="!", delimiter=""),
        "5": node("PreviewAny", source=["4", 0]),
    }
    outputs = server.run(graph)
    assert outputs.nodes["5"]["text"][0] == shown(outputs)["text"] + "!"


# --- captions of a folder ---


def test_a_folder_is_captioned_and_continued(server):
    """Three images, two in a run: names and answers in order, then only what is new; nothing is left in the end."""
    folder = server.folder / "input" / "to caption"
    folder.mkdir()
    for name, color in (("10.png", (9, 9, 200)), ("2.png", (200, 9, 9)), ("1.png", (9, 200, 9))):
        Image.new("RGB", (40, 30), color).save(folder / name)
    (folder / "3.png").write_bytes(b"broken")
    graph = chat(**{"images.image_1": ["2", 0]}) | {
        "2": node("InternVLImagesToCaption", folder="to caption", only_new=True, limit=2),
        "4": node("InternVLSaveCaptions", captions=["3", 0], names=["2", 1], folder=["2", 2], trigger="my style"),
    }
    outputs = server.run(graph | {"5": node("PreviewAny", source=["2", 3])})
    saved = {file.name: file.read_text("utf-8") for file in folder.glob("*.txt")}
    assert saved.keys() == {"1.txt", "2.txt"} and all(text.startswith("my style, ") for text in saved.values())
    assert outputs.nodes["5"]["text"][0] == "2" and "2 captions saved" in outputs.nodes["4"]["mulan_text"][0]
    alone = chat(**{"images.image_1": ["2", 0]}) | {"2": node("LoadImage", image="to caption/1.png")}
    assert saved["1.txt"] == f"my style, {shown(server.run(alone))['text']}\n"
    server.run(graph)
    assert {file.name for file in folder.glob("*.txt")} == {"1.txt", "2.txt", "10.txt"}
    before = (folder / "10.txt").stat().st_mtime_ns
    nothing = server.run(graph)
    assert (
        "0 of 4 images" in nothing.nodes["2"]["mulan_text"][0]
        and "3.png could not be read" in nothing.nodes["2"]["mulan_text"][0]
    )
    assert (folder / "10.txt").stat().st_mtime_ns == before


def test_captions_are_written_only_into_comfyui_s_folders(server, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    save = node("InternVLSaveCaptions", captions=["5", 0], names=["5", 0], folder=str(tmp_path))
    graph = {"5": node("PrimitiveString", value="a.png"), "4": save}
    with pytest.raises(GraphRejected, match="outside of ComfyUI's input and output folders"):
        server.run(graph)
    assert not list(tmp_path.glob("*.txt"))


# --- the model ---


def loads(server) -> int:
    """How often one went to its device."""
    return server.log.read_text("utf-8", "replace").count("Requested to load InternVLChatEncoder")


def test_free_gives_the_model_back_and_the_next_graph_loads_again(server):
    server.run(chat(question="once", max_tokens=1))
    before = loads(server)
    server.run(chat(question="twice", max_tokens=1))
    assert loads(server) == before
    server.free()
    time.sleep(2)
    assert shown(server.run(chat(question="again", max_tokens=1)))["prompt"] == "again"
    assert loads(server) == before + 1


def test_on_the_cpu(server):
    graph = chat()
    told = shown(server.run({**graph, "1": loader(device="cpu")}))
    assert told["text"] == shown(server.run(graph))["text"]


@pytest.mark.parametrize(
    "graph", [chat(ENDLESS, max_tokens=1500), generate(ENDLESS, max_length=1500)], ids=["ours", "core's"]
)
def test_an_answer_can_be_stopped(server, graph):
    seen = []

    def stop(node_id, step, steps):
        if node_id == "3":
            seen.append(step)
        if len(seen) == 3:
            server.interrupt()

    with pytest.raises(GraphFailed) as failure:
        server.wait(server.post(graph), stop)
    assert failure.value.exception == "interrupted" and failure.value.node == "3"
    assert seen[-1] < 1500
    assert shown(server.run(chat(question="after the stop", max_tokens=1)))["prompt"] == "after the stop"


# --- errors ---

REJECTED = {
    "no question": (chat(question=" "), "3", ["question: enter a question"]),
    "a system message and thinking": (
        chat(system="Be brief.", thinking=True),
        "3",
        ["system: leave it empty when thinking is on"],
    ),
    "a file of something else": (
        chat("wrong.safetensors"),
        "1",
        ["wrong.safetensors (in ", "expected an InternVL chat model", "OpenGVLab"],
    ),
    "no tokenizer": (chat("Mute"), "1", ["Mute (in ", "has no tokenizer that can be used", "vocab.json"]),
    "a shard is missing": (
        chat("Torn"),
        "1",
        ["Torn (in ", "lacks 1 of its shards", "model-00002-of-00002.safetensors", "Download it again"],
    ),
    **{
        language: (
            chat(name),
            "1",
            [f"{name} (in ", f"llm_config.model_type is '{language}'", "InternVL3-1B, -2B, -8B"],
        )
        for name, language in OTHER_LANGUAGES.items()
    },
    "a folder that is gone": (chat("gone"), "1", ["'gone' is not in", "internvl_chat", "OpenGVLab"]),
}


@pytest.mark.parametrize("name", REJECTED)
def test_what_cannot_be_asked_is_told_before_anything_loads(server, name):
    graph, id, words = REJECTED[name]
    with pytest.raises(GraphRejected) as refusal:
        server.run(graph)
    details = refusal.value.node_errors[id]["errors"][0]["details"]
    for word in words:
        assert word in details, details


FAILED = {
    "a history that is no talk": (
        chat(history=["5", 0]) | {"5": node("PrimitiveString", value='[{"role": "user", "content": "a"}]')},
        "3",
        "history: the last question has no answer",
    ),
    "a connected question": (
        chat(question=["5", 0]) | {"5": node("PrimitiveString", value=" ")},
        "3",
        "question: enter a question",
    ),
    "another CLIP": (
        chat(clip=["5", 1]) | {"5": node("CheckpointLoaderSimple", ckpt_name="v1-5-pruned-emaonly-fp16.safetensors")},
        "3",
        "clip: this CLIP cannot generate text. Connect the CLIP output of InternVL Chat Loader.",
    ),
    "a prompt for a picture": (
        {
            "1": loader(),
            "3": node("CLIPTextEncode", clip=["1", 0], text="a cat"),
            "4": node("PreviewAny", source=["3", 0]),
        },
        "3",
        f"{FOLDER} is a chat model and gives no conditioning: connect this CLIP to Generate Text or InternVL Chat",
    ),
    "places without pictures": (
        chat(question="Is <image> larger than <image>?", **{"images.image_1": ["2", 0]}),
        "3",
        "the text has 2 <image>, but there are 1 images",
    ),
    "too many pictures": (
        chat(tiles=40, **{"images.image_1": ["2", 0]}) | {"2": picture(1120, count=40)},
        "3",
        "reads 2048: use fewer images",
    ),
    "nothing to go on from": (
        generate(prompt="", use_default_template=False),
        "3",
        "the prompt is empty: enter one, or turn the default template on",
    ),
    "a penalty of nothing": (
        generate(**DRAWN | {"sampling_mode.repetition_penalty": 0.0}),
        "3",
        "repetition_penalty must be a number above 0, not 0.0; 1 is off",
    ),
    **{
        f"no image in core's {name}": (
            generate(**{name: ["2", 0]}) | {"2": node("FuzzValue", expr="torch.zeros(0, 32, 32, 3)")},
            "3",
            f"{name}: the batch is empty: there is no image in it",
        )
        for name in ("image", "video")
    },
}


@pytest.mark.parametrize("name", FAILED)
def test_what_goes_wrong_while_it_runs_says_what_to_do(server, name):
    graph, id, words = FAILED[name]
    with pytest.raises(GraphFailed) as failure:
        server.run(graph)
    assert failure.value.node == id and words in failure.value.message, failure.value.message
