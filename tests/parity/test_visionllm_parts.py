"""Region encoder, bridge, mappers, InternViT and InternLM2 against upstream's numbers and full-size tensors."""

import re
from functools import partial

import pytest
import torch

from mulan_nodes.mulan.checkpoints.config import Config
from mulan_nodes.mulan.conditioning.adapter import NUM_HEADS, LanguageAdapter
from mulan_nodes.mulan.internvl import intern_vit_keys
from mulan_nodes.mulan.internvl.intern_vit import InternViT
from mulan_nodes.visionllm_nodes.model.bridge import Bridge, pixel_shuffle
from mulan_nodes.visionllm_nodes.model.keys import bridge, internlm2, mappers, region_encoder
from mulan_nodes.visionllm_nodes.model.language_model import LanguageModel
from mulan_nodes.visionllm_nodes.model.region_encoder import RegionEncoder, region_weights

TOLERANCE = 5e-5


def below(prefix, named):
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def loaded(model, published, tensors, upstream_config=None, operations=torch.nn):
    config = published.configuration(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, Config(upstream_config or {})
    )
    module = model(config, operations=operations, device="meta")
    module.load_state_dict(
        {ours: source.read(tensors.__getitem__) for ours, source in published.sources(config).items()},
        strict=True,
        assign=True,
    )
    used = {name for source in published.sources(config).values() for name in source.names}
    assert used == {name for name in tensors if not published.unused(name)}
    return module


@pytest.fixture(scope="module")
def region(golden):
    """The golden, its encoder, and a function from masks to what the encoder answers."""
    case = golden
    module = loaded(RegionEncoder, region_encoder, case.weights())
    masks, (width, patch) = case.stored["masks"], (case.facts["config"][key] for key in ("embed_dim", "patch_size"))
    side = masks.shape[-1]
    image = case.inputs("re.image", (3, side, side))
    told = re.match(r"(\d+) x ", str(case.facts["inputs"].get("features")))
    levels = range(int(told[1]) if told else 3)
    features = [case.inputs(f"re.feat.{level}", (1, (side // patch) ** 2, width)) for level in levels]

    @torch.no_grad()
    def encode(masks):
        count = len(masks)
        return module(image.expand(count, -1, -1, -1), masks, [states.expand(count, -1, -1) for states in features])

    return case, module, encode


def small(case) -> torch.Tensor:
    """Which of the golden's masks upstream reads whole: of larger ones it draws pixels at random."""
    return case.stored["masks"].flatten(1).sum(1) <= case.facts["config"].get("num_points", 2304)


@pytest.mark.golden("region_encoder")
def test_regions(region, close):
    case, _, encode = region
    few = small(case)
    close(encode(case.stored["masks"])[few], case.stored["out"][few], f"{case.name} out", TOLERANCE)
    if "out_one_by_one" in case.stored:
        one_by_one = torch.cat([encode(mask[None]) for mask in case.stored["masks"]])
        close(one_by_one[few], case.stored["out_one_by_one"][few], f"{case.name} out_one_by_one", TOLERANCE)


@pytest.mark.golden("region_encoder")
def test_an_empty_region_is_the_bias(region, close):
    case, module, encode = region
    out = encode(torch.zeros_like(case.stored["masks"][:1]))
    if "out_empty_region_alone" in case.stored:
        close(out, case.stored["out_empty_region_alone"], f"{case.name} out_empty", TOLERANCE)
    assert torch.equal(out[0], module.up_dim.bias)


@pytest.mark.golden("region_encoder")
def test_an_empty_region_spoils_no_other(region, close):
    """Upstream truncates the coordinates of every region behind an empty first one.

    Ours is what the region gives alone.
    """
    case, _, encode = region
    box = case.stored["masks"][:1]
    out = encode(torch.cat((torch.zeros_like(box), box)))
    if "empty_first_then_box" in case.stored:
        close(out[:1], case.stored["empty_first_then_box"][:1], f"{case.name} empty_first", TOLERANCE)
    if small(case)[0]:
        close(out[1:], case.stored["out"][:1], f"{case.name} out", TOLERANCE)


@pytest.mark.golden("region_encoder")
def test_a_large_region_is_the_mean_of_all_its_pixels(region, close, folder):
    """Upstream draws pixels at random here: its draws stay as far from the mean as the golden says."""
    case, _, encode = region
    if "large_mask" not in case.stored:
        folder.absent[f"visionllm/{case.name}.safetensors#large_mask"] = "missing"
        return
    mask = case.stored["large_mask"]
    assert mask.sum() == case.facts["large"]["pixels"] > case.facts["large"]["num_points"]
    out = encode(mask)
    close(out, case.stored["large_all_points"], f"{case.name} large_all_points", TOLERANCE)
    for name in (name for name in case.stored if name.startswith("large_random")):
        assert (out - case.stored[name]).abs().max() <= case.facts["large"][
            "max_abs_deviation_of_random_from_all_points"
        ] + TOLERANCE


def test_region_weights_are_the_mean_of_bilinear_samples():
    masks = torch.rand(3, 28, 42, generator=torch.Generator().manual_seed(0)) > 0.7
    grid = torch.rand(3, 1, 2, 3, generator=torch.Generator().manual_seed(1))
    for mask, values, weights in zip(masks, grid, region_weights(masks, 2, 3), strict=True):
        rows, columns = mask.nonzero().T
        points = torch.stack((columns / mask.shape[1], rows / mask.shape[0]), dim=-1) * 2 - 1
        sampled = torch.nn.functional.grid_sample(values[None], points[None, None], align_corners=False).mean()
        assert torch.allclose((weights * values[0]).sum(), sampled, atol=1e-6)


@pytest.mark.golden("vl_bridge")
@torch.no_grad()
def test_bridges(golden, close):
    kinds = golden.facts["weights_per_bridge"]
    (x,) = golden.described(str(golden.facts["inputs"]))
    shuffled = pixel_shuffle(x)
    assert torch.equal(shuffled, golden.stored["pixel_shuffle"])
    for kind, listed in kinds.items():
        module = loaded(Bridge, bridge, below("vl_bridge.", golden.weights(listed)))
        out = module((shuffled if kind == "internvl_mlp" else x).flatten(1, 2))
        close(out, golden.stored[f"out_{kind}"], f"{golden.name} {kind}", TOLERANCE)


@pytest.mark.golden("gen_edit_mapping")
@torch.no_grad()
def test_mappers(golden, close):
    told = golden.facts["config"]
    make = partial(LanguageAdapter, num_heads=told.get("nhead", NUM_HEADS))
    for name, listed in golden.facts["weights_per_module"].items():
        module = loaded(make, mappers, below(f"{name}.", golden.weights(listed)))
        ids = golden.stored[f"{name}_input_ids"]
        hidden = golden.inputs(f"{name}.hidden", (*ids.shape, told["llm_hidden_size"]))
        first = (ids == told["trigger_token_id"][name]).int().argmax(dim=1) + 1
        states = torch.stack(
            [row[start : start + told["num_embed_tokens"]] for row, start in zip(hidden, first, strict=True)]
        )
        answers = {
            "emb_proj": module.proj(states),
            "encoder_memory": module.transformer["encoder"](module.proj(states)),
            "features": module(states),
        }
        assert f"{name}_features" in golden.stored, "the golden has no answer"
        for key in (key for key in answers if f"{name}_{key}" in golden.stored):
            close(answers[key], golden.stored[f"{name}_{key}"], f"{golden.name} {name}", TOLERANCE)


@pytest.mark.golden("internvit")
@torch.no_grad()
def test_intern_vit(golden, close):
    told = golden.facts["config"]
    module = loaded(InternViT, intern_vit_keys, golden.weights(), told)
    depth = told["num_hidden_layers"]
    assert (module.config.image_size, module.config.num_hidden_layers) == (told["image_size"], depth)
    entering = []
    for layer in module.layers:
        layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    (pixels,) = golden.described(str(golden.facts["inputs"]))
    for index, states in enumerate(module(pixels, tuple(range(depth + 1)))):
        if f"hidden_{index}" in golden.stored:
            close(states, golden.stored[f"hidden_{index}"][:, 1:], f"{golden.name} hidden_{index}", TOLERANCE)
    for index, states in enumerate(entering):
        if f"hidden_{index}" in golden.stored:
            close(states, golden.stored[f"hidden_{index}"], f"{golden.name} hidden_{index}", TOLERANCE)
    assert f"hidden_{depth}" in golden.stored, "the golden has no answer"


@pytest.mark.golden("internvit")
def test_intern_vit_runs_only_the_layers_it_needs(golden):
    module = loaded(InternViT, intern_vit_keys, golden.weights(), golden.facts["config"])
    ran = []
    for index, layer in enumerate(module.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    side = module.config.image_size
    (before_last,) = module(torch.zeros(1, 3, side, side), (-2,))
    assert ran == list(range(module.config.num_hidden_layers - 1)) and before_last.shape == (
        1,
        module.config.num_patches,
        module.config.hidden_size,
    )


@pytest.mark.golden("internlm2")
@torch.no_grad()
def test_internlm2_is_a_llama(golden, close):
    import comfy.ops

    module = loaded(LanguageModel, internlm2, golden.weights(), golden.facts["config"], comfy.ops.manual_cast)
    entering = []
    for layer in module.layers:
        layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0].clone()))
    states, _ = module(module.embed_tokens(golden.stored["input_ids"]))
    for index, hidden in enumerate((*entering, states)):
        if f"hidden_{index}" in golden.stored:
            close(hidden, golden.stored[f"hidden_{index}"], f"{golden.name} hidden_{index}", TOLERANCE)
    close(module.logits(states), golden.stored["logits"], f"{golden.name} logits", 2e-4)


FULL = [
    ("region_encoder.", (), RegionEncoder, region_encoder),
    ("vl_bridge.", (), Bridge, bridge),
    ("sd.", ("sd.llm2sd_mapper_queries",), LanguageAdapter, mappers),
    ("ip2p.", ("ip2p.llm2sd_mapper_queries",), LanguageAdapter, mappers),
    ("vis_encoder.", ("vis_encoder.embeddings.class_embedding",), InternViT, intern_vit_keys),
    ("llm.", ("llm.model.tok_embeddings.weight",), LanguageModel, internlm2),
]


def full_size_tensors(listed, prefix, model, published):
    import comfy.ops

    meta = {tensor: torch.empty(shape, device="meta") for tensor, shape in below(prefix, listed["tensors"]).items()}
    return loaded(model, published, meta, {}, comfy.ops.manual_cast)  # every name used once, every shape equal


@pytest.mark.manifests_of()
def test_full_size_tensors(vision_manifest, manifest_name):
    """Of every part that a manifest lists."""
    listed = vision_manifest(manifest_name)
    for prefix, marks, model, published in FULL:
        if any(name.startswith(marks or prefix) for name in listed["tensors"]):
            full_size_tensors(listed, prefix, model, published)


@pytest.mark.manifests("visionllm", "visionllmv2_26b_swin_t")
def test_heads_of_the_26b_model(vision_manifest, manifest_name):
    listed = vision_manifest(manifest_name)
    tower = full_size_tensors(listed, "vis_encoder.", InternViT, intern_vit_keys).config
    assert (tower.num_attention_heads, tower.image_size, tower.num_hidden_layers) == (25, 448, 45)
    language = full_size_tensors(listed, "llm.", LanguageModel, internlm2).config
    assert (language.num_attention_heads, language.num_key_value_heads) == (48, 8)
