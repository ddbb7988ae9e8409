"""What upstream's evaluation gives its model: prompts, ids, tiles, and both decoders' images."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch

from mulan_nodes.mulan.images.tiling import choose_tile_grid
from mulan_nodes.visionllm_nodes.detections import class_lists, skeletons
from mulan_nodes.visionllm_nodes.model import prompt_templates
from mulan_nodes.visionllm_nodes.model.image_inputs import ImageSettings, grounding_image, pose_image, tower_images
from mulan_nodes.visionllm_nodes.model.llama_tokenizer import VisionTokenizer
from mulan_nodes.visionllm_nodes.model.regions import masks_from_boxes, masks_from_masks
from mulan_nodes.visionllm_nodes.model.special_tokens import ADDED, IMAGE

HERE = Path(__file__).parent


GOLDEN = pytest.mark.golden("preprocess")


@pytest.fixture(scope="module")
def case(golden):
    return golden


@pytest.fixture(scope="module")
def templates(folder):
    return json.loads((folder.side("visionllm") / "eval_templates.json").read_text("utf-8"))


def listed(text: str, pattern: str) -> list[str]:
    return re.search(pattern, text, re.S)[1].split(", ")


def answered(entry: dict, tool: str) -> list[str]:
    """The names as the answer has them, where they keep their case and spaces."""
    text = re.sub(r"\[EMB\d?\]", "", re.sub(r"^.*?(results for|location of) ", "", entry["gpt"]))
    return [name for name in re.findall(r"(?:^|, )([^\[]*)" + re.escape(tool), text)]


def asked_again(name: str, entry: dict) -> prompt_templates.Turn | None:
    """The same question put by our functions, from the words that the golden's text was made of."""
    user, task = entry.get("human", ""), name.split("_")[0]
    if task == "det":
        return prompt_templates.detection(answered(entry, "[DET]"))
    if task == "sod":
        return prompt_templates.salient()
    if task == "cod":
        return prompt_templates.salient(prompt_templates.CAMOUFLAGE)
    if name.startswith("grd_refcoco"):
        return prompt_templates.grounding(re.search("locate the (.*) in the image", user)[1])
    if name.startswith("grd_reasonseg"):
        return prompt_templates.reasoning(user.removeprefix(prompt_templates.IMAGE_LINE))
    if task == "seg":
        return prompt_templates.semantic_segmentation(answered(entry, "[SEG]"))
    if task == "pose":
        objects, keypoints = entry["gpt"].split(" Utilizing ")
        return prompt_templates.pose(answered({"gpt": objects}, "[DET]"), answered({"gpt": keypoints}, "[POSE]"))
    if task == "interactive":
        return prompt_templates.interactive(entry["human"].count("<region>"))
    if task == "t2i":
        return prompt_templates.generation(user.removeprefix("Generate image with caption: "))
    if task != "edit":
        return None
    return prompt_templates.editing(user.removeprefix(prompt_templates.IMAGE_LINE))


def open_question(name: str, entry: dict) -> prompt_templates.Turn | None:
    if name == "vqa_short":
        return prompt_templates.short_answer(re.search(r"<image>\n(.*) Answer the question", entry["prompt"])[1])
    return {
        "caption": prompt_templates.caption(),
        "region_recognition_coco": prompt_templates.region_category(class_lists.COCO),
        "region_caption_vg": prompt_templates.region_caption(),
    }.get(name)


@GOLDEN
def test_questions_and_answers_are_upstreams(case, folder):
    for name, entry in case.facts["prompts"].items():
        ours = asked_again(name, entry) if "human" in entry else open_question(name, entry)
        if ours is None:
            folder.absent[f"visionllm/{case.name}.json#{name}"] = "a task that the tests do not know"
        elif "human" in entry:
            assert ours == (entry["human"], entry["gpt"]), name
        else:
            assert prompt_templates.VICUNA.prompt([ours]) == entry["prompt"], name


@pytest.mark.needs("visionllm", "eval_templates.json")
def test_system_prompt_and_skeletons(templates):
    assert prompt_templates.VICUNA.system == templates["system"] + " "
    assert list(skeletons.COCO_17) == templates["coco17"] and list(skeletons.CROWDPOSE_14) == templates["crowdpose14"]


def ids_of(golden: list, patch: int) -> list[int]:
    return [id for item in golden for id in ([patch] * item["imp"] if isinstance(item, dict) else [item])]


@GOLDEN
def test_every_id_of_every_prompt_in_both_modes(case):
    """On LLaMA's own file where it lies beside the goldens or the repository; elsewhere the images' places and the
    tokens' order must hold.
    """
    for data in (case.folder.parents[1] / "data", case.folder.parent / "data", HERE.parents[2] / "shared" / "data"):
        real = data / "llama_tokenizer" / "tokenizer.model"
        if real.is_file():
            break
    model = real.read_bytes() if real.is_file() else trained(case)
    for mode in ("legacy", "nonlegacy"):
        tokenizer = VisionTokenizer(model, legacy=mode == "legacy")
        assert len(tokenizer) == tokenizer.base_size + len(ADDED)
        added = {
            case.facts["tokenizer"]["total"] - len(ADDED) + order: tokenizer.ids[name]
            for order, name in enumerate(ADDED)
        }
        for name, entry in case.facts["prompts"].items():
            text = entry.get("prompt") or prompt_templates.VICUNA.prompt(
                [prompt_templates.Turn(entry["human"], entry["gpt"])]
            )
            golden = ids_of(
                entry[f"input_ids_{mode}"],
                next(id for id, ours in added.items() if tokenizer.names[ours] == "<im_patch>"),
            )
            patches = [item["imp"] for item in entry[f"input_ids_{mode}"] if isinstance(item, dict)]
            ours = tokenizer.encode(text, *patches)
            assert len(patches) == text.count(IMAGE), name
            if f"n_tokens_{mode}" in entry:
                assert len(golden) == entry[f"n_tokens_{mode}"], name
            if real.is_file():
                assert ours == golden, f"{name}, {mode}"
            else:
                assert [id for id in ours if id in tokenizer.names] == [
                    added.get(id, id) for id in golden if id in added or id in (1, 2)
                ], name


def trained(case) -> bytes:
    """A small sentencepiece model with LLaMA's rules (BPE, bytes, no normalising), of the goldens' own words."""
    words = [entry.get("prompt") or entry["human"] for entry in case.facts["prompts"].values()]
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=made,
        vocab_size=600,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        max_sentence_length=20000,
        minloglevel=2,
    )
    return made.getvalue()


@GOLDEN
def test_tiling(case):
    columns = [
        tuple(int(number) for number in re.findall(r"=(\d+)", column)) for column in case.facts["tiling_columns"][2:]
    ]
    for width, height, *grids in case.facts["tiling"]:
        for (most, size), grid in zip(columns, grids, strict=True):
            assert list(choose_tile_grid(width, height, size, most)) == grid, (width, height, most)


def image_of(case, name: str) -> np.ndarray:
    key = case.facts["image_of"][name].split()[-1]
    entry = case.facts["images"][key]
    return case.image(key, entry["h"], entry["w"])


@pytest.fixture(scope="module")
def settings(case) -> ImageSettings:
    """The processor's values; what it does not tell are our defaults."""
    processor = case.facts["clip_processor"]
    return ImageSettings(
        tower=processor["size"]["shortest_edge"],
        tower_mean=tuple(processor["image_mean"]),
        tower_std=tuple(processor["image_std"]),
    )


def summary(case, name: str, kind: str, images: torch.Tensor, close):
    """A sparse grid of the pixels, and mean and deviation of all of them."""
    for key in (key for key in case.stored if key.startswith(f"{name}.{kind}_sub")):
        every = int(key.rsplit("_sub", 1)[1])
        close(images[..., ::every, ::every], case.stored[key], f"preprocess {kind}", 2e-6)
    std, mean = torch.std_mean(images.double(), (-2, -1), correction=1)
    close(mean, case.stored[f"{name}.{kind}_mean"], f"preprocess {kind} mean", 2e-6)
    close(std, case.stored[f"{name}.{kind}_std"], f"preprocess {kind} std", 2e-6)


@GOLDEN
def test_tower_and_decoder_images(case, settings, close):
    for name in case.facts["image_of"]:
        entry, image = case.facts["prompts"][name], image_of(case, name)
        aspect = next((mode for mode in ("pad", "square") if name.endswith(mode)), "anyres")
        tiles = tower_images(image, settings, aspect)
        assert list(tiles.shape) == ([1] * (4 - len(entry["images_shape"])) + entry["images_shape"]), name
        summary(case, name, "clip", tiles, close)
        shown = (
            pose_image(image, settings)
            if name.startswith("pose")
            else grounding_image(image, settings, name.startswith("seg"))
        )
        assert list(shown.shape) == entry["image_aug_shape"], name
        assert entry["ori_shape"][:2] == list(image.shape[:2]) and entry["img_shape"][:2] == list(shown.shape[1:]), name
        summary(case, name, "aug", shown, close)


@GOLDEN
def test_regions_are_filled_boxes_and_survive_as_masks(case, settings):
    """Upstream's regions are rectangles at the tower's size; as boxes and as masks of that size they come out again."""
    size = settings.tower
    for golden in (masks for name, masks in case.stored.items() if name.endswith(".regions")):
        places = [(mask.any(0).nonzero().flatten(), mask.any(1).nonzero().flatten()) for mask in golden]
        boxes = torch.tensor([[x[0], y[0], x[-1], y[-1]] for x, y in places], dtype=torch.float32)
        assert torch.equal(masks_from_boxes(boxes, size, size, size)[:, 0], golden)
        assert torch.equal(masks_from_masks(golden, size)[:, 0], golden)
