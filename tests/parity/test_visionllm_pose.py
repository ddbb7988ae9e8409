"""The pose decoder against upstream's UniPose, and its mask against the rule upstream's loops follow."""

from collections import defaultdict

import pytest
import torch
from torch.nn import functional as F

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
STORED_GROUPS = 3
VISIBILITY = torch.sigmoid(torch.ones(()))  # upstream's third keypoint channel, whatever it sees


def built(tensors, upstream_config):
    """The decoder with upstream's `tensors`."""
    config = published.configuration({name: tuple(tensor.shape) for name, tensor in tensors.items()}, upstream_config)
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


@pytest.fixture(scope="module")
def golden(vision_case):
    return vision_case("unipose_swin")


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


def test_outputs_are_upstreams(golden, answer, close):
    pose, _ = answer
    keypoints = golden.facts["inputs"]["n_kpt"]
    close(pose.logits, golden.stored["pred_logits"], "unipose_swin logits", LOGITS)
    close(pose.boxes, golden.stored["pred_boxes"], "unipose_swin boxes", COORDINATES)
    close(
        keypoints_as_upstream(pose.layers[-1].keypoints),
        golden.stored["pred_keypoints"],
        "unipose_swin keypoints",
        COORDINATES,
    )
    assert torch.equal(pose.keypoints, pose.layers[-1].keypoints[:, :, : max(keypoints)])


def test_intermediate_results_are_upstreams(golden, answer, close):
    pose, parts = answer
    stored, slots = golden.stored, pose.layers[-1].keypoints.shape[2]
    vision, text = parts["encoder"]
    objects = min(
        *golden.facts["inputs"]["n_obj"], stored["memory_text"].shape[1]
    )  # beyond them upstream keeps rows of padding
    close(vision, stored["memory"], "unipose_swin encoder", STATES)
    close(text[:, :objects], stored["memory_text"][:, :objects], "unipose_swin encoder", STATES)
    assert torch.equal(pose.proposals.index, stored["topk_encoder"])
    assert torch.equal(pose.chosen, stored["topk_groups"].T)
    for level in range(3):
        close(parts["backbone"][1 + level], stored[f"backbone_feat_{level}"], "unipose_swin backbone", STATES)
        assert torch.equal(~parts["pyramid"].level_mask(level), stored[f"backbone_mask_{level}"])

    compared = defaultdict(int)
    for number, layer in enumerate(pose.layers):
        for name, ours, tolerance in (("hs", layer.hidden_states, STATES), ("ref", layer.references, COORDINATES)):
            if f"{name}{number}" in stored:
                close(ours, stored[f"{name}{number}"], f"unipose_swin {name}", tolerance)
            elif f"{name}{number}_first3groups" in stored:
                close(
                    ours[:, : STORED_GROUPS * (1 + slots)],
                    stored[f"{name}{number}_first3groups"],
                    f"unipose_swin {name}",
                    tolerance,
                )
            else:
                continue
            compared[name] += 1
    assert dict(compared) == {
        name: sum(key.startswith(name) and key[len(name)].isdigit() for key in stored) for name in ("hs", "ref")
    }


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
    close(pose.logits[..., : objects.shape[1]], answer[0].logits, "unipose_swin padding", LOGITS)
    close(pose.keypoints[:, :, : keypoints.shape[1]], answer[0].keypoints, "unipose_swin padding", COORDINATES)
    assert torch.isinf(pose.logits[..., objects.shape[1] :]).all()


def test_batch_is_the_single_answers(golden, decoder, close):
    """Two images of one size, with other numbers of objects and of keypoints."""
    images, pixels, objects, object_mask, keypoints, keypoint_mask = (rows[:1] for rows in inputs_of(golden))
    fewer = 1, keypoints.shape[1] // 2
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
        close(batch.logits[row, :, :names], single.logits[0], "unipose_swin batch", LOGITS)
        close(batch.boxes[row], single.boxes[0], "unipose_swin batch", COORDINATES)
        close(batch.keypoints[row, :, :points], single.keypoints[0], "unipose_swin batch", COORDINATES)


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
    config = published.configuration(shapes, {})
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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_groups": 10_000}, "groups"),
        ({"num_groups": 0}, "groups"),
        ({"num_box_decoder_layers": 0}, "for boxes"),
        ({"num_box_decoder_layers": 99}, "for boxes"),
        ({"nheads": 3}, "heads"),
        ({"nheads": 1}, "heads"),
    ],
)
def test_sizes_that_cannot_be_are_refused(golden, change, said):
    shapes = {name: tuple(tensor.shape) for name, tensor in golden.weights().items()}
    with pytest.raises(ValueError, match=said):
        published.configuration(shapes, golden.facts["config"] | change)


def test_too_many_keypoints_are_refused(golden, decoder):
    images, pixels, objects, object_mask, keypoints, _ = inputs_of(golden)
    many = keypoints[:, :1].expand(-1, decoder.config.num_slots + 1, -1, -1)
    with pytest.raises(ValueError, match=f"at most {decoder.config.num_slots}"):
        decoder(images, pixels, objects, object_mask, many, torch.ones(many.shape[:2], dtype=torch.bool))


def test_small_model_has_few_groups_and_slots(golden):
    """8 groups of 10 slots, the keypoint table in `hw` alone: no size is fixed in the code."""
    tensors = golden.weights()
    del tensors["transformer.decoder.hw_append.weight"]
    tensors["transformer.decoder.hw.weight"] = tensors["transformer.decoder.hw.weight"][:10]
    decoder = built(tensors, golden.facts["config"] | {"num_groups": 8})
    images, pixels, objects, object_mask, keypoints, keypoint_mask = inputs_of(golden)
    with torch.no_grad():
        pose = decoder(images, pixels, objects, object_mask, keypoints[:, :4], keypoint_mask[:, :4])
    assert pose.logits.shape[:2] == (len(images), 8) and pose.keypoints.shape == (len(images), 8, 4, 2)
    boxes, slots = split(pose.layers[-1].references, 10)
    assert boxes.shape[1] == 8 and slots.shape[2] == 10
