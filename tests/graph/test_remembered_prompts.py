"""Known prompts through the queue: the same conditionings, after a restart too, and the text encoder is not read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mulan_nodes.mulan.conditioning.saved_conditioning import load_conditioning
from mulan_nodes.tests.unit.test_prompt_memory import same, share_read
from mulan_nodes.tools.comfy_server import ComfyServer

PACK = Path(__file__).resolve().parents[2]
ENCODER = "large.safetensors"  # 200 MB
LOADED = "Requested to load MulanTextEncoder"


@pytest.fixture
def start(comfyui_folder, models, tmp_path):
    """Start a server on the folder of this test, where the one before it wrote; that one ends."""
    running: list[ComfyServer] = []

    def start() -> ComfyServer:
        while running:
            running.pop().stop()
        running.append(ComfyServer(comfyui_folder, extra_models=models, folder=tmp_path))
        running[0].start()
        return running[0]

    yield start
    for server in running:
        server.stop()


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(prefix: str, prompt: str = "a (red:1.2) star", encoder: str = ENCODER, adapter="large.safetensors", **loader):
    return {
        "1": node("MuLanLoader", text_encoder=encoder, adapter=adapter, prompt_style="default", **loader),
        "2": node("CLIPTextEncode", clip=["1", 1], text=prompt),
        "3": node("CLIPTextEncode", clip=["1", 2], text="blurry"),
        "4": node("MuLanEncodeLanguages", clip=["1", 1], prompts=f"en: {prompt}\nzh: 红色的星", negative=""),
        **{
            f"5{id}": node("MuLanSaveConditioning", conditioning=source, filename_prefix=f"{prefix}_{id}")
            for id, source in enumerate((["2", 0], ["3", 0], ["4", 0], ["4", 1]))
        },
    }


def saved(server: ComfyServer, prefix: str) -> list:
    files = sorted((server.folder / "output" / "conditioning").glob(f"{prefix}_[0-9]_*.safetensors"))
    return [load_conditioning(file).conditioning for file in files]


def loads(server: ComfyServer) -> int:
    return server.log.read_text("utf-8", "replace").count(LOADED)


def prompts(server: ComfyServer) -> list[Path]:
    return sorted((server.folder / "user" / "__mulan" / "prompts").glob("*"))


def test_a_graph_of_known_prompts_reads_no_text_encoder_also_after_a_restart(start, models):
    file = models / "text_encoders" / ENCODER
    server = start()
    server.run(graph("first"))
    wanted = saved(server, "first")
    assert (
        len(wanted) == 5 and loads(server) and share_read(server.process.pid, file) > 0.5 and len(prompts(server)) == 4
    )

    server = start()
    server.run(graph("second"))
    assert same(saved(server, "second"), wanted) and not loads(server)
    assert share_read(server.process.pid, file) < 0.02, "the header and the tokenizer"
    server.run(graph("other", "a blue star"))
    assert loads(server) == 1 and len(prompts(server)) == 5 and share_read(server.process.pid, file) > 0.5
    other = saved(server, "other")
    assert same(other[1], wanted[1]) and same(other[3:], wanted[3:]) and not same(other[0], wanted[0])


def test_the_switch_and_the_command(server):
    for known in prompts(server):  # of other tests on this server
        known.unlink()
    before = loads(server)
    server.run(graph("off", "a green star", remember_prompts=False))
    assert loads(server) > before and not prompts(server)
    server.run(graph("on", "a green star"))
    assert len(prompts(server)) == 4 and same(saved(server, "off")[:2], saved(server, "on")[:2])
    before = loads(server)
    server.run(graph("cpu", "a green star", device="cpu"))
    assert loads(server) == before, "the same device here, so the prompts are known"
    server.run(graph("without", "a green star", device="cpu", remember_prompts=False))
    assert loads(server) > before and same(saved(server, "without")[:2], saved(server, "on")[:2])

    command = [sys.executable, PACK / "convert.py", "--forget-prompts", prompts(server)[0].parent]
    done = subprocess.run(command, cwd=server.comfyui, capture_output=True, text=True)
    assert done.returncode == 0 and "Removed 4 encoded prompts" in done.stdout, done.stderr
    before = loads(server)
    server.free()
    server.run(graph("anew", "a green star"))
    assert loads(server) > before and len(prompts(server)) == 4 and same(saved(server, "anew"), saved(server, "on"))


def lora(graph: dict) -> dict:
    """The graph with a LoRA between MuLan Loader and the node that encodes one prompt."""
    return graph | {
        "9": node("LoraLoaderModelOnly", model=["10", 0], lora_name="shapes.safetensors", strength_model=0.0),
        "10": node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "8": node(
            "LoraLoader",
            model=["9", 0],
            clip=["1", 1],
            lora_name="shapes.safetensors",
            strength_model=0.0,
            strength_clip=1.0,
        ),
        "2": node("CLIPTextEncode", clip=["8", 1], text=graph["2"]["inputs"]["text"]),
    }


def hooked(graph: dict) -> dict:
    """The graph with a LoRA as a hook on the CLIP of one prompt."""
    hook = node("CreateHookLora", lora_name="shapes.safetensors", strength_model=0.0, strength_clip=1.0)
    clip = node("SetClipHooks", clip=["1", 1], hooks=["8", 0], apply_to_conds=False, schedule_clip=False)
    encode = node("CLIPTextEncode", clip=["9", 0], text=graph["2"]["inputs"]["text"])
    return graph | {"8": hook, "9": clip, "2": encode}


def skipped(graph: dict) -> dict:
    """The graph with clip skip for one prompt."""
    skip = node("CLIPSetLastLayer", clip=["1", 1], stop_at_clip_layer=-2)
    return graph | {"8": skip, "2": node("CLIPTextEncode", clip=["8", 0], text=graph["2"]["inputs"]["text"])}


@pytest.mark.parametrize("change", [lora, hooked, skipped])
def test_what_stock_nodes_do_to_the_clip_is_done_to_a_known_prompt_too(change, server):
    """And what they did never comes back for the plain CLIP."""
    name = change.__name__
    tiny = {
        "prompt": f"a {name} star",
        "encoder": "tiny_internvl.safetensors",
        "adapter": "tiny_sd15_adapter.safetensors",
    }
    server.run(change(graph(f"off {name}", **tiny, remember_prompts=False)))
    server.run(graph(f"plain {name}", **tiny))
    for run in ("changed", "once more"):
        server.run(change(graph(f"{run} {name}", **tiny)))
        assert same(saved(server, f"{run} {name}")[:2], saved(server, f"off {name}")[:2])
        server.free()
        server.run(graph(f"after {run} {name}", **tiny))
        assert same(saved(server, f"after {run} {name}"), saved(server, f"plain {name}"))
    assert not same(saved(server, f"plain {name}")[0], saved(server, f"off {name}")[0])
