"""Region encoder, bridge, mappers, InternViT and InternLM2 against upstream's numbers and full-size tensors."""

import pytest
import torch

from mulan_nodes.mulan.conditioning.adapter import LanguageAdapter
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
        {name: tuple(tensor.shape) for name, tensor in tensors.items()}, upstream_config or {}
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
def region(vision_case):
    """The golden, its encoder, and a function from masks to what the encoder answers."""
    case = vision_case("region_encoder")
    module = loaded(RegionEncoder, region_encoder, case.weights())
    masks, (width, patch) = case.stored["masks"], (case.facts["config"][key] for key in ("embed_dim", "patch_size"))
    side = masks.shape[-1]
    image = case.inputs("re.image", (3, side, side))
    features = [case.inputs(f"re.feat.{level}", (1, (side // patch) ** 2, width)) for level in range(3)]

    @torch.no_grad()
    def encode(masks):
        count = len(masks)
        return module(image.expand(count, -1, -1, -1), masks, [states.expand(count, -1, -1) for states in features])

    return case, module, encode


def test_regions(region, close):
    case, _, encode = region
    close(encode(case.stored["masks"]), case.stored["out"], "region_encoder out", TOLERANCE)
    one_by_one = torch.cat([encode(mask[None]) for mask in case.stored["masks"]])
    close(one_by_one, case.stored["out_one_by_one"], "region_encoder out_one_by_one", TOLERANCE)


def test_an_empty_region_is_the_bias(region, close):
    case, module, encode = region
    out = encode(torch.zeros_like(case.stored["masks"][:1]))
    close(out, case.stored["out_empty_region_alone"], "region_encoder out_empty", TOLERANCE)
    assert torch.equal(out[0], module.up_dim.bias)


def test_an_empty_region_spoils_no_other(region, close):
    """Upstream truncates the coordinates of every region behind an empty first one.

    Ours is what the region gives alone.
    """
    case, _, encode = region
    box = case.stored["masks"][:1]
    out = encode(torch.cat((torch.zeros_like(box), box)))
    close(out[:1], case.stored["empty_first_then_box"][:1], "region_encoder empty_first", TOLERANCE)
    close(out[1:], case.stored["out"][:1], "region_encoder out", TOLERANCE)


def test_a_large_region_is_the_mean_of_all_its_pixels(region, close):
    """Upstream draws pixels at random here: its draws stay as far from the mean as the golden says."""
    case, _, encode = region
    mask = case.stored["large_mask"]
    assert mask.sum() == case.facts["large"]["pixels"] > case.facts["large"]["num_points"]
    out = encode(mask)
    close(out, case.stored["large_all_points"], "region_encoder large_all_points", TOLERANCE)
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


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu", "internvl_mlp"])
@torch.no_grad()
def test_bridge(vision_case, close, kind):
    case = vision_case("vl_bridge")
    listed = case.facts["weights_per_bridge"][kind]
    module = loaded(Bridge, bridge, below("vl_bridge.", case.weights(listed)))
    width = case.facts["weights_per_bridge"]["linear"]["tensors"]["vl_bridge.weight"][1]
    side = int((case.stored["out_linear"].shape[1]) ** 0.5)
    x = case.inputs("ps.in", (len(case.stored["out_linear"]), side, side, width))
    shuffled = pixel_shuffle(x)
    assert torch.equal(shuffled, case.stored["pixel_shuffle"])
    out = module((shuffled if kind == "internvl_mlp" else x).flatten(1, 2))
    close(out, case.stored[f"out_{kind}"], f"vl_bridge {kind}", TOLERANCE)


@pytest.mark.parametrize("name", ["sd", "ip2p"])
@torch.no_grad()
def test_mapper(vision_case, close, name):
    case = vision_case("gen_edit_mapping")
    upstream_config = case.facts["config"]
    module = loaded(LanguageAdapter, mappers, below(f"{name}.", case.weights(case.facts["weights_per_module"][name])))
    ids = case.stored[f"{name}_input_ids"]
    hidden = case.inputs(f"{name}.hidden", (*ids.shape, upstream_config["llm_hidden_size"]))
    first = (ids == upstream_config["trigger_token_id"][name]).int().argmax(dim=1) + 1
    states = torch.stack(
        [row[start : start + upstream_config["num_embed_tokens"]] for row, start in zip(hidden, first, strict=True)]
    )
    close(module.proj(states), case.stored[f"{name}_emb_proj"], f"gen_edit_mapping {name}", TOLERANCE)
    close(
        module.transformer["encoder"](module.proj(states)),
        case.stored[f"{name}_encoder_memory"],
        f"gen_edit_mapping {name}",
        TOLERANCE,
    )
    close(module(states), case.stored[f"{name}_features"], f"gen_edit_mapping {name}", TOLERANCE)


@torch.no_grad()
def test_intern_vit(vision_case, close):
    case = vision_case("internvit")
    upstream_config = case.facts["config"]
    module = loaded(InternViT, intern_vit_keys, case.weights(), upstream_config)
    assert (module.config.image_size, module.config.num_hidden_layers) == (
        upstream_config["image_size"],
        upstream_config["num_hidden_layers"],
    )
    entering = []
    for layer in module.layers:
        layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    depth = upstream_config["num_hidden_layers"]
    chosen = module(
        case.inputs(
            "vit.pixel", (len(case.stored["hidden_0"]), 3, upstream_config["image_size"], upstream_config["image_size"])
        ),
        tuple(range(depth + 1)),
    )
    for index, states in enumerate(chosen):
        close(states, case.stored[f"hidden_{index}"][:, 1:], f"internvit hidden_{index}", TOLERANCE)
    for index, states in enumerate(entering):
        close(states, case.stored[f"hidden_{index}"], f"internvit hidden_{index}", TOLERANCE)


def test_intern_vit_runs_only_the_layers_it_needs(vision_case):
    case = vision_case("internvit")
    module = loaded(InternViT, intern_vit_keys, case.weights(), case.facts["config"])
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


@torch.no_grad()
def test_internlm2_is_a_llama(vision_case, close):
    import comfy.ops

    case = vision_case("internlm2")
    module = loaded(LanguageModel, internlm2, case.weights(), case.facts["config"], comfy.ops.manual_cast)
    entering = []
    for layer in module.layers:
        layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0].clone()))
    states, _ = module(module.embed_tokens(case.stored["input_ids"]))
    for index, hidden in enumerate((*entering, states)):
        close(hidden, case.stored[f"hidden_{index}"], f"internlm2 hidden_{index}", TOLERANCE)
    close(module.logits(states), case.stored["logits"], "internlm2 logits", 2e-4)


FULL = [
    ("core_7b", "region_encoder.", RegionEncoder, region_encoder),
    ("core_7b", "vl_bridge.", Bridge, bridge),
    ("sd_ip2p_mappers_7b", "sd.", LanguageAdapter, mappers),
    ("sd_ip2p_mappers_7b", "ip2p.", LanguageAdapter, mappers),
    ("visionllmv2_7b_swin_t", "sd.", LanguageAdapter, mappers),
    ("visionllmv2_7b_swin_t", "ip2p.", LanguageAdapter, mappers),
    ("visionllmv2_26b_swin_t", "region_encoder.", RegionEncoder, region_encoder),
    ("visionllmv2_26b_swin_t", "vl_bridge.", Bridge, bridge),
    ("visionllmv2_26b_swin_t", "vis_encoder.", InternViT, intern_vit_keys),
    ("visionllmv2_26b_swin_t", "llm.", LanguageModel, internlm2),
]


@pytest.mark.parametrize("name, prefix, model, published", FULL, ids=[f"{name} {prefix}" for name, prefix, *_ in FULL])
def test_full_size_tensors(vision_manifest, name, prefix, model, published):
    import comfy.ops

    listed = {
        tensor: torch.empty(shape, device="meta")
        for tensor, shape in below(prefix, vision_manifest(name)["tensors"]).items()
    }
    module = loaded(
        model, published, listed, {}, comfy.ops.manual_cast
    )  # strict: every name used once, every shape equal
    if prefix == "vis_encoder.":
        assert (module.config.num_attention_heads, module.config.image_size, module.config.num_hidden_layers) == (
            25,
            448,
            45,
        )
    if prefix == "llm.":
        assert (module.config.num_attention_heads, module.config.num_key_value_heads) == (48, 8)
