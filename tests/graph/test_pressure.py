"""Models under pressure: loaded in part, evicted by another and loaded again, freed; in every format, and with
ComfyUI's dynamic VRAM. In a real server with an accelerator that is not there.

What is shown is what ComfyUI does to our models, and what they answer then; the accelerator computes on the CPU (see
tests/accelerator).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import comfy.model_management
import pytest

from mulan_nodes.mulan.checkpoints.quantization import FORMATS
from mulan_nodes.mulan.conversion.converters import convert
from mulan_nodes.tools.comfy_server import ComfyServer
from mulan_nodes.tools.random_checkpoints import internvl as random_internvl
from mulan_nodes.tools.random_checkpoints import internvl_chat as random_internvl_chat
from mulan_nodes.tools.random_checkpoints import visionllm as random_visionllm
from mulan_nodes.tools.shards import shard

TESTS = Path(__file__).resolve().parents[1]
PLENTY = 4 * 2**30
FOR_COMPUTING = (
    int(comfy.model_management.minimum_inference_memory()) + 1
)  # bytes that ComfyUI never fills with weights
SPARE = 0.2  # beside a model's own size: ComfyUI makes room for a tenth more
LARGE = {
    "width": 512,
    "feed_forward": 1024,
    "layers": 6,
    "heads": 8,
    "text_width": 512,
    "text_feed_forward": 1024,
    "text_layers": 6,
    "text_heads": 8,
}


QUANTIZED = [name for name, form in FORMATS.items() if form is not None]
ENVIRONMENT = {
    "PYTHONPATH": str(TESTS / "accelerator"),
    # several threads add in another order when a batch has another size, and bits are compared
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def pressed_models(models) -> Path:
    """The models folder with those that are pressed, as published and in every format."""
    shard(random_visionllm.checkpoint(models / "visionllm" / "Pressed", mappers=True))
    random_internvl.checkpoint(models / "internvl" / "Pressed", shards="safetensors", **LARGE)
    shard(random_internvl_chat.checkpoint(models / "internvl_chat" / "Pressed"))
    for form in QUANTIZED:
        for kind in ("visionllm", "internvl", "internvl_chat"):
            convert(models / kind / "Pressed", lambda kind: models / kind, form)
        convert(
            models / "text_encoders" / "large.safetensors", models / "text_encoders" / f"large_{form}.safetensors", form
        )
    return models


def serve(comfyui_folder: Path, models: Path, *arguments: str) -> ComfyServer:
    """A server that finds the accelerator."""
    return ComfyServer(
        comfyui_folder,
        cpu=False,
        extra_models=models,
        extra_nodes=TESTS / "custom_nodes",
        environment=ENVIRONMENT,
        arguments=arguments,
    )


@pytest.fixture(scope="module")
def npu(comfyui_folder, pressed_models):
    with serve(comfyui_folder, pressed_models) as server:
        yield server


@pytest.fixture(scope="module")
def dynamic(comfyui_folder, pressed_models):
    """A server that loads a layer when it is used, as on NVIDIA's devices."""
    with serve(comfyui_folder, pressed_models, "--enable-dynamic-vram", "--disable-pinned-memory") as server:
        yield server


def node(kind: str, /, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


@dataclass(frozen=True)
class Subject:
    """What is put under pressure: `loader` with the nodes it needs, which of its outputs the model is, what is asked of
    it (each node takes the
    model as the input `model_input`), and the classes that ComfyUI loads.
    """

    loader: dict
    output: int
    model_input: str
    questions: tuple[dict, ...]
    loaded: tuple[str, ...]
    others: dict = field(default_factory=dict)


PICTURE = {"20": node("EmptyImage", width=96, height=64, batch_size=1, color=0x332211)}
SUBJECTS = {
    "VISIONLLM": Subject(
        node("VisionLLMLoader", checkpoint="Pressed", precision="fp32"),
        0,
        "visionllm",
        (
            node("VisionLLMDetect", image=["20", 0], names="star, 圆", threshold=0.0, top_k=5, masks_in_json=True),
            node(
                "VisionLLMPose",
                image=["20", 0],
                objects="",
                skeleton="person, 17 (COCO)",
                keypoints="",
                threshold=0.0,
                top_k=3,
            ),
            node(
                "VisionLLMRegion",
                image=["20", 0],
                question="describe",
                points='[{"x": 10, "y": 20}]',
                threshold=0.0,
                top_k=3,
            ),
            node("VisionLLMAsk", question="What is it?", max_tokens=6, **{"images.image_1": ["20", 0]}),
            node("VisionLLMAsk", question="Who are you?", max_tokens=6),
            node("VisionLLMGenerateConditioning", prompt="빨간 별"),
            node("VisionLLMEditConditioning", image=["20", 0], instruction="make it winter"),
        ),
        ("VisionLLM",),
        PICTURE,
    ),
    "MuLan's CLIP": Subject(
        node(
            "MuLanLoader",
            text_encoder="large.safetensors",
            adapter="large.safetensors",
            prompt_style="default",
            remember_prompts=False,
        ),
        1,
        "clip",
        (node("CLIPTextEncode", text="a big (red:1.2) star"), node("CLIPTextEncode", text="")),
        ("MulanTextEncoder",),
    ),
    "INTERNVL": Subject(
        node("InternVLLoader", checkpoint="Pressed", text_encoder="in the checkpoint", mode="G"),
        0,
        "internvl",
        (node("InternVLEmbed", image=["20", 0]), node("InternVLEmbed", texts="a star\n蓝色的圆")),
        ("ContrastiveModel", "QueryReader", "MulanTextEncoder"),
        PICTURE,
    ),
    "InternVL's chat": Subject(
        node("InternVLChatLoader", checkpoint="Pressed"),
        0,
        "clip",
        (
            node("InternVLChat", question="What is it?", max_tokens=6, **{"images.image_1": ["20", 0]}),
            node("InternVLChat", question="Who are you?", max_tokens=6),
        ),
        ("InternVLChatEncoder",),
        PICTURE,
    ),
}


FILES = {  # a subject's inputs that name files, in a format
    "VISIONLLM": {"checkpoint": "Pressed_{}.safetensors"},
    "MuLan's CLIP": {"text_encoder": "large_{}.safetensors"},
    "INTERNVL": {"checkpoint": "Pressed_vision_{}.safetensors", "text_encoder": "Pressed_text_{}.safetensors"},
    "InternVL's chat": {"checkpoint": "Pressed_{}.safetensors"},
}
STAYS = 2**20  # bytes of tensors outside layers, which dynamic VRAM loads once for all
SAMPLED = {"temperature": 1.0, "seed": 7}


def in_format(name: str, form: str | None) -> Subject:
    """A subject that reads its files in a format (None: as published), and samples where it writes."""
    subject = SUBJECTS[name]
    files = {key: file.format(form) for key, file in FILES[name].items()} if form else {}
    loader = {**subject.loader, "inputs": {**subject.loader["inputs"], **files}}
    questions = tuple(
        {**question, "inputs": {**question["inputs"], **(SAMPLED if "max_tokens" in question["inputs"] else {})}}
        for question in subject.questions
    )
    return replace(subject, loader=loader, questions=questions)


def pressed(subject: Subject, *steps: dict) -> dict:
    """A graph that asks everything, once per step: `before` and `after` are what the memory's node is told then."""
    graph = {"1": subject.loader, **subject.others}
    model = ["1", subject.output]
    for number, step in enumerate(steps):
        graph[f"before {number}"] = node("NpuMemory", value=model, **step.get("before", {}))
        asked = {
            f"{number} {index}": {
                **question,
                "inputs": {**question["inputs"], subject.model_input: [f"before {number}", 0]},
            }
            for index, question in enumerate(subject.questions)
        }
        answers = {f"after.after_{index}": [id, 0] for index, id in enumerate(asked)}
        graph |= asked | {
            f"after {number}": node("NpuMemory", value=[f"before {number}", 0], **answers, **step.get("after", {}))
        }
        model = [f"after {number}", 0]
    return graph


def run(npu, subject: Subject, *steps: dict) -> list[dict]:
    """What the memory's node shows behind the answers of each step. `answers`: all they say; `loaded`: bytes of the
    model; `work`: of this step.
    """
    told = []
    outputs = npu.run(pressed(subject, *steps)).nodes
    for number in range(len(steps)):
        before, after = (json.loads(outputs[f"{when} {number}"]["text"][0]) for when in ("before", "after"))
        texts = [outputs.get(f"{number} {index}", {}).get("text") for index in range(len(subject.questions))]
        sizes = [after["models"].get(part, (0, 0)) for part in subject.loaded]
        told.append(
            {
                **after,
                "answers": (after["digest"], texts),
                "work": after["work"] - before["work"],
                "loaded": sum(loaded for loaded, _ in sizes),
                "size": sum(size for _, size in sizes),
            }
        )
    return told


@pytest.fixture(scope="module", params=SUBJECTS)
def plenty(request, npu) -> dict:
    """What is answered, and told of the memory, where everything fits; and the `subject`."""
    free(npu)
    subject = SUBJECTS[request.param]
    (told,) = run(npu, subject, {"before": {"total": PLENTY}})
    assert told["used"] >= told["loaded"] >= told["size"] > 0 and set(told["models"]) == set(subject.loaded)
    return {**told, "subject": subject}


def free(npu, left: int = 0) -> int:
    """/free -> the bytes that are in use still. It is asked for again and again, until no more than `left` are: ComfyUI
    misses it where it has just ended a graph.
    """
    deadline = time.monotonic() + 30
    while True:
        npu.free()
        time.sleep(0.2)
        (device,) = json.loads(npu.get("/system_stats"))["devices"]
        used = device["vram_total"] - device["vram_free"]
        if used <= left or time.monotonic() > deadline:
            return used


def test_free_gives_every_byte_back(npu, plenty):
    (told,) = run(npu, plenty["subject"], {})
    assert told["used"] >= plenty["size"]
    assert free(npu) == 0


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_loaded_in_part_it_answers_the_same(npu, plenty, share):
    """The weights that do not fit are sent over one by one; the device computes all the same."""
    free(npu)
    (told,) = run(npu, plenty["subject"], {"before": {"total": FOR_COMPUTING + int(share * plenty["size"])}})
    assert told["answers"] == plenty["answers"] and told["work"] > 0.9 * plenty["work"]
    assert told["used"] < (share + 0.1) * plenty["size"] and (told["used"] > 0 or not share)


@pytest.mark.parametrize("question", SUBJECTS["VISIONLLM"].questions[4:6], ids=lambda question: question["class_type"])
def test_without_a_picture_it_stays_on_the_accelerator(npu, question):
    """No picture says where to compute, and no weight is there that could."""
    free(npu)
    (told,) = run(npu, replace(SUBJECTS["VISIONLLM"], questions=(question,)), {"before": {"total": FOR_COMPUTING}})
    assert told["work"] > 100


@pytest.mark.parametrize("evicted", ["wholly", "in part"])
def test_evicted_by_another_model_it_comes_back_the_same(npu, plenty, evicted):
    """Another model comes that needs all of its room, or half; then the questions are asked again."""
    free(npu)
    size = plenty["size"]
    total, rival = (
        FOR_COMPUTING + int((1 + SPARE) * size),
        int(((1.0 if evicted == "wholly" else 0.5) + SPARE) * size / 1.1) + 1,
    )
    first, again = run(npu, plenty["subject"], {"before": {"total": total}, "after": {"rival": rival}}, {})
    assert first["answers"] == again["answers"] == plenty["answers"]
    assert first["copy"] == again["copy"] and again["loaded"] > 0.9 * size
    if evicted == "wholly":
        assert first["loaded"] == 0 and first["used"] < rival + 0.1 * size and first["pictures"] == 0
    else:
        assert 0 < first["loaded"] < 0.7 * size


@pytest.mark.parametrize("form", QUANTIZED)
@pytest.mark.parametrize("name", SUBJECTS)
def test_in_a_smaller_format_it_answers_the_same_loaded_in_part(npu, name, form):
    free(npu)
    subject = in_format(name, form)
    (whole,) = run(npu, subject, {"before": {"total": PLENTY}})
    assert free(npu) == 0 and 0 < whole["loaded"] == whole["size"]
    (part,) = run(npu, subject, {"before": {"total": FOR_COMPUTING + int(0.4 * whole["size"])}})
    assert part["answers"] == whole["answers"] and part["work"] > 0.9 * whole["work"]
    assert part["loaded"] < 0.5 * whole["size"]
    assert free(npu) == 0


@pytest.mark.parametrize("form", [None, *QUANTIZED])
@pytest.mark.parametrize("name", SUBJECTS)
def test_with_dynamic_vram_it_answers_the_same_with_room_and_without(dynamic, name, form):
    """Layers of at most 16 kB are loaded at once and rounded to their format anew, by seeds of their names."""
    free(dynamic, STAYS)
    subject = in_format(name, form)
    (whole,) = run(dynamic, subject, {"before": {"total": PLENTY}})
    free(dynamic, STAYS)
    (part,) = run(dynamic, subject, {"before": {"total": PLENTY, "headroom": PLENTY - int(0.5 * whole["loaded"])}})
    assert 0 < part["loaded"] < 0.8 * whole["loaded"] and part["work"] > 0.9 * whole["work"]
    assert part["answers"] == whole["answers"]


@pytest.mark.parametrize("name", SUBJECTS)
def test_dynamic_vram_changes_no_answer(npu, dynamic, name):
    free(npu)
    subject = in_format(name, None)
    told = [run(server, subject, {"before": {"total": PLENTY}})[0]["answers"] for server in (npu, dynamic)]
    assert told[0] == told[1]
