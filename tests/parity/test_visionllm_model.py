"""The whole model against upstream's: prompts with images, regions and super links in, hidden states and the
decoders' answers out.
"""

from __future__ import annotations

import json
from functools import cache, lru_cache
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from mulan_nodes.tests.parity.golden_folder import model_of
from mulan_nodes.tests.parity.visionllm_case import Case
from mulan_nodes.visionllm_nodes.model.generation import Generation
from mulan_nodes.visionllm_nodes.model.super_link import gather_queries
from mulan_nodes.visionllm_nodes.model.visionllm import Prompt, VisionLLM
from mulan_nodes.visionllm_nodes.model.visionllm_files import open_visionllm, unused_tensors

HIDDEN, LOGITS, BOXES, MASKS = 5e-5, 2e-4, 1e-5, 2e-4
PATCH, REGION = "<im_patch>", "<region>"


@pytest.fixture(scope="session")
def opened_model(tmp_path_factory):
    """opened_model(golden) -> its checkpoint as a published folder, opened as any other."""
    return lru_cache(maxsize=None)(lambda golden: open_golden(golden, tmp_path_factory))


def open_golden(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("VisionLLMv2")
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in golden.weights().items()}, folder / "model.safetensors"
    )
    told = golden.facts["config"]
    (folder / "config.json").write_text(
        json.dumps(
            {
                **told["model"],
                "llm_config": told["llm"],
                "vis_encoder_config": told["clip"],
                "gdino_config": {**told["gdino"], "backbone_config": told["gdino_backbone"]},
                "unipose_config": told["unipose"],
            }
        ),
        "utf-8",
    )
    return open_visionllm(folder)


@pytest.fixture(scope="session")
def models(opened_model):
    """models(golden) -> the model with its weights."""
    import comfy.ops

    @cache
    def model(golden):
        opened = opened_model(golden)
        model = opened.build(operations=comfy.ops.manual_cast, dtype=torch.float32, device="cpu")
        model.load_state_dict(dict(opened.tensors()))
        return model.requires_grad_(False)

    return model


class Asked(NamedTuple):
    """A task's golden, the model it was made with, and the golden's own prompt, which holds the [EMB]s already."""

    case: Case
    model: VisionLLM
    prompt: Prompt
    ids: dict[str, int]


@pytest.fixture(scope="session")
def asked(models, vision_case):
    """asked("model_det") -> `Asked`."""

    def get(task):
        case = vision_case(task)
        golden = vision_case(model_of(case.facts))
        model, ids = models(golden), golden.facts["token_ids"]
        row = case.stored["input_ids"][0].tolist()
        images = case.described(str(case.facts["inputs"].get("images")))
        seen = [model.encode_images(views) for views in images if ids[PATCH] in row]
        regions = None
        if "regions" in case.stored:
            regions = model.encode_regions(images[0][-1], seen[0], case.stored["regions"].bool())
        prompt = Prompt(row, [image.tokens for image in seen], regions, model.super_link.links(row, ids))
        return Asked(case, model, prompt, ids)

    return get


@pytest.mark.golden("model")
def test_nothing_in_the_checkpoint_is_unexpected(golden, opened_model):
    assert unused_tensors(opened_model(golden)) == []


@pytest.mark.golden("model")
def test_a_checkpoint_may_keep_any_one_copy_of_a_shared_tensor(opened_model, golden, tmp_path):
    opened = opened_model(golden)
    aliases = golden.facts["weights"]["aliases"]
    last = {canonical: alias for alias, canonical in aliases.items()}
    dropped = {*aliases, *last} - {*last.values()}
    tensors = {name: tensor.contiguous().clone() for name, tensor in golden.weights().items() if name not in dropped}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(opened.config), "utf-8")
    few = open_visionllm(tmp_path)
    assert unused_tensors(few) == []
    assert all(
        torch.equal(tensor, other) for (_, tensor), (_, other) in zip(few.tensors(), opened.tensors(), strict=True)
    )


@pytest.mark.task("task")
def test_hidden_states(task, asked, close):
    case, model, prompt, ids = asked(task)
    embeddings = model.embed(prompt, ids[PATCH], ids[REGION])
    (states,), _ = model.prefill([prompt], ids[PATCH], ids[REGION])
    close(embeddings, case.stored["llm_inputs_embeds"], case.name, HIDDEN)
    close(states[None], case.stored["last_hidden"], case.name, HIDDEN)
    close(model.language.logits(states[None]), case.stored["logits"], f"{case.name} (logits)", LOGITS)
    close(gather_queries(states, prompt.links), case.stored["emb_hidden"], case.name, HIDDEN)


@pytest.mark.task("task")
def test_a_cached_image_answers_as_a_fresh_one(task, asked, close):
    """The image's keys and values are computed first; every question is read behind them. Two at a time equal each
    alone.
    """
    _, model, prompt, ids = asked(task)
    (whole,), _ = model.prefill([prompt], ids[PATCH], ids[REGION])
    cut = len(prompt.input_ids) - prompt.input_ids[::-1].index(ids[PATCH])
    _, cache = model.prefill(
        [Prompt(prompt.input_ids[:cut], prompt.image_embeddings)], ids[PATCH], ids[REGION], use_cache=True
    )
    question = Prompt(
        prompt.input_ids[cut:], (), prompt.region_embeddings, model.super_link.links(prompt.input_ids[cut:], ids)
    )
    count = min([5, *(link.start - 1 for link in question.links)])
    short = Prompt([id for id in question.input_ids[:count] if id != ids[REGION]])
    states, _ = model.prefill([question, short], ids[PATCH], ids[REGION], cache)
    close(states[0], whole[cut:], "cached picture", 1e-5)
    if short.input_ids == question.input_ids[:count]:
        close(states[1][:count], whole[cut : cut + count], "cached picture", 1e-5)


@pytest.mark.task("task")
def test_decoders_answer(task, asked, close):
    case, model, prompt, ids = asked(task)
    meta = case.facts["inputs"]["img_metas"]
    states, _ = model.prefill([prompt], ids[PATCH], ids[REGION])
    queries = gather_queries(states[0], prompt.links)[None]
    (shown,) = case.described(str(case.facts["inputs"]["images_aug"]))
    height, width = shown.shape[1:]
    canvas = [-(-side // 32) * 32 for side in (height, width)]
    image = torch.zeros(1, 3, *canvas)
    image[0, :, :height, :width] = shown
    known = torch.ones(1, queries.shape[1], dtype=torch.bool)
    if meta["task"] == "pose":
        mask = torch.zeros(1, *canvas, dtype=torch.bool)
        mask[:, :height, :width] = True
        objects = len(meta["id2index"])
        pose = model.pose(
            image, mask, queries[:, :objects], known[:, :objects], queries[:, objects:], known[:, objects:]
        )
        slots = model.pose.config.num_slots
        keypoints = case.stored["unipose_keypoints"][..., : 2 * slots].unflatten(-1, (slots, 2))[
            :, :, : queries.shape[1] - objects
        ]
        close(pose.logits, case.stored["unipose_logits"], f"{case.name} (logits)", LOGITS, columns=True)
        close(pose.boxes, case.stored["unipose_boxes"], case.name, BOXES)
        close(pose.keypoints, keypoints, case.name, BOXES)
        return
    found = model.grounding(image, image[:, 0] != 0, queries, known)
    close(found.logits, case.stored["gdino_logits"], f"{case.name} (logits)", LOGITS, columns=True)
    close(found.boxes, case.stored["gdino_boxes"], case.name, BOXES)
    every = torch.arange(found.logits.shape[1])[None]
    close(model.grounding.masks(found, every), case.stored["gdino_masks"], f"{case.name} (masks)", MASKS)


@pytest.mark.task("steps")
def test_tool_tokens_within_generation(task, models, vision_case, close):
    """Upstream's cached steps: a tool token brings its embeddings along, the next token follows the last of them."""
    case = vision_case(task)
    golden = vision_case(model_of(case.facts))
    model, ids = models(golden), golden.facts["token_ids"]
    images = case.described(str(case.facts["inputs"]))
    forced = iter([step["token"] for step in case.facts["steps"]])
    logits_of_last = []

    def sampler(logits):
        logits_of_last.append(logits.clone())
        return torch.tensor([next(forced)])

    prompt = Prompt(case.stored["gen_input_ids"][0].tolist(), [model.encode_images(views).tokens for views in images])
    writing = Generation(model, [prompt], ids, end=-1, max_tokens=len(case.facts["steps"]), sampler=sampler)
    prefill = logits_of_last
    (answer,) = writing.run()
    known = torch.ones(len(model.language.lm_head.weight), dtype=torch.bool)
    known[[id for name, id in ids.items() if name.startswith("[EMB")]] = (
        False  # these are never chosen, so their logits are -inf
    )
    close(prefill[0][:, known], case.stored["gen_prefill_last_logits"][:, known], f"{case.name} (logits)", LOGITS)
    for step, following in zip(case.facts["steps"], logits_of_last[1:], strict=False):
        close(
            following[:, known],
            case.stored[f"gen_step_{step['step']}_logits"][:, -1, known],
            f"{case.name} (logits)",
            LOGITS,
        )
    tools = [step for step in case.facts["steps"] if step["logits_shape"][1] > 1]
    assert [call.tool for call in answer.tools] == [
        next(name for name, id in ids.items() if id == step["token"]) for step in tools
    ]
    for call, step in zip(answer.tools, tools, strict=False):
        close(call.hidden_states, case.stored[f"gen_step_{step['step']}_hidden"][0, 1:], case.name, HIDDEN)
