"""The grounding decoder against upstream's numbers, and the full-size ones' tensors."""

import re

import pytest
import torch

from mulan_nodes.mulan.checkpoints.config import Config
from mulan_nodes.visionllm_nodes.model.keys import grounding

BOXES, MASKS, STATES = 1e-5, 2e-4, 5e-5
PUBLISHED_WIDTH = 256


def upstream_config(facts):
    return facts["config"] | {"backbone_config": facts["backbone_config"]}


def loaded(case):
    tensors = case.weights()
    config = grounding.configuration(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, Config(upstream_config(case.facts))
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
    # upstream's batch may be wider than its longest sample; what stands there takes part in its mistake
    told = re.search(r"zeros \[B,\s*(\d+)", str(inputs.get("text_query")))
    rows = max(*counts, int(told[1]) if told else 0)
    queries = torch.zeros(len(counts), rows, embeddings, width)
    for index, count in enumerate(counts):
        queries[index, :count] = case.inputs(f"text_query.{index}", (count, embeddings, width))
    return images, images[:, 0] != 0, queries, torch.arange(rows) < torch.tensor(counts)[:, None]


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
def answered(golden):
    """case, decoder, its output, what its parts returned: with upstream's mistake in batches."""
    with torch.no_grad():
        decoder, inputs = loaded(golden), given(golden)
        intermediate = Intermediate(decoder)
        with upstream_text_masks(decoder, inputs[3]):
            return golden, decoder, decoder(*inputs), intermediate


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
    return case.tolerance("logits", 1e-3 if case.facts["config"]["d_model"] >= PUBLISHED_WIDTH else 2e-4)


@pytest.fixture(scope="module")
def against(golden, close):
    """against({key: ours}, tolerance, over): those that the golden has.

    Where a golden is large it has figures of a tensor instead: `<key>_mean` and `<key>_std` over the dimensions `over`.
    """

    def check(ours: dict[str, torch.Tensor], suggested: float, over: dict[str, tuple[int, ...]] | None = None, **how):
        for key, dims in (over or {}).items():
            ours |= {f"{key}_mean": ours[key].mean(dims), f"{key}_std": ours[key].std(dims)}
        for key in ours.keys() & golden.stored.keys():
            name = key.removesuffix("_mean").removesuffix("_std")
            close(ours[key], golden.stored[key], f"{golden.name} {name}", golden.tolerance(name, suggested), **how)

    return check


@pytest.mark.golden("gdino")
@torch.no_grad()
def test_intermediate_results(answered, against, close):
    case, decoder, found, intermediate = answered
    stored, rows = case.stored, given(case)[3].shape[1]
    kept = stored["enc_text"].shape[1] if "enc_text" in stored else rows
    against({"patch_query": intermediate.patch_query[:, :kept], "enc_text": intermediate.enc_text[:, :kept]}, STATES)
    against({"enc_vision": intermediate.enc_vision}, STATES, {"enc_vision": (1,)})
    against({"mask_features": found.mask_features}, STATES, {"mask_features": (2, 3)})
    against({"intermediate_hidden_states": found.all_hidden_states.transpose(0, 1)}, STATES)
    # upstream's level 0 is the finest map, which is not in the pyramid
    for level in range(len(intermediate.pyramid.shapes)):
        if f"backbone_mask_{level + 1}" in stored:
            assert torch.equal(intermediate.pyramid.level_mask(level), stored[f"backbone_mask_{level + 1}"])
    query_mask = given(case)[3]
    scores = (
        (intermediate.cells @ intermediate.enc_text.transpose(1, 2))
        .masked_fill(~query_mask[:, None], float("-inf"))
        .amax(-1)
    )
    if "topk_logits" in stored:
        best = scores.topk(stored["topk_logits"].shape[1]).values
        close(best, stored["topk_logits"], f"{case.name} proposals' logits", logits_tolerance(case))
    if "topk_index" in stored:
        assert torch.equal(found.proposals.index, stored["topk_index"])
    queries = found.proposals.index.shape[1]
    assert torch.equal(found.proposals.logits.amax(-1), scores.topk(queries).values)
    against({"init_reference_points": found.proposals.boxes}, BOXES)


@pytest.mark.golden("gdino")
@torch.no_grad()
def test_outputs_of_every_layer(answered, against):
    case, decoder, found, _ = answered
    against({"all_logits": found.all_logits, "logits": found.logits}, logits_tolerance(case), columns=True)
    against({"all_boxes": found.all_boxes, "pred_boxes": found.boxes}, BOXES)
    assert {"logits", "pred_boxes"} <= case.stored.keys(), "the golden has no answer"
    every = torch.arange(found.logits.shape[1]).expand(len(found.logits), -1)
    masks = decoder.masks(found, every)
    against({"pred_masks": masks}, MASKS, {"pred_masks": (2, 3)})
    for key in (key for key in case.stored if re.fullmatch(r"pred_masks_first\d+", key)):
        against({key: masks[:, : int(key.split("first")[1])]}, case.tolerance("pred_masks", MASKS))
    if "all_masks" in case.stored:
        layers = [decoder.mask_logits(states, found.mask_features) for states in found.all_hidden_states]
        against({"all_masks": torch.stack(layers)}, MASKS)
    some = every[:, [3, 0]]
    assert torch.allclose(decoder.masks(found, some), masks[:, [3, 0]], atol=1e-5)


@pytest.mark.golden("gdino")
@torch.no_grad()
def test_a_sample_in_a_batch_is_answered_as_alone(answered, against, folder):
    """Upstream's own batch differs where the samples have other numbers of names; `single*` is right."""
    case, decoder, _, _ = answered
    inputs = given(case)
    found = decoder(*inputs)
    masks = decoder.masks(found, torch.arange(found.logits.shape[1]).expand(len(found.logits), -1))
    alone = len(found.logits) == 1 or len(set(case.facts["inputs"]["text_lens"])) == 1
    if not alone and "single0_logits" not in case.stored:
        folder.absent[f"visionllm/{case.name}.safetensors#single0_logits"] = (
            "missing, and the batch has upstream's fault"
        )
    for index in range(len(found.logits)):
        row, key = slice(index, index + 1), f"single{index}"
        against({f"{key}_logits": found.logits[row]}, logits_tolerance(case), columns=True)
        against({f"{key}_boxes": found.boxes[row]}, BOXES)
        against({f"{key}_masks": masks[row]}, MASKS)
    if alone:
        against({"logits": found.logits}, logits_tolerance(case), columns=True)
        against({"pred_boxes": found.boxes}, BOXES)


@pytest.mark.manifests_of("gdino.")
def test_every_published_tensor_is_read(vision_manifest, manifest_name):
    manifest, prefix = vision_manifest(manifest_name), "gdino."
    shapes = {
        tensor.removeprefix(prefix): tuple(shape)
        for tensor, shape in manifest["tensors"].items()
        if tensor.startswith(prefix)
    }
    config = grounding.configuration(shapes, Config({}))
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


@pytest.mark.golden("gdino")
@torch.no_grad()
def test_features_of_lower_precision_keep_boxes_in_float32(answered):
    case, *_ = answered
    images, pixel_mask, queries, query_mask = given(case)
    low = loaded(case).to(torch.bfloat16)
    found = low(images.bfloat16(), pixel_mask, queries.bfloat16(), query_mask)
    assert found.boxes.dtype == found.logits.dtype == torch.float32 and found.hidden_states.dtype == torch.bfloat16
    assert found.boxes.isfinite().all() and 0 <= found.boxes.min() and found.boxes.max() <= 1
    assert not torch.equal(found.boxes, found.boxes.bfloat16().float())


@pytest.mark.golden("gdino")
def test_gradients_reach_every_weight(golden):
    case, decoder = golden, loaded(golden)
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
