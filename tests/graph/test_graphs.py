"""MuLan's CLIP in the graphs people wire, through the queue of a real ComfyUI server."""
from __future__ import annotations

import numpy as np
import pytest
import graphs

PROMPT = "a big red star"
ENCODER, ADAPTER = "tiny_internvl.safetensors", "tiny_sd15_adapter.safetensors"


@pytest.fixture(scope="module")
def base() -> dict:
    return graphs.change(graphs.load("mulan_text_to_image"), "Prompt", text=PROMPT)


@pytest.fixture(scope="module")
def plain(server, base) -> np.ndarray:
    return picture(server, base)


def picture(server, graph: dict) -> np.ndarray:
    (image,) = server.run(graph).images
    return image.astype(float)


def differ(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of two pictures in levels of 0..255."""
    return float(np.abs(a - b).mean())


def add(graph: dict, *nodes: tuple[str, str, dict], **rewired) -> dict:
    """The graph with more nodes (id, class, inputs); `rewired` gives inputs anew: KSampler_positive=[id, output]."""
    graph = {**graph, **{id: {"class_type": kind, "inputs": inputs} for id, kind, inputs in nodes}}
    for where, link in rewired.items():
        name, _, input_name = where.partition("_")
        graph = graphs.change(graph, name, **{input_name: link})
    return graph


def encode(id: str, text: str, clip=("2", 1)) -> tuple[str, str, dict]:
    return id, "CLIPTextEncode", {"clip": list(clip), "text": text}


def test_same_graph_same_picture_other_seed_other_picture(server, base, plain):
    again = picture(server, graphs.change(base, "Save Image", filename_prefix="again"))
    assert np.array_equal(again, plain)
    assert differ(picture(server, graphs.change(base, "KSampler", seed=2)), plain) > 0.5


def test_empty_prompts(server, base):
    assert np.isfinite(picture(server, graphs.change(base, "Prompt", text=""))).all()


def test_weights_act_and_a_weight_of_one_does_nothing(server, base, plain):
    assert np.array_equal(picture(server, graphs.change(base, "Prompt", text="a big (red:1.0) star")), plain)
    heavy = picture(server, graphs.change(base, "Prompt", text="a big (red:3.0) star"))
    assert np.isfinite(heavy).all() and differ(heavy, plain) > 0.1


def test_escaped_brackets_are_text(server, base):
    """`\\(` reaches the encoder as a bracket and weighs nothing: the same in both styles."""
    ours = picture(server, graphs.change(base, "Prompt", text=r"a big \(red\) star"))
    upstream = graphs.change(graphs.change(base, "MuLan Loader", prompt_style="upstream"), "Prompt", text="a big (red) star")
    assert differ(ours, picture(server, upstream)) < 0.5


def test_a_text_longer_than_one_window(server, base, plain):
    long = picture(server, graphs.change(base, "Prompt", text=", ".join([PROMPT] * 40)))
    assert np.isfinite(long).all() and differ(long, plain) > 0.1


def test_batch(server, base):
    images = server.run(graphs.change(base, "Empty Latent Image", batch_size=3)).images
    assert len(images) == 3 and differ(images[0].astype(float), images[1].astype(float)) > 0.5


def test_negative_output_differs_from_clip_only_by_the_prefix(server, base):
    """The same words on both outputs give different contexts; an empty negative gives the same."""
    negative = graphs.change(base, "Negative prompt", text="a small blue circle")
    through_clip = graphs.change(negative, "Negative prompt", clip=["2", 1])
    assert differ(picture(server, negative), picture(server, through_clip)) > 0.01
    assert np.array_equal(picture(server, base), picture(server, graphs.change(base, "Negative prompt", clip=["2", 1])))


def test_lora_on_model_and_text_encoder(server, base, plain):
    def with_lora(strength_model, strength_clip):
        lora = ("20", "LoraLoader", {"model": ["2", 0], "clip": ["2", 1], "lora_name": "shapes.safetensors",
                                     "strength_model": strength_model, "strength_clip": strength_clip})
        return picture(server, add(base, lora, KSampler_model=["20", 0], Prompt_clip=["20", 1]))

    assert np.array_equal(with_lora(0.0, 0.0), plain)
    on_model, on_text = with_lora(1.0, 0.0), with_lora(0.0, 1.0)
    assert differ(on_model, plain) > 0.1 and differ(on_text, plain) > 0.1 and differ(on_model, on_text) > 0.1
    assert np.array_equal(picture(server, graphs.change(base, "Save Image", filename_prefix="after")), plain), "a LoRA stayed behind"


def test_lora_hooks_with_keyframes(server, base, plain):
    graph = add(
        base,
        ("20", "CreateHookLora", {"lora_name": "shapes.safetensors", "strength_model": 1.0, "strength_clip": 1.0}),
        ("21", "CreateHookKeyframe", {"strength_mult": 1.0, "start_percent": 0.0}),
        ("22", "CreateHookKeyframe", {"prev_hook_kf": ["21", 0], "strength_mult": 0.0, "start_percent": 0.5}),
        ("23", "SetHookKeyframes", {"hooks": ["20", 0], "hook_kf": ["22", 0]}),
        ("24", "SetClipHooks", {"clip": ["2", 1], "hooks": ["23", 0], "apply_to_conds": True, "schedule_clip": True}),
        Prompt_clip=["24", 0],
    )
    hooked = picture(server, graph)
    assert np.isfinite(hooked).all() and differ(hooked, plain) > 0.1


def test_controlnet(server, base, plain):
    def with_control(strength):
        return picture(server, add(
            base,
            ("20", "ControlNetLoader", {"control_net_name": "hint.safetensors"}),
            ("21", "EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0xFF8800}),
            ("22", "ControlNetApplyAdvanced", {"positive": ["3", 0], "negative": ["4", 0], "control_net": ["20", 0], "image": ["21", 0],
                                               "strength": strength, "start_percent": 0.0, "end_percent": 1.0}),
            KSampler_positive=["22", 0], KSampler_negative=["22", 1],
        ))

    assert np.array_equal(with_control(0.0), plain)
    controlled = with_control(1.0)
    assert np.isfinite(controlled).all() and differ(controlled, plain) > 0.1


def test_lcm(server, base):
    graph = add(
        base,
        ("20", "LoraLoaderModelOnly", {"model": ["2", 0], "lora_name": "shapes.safetensors", "strength_model": 0.5}),
        ("21", "ModelSamplingDiscrete", {"model": ["20", 0], "sampling": "lcm", "zsnr": False}),
        KSampler_model=["21", 0],
    )
    assert np.isfinite(picture(server, graphs.change(graph, "KSampler", sampler_name="lcm", scheduler="sgm_uniform", steps=4, cfg=1.5))).all()


OTHER = encode("20", "a small blue circle")
CONDITIONING = {
    "combine": [("21", "ConditioningCombine", {"conditioning_1": ["3", 0], "conditioning_2": ["20", 0]})],
    "concat": [("21", "ConditioningConcat", {"conditioning_to": ["3", 0], "conditioning_from": ["20", 0]})],
    "average": [("21", "ConditioningAverage", {"conditioning_to": ["3", 0], "conditioning_from": ["20", 0], "conditioning_to_strength": 0.5})],
    "time range": [("22", "ConditioningSetTimestepRange", {"conditioning": ["3", 0], "start": 0.0, "end": 0.5}),
                   ("23", "ConditioningSetTimestepRange", {"conditioning": ["20", 0], "start": 0.5, "end": 1.0}),
                   ("21", "ConditioningCombine", {"conditioning_1": ["22", 0], "conditioning_2": ["23", 0]})],
    "area": [("22", "ConditioningSetArea", {"conditioning": ["20", 0], "width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0}),
             ("21", "ConditioningCombine", {"conditioning_1": ["3", 0], "conditioning_2": ["22", 0]})],
    "mask": [("22", "SolidMask", {"value": 1.0, "width": 64, "height": 64}),
             ("23", "ConditioningSetMask", {"conditioning": ["20", 0], "mask": ["22", 0], "strength": 0.5, "set_cond_area": "default"}),
             ("21", "ConditioningCombine", {"conditioning_1": ["3", 0], "conditioning_2": ["23", 0]})],
    "zero out": [("21", "ConditioningZeroOut", {"conditioning": ["3", 0]})],
    "set last layer": [("22", "CLIPSetLastLayer", {"clip": ["2", 1], "stop_at_clip_layer": -2}), encode("21", PROMPT, ("22", 0))],
}


@pytest.mark.parametrize("kind", CONDITIONING)
def test_conditioning_maths(kind, server, base, plain):
    result = picture(server, add(base, OTHER, *CONDITIONING[kind], KSampler_positive=["21", 0]))
    assert np.isfinite(result).all() and differ(result, plain) > 0.1


def test_stock_clip_on_the_negative_side(server, base):
    """120 rows of context against the checkpoint's own 77."""
    assert np.isfinite(picture(server, graphs.change(base, "Negative prompt", clip=["1", 1], text="blue"))).all()


def test_clip_save_round_trip(server, base, plain):
    """What the stock CLIPSave writes is a text encoder and an adapter for the loader, and draws the same picture."""
    server.run(add(base, ("20", "CLIPSave", {"clip": ["2", 1], "filename_prefix": "clip/mulan"})))
    (saved,) = [name for name in options(server, "text_encoder") if name.startswith("mulan_")]
    assert np.array_equal(picture(server, graphs.change(base, "MuLan Loader", text_encoder=saved)), plain)


@pytest.mark.parametrize("choice", ({"text_encoder": "Sharded-safetensors"}, {"text_encoder": "Sharded-bin"}, {"adapter": "as_published.pth"}))
def test_files_as_published_draw_the_same_picture(choice, server, base, plain):
    assert np.array_equal(picture(server, graphs.change(base, "MuLan Loader", **choice)), plain)


def test_a_sharded_checkpoint_is_offered_once_as_its_folder(server):
    assert [name for name in options(server, "text_encoder") if name.startswith("Sharded-bin")] == ["Sharded-bin"]


def test_upstream_style_draws_the_same_for_a_plain_prompt(server, base, plain):
    assert np.array_equal(picture(server, graphs.change(base, "MuLan Loader", prompt_style="upstream")), plain)


def test_on_the_cpu(server, base, plain):
    assert differ(picture(server, graphs.change(base, "MuLan Loader", device="cpu")), plain) < 2.0


def test_sd21(server, base):
    """The family is read from the adapter; the checkpoint has neither CLIP nor VAE of its own."""
    graph = add(base, ("20", "CheckpointLoaderSimple", {"ckpt_name": "random_sd21.safetensors"}))
    graph = graphs.change(graph, "MuLan Loader", model=["20", 0], adapter="random_sd21.safetensors")
    assert np.isfinite(picture(server, graph)).all()


def test_without_a_model_the_clip_serves_any_model(server, base, plain):
    graph = graphs.change(base, "KSampler", model=["1", 0])
    del graph["2"]["inputs"]["model"]
    assert np.array_equal(picture(server, graph), plain)


def options(server, name: str) -> list[str]:
    info = server.object_info("MuLanLoader")["input"]
    declared = {**info["required"], **info["optional"]}[name]
    return declared[1]["options"] if declared[0] == "COMBO" else declared[0]
