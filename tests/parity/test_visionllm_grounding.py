"""The grounding decoder against upstream's numbers, and the full-size ones' tensors."""

import pytest
import torch

from mulan_nodes.visionllm_nodes.model.keys import grounding

CASES = ["gdino_swin", "gdino_internimage", "gdino_fullwidth"]
BOXES, MASKS, STATES = 1e-5, 2e-4, 5e-5
PUBLISHED_WIDTH = 256


def upstream_config(facts):
    return facts["config"] | {"backbone_config": facts["backbone_config"]}


def loaded(case):
    tensors = case.weights()
    config = grounding.configuration(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, upstream_config(case.facts)
    )
    decoder = grounding.build(config, operations=torch.nn, device="meta")
    decoder.load_state_dict(
        {ours: source.read(tensors.__getitem__) for ours, source in grounding.sources(config).items()},
        strict=True,
        assign=True,
    )
    return decoder


def given(case):
    """images, pixel mask, queries, query mask."""
    inputs, width = case.facts["inputs"], case.facts["config"]["l_hidden_size"]
    images = torch.zeros(len(inputs["image_sizes"]), 3, *inputs["pad"])
    for index, (h, w) in enumerate(inputs["image_sizes"]):
        images[index, :, :h, :w] = case.inputs(f"pixel_values.{index}", (3, h, w))
    counts, embeddings = inputs["text_lens"], case.facts["config"]["num_embs"]
    queries = torch.zeros(len(counts), max(counts), embeddings, width)
    for index, count in enumerate(counts):
        queries[index, :count] = case.inputs(f"text_query.{index}", (count, embeddings, width))
    return images, images[:, 0] != 0, queries, torch.arange(max(counts)) < torch.tensor(counts)[:, None]


class Intermediate:
    """What the parts of a decoder intermediate on during one forward."""

    def __init__(self, decoder):
        self.hooks = [
            decoder.patch2query.register_forward_hook(lambda _, given, out: self.keep(patch_query=out.mean(2))),
            decoder.encoder.register_forward_hook(
                lambda _, given, out: self.keep(pyramid=given[0], enc_vision=out[0], enc_text=out[1])
            ),
            decoder.enc_output_norm.register_forward_hook(lambda _, given, out: self.keep(cells=out)),
        ]

    def keep(self, **what):
        vars(self).update(what)


@pytest.fixture(scope="module")
def answered(vision_case):
    """answered(name) -> case, decoder, its output, what its parts returned."""
    made = {}

    @torch.no_grad()
    def get(name):
        if name not in made:
            case = vision_case(name)
            decoder = loaded(case)
            intermediate, inputs = Intermediate(decoder), given(case)
            with upstream_text_masks(decoder, inputs[3]):
                made[name] = case, decoder, decoder(*inputs), intermediate
        return made[name]

    return get


class upstream_text_masks:
    """Upstream's mistake in batches, needed for the batched rows only.

    Head h of sample b of B gets the text mask of sample (b * heads + h) % B.

    Through it padded rows reach valid ones, so what upstream has there counts too: each sees itself, at position 0.
    """

    def __init__(self, decoder, query_mask):
        self.layers = [layer.text_enhancer_layer for layer in decoder.encoder.layers]
        self.query_mask = query_mask

    def __enter__(self):
        self.hooks = [layer.register_forward_pre_hook(self.mistaken) for layer in self.layers]

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()

    def mistaken(self, layer, inputs):
        text, positions, _ = inputs
        (batch, length), heads = self.query_mask.shape, layer.self_attn.num_heads
        of_sample = self.query_mask[:, None] & self.query_mask[:, :, None] | torch.eye(length, dtype=torch.bool)
        order = torch.arange(batch * heads) % batch
        indices = torch.arange(length) * self.query_mask
        return text, positions[indices], of_sample[order].unflatten(0, (batch, heads))


def logits_tolerance(case):
    return 1e-3 if case.facts["config"]["d_model"] >= PUBLISHED_WIDTH else 2e-4


def close_where_finite(close, ours, golden, label, tolerance):
    assert torch.equal(ours.isneginf(), golden.isneginf()), f"{label}: other columns are closed"
    close(ours.nan_to_num(neginf=0), golden.nan_to_num(neginf=0), label, tolerance)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_intermediate_results(answered, close, name):
    case, decoder, found, intermediate = answered(name)
    stored, counts = case.stored, case.facts["inputs"]["text_lens"]
    close(intermediate.patch_query, stored["patch_query"], f"{name} patch_query", STATES)
    close(intermediate.enc_text, stored["enc_text"], f"{name} enc_text", STATES)
    if "enc_vision" in stored:
        close(intermediate.enc_vision, stored["enc_vision"], f"{name} enc_vision", STATES)
        close(found.mask_features, stored["mask_features"], f"{name} mask_features", STATES)
        close(
            found.all_hidden_states.transpose(0, 1),
            stored["intermediate_hidden_states"],
            f"{name} hidden states",
            STATES,
        )
        for level in range(
            len(intermediate.pyramid.shapes) - 1
        ):  # upstream's level 0 is the finest map, which is not in the pyramid
            assert torch.equal(intermediate.pyramid.level_mask(level), stored[f"backbone_mask_{level + 1}"])
    else:
        close(intermediate.enc_vision.mean(1), stored["enc_vision_mean"], f"{name} enc_vision", STATES)
        close(intermediate.enc_vision.std(1), stored["enc_vision_std"], f"{name} enc_vision", STATES)
        close(found.mask_features.mean((2, 3)), stored["mask_features_mean"], f"{name} mask_features", STATES)
    count = stored["topk_logits"].shape[1]
    query_mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    scores = (
        (intermediate.cells @ intermediate.enc_text.transpose(1, 2))
        .masked_fill(~query_mask[:, None], float("-inf"))
        .amax(-1)
    )
    close(scores.topk(count).values, stored["topk_logits"], f"{name} proposals' logits", logits_tolerance(case))
    assert torch.equal(found.proposals.index, stored["topk_index"])
    assert torch.equal(found.proposals.logits.amax(-1), scores.topk(count - 1).values)
    close(found.proposals.boxes, stored["init_reference_points"], f"{name} proposals' boxes", BOXES)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_outputs_of_every_layer(answered, close, name):
    case, decoder, found, _ = answered(name)
    stored = case.stored
    close_where_finite(close, found.all_logits, stored["all_logits"], f"{name} logits", logits_tolerance(case))
    close_where_finite(close, found.logits, stored["logits"], f"{name} logits", logits_tolerance(case))
    close(found.all_boxes, stored["all_boxes"], f"{name} boxes", BOXES)
    close(found.boxes, stored["pred_boxes"], f"{name} boxes", BOXES)
    every = torch.arange(found.logits.shape[1]).expand(len(found.logits), -1)
    masks = decoder.masks(found, every)
    if "pred_masks" in stored:
        close(masks, stored["pred_masks"], f"{name} masks", MASKS)
        for states, golden in zip(found.all_hidden_states, stored["all_masks"], strict=True):
            close(decoder.mask_logits(states, found.mask_features), golden, f"{name} masks", MASKS)
    else:
        first = stored["pred_masks_first8"]
        close(masks[:, : first.shape[1]], first, f"{name} masks", MASKS)
        close(masks.mean((2, 3)), stored["pred_masks_mean"], f"{name} masks", MASKS)
        close(masks.std((2, 3)), stored["pred_masks_std"], f"{name} masks", MASKS)
    some = every[:, [3, 0]]
    assert torch.allclose(decoder.masks(found, some), masks[:, [3, 0]], atol=1e-5)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_sample_in_a_batch_is_answered_as_alone(answered, close, name):
    case, decoder, _, _ = answered(name)
    inputs = given(case)
    counts = case.facts["inputs"]["text_lens"]
    if "single0_logits" not in case.stored:
        assert len(counts) == 1 or len(set(counts)) == 1
        return
    found = decoder(*inputs)
    masks = decoder.masks(found, torch.arange(found.logits.shape[1]).expand(len(counts), -1))
    for index in range(len(counts)):
        row, key = slice(index, index + 1), f"single{index}"
        close_where_finite(
            close, found.logits[row], case.stored[f"{key}_logits"], f"{name} {key}", logits_tolerance(case)
        )
        close(found.boxes[row], case.stored[f"{key}_boxes"], f"{name} {key} boxes", BOXES)
        close(masks[row], case.stored[f"{key}_masks"], f"{name} {key} masks", MASKS)


@pytest.mark.parametrize("name", ["gdino_swin_t", "gdino_internimage_h"])
def test_every_published_tensor_is_read(vision_manifest, name):
    manifest = vision_manifest(name)
    prefix = manifest["prefix"]
    shapes = {tensor.removeprefix(prefix): tuple(shape) for tensor, shape in manifest["tensors"].items()}
    config = grounding.configuration(shapes, {})
    sources = grounding.sources(config)
    made = grounding.build(config, operations=torch.nn, device="meta").state_dict()
    given = {
        ours: source.read(lambda published: torch.empty(shapes[published], device="meta")).shape
        for ours, source in sources.items()
    }
    assert {ours: tensor.shape for ours, tensor in made.items()} == given
    used = [published for source in sources.values() for published in source.names]
    assert len(used) == len(set(used))
    assert [published for published in used if grounding.unused(published)] == []
    assert sorted(published for published in shapes.keys() - set(used) if not grounding.unused(published)) == []
    aliases = {alias.removeprefix(prefix) for alias in manifest["aliases"]}
    assert aliases.isdisjoint(used)


@torch.no_grad()
def test_features_of_lower_precision_keep_boxes_in_float32(answered):
    case, decoder, exact, _ = answered("gdino_internimage")
    images, pixel_mask, queries, query_mask = given(case)
    low = loaded(case).to(torch.bfloat16)
    found = low(images.bfloat16(), pixel_mask, queries.bfloat16(), query_mask)
    assert found.boxes.dtype == found.logits.dtype == torch.float32 and found.hidden_states.dtype == torch.bfloat16
    assert found.boxes.isfinite().all() and 0 <= found.boxes.min() and found.boxes.max() <= 1
    assert not torch.equal(found.boxes, found.boxes.bfloat16().float())


def test_gradients_reach_every_weight(vision_case):
    case = vision_case("gdino_internimage")
    decoder = loaded(case)
    for weight in decoder.parameters():
        weight.requires_grad_(True)
    found = decoder(*given(case))
    index = torch.zeros(len(found.logits), 1, dtype=torch.long)
    sigmoids = (
        found.all_logits.sigmoid().sum(),
        found.all_boxes.sum(),
        found.proposals.logits.sigmoid().sum(),
        found.proposals.boxes.sum(),
    )
    (sum(sigmoids) + decoder.masks(found, index).sigmoid().sum()).backward()
    without = [
        name for name, weight in decoder.named_parameters() if weight.grad is None or not weight.grad.isfinite().all()
    ]
    assert without == []
