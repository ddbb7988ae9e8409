"""The pose decoder against upstream's UniPose, and its mask against the rule upstream's loops follow."""

import re

import pytest
import torch
from torch.nn import functional as F

from mulan_nodes.mulan.checkpoints.config import Config
from mulan_nodes.visionllm_nodes.model.keys import pose as published
from mulan_nodes.visionllm_nodes.model.pose_decoder import EPS
from mulan_nodes.visionllm_nodes.model.pose_groups import (
    cross_group_mask,
    keypoint_references,
    self_attention_mask,
    split,
)

LOGITS = 2e-4
COORDINATES = 1e-5
STATES = 5e-5
VISIBILITY = torch.sigmoid(torch.ones(()))  # upstream's third keypoint channel, whatever it sees


def built(tensors, upstream_config):
    """The decoder with upstream's `tensors`."""
    config = published.configuration(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, Config(upstream_config)
    )
    decoder = published.build(config, operations=torch.nn, device="meta")
    decoder.load_state_dict(
        {ours: source.read(tensors.__getitem__) for ours, source in published.sources(config).items()},
        strict=True,
        assign=True,
    )
    return decoder.train(False)


def inputs_of(case):
    """The golden's batch, padded no more than the batch needs.

    Images, pixel mask, object queries and mask, keypoint queries and mask.
    """
    facts = case.facts
    sizes = facts["inputs"]["image_sizes"]
    height, width = (-(-max(size[axis] for size in sizes) // 32) * 32 for axis in (0, 1))

    def stacked(name, counts):
        embeddings, channels = facts["config"]["num_embs"], facts["config"]["l_hidden_size"]
        rows = [case.inputs(f"{name}.{row}", (count, embeddings, channels)) for row, count in enumerate(counts)]
        longest = max(counts)
        return (
            torch.stack([F.pad(queries, (0, 0, 0, 0, 0, longest - len(queries))) for queries in rows]),
            torch.tensor([[index < count for index in range(longest)] for count in counts]),
        )

    images = torch.zeros(len(sizes), 3, height, width)
    pixels = torch.zeros(len(sizes), height, width, dtype=torch.bool)
    for row, (h, w) in enumerate(sizes):
        images[row, :, :h, :w] = case.inputs(f"image.{row}", (3, h, w))
        pixels[row, :h, :w] = True
    return (images, pixels, *stacked("obj", facts["inputs"]["n_obj"]), *stacked("kpt", facts["inputs"]["n_kpt"]))


GOLDEN = pytest.mark.golden("unipose")


@pytest.fixture(scope="module")
def decoder(golden):
    return built(golden.weights(), golden.facts["config"])


@pytest.fixture(scope="module")
def answer(golden, decoder):
    """The decoder's answer for the golden's batch, and what its parts handed on."""
    parts = {}
    hooks = [
        getattr(decoder, name).register_forward_hook(lambda module, args, out, name=name: parts.__setitem__(name, out))
        for name in ("backbone", "encoder")
    ]
    keep_pyramid = decoder.encoder.register_forward_pre_hook(lambda _, given: parts.__setitem__("pyramid", given[0]))
    with torch.no_grad():
        pose = decoder(*inputs_of(golden))
    for hook in (*hooks, keep_pyramid):
        hook.remove()
    return pose, parts


def keypoints_as_upstream(keypoints):
    """[B, G, S, 2] -> [B, G, 3 * S]: all coordinates, then a visibility for each."""
    return torch.cat((keypoints.flatten(2), VISIBILITY.expand(keypoints.shape[:3])), dim=-1)


def fault(golden) -> bool:
    """Whether upstream's batch has its mistake: the samples' numbers of objects differ, and masks of text mix."""
    return len(set(golden.facts["inputs"]["n_obj"])) > 1


@pytest.fixture(scope="module")
def against(golden, close):
    """against(key, ours, tolerance): if the golden has it."""

    def check(key: str, ours: torch.Tensor, suggested: float, **how):
        if key in golden.stored:
            of = re.sub(r"^single\d+_|_first\d+groups$", "", key)
            tolerance = max(golden.tolerance(name, suggested) for name in (key, of, f"pred_{of}"))
            close(ours, golden.stored[key], f"{golden.name} {of}", tolerance, **how)

    return check


@GOLDEN
def test_outputs_are_upstreams(golden, answer, against):
    pose, _ = answer
    assert torch.equal(pose.keypoints, pose.layers[-1].keypoints[:, :, : max(golden.facts["inputs"]["n_kpt"])])
    if fault(golden):
        return  # compared through `single*_*`, below
    assert {"pred_logits", "pred_boxes", "pred_keypoints"} <= golden.stored.keys(), "the golden has no answer"
    against("pred_logits", pose.logits, LOGITS, columns=True)
    against("pred_boxes", pose.boxes, COORDINATES)
    against("pred_keypoints", keypoints_as_upstream(pose.layers[-1].keypoints), COORDINATES)


@GOLDEN
def test_a_sample_in_a_batch_is_answered_as_alone(golden, answer, against, folder):
    """Upstream's own batch differs where the samples have other numbers of objects; `single*` is right."""
    pose, _ = answer
    if fault(golden) and not any(key.startswith("single") for key in golden.stored):
        folder.absent[f"visionllm/{golden.name}.safetensors#single0_*"] = "missing, and the batch has upstream's fault"
    for index in range(len(pose.logits)):
        row = slice(index, index + 1)
        for key in (f"single{index}_", f"single{index}_pred_"):
            against(f"{key}logits", pose.logits[row], LOGITS, columns=True)
            against(f"{key}boxes", pose.boxes[row], COORDINATES)
            against(f"{key}keypoints", keypoints_as_upstream(pose.layers[-1].keypoints[row]), COORDINATES)


@GOLDEN
def test_intermediate_results_are_upstreams(golden, answer, against, folder):
    pose, parts = answer
    stored = golden.stored
    vision, text = parts["encoder"]
    for level, features in enumerate(parts["backbone"][1:]):
        against(f"backbone_feat_{level}", features, STATES)
    for level in range(len(parts["pyramid"].shapes)):
        if f"backbone_mask_{level}" in stored:
            assert torch.equal(~parts["pyramid"].level_mask(level), stored[f"backbone_mask_{level}"])
    if fault(golden):
        return  # what follows has read the mixed masks
    against("memory", vision, STATES)
    if "memory_text" in stored:  # upstream keeps rows of padding
        objects = min(*golden.facts["inputs"]["n_obj"], stored["memory_text"].shape[1])
        ours = torch.cat((text[:, :objects], stored["memory_text"][:, objects:]), 1)
        against("memory_text", ours, STATES)
    if "topk_encoder" in stored:
        assert torch.equal(pose.proposals.index, stored["topk_encoder"])
    if "topk_groups" in stored:
        assert torch.equal(pose.chosen, stored["topk_groups"].T)
    for key in stored:
        found = re.fullmatch(r"(hs|ref)(\d+)(?:_first(\d+)groups)?", key)
        if not found:
            continue
        layer = pose.layers[int(found[2])]
        ours, tolerance = (layer.hidden_states, STATES) if found[1] == "hs" else (layer.references, COORDINATES)
        tokens = int(found[3]) * (1 + pose.layers[-1].keypoints.shape[2]) if found[3] else None
        against(key, ours[:, :tokens], tolerance)


@GOLDEN
def test_more_padding_changes_nothing(golden, decoder, answer, close):
    """Upstream pads both lists to 100.

    Padded objects are masked everywhere, and the keypoints' padding is in the slots already.
    """
    images, pixels, objects, object_mask, keypoints, keypoint_mask = inputs_of(golden)
    more = F.pad(objects, (0, 0, 0, 0, 0, 5), value=1.0), F.pad(object_mask, (0, 5))
    slots = decoder.config.num_slots - keypoints.shape[1]
    more_keypoints = F.pad(keypoints, (0, 0, 0, 0, 0, slots), value=1.0), F.pad(keypoint_mask, (0, slots))
    with torch.no_grad():
        pose = decoder(images, pixels, *more, *more_keypoints)
    close(pose.logits, answer[0].logits, f"{golden.name} padding", LOGITS, columns=True)
    close(pose.keypoints[:, :, : keypoints.shape[1]], answer[0].keypoints, f"{golden.name} padding", COORDINATES)


@GOLDEN
def test_batch_is_the_single_answers(golden, decoder, close):
    """Two images of one size, with other numbers of objects and of keypoints."""
    images, pixels, objects, object_mask, keypoints, keypoint_mask = (rows[:1] for rows in inputs_of(golden))
    fewer = 1, max(keypoints.shape[1] // 2, 1)
    other = torch.ones_like(pixels)
    with torch.no_grad():
        batch = decoder(
            torch.cat((images, images.flip(-1))),
            torch.cat((pixels, other)),
            torch.cat((objects, objects.flip(1))),
            torch.cat((object_mask, object_mask & (torch.arange(objects.shape[1]) < fewer[0]))),
            torch.cat((keypoints, keypoints.flip(1))),
            torch.cat((keypoint_mask, keypoint_mask & (torch.arange(keypoints.shape[1]) < fewer[1]))),
        )
        first = decoder(images, pixels, objects, object_mask, keypoints, keypoint_mask)
        second = decoder(
            images.flip(-1),
            other,
            objects.flip(1)[:, : fewer[0]],
            object_mask[:, : fewer[0]],
            keypoints.flip(1)[:, : fewer[1]],
            keypoint_mask[:, : fewer[1]],
        )
    for row, single, names, points in ((0, first, objects.shape[1], keypoints.shape[1]), (1, second, *fewer)):
        close(batch.logits[row, :, :names], single.logits[0], f"{golden.name} batch", LOGITS)
        close(batch.boxes[row], single.boxes[0], f"{golden.name} batch", COORDINATES)
        close(batch.keypoints[row, :, :points], single.keypoints[0], f"{golden.name} batch", COORDINATES)


@GOLDEN
def test_every_weight_learns_that_upstream_teaches(golden):
    """From the answers of all layers and the proposals, as a trainer uses them.

    What says how far around a keypoint to look is not taught.
    """
    decoder = built(golden.weights(), golden.facts["config"])
    pose = decoder(*inputs_of(golden))
    answers = [
        part for layer in pose.layers for part in (layer.logits, layer.boxes, layer.keypoints) if part is not None
    ]
    sum(
        (part[part.isfinite()] ** 2).sum() for part in (*answers, pose.proposals.logits, pose.proposals.boxes)
    ).backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in decoder.parameters())
    still = {name for name, weight in decoder.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert still == {
        name for name, _ in decoder.named_parameters() if name.startswith(("decoder.pose_hw_embed.", "decoder.hw."))
    }


@GOLDEN
def test_half_precision_keeps_coordinates_in_float32(golden):
    halved = built({name: tensor.bfloat16() for name, tensor in golden.weights().items()}, golden.facts["config"])
    images, pixels, objects, object_mask, keypoints, keypoint_mask = inputs_of(golden)
    with torch.no_grad():
        pose = halved(images.bfloat16(), pixels, objects.bfloat16(), object_mask, keypoints, keypoint_mask)
    assert {
        pose.logits.dtype,
        pose.boxes.dtype,
        pose.keypoints.dtype,
        *(layer.references.dtype for layer in pose.layers),
    } == {torch.float32}
    assert pose.keypoints.isfinite().all()


def literal_mask(keypoints: int, groups: int, slots: int):
    """What upstream's loops (UniPose.prepare_for_mask) leave: [N, N] bool, True = blocked."""
    tokens = 1 + slots
    blocked = torch.zeros(groups * tokens, groups * tokens, dtype=torch.bool)
    for row in range(groups * slots):
        start = row // slots * slots
        blocked[row, :start] = True
        if start + slots < groups * slots:
            blocked[row, start + slots :] = True
    real = torch.arange(tokens) <= keypoints
    for start in range(0, groups * tokens, tokens):
        blocked[start : start + tokens, start : start + tokens] = real[:, None] != real
    return blocked


@pytest.mark.parametrize(
    ("groups", "slots", "keypoints"), [(50, 68, 17), (50, 68, 68), (8, 10, 4), (3, 2, 0), (1, 5, 2), (12, 4, 4)]
)
def test_mask_is_upstreams(groups, slots, keypoints):
    ours = self_attention_mask((torch.arange(slots) < keypoints)[None], groups)
    assert torch.equal(~ours[0], literal_mask(keypoints, groups, slots))


@GOLDEN
def test_mask_leaks_as_many_pairs_as_upstreams(golden, decoder):
    config = decoder.config
    group = torch.arange(config.num_groups * (1 + config.num_slots)) // (1 + config.num_slots)
    leaks = cross_group_mask(config.num_groups, config.num_slots, torch.device("cpu")) & (group[:, None] != group)
    assert leaks.sum().item() == golden.facts["cross_group_allowed_pairs_head0"]


def test_boxes_at_the_edge_begin_a_thousandth_inside():
    """Upstream's inverse sigmoid takes 1e-3 for anything nearer to an edge; no box of the golden is so near."""
    begun = keypoint_references(torch.tensor([[[0.0, 1.0, 0.5, 0.25]]]), torch.zeros(1, 1, 2), torch.zeros(1, 2), EPS)
    assert torch.allclose(begun, torch.tensor([1e-3 / 1.001, 1 / 1.001, 0.25, 0.125]))


@pytest.mark.parametrize("name", ["unipose_swin_t", "unipose_internimage_h"])
def test_every_published_tensor_is_read(vision_manifest, name):
    manifest = vision_manifest(name)
    prefix = manifest["prefix"]
    shapes = {tensor.removeprefix(prefix): tuple(shape) for tensor, shape in manifest["tensors"].items()}
    config = published.configuration(shapes, Config({}))
    decoder = published.build(config, operations=torch.nn, device="meta")
    sources = published.sources(config)
    read = {
        ours: source.read(lambda tensor: torch.empty(shapes[tensor], device="meta")) for ours, source in sources.items()
    }
    assert {ours: tensor.shape for ours, tensor in read.items()} == {
        ours: tensor.shape for ours, tensor in decoder.state_dict().items()
    }
    used = [tensor for source in sources.values() for tensor in source.names]
    left = {*shapes, *(buffer.removeprefix(prefix) for buffer, *_ in manifest["int_buffers"])} - {*used}
    assert len(used) == len({*used})
    assert all(published.unused(tensor) for tensor in left)
    assert not any(published.unused(tensor) for tensor in used)
    assert {tensor for tensor in left if tensor in shapes} == {
        alias.removeprefix(prefix) for alias in manifest["aliases"]
    } - {*used}


@GOLDEN
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_groups": 10_000}, "groups"),
        ({"num_groups": 0}, "groups"),
        ({"num_box_decoder_layers": 0}, "box"),
        ({"num_box_decoder_layers": 99}, "box"),
        ({"nheads": 3}, "heads"),
        ({"nheads": 1}, "heads"),
    ],
)
def test_sizes_that_cannot_be_are_refused(golden, change, said):
    shapes = {name: tuple(tensor.shape) for name, tensor in golden.weights().items()}
    with pytest.raises(ValueError, match=said):
        published.configuration(shapes, Config(golden.facts["config"] | change))


@GOLDEN
def test_too_many_keypoints_are_refused(golden, decoder):
    images, pixels, objects, object_mask, keypoints, _ = inputs_of(golden)
    many = keypoints[:, :1].expand(-1, decoder.config.num_slots + 1, -1, -1)
    with pytest.raises(ValueError, match=f"at most {decoder.config.num_slots}"):
        decoder(images, pixels, objects, object_mask, many, torch.ones(many.shape[:2], dtype=torch.bool))


@GOLDEN
def test_small_model_has_few_groups_and_slots(golden):
    """8 groups of 10 slots, the keypoint table in `hw` alone: no size is fixed in the code."""
    tensors = golden.weights()
    del tensors["transformer.decoder.hw_append.weight"]
    tensors["transformer.decoder.hw.weight"] = tensors["transformer.decoder.hw.weight"][:10]
    decoder = built(tensors, golden.facts["config"] | {"num_groups": 8})
    images, pixels, objects, object_mask, keypoints, keypoint_mask = inputs_of(golden)
    with torch.no_grad():
        pose = decoder(images, pixels, objects, object_mask, keypoints[:, :4], keypoint_mask[:, :4])
    assert pose.logits.shape[:2] == (len(images), 8) and pose.keypoints.shape == (
        len(images),
        8,
        min(4, keypoints.shape[1]),
        2,
    )
    boxes, slots = split(pose.layers[-1].references, 10)
    assert boxes.shape[1] == 8 and slots.shape[2] == 10
