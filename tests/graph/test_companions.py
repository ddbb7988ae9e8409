"""What people put beside MuLan - LoRA, ControlNet, masks, schedules, guiders, other packs' patches - measured in
pictures of the tiny world.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors import safe_open

from mulan_nodes.tools import graphs
from mulan_nodes.tools.graphs import add, differ, picture
from mulan_nodes.tools.tinyworld.world import read

BLUE_STAR, RED_CIRCLE, YELLOW_STAR = "一个蓝色的大五角星", "دائرة حمراء كبيرة", "大きな黄色い星"
STEPS = 8


@pytest.fixture(scope="module")
def base() -> dict:
    """A big blue star, asked for in Chinese; id 2 is the MuLan Loader, 3 the prompt, 4 the empty negative, 5 the
    latents, 6 the sampler.
    """
    return graphs.change(
        graphs.change(graphs.load("mulan_text_to_image"), "Prompt", text=BLUE_STAR), "KSampler", steps=STEPS
    )


@pytest.fixture(scope="module")
def plain(server, base) -> np.ndarray:
    drawn = picture(server, base)
    assert shown(drawn) == "blue star"
    return drawn


def shown(drawn: np.ndarray) -> str:
    """The colour and shape that a picture of 64x64 shows."""
    reading = read(drawn.astype(np.uint8))
    return f"{reading.colour} {reading.shape}"


def encode(id: str, text: str, clip=("2", 1)) -> tuple[str, str, dict]:
    return id, "CLIPTextEncode", {"clip": list(clip), "text": text}


def combine(id: str, *conditionings: str) -> list[tuple[str, str, dict]]:
    """Nodes that combine the conditionings of these ids; the last has `id`."""
    nodes, first = [], conditionings[0]
    for number, second in enumerate(conditionings[1:], start=2):
        name = id if number == len(conditionings) else f"{id}{number}"
        nodes.append((name, "ConditioningCombine", {"conditioning_1": [first, 0], "conditioning_2": [second, 0]}))
        first = name
    return nodes


# --- LoRA


def with_lora(graph: dict, strength_model: float, strength_clip: float, name: str = "shapes.safetensors") -> dict:
    lora = (
        "20",
        "LoraLoader",
        {
            "model": ["2", 0],
            "clip": ["2", 1],
            "lora_name": name,
            "strength_model": strength_model,
            "strength_clip": strength_clip,
        },
    )
    return add(graph, lora, KSampler_model=["20", 0], Prompt_clip=["20", 1])


def with_lora_on_model(graph: dict, strength: float, name: str = "shapes.safetensors") -> dict:
    lora = ("20", "LoraLoaderModelOnly", {"model": ["2", 0], "lora_name": name, "strength_model": strength})
    return add(graph, lora, KSampler_model=["20", 0])


def test_lora_on_model_and_text_encoder(server, base, plain):
    assert np.array_equal(picture(server, with_lora(base, 0.0, 0.0)), plain)
    on_model, on_text = picture(server, with_lora(base, 1.0, 0.0)), picture(server, with_lora(base, 0.0, 1.0))
    assert differ(on_model, plain) > 0.1 and differ(on_text, plain) > 0.1 and differ(on_model, on_text) > 0.1
    assert np.array_equal(on_model, picture(server, with_lora_on_model(base, 1.0)))
    assert np.array_equal(picture(server, graphs.change(base, "Save Image", filename_prefix="after")), plain), (
        "a LoRA stayed behind"
    )


def test_a_lora_made_for_clip_l_changes_only_the_model_and_the_log_says_so(server, base, plain, models):
    with safe_open(models / "loras" / "shapes_clip_l.safetensors", "pt") as file:
        for_clip_l = {name for name in file.keys() if name.startswith("lora_te_")}
    read_before = server.log.stat().st_size
    both = picture(server, with_lora(base, 1.0, 1.0, "shapes_clip_l.safetensors"))
    log = server.log.read_bytes()[read_before:].decode("utf-8", "replace")
    assert set(re.findall(r"lora key not loaded: (\S+)", log)) == for_clip_l and len(for_clip_l) == 216
    assert differ(both, plain) > 0.1
    assert np.array_equal(both, picture(server, with_lora_on_model(base, 1.0, "shapes_clip_l.safetensors")))


def test_lora_hooks_with_keyframes(server, base, plain):
    """The LoRA on both sides by hooks: nothing at strength 0, the loader's LoRA at 1, neither where it ends halfway."""

    def hooked(first, then):
        return picture(
            server,
            add(
                base,
                (
                    "20",
                    "CreateHookLora",
                    {"lora_name": "shapes.safetensors", "strength_model": 1.0, "strength_clip": 1.0},
                ),
                ("21", "CreateHookKeyframe", {"strength_mult": first, "start_percent": 0.0}),
                ("22", "CreateHookKeyframe", {"prev_hook_kf": ["21", 0], "strength_mult": then, "start_percent": 0.5}),
                ("23", "SetHookKeyframes", {"hooks": ["20", 0], "hook_kf": ["22", 0]}),
                (
                    "24",
                    "SetClipHooks",
                    {"clip": ["2", 1], "hooks": ["23", 0], "apply_to_conds": True, "schedule_clip": True},
                ),
                Prompt_clip=["24", 0],
                **{"Negative prompt_clip": ["24", 0]},
            ),
        )

    graph = with_lora(base, 1.0, 1.0)
    loaded = picture(server, graphs.change(graph, "Negative prompt", clip=["20", 1]))
    assert differ(hooked(0.0, 0.0), plain) < 0.01
    assert differ(hooked(1.0, 1.0), loaded) < 0.01
    half = hooked(1.0, 0.0)
    assert differ(half, plain) > 0.1 and differ(half, loaded) > 0.1


# --- ControlNet


def test_controlnet(server, base, plain):
    """It gets MuLan's context as the MODEL does; at strength 0 nothing changes."""

    def with_control(strength):
        return picture(
            server,
            add(
                base,
                ("20", "ControlNetLoader", {"control_net_name": "hint.safetensors"}),
                ("21", "EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0xFF8800}),
                (
                    "22",
                    "ControlNetApplyAdvanced",
                    {
                        "positive": ["3", 0],
                        "negative": ["4", 0],
                        "control_net": ["20", 0],
                        "image": ["21", 0],
                        "strength": strength,
                        "start_percent": 0.0,
                        "end_percent": 1.0,
                    },
                ),
                KSampler_positive=["22", 0],
                KSampler_negative=["22", 1],
            ),
        )

    assert np.array_equal(with_control(0.0), plain)
    controlled = with_control(1.0)
    assert np.isfinite(controlled).all() and differ(controlled, plain) > 0.1


# --- image to image, inpainting


def sampled_again(graph: dict, text: str, *nodes, latent: str, **sampler) -> dict:
    """The graph's own picture (node 7), made latents by `nodes` and drawn anew with another prompt; only the second
    picture is shown.
    """
    second = {**graph["6"]["inputs"], "positive": ["20", 0], "latent_image": [latent, 0], "seed": 5, **sampler}
    return add(
        graph,
        encode("20", text),
        *nodes,
        ("30", "KSampler", second),
        ("31", "VAEDecode", {"samples": ["30", 0], "vae": ["1", 2]}),
        ("8", "SaveImage", {"images": ["31", 0], "filename_prefix": "again"}),
    )


ENCODED = ("21", "VAEEncode", {"pixels": ["7", 0], "vae": ["1", 2]})
RIGHT_HALF = [
    ("22", "SolidMask", {"value": 0.0, "width": 64, "height": 64}),
    ("23", "SolidMask", {"value": 1.0, "width": 32, "height": 64}),
    ("24", "MaskComposite", {"destination": ["22", 0], "source": ["23", 0], "x": 32, "y": 0, "operation": "add"}),
]


def test_image_to_image(server, base, plain):
    """Much noise turns the star yellow and leaves it where it was; hardly any leaves it blue."""
    much = picture(server, sampled_again(base, YELLOW_STAR, ENCODED, latent="21", denoise=0.6))
    assert shown(much) == "yellow star"
    hardly = picture(server, sampled_again(base, YELLOW_STAR, ENCODED, latent="21", denoise=0.05))
    assert differ(hardly, plain) < 0.5 * differ(much, plain) and shown(hardly) == "blue star"


INPAINTING = {
    "VAEEncodeForInpaint": [
        ("25", "VAEEncodeForInpaint", {"pixels": ["7", 0], "vae": ["1", 2], "mask": ["24", 0], "grow_mask_by": 0})
    ],
    "SetLatentNoiseMask": [ENCODED, ("25", "SetLatentNoiseMask", {"samples": ["21", 0], "mask": ["24", 0]})],
}


@pytest.mark.parametrize("kind", INPAINTING)
def test_inpainting(kind, server, base):
    """The right half of a red circle becomes green; the latents of the left half, decoded by themselves, come out as
    they went in.
    """
    graph = sampled_again(
        graphs.change(base, "Prompt", text=RED_CIRCLE), "큰 초록색 원", *RIGHT_HALF, *INPAINTING[kind], latent="25"
    )
    drawn = picture(server, graph)
    assert colour_at(drawn, 32, 20) == "red" and colour_at(drawn, 32, 44) == "green"

    def left_half(latents):
        cut = ("32", "LatentCut", {"samples": [latents, 0], "dim": "x", "index": 0, "amount": 4})
        return picture(server, add(graph, cut, ("31", "VAEDecode", {"samples": ["32", 0], "vae": ["1", 2]})))

    assert np.abs(left_half("30") - left_half("25")).max() <= 1


def colour_at(drawn: np.ndarray, y: int, x: int) -> str:
    """The strongest channel of the 5x5 pixels around a place."""
    return ("red", "green", "blue")[drawn[y - 2 : y + 3, x - 2 : x + 3].mean(axis=(0, 1)).argmax()]


# --- regions, schedules, several prompts


def halves(kind: str, left: str, right: str) -> list[tuple[str, str, dict]]:
    """Node 29: the conditionings with these ids, each for one half of a picture of 128x64."""
    if kind == "area":
        areas = [
            (
                "26",
                "ConditioningSetArea",
                {"conditioning": [left, 0], "width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0},
            ),
            (
                "27",
                "ConditioningSetArea",
                {"conditioning": [right, 0], "width": 64, "height": 64, "x": 64, "y": 0, "strength": 1.0},
            ),
        ]
        return [*areas, *combine("29", "26", "27")]
    masks = [
        ("22", "SolidMask", {"value": 0.0, "width": 128, "height": 64}),
        ("23", "SolidMask", {"value": 1.0, "width": 64, "height": 64}),
        ("24", "MaskComposite", {"destination": ["22", 0], "source": ["23", 0], "x": 0, "y": 0, "operation": "add"}),
        ("25", "InvertMask", {"mask": ["24", 0]}),
    ]
    masked = [
        (
            id,
            "ConditioningSetMask",
            {"conditioning": [side, 0], "mask": [mask, 0], "strength": 1.0, "set_cond_area": kind},
        )
        for id, side, mask in (("26", left, "24"), ("27", right, "25"))
    ]
    return [*masks, *masked, *combine("29", "26", "27")]


@pytest.mark.parametrize("kind", ("area", "mask bounds", "default"))
def test_regions_in_two_languages(kind, server, base):
    """Each half has its own prompt's colour; drawn as an area, its shape too."""
    graph = graphs.change(base, "Empty Latent Image", width=128)
    for left, right, expected in (("3", "20", ("blue star", "red circle")), ("20", "3", ("red circle", "blue star"))):
        drawn = picture(
            server, add(graph, encode("20", RED_CIRCLE), *halves(kind, left, right), KSampler_positive=["29", 0])
        )
        found = shown(drawn[:, :64]), shown(drawn[:, 64:])
        whole = (
            slice(0, 1) if kind == "default" else slice(None)
        )  # a mask alone has each prompt drawn across both halves, then cut
        assert tuple(half.split()[whole] for half in found) == tuple(half.split()[whole] for half in expected), found


@pytest.mark.parametrize("kind", ("mask bounds", "default"))
def test_region_prompts_are_the_stock_nodes_in_one(kind, server, base):
    """Boxes with prompts, without the whole image's, draw what masked conditionings draw."""
    graph = graphs.change(base, "Empty Latent Image", width=128)
    by_hand = add(graph, encode("20", RED_CIRCLE), *halves(kind, "3", "20"), KSampler_positive=["29", 0])
    boxes = [{"x": x, "y": 0, "width": 64, "height": 64, "label": label} for x, label in ((0, "left"), (64, "Right"))]
    detections = {"format": "visionllm-nodes/1", "task": "t", "frames": [{"width": 128, "height": 64, "objects": []}]}
    detections["frames"][0]["objects"] = [
        {"label": each["label"], "box": [each["x"], 0, each["x"] + 64, 64]} for each in boxes
    ]
    in_one = add(
        graph,
        ("20", "VisionLLMLoadDetections", {"file": "the text below", "json": json.dumps(detections)}),
        (
            "21",
            "MuLanRegionPrompts",
            {
                "clip": ["2", 1],
                "prompts": f"right: {RED_CIRCLE}\nleft: {BLUE_STAR}\nfish: a fish",
                "bboxes": ["20", 0],
                "width": 128,
                "height": 64,
                "whole": 0.0,
                "set_cond_area": kind,
            },
        ),
        KSampler_positive=["21", 0],
    )
    assert np.abs(picture(server, in_one) - picture(server, by_hand)).max() <= 2
    said = server.run(in_one).nodes["21"]["mulan_text"][0].split("\n")
    assert said == ["whole image: (no prompt)", f"Right: {RED_CIRCLE}", f"left: {BLUE_STAR}", "no box: fish"]


def test_the_whole_image_s_prompt_counts_inside_regions_as_much_as_it_is_said(server, base):
    """At 1 beside a region of strength 0 it is the prompt alone."""
    graph = add(
        base,
        ("20", "PrimitiveBoundingBox", {"x": 0, "y": 0, "width": 32, "height": 64}),
        (
            "21",
            "MuLanRegionPrompts",
            {
                "clip": ["2", 1],
                "prompts": f"{BLUE_STAR}\nregion1: {RED_CIRCLE}",
                "bboxes": ["20", 0],
                "width": 64,
                "height": 64,
                "strength": 0.0,
                "whole": 1.0,
            },
        ),
        KSampler_positive=["21", 0],
    )
    assert np.abs(picture(server, graph) - picture(server, base)).max() <= 2


def test_prompts_scheduled_by_timestep_range(server, base, plain):
    def switched(at):
        return picture(
            server,
            add(
                base,
                encode("20", RED_CIRCLE),
                ("21", "ConditioningSetTimestepRange", {"conditioning": ["3", 0], "start": 0.0, "end": at}),
                ("22", "ConditioningSetTimestepRange", {"conditioning": ["20", 0], "start": at, "end": 1.0}),
                *combine("23", "21", "22"),
                KSampler_positive=["23", 0],
            ),
        )

    assert shown(switched(0.1)) == "red circle"
    late = switched(0.9)
    assert shown(late) == "blue star" and not np.array_equal(late, plain)
    assert np.array_equal(switched(1.0), plain)


def test_combined_prompts_add_up(server, base):
    """A colour in Chinese and a shape in Arabic make a pair that the text encoder was not trained on; one thing in four
    languages stays it.
    """

    def combined(*texts):
        ids = [str(number) for number in range(20, 20 + len(texts))]
        return picture(server, add(base, *map(encode, ids, texts), *combine("30", *ids), KSampler_positive=["30", 0]))

    assert shown(combined("一个红色的图形", "نجمة كبيرة")) == "red star"
    assert (
        shown(combined(BLUE_STAR, "большая синяя звезда", "büyük mavi bir yıldız", "ein großer blauer Stern"))
        == "blue star"
    )


# --- guiders


def guided(graph: dict, guider: str, *nodes, **inputs) -> dict:
    """The graph drawn by SamplerCustomAdvanced with this guider, as its KSampler samples."""
    own = graph["6"]["inputs"]
    graph = add(
        graph,
        *nodes,
        ("40", "RandomNoise", {"noise_seed": own["seed"]}),
        ("41", "KSamplerSelect", {"sampler_name": own["sampler_name"]}),
        (
            "42",
            "BasicScheduler",
            {"model": ["2", 0], "scheduler": own["scheduler"], "steps": own["steps"], "denoise": 1.0},
        ),
        ("43", guider, {"model": ["2", 0], **inputs}),
        (
            "44",
            "SamplerCustomAdvanced",
            {
                "noise": ["40", 0],
                "guider": ["43", 0],
                "sampler": ["41", 0],
                "sigmas": ["42", 0],
                "latent_image": ["5", 0],
            },
        ),
    )
    return graphs.change(graph, "VAE Decode", samples=["44", 0])


def test_cfg_guider_draws_as_the_ksampler_does(server, base, plain):
    assert np.array_equal(
        picture(server, guided(base, "CFGGuider", positive=["3", 0], negative=["4", 0], cfg=4.0)), plain
    )


def test_dual_cfg_guider(server, base, plain):
    """Two positives in two languages: with no weight on the first it is plain CFG of the second, with some it takes on
    its colour.
    """

    def dual(cfg_first):
        red = encode("20", "большая красная фигура")
        return picture(
            server,
            guided(
                base,
                "DualCFGGuider",
                red,
                cond1=["20", 0],
                cond2=["3", 0],
                negative=["4", 0],
                cfg_conds=cfg_first,
                cfg_cond2_negative=4.0,
                style="regular",
            ),
        )

    assert np.array_equal(dual(0.0), plain)
    assert shown(dual(4.0)).startswith("red ")


def test_perp_neg_guider_turns_away_from_the_negative(server, base):
    """Of a star of no named colour the tiny world makes a blue one; a blue star in Russian on the negative side makes
    it another's.
    """

    def turned(strength):
        star = graphs.change(base, "Prompt", text="نجمة كبيرة")
        return shown(
            picture(
                server,
                guided(
                    star,
                    "PerpNegGuider",
                    encode("20", "синяя звезда"),
                    positive=["3", 0],
                    negative=["20", 0],
                    empty_conditioning=["4", 0],
                    cfg=4.0,
                    neg_scale=strength,
                ),
            )
        )

    assert turned(0.0) == "blue star"
    colour, shape = turned(1.0).split()
    assert colour != "blue" and shape == "star"


# --- batches of latents, as animations have them

FRAMES = 8


@pytest.fixture(scope="module")
def frames(base) -> dict:
    return graphs.change(base, "Empty Latent Image", batch_size=FRAMES)


def drawn_frames(server, graph: dict) -> list[np.ndarray]:
    return [image.astype(float) for image in server.run(graph).images]


def test_a_frame_of_a_batch_is_the_frame_drawn_alone(server, frames, plain):
    batch = drawn_frames(server, frames)
    assert len(batch) == FRAMES and differ(batch[0], batch[5]) > 0.5
    alone = ("20", "LatentFromBatch", {"samples": ["5", 0], "batch_index": 5, "length": 1})
    assert np.abs(picture(server, add(frames, alone, KSampler_latent_image=["20", 0])) - batch[5]).max() <= 2
    assert np.abs(batch[0] - plain).max() <= 2


def test_a_prompt_per_frame_by_a_mask_per_frame(server, frames):
    """One noise for all frames; masks that are white for the first half of the frames, and for the second."""
    white, black = (
        ("EmptyImage", {"width": 64, "height": 64, "batch_size": FRAMES // 2, "color": colour})
        for colour in (0xFFFFFF, 0)
    )
    drawn = drawn_frames(
        server,
        add(
            frames,
            encode("20", RED_CIRCLE),
            ("21", "LatentBatchSeedBehavior", {"samples": ["5", 0], "seed_behavior": "fixed"}),
            ("22", *white),
            ("23", *black),
            ("24", "ImageBatch", {"image1": ["22", 0], "image2": ["23", 0]}),
            ("25", "ImageToMask", {"image": ["24", 0], "channel": "red"}),
            ("26", "InvertMask", {"mask": ["25", 0]}),
            (
                "27",
                "ConditioningSetMask",
                {"conditioning": ["3", 0], "mask": ["25", 0], "strength": 1.0, "set_cond_area": "default"},
            ),
            (
                "28",
                "ConditioningSetMask",
                {"conditioning": ["20", 0], "mask": ["26", 0], "strength": 1.0, "set_cond_area": "default"},
            ),
            *combine("29", "27", "28"),
            KSampler_latent_image=["21", 0],
            KSampler_positive=["29", 0],
        ),
    )
    assert [shown(frame) for frame in drawn] == ["blue star"] * (FRAMES // 2) + ["red circle"] * (FRAMES // 2)
    assert max(np.abs(frame - drawn[0]).max() for frame in drawn[: FRAMES // 2]) <= 2, "the frames share their noise"


# --- what other nodes do to the MODEL

PATCHES = {
    "IP-Adapter": [
        ("20", "EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0xFF0000}),
        ("21", "ImageTokens", {"image": ["20", 0], "strength": 0.5}),
    ],
    "LoRA": [("21", "LoraLoaderModelOnly", {"lora_name": "shapes.safetensors", "strength_model": 1.0})],
    "hypernetwork": [("21", "HypernetworkLoader", {"hypernetwork_name": "random.pt", "strength": 1.0})],
    "token merging": [("21", "TomePatchModel", {"ratio": 0.5})],
    "attention weights": [("21", "UNetCrossAttentionMultiply", {"q": 1.3, "k": 1.0, "v": 1.0, "out": 1.0})],
}


def patched(graph: dict, kind: str, where: str) -> dict:
    """The graph with the patch of this kind before or after the MuLan Loader."""
    loaded = graph["2"]["inputs"]["model"]
    graph = add(graph, *PATCHES[kind])
    graph["21"]["inputs"] = {**graph["21"]["inputs"], "model": loaded if where == "before" else ["2", 0]}
    return graphs.change(graph, "MuLan Loader" if where == "before" else "KSampler", model=["21", 0])


@pytest.mark.parametrize("kind", PATCHES)
def test_a_patched_model_works_before_and_after_the_loader(kind, server, base, plain):
    before, after = (picture(server, patched(base, kind, where)) for where in ("before", "after"))
    assert np.array_equal(before, after)
    assert differ(before, plain) > 0.1


def test_image_tokens_of_no_strength_change_nothing(server, base, plain):
    graph = graphs.change(patched(base, "IP-Adapter", "after"), "ImageTokens", strength=0.0)
    assert differ(picture(server, graph), plain) < 0.1


# --- merged models

MERGES = {
    "simple": ("ModelMergeSimple", lambda share: {"ratio": share}),
    "blocks": ("ModelMergeBlocks", lambda share: {"input": share, "middle": share, "out": share}),
}


@pytest.mark.parametrize("kind", MERGES)
def test_merged_models(kind, server, base, plain):
    """The base model merged with itself under a LoRA: its ends are the two, its middle is the LoRA at half its
    strength, wherever MuLan stands.
    """
    node, ratios = MERGES[kind]

    def merged(share, mulan_first):
        second = (
            "20",
            "LoraLoaderModelOnly",
            {"model": ["1", 0], "lora_name": "shapes.safetensors", "strength_model": 2.0},
        )
        merge = ("21", node, {"model1": ["2" if mulan_first else "1", 0], "model2": ["20", 0], **ratios(share)})
        reader = "KSampler" if mulan_first else "MuLan Loader"
        return picture(server, graphs.change(add(base, second, merge), reader, model=["21", 0]))

    assert differ(merged(1.0, True), plain) < 0.1
    assert differ(merged(0.0, True), picture(server, with_lora_on_model(base, 2.0))) < 0.1
    half = merged(0.5, True)
    assert np.array_equal(half, merged(0.5, False))
    assert differ(half, plain) > 0.1
    assert differ(half, picture(server, with_lora_on_model(base, 1.0))) < 0.2 * differ(half, plain)


# --- SDXL: an adapter that changes the MODEL too, among others that do, and the refiner. Weights are random
# --------------


@pytest.fixture(scope="module")
def xl(base) -> dict:
    """The same with an SDXL checkpoint (id 50); the adapter replaces its size embedding."""
    graph = add(base, ("50", "CheckpointLoaderSimple", {"ckpt_name": "sd_xl_base_1.0.safetensors"}))
    graph = graphs.change(graph, "KSampler", steps=4)
    return graphs.change(
        graph,
        "MuLan Loader",
        model=["50", 0],
        text_encoder="projecting.safetensors",
        adapter="random_sdxl_embed_textproj.safetensors",
    )


def test_image_tokens_beside_an_adapter_that_changes_the_model(server, xl):
    before, after = (picture(server, patched(xl, "IP-Adapter", where)) for where in ("before", "after"))
    assert np.array_equal(before, after)
    assert differ(before, picture(server, xl)) > 0.1


def test_the_size_embedding_in_merged_models(server, xl):
    """A model merged with itself stays itself, so the adapter's size embedding has to be whole on either side of the
    merge.
    """
    plain = picture(server, xl)
    before = add(xl, ("51", "ModelMergeSimple", {"model1": ["50", 0], "model2": ["50", 0], "ratio": 0.5}))
    assert differ(picture(server, graphs.change(before, "MuLan Loader", model=["51", 0])), plain) < 0.1
    after = add(
        xl, ("51", "ModelMergeSimple", {"model1": ["2", 0], "model2": ["2", 0], "ratio": 0.5}), KSampler_model=["51", 0]
    )
    assert differ(picture(server, after), plain) < 0.1
    half = add(
        xl,
        ("51", "ModelMergeSimple", {"model1": ["2", 0], "model2": ["50", 0], "ratio": 0.5}),
        KSampler_model=["51", 0],
    )
    assert differ(picture(server, half), plain) > 0.1


def test_the_last_of_two_loaders_counts(server, xl):
    again = add(
        xl,
        (
            "51",
            "MuLanLoader",
            {**xl["2"]["inputs"], "model": ["2", 0], "adapter": "random_sdxl_embed_attnpool.safetensors"},
        ),
        KSampler_model=["51", 0],
        Prompt_clip=["51", 1],
    )
    again = graphs.change(again, "Negative prompt", clip=["51", 2])
    alone = graphs.change(xl, "MuLan Loader", adapter="random_sdxl_embed_attnpool.safetensors")
    assert np.array_equal(picture(server, again), picture(server, alone))


def test_the_refiner_finishes_what_mulan_began(server, xl):
    """The base model draws with MuLan's context of width 2048, the refiner goes on with its own of 1280."""
    own = {name: value for name, value in xl["6"]["inputs"].items() if name not in ("denoise", "seed")}

    def refined(until, text=BLUE_STAR):
        first = {
            **own,
            "add_noise": "enable",
            "noise_seed": 1,
            "start_at_step": 0,
            "end_at_step": until,
            "return_with_leftover_noise": "enable",
        }
        second = {
            **own,
            "model": ["51", 0],
            "positive": ["52", 0],
            "negative": ["53", 0],
            "latent_image": ["54", 0],
            "add_noise": "disable",
            "noise_seed": 1,
            "start_at_step": until,
            "end_at_step": 1000,
            "return_with_leftover_noise": "disable",
        }
        graph = add(
            xl,
            ("51", "CheckpointLoaderSimple", {"ckpt_name": "sd_xl_refiner_1.0.safetensors"}),
            ("52", "ConditioningOfWidth", {"width": 1280, "seed": 1}),
            ("53", "ConditioningOfWidth", {"width": 1280, "seed": 2}),
            ("54", "KSamplerAdvanced", first),
            ("55", "KSamplerAdvanced", second),
        )
        return picture(
            server, graphs.change(graphs.change(graph, "VAE Decode", samples=["55", 0]), "Prompt", text=text)
        )

    assert np.array_equal(refined(4), picture(server, xl)), "with no step left for it the refiner changes nothing"
    split = refined(2)
    assert np.isfinite(split).all() and differ(split, refined(4)) > 0.1
    assert differ(split, refined(2, RED_CIRCLE)) > 0.01, "the prompt of the first steps is lost"
