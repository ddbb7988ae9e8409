"""The tiny world: pictures read as what was drawn, captions name what they should, and narrow models equal their
full-width files.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, from_published, to_published
from mulan_nodes.mulan.tiny_models import full_width
from mulan_nodes.mulan.tiny_models.packs import pack_path, read_pack
from mulan_nodes.tools.tinyworld import (
    captions,
    companion_training,
    companions,
    example_pictures,
    narrow,
    pack,
    scenes,
    world,
)

TOKENS = torch.tensor([320, 736, 1042, 49406, 49407])
PREFIX = ["\u2581summar", "ize", ":"]


def test_a_drawing_reads_as_what_was_drawn():
    rng = np.random.default_rng(0)
    for thing in world.THINGS:
        reading = world.read(world.draw(thing, rng))
        assert reading.agrees(thing) and reading.agrees_strictly(thing), (thing, reading)
        assert reading.size == thing.size and reading.share > 0.99, (thing, reading)


def test_an_empty_picture_reads_as_nothing():
    reading = world.read(np.full((64, 64, 3), 235, dtype=np.uint8))
    assert (reading.colour, reading.shape, reading.share) == ("", "", 0.0)


def test_two_colours_are_right_but_not_strictly():
    thing = world.Thing("red", "circle", "big")
    picture = world.draw(thing, np.random.default_rng(0))
    picture[picture[..., 1] < 100] = world.PALETTE["red"]
    half = picture.copy()
    half[37:][half[37:, :, 1] < 100] = world.PALETTE["blue"]
    assert world.read(picture).agrees_strictly(thing)
    assert world.read(half).agrees(thing) and not world.read(half).agrees_strictly(thing)


def test_held_out_pairs_leave_every_colour_and_shape_to_learn():
    seen = world.SEEN_THINGS
    assert len(world.HELD_OUT) >= 4 and not any(thing.held_out for thing in seen)
    assert {thing.colour for thing in seen} == set(world.PALETTE) and {thing.shape for thing in seen} == set(
        world.SHAPES
    )


def test_the_example_pictures_are_the_same_everywhere_and_show_what_is_said(tmp_path):
    files = example_pictures.write(tmp_path / "pictures")
    assert [file.read_bytes() for file in files] == [
        file.read_bytes() for file in example_pictures.write(tmp_path / "again")
    ]
    things = example_pictures.things()
    assert [file.name for file in files] == list(things) == sorted(things)
    for file, thing in zip(files, things.values(), strict=True):
        reading = world.read(np.asarray(Image.open(file)))
        assert (reading.colour, reading.shape, reading.size) == (
            thing.colour,
            thing.shape,
            thing.size,
        ) and not thing.held_out
    assert len({(thing.colour, thing.shape) for thing in things.values()}) == 12


@pytest.mark.parametrize("language", captions.LANGUAGES)
def test_every_thing_has_its_own_caption(language):
    for template in range(len(captions.LANGUAGES[language].templates)):
        texts = {captions.full_caption(thing, language, template) for thing in world.THINGS}
        assert len(texts) == len(world.THINGS) and not any("  " in text or text != text.strip() for text in texts)


def test_adjectives_agree():
    assert captions.full_caption(world.Thing("green", "star", "small"), "es") == "una estrella verde pequeña"
    assert captions.full_caption(world.Thing("red", "star", "big"), "ru") == "большая красная звезда"
    assert captions.full_caption(world.Thing("red", "square", "small"), "de") == "ein kleines rotes Quadrat"
    assert captions.full_caption(world.Thing("black", "circle", "small"), "ar") == "دائرة سوداء صغيرة"


@pytest.fixture(scope="module")
def models() -> dict[str, torch.nn.Module]:
    """Narrow models with random weights everywhere, norms and biases included."""
    torch.manual_seed(0)
    made = {
        "unet": narrow.denoiser(),
        "clip": narrow.clip(len(TOKENS)),
        "autoencoder": narrow.TinyAutoencoder(),
        "adapter": narrow.adapter(),
    }
    with torch.no_grad():
        for name, model in made.items():
            strength = (
                0.02 if name == "autoencoder" else 0.1
            )  # it is deep and has no norms: more would blow rounding errors up
            for parameter in model.parameters():
                parameter.add_(strength * torch.randn_like(parameter))
            model.requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def stored(models, tmp_path_factory) -> dict[str, torch.Tensor]:
    """What a pack of those models would hold, in float32."""
    work = tmp_path_factory.mktemp("work")
    (work / "adapter").mkdir()
    (work / "tokenizer.model").write_bytes(b"tokenizer")
    base = {f"{part}.{name}": tensor for part in ("unet", "clip") for name, tensor in models[part].state_dict().items()}
    save_file({**base, "token_ids": TOKENS}, work / "base.safetensors")
    save_file(models["autoencoder"].state_dict(), work / "autoencoder.safetensors")
    save_file(to_published(models["adapter"].state_dict()), work / "adapter" / "adapter.safetensors")
    save_file({"llama.norm.weight": torch.ones(128)}, work / f"{pack.TEXT_STAGE}.safetensors")
    return pack.gather(work) | pack.gather_text(work)


@pytest.fixture(scope="module")
def loaded(stored):
    """The full-width checkpoint as ComfyUI loads it, in float32: (model, clip, vae)."""
    import comfy.sd

    model, clip, vae, _ = comfy.sd.load_state_dict_guess_config(
        full_width.checkpoint(stored), te_model_options={"dtype": torch.float32}
    )
    return model, clip, vae


@pytest.mark.parametrize("heads, levels, autoencoder_width", [(8, 1, 24), (4, 2, 32)], ids=["shapes", "emoji"])
def test_the_full_unet_equals_the_narrow_one(stored, heads, levels, autoencoder_width):
    """On as many levels and in as many live heads as it was trained in; whatever the autoencoder's width."""
    import comfy.sd

    torch.manual_seed(0)
    unet, autoencoder = narrow.denoiser(heads, levels), narrow.TinyAutoencoder(autoencoder_width)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    others = (full_width.AUTOENCODER, full_width.UNET)
    tensors = {name: tensor for name, tensor in stored.items() if not name.startswith(others)}
    tensors |= {full_width.AUTOENCODER + name: tensor for name, tensor in autoencoder.state_dict().items()}
    tensors |= {full_width.UNET_HEADS: torch.tensor(heads, dtype=torch.int32)}
    tensors |= {
        full_width.UNET + pack.unet_name(name): pack.scaled_queries(
            full_width.UNET + pack.unet_name(name), value, heads
        )
        for name, value in unet.state_dict().items()
    }
    model, *_ = comfy.sd.load_state_dict_guess_config(full_width.checkpoint(tensors), output_clip=False)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([7, 941])
    context = torch.randn(2, 77, narrow.CONTEXT_WIDTH)
    full_context = torch.nn.functional.pad(context, (0, narrow.CONTEXT_FULL_WIDTH - narrow.CONTEXT_WIDTH))
    with torch.no_grad():
        expected = unet(x, t, context).sample
        got = model.model.diffusion_model.float()(x, t, context=full_context)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_the_full_clip_equals_the_narrow_one(models, loaded):
    places = torch.tensor([3, 0, 1, 2] + [4] * 73)
    tokens = {"l": [[(int(TOKENS[place]), 1.0) for place in places]]}
    with torch.no_grad():
        expected = models["clip"](places[None]).last_hidden_state
    got = loaded[1].encode_from_tokens(tokens)
    torch.testing.assert_close(got[..., : narrow.CONTEXT_WIDTH], expected, atol=1e-4, rtol=1e-4)
    assert not got[..., narrow.CONTEXT_WIDTH :].any()


def test_the_full_autoencoder_equals_the_narrow_one(models, loaded):
    from comfy.latent_formats import SD15

    model, picture = models["autoencoder"], torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        latent = model.taesd_encoder(picture)
        restored = model.taesd_decoder(latent).clamp(0, 1)
    vae = loaded[2]
    encoded = vae.encode(picture.permute(0, 2, 3, 1))
    torch.testing.assert_close(SD15().process_in(encoded), latent, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(vae.decode(encoded).permute(0, 3, 1, 2), restored, atol=1e-3, rtol=1e-3)


def test_the_full_adapter_equals_the_narrow_one(models, stored):
    tensors = from_published(full_width.adapter(stored))
    shape = AdapterShape.from_state_dict(tensors)
    assert shape == AdapterShape(text_hidden_size=128, context_dim=768, num_queries=120, intermediate_size=3072)
    full = LanguageAdapter(shape)
    full.load_state_dict(tensors)
    states = torch.randn(2, 77, 128)
    with torch.no_grad():
        expected, got = models["adapter"](states), full(states)
    torch.testing.assert_close(got[..., : narrow.CONTEXT_WIDTH], expected, atol=1e-4, rtol=1e-4)
    assert not got[..., narrow.CONTEXT_WIDTH :].any()


def test_unet_names_are_the_hosts():
    from comfy.utils import unet_to_diffusers

    config = {
        "num_res_blocks": [1],
        "channel_mult": [1],
        "transformer_depth": [1],
        "transformer_depth_output": [1, 1],
        "transformer_depth_middle": 0,
    }
    theirs = unet_to_diffusers(config)
    for name in narrow.denoiser().state_dict():
        assert pack.unet_name(name) == theirs[name]


@pytest.fixture(scope="module")
def companion_models(models, tmp_path_factory) -> dict:
    """Narrow companions of the narrow UNet with random weights everywhere, and what a pack of them would hold, in
    float32.
    """
    torch.manual_seed(1)
    work = tmp_path_factory.mktemp("companions")
    made = {
        "layout_controlnet": companions.control_net(models["unet"]),
        **{stage: companions.lora(models["unet"]) for stage in pack.LORAS},
    }
    with torch.no_grad():
        for stage, model in made.items():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            model.requires_grad_(False)
            save_file(model.state_dict(), work / f"{stage}.safetensors")
    return {**made, "stored": pack.gather_companions(work)}


def full_context(context: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(context, (0, narrow.CONTEXT_FULL_WIDTH - narrow.CONTEXT_WIDTH))


@pytest.mark.parametrize("stage", pack.LORAS)
def test_the_full_lora_equals_the_narrow_one(models, companion_models, loaded, stage):
    import comfy.lora

    model = loaded[0].clone()
    file = full_width.lora(companion_models["stored"], f"{stage}.")
    patches = comfy.lora.load_lora(file, comfy.lora.model_lora_keys_unet(model.model, {}))
    assert len(patches) == len(companion_models[stage]) == len(file) / 3 == 47
    model.add_patches(patches)
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([7, 941]), torch.randn(2, 77, narrow.CONTEXT_WIDTH)
    with torch.no_grad():
        plain = models["unet"](x, t, context).sample
        with companions.applied(companion_models[stage], models["unet"]):
            expected = models["unet"](x, t, context).sample
        model.patch_model()
        got = model.model.diffusion_model.float()(x, t, context=full_context(context))
        model.unpatch_model()
        unpatched = model.model.diffusion_model(x, t, context=full_context(context))
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(unpatched, plain, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(models["unet"](x, t, context).sample, plain)


def test_the_full_controlnet_equals_the_narrow_one(models, companion_models, loaded, caplog):
    import comfy.controlnet

    file = full_width.controlnet(companion_models["stored"])
    net = comfy.controlnet.load_controlnet_state_dict(file).control_model.float()
    assert not caplog.records  # ComfyUI names what it misses
    x, t, context, hints = (
        torch.randn(2, 4, 8, 8),
        torch.tensor([7, 941]),
        torch.randn(2, 77, narrow.CONTEXT_WIDTH),
        torch.rand(2, 3, 64, 64),
    )
    with torch.no_grad():
        plain = models["unet"](x, t, context).sample
        expected = companions.controlled(models["unet"], companion_models["layout_controlnet"], x, t, context, hints)
        control = net(x=x, hint=hints, timesteps=t, context=full_context(context))
        got = loaded[0].model.diffusion_model.float()(x, t, context=full_context(context), control=control)
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-4)


def test_a_pattern_is_told_from_a_single_thing():
    rng = np.random.default_rng(0)
    for thing in world.SEEN_THINGS:
        pattern, single = scenes.draw_pattern(thing.colour, thing.shape, rng), world.draw(thing, rng)
        assert scenes.is_pattern(pattern) and not scenes.is_pattern(single), thing
        assert scenes.share_of_quarters(pattern, thing) == 1.0, thing
        other = world.Thing("red" if thing.colour != "red" else "blue", thing.shape, thing.size)
        assert scenes.share_of_quarters(pattern, other) == 0.0, thing


def test_a_place_is_where_its_shape_is_drawn_and_hinted_at():
    rng = np.random.default_rng(0)
    for thing in world.THINGS:
        place = scenes.Place.drawn(rng)
        picture, mask, hint = (
            place.draw(thing.colour, thing.shape, rng),
            place.mask(thing.shape),
            place.hint(thing.shape),
        )
        assert place.overlap(thing.shape, picture) > 0.9 and world.read(picture).agrees(thing), (thing, place)
        assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()), place
        assert np.array_equal(hint == 255, np.repeat(mask[..., None], 3, axis=-1)) and set(np.unique(hint)) == {0, 255}
        elsewhere = scenes.Place((place.x + 32) % 64, place.y, place.radius)
        assert elsewhere.overlap(thing.shape, picture) < 0.2, (thing, place)


def test_a_teachers_path_begins_at_its_start_and_goes_on_with_guidance():
    def base(x, timesteps, context):
        return 0.3 * x + context.mean(dim=(1, 2)).view(-1, 1, 1, 1) * (timesteps / 1000).view(-1, 1, 1, 1)

    x, told, empty = torch.randn(3, 4, 8, 8), torch.randn(3, 77, 96), torch.randn(1, 77, 96)
    points = companion_training._path(base, x, torch.tensor([0, 10, 24]), told, empty)
    assert points.shape == (3, companion_training.TEACHER_STEPS + 1, 4, 8, 8)
    assert torch.equal(points[1, :11], x[1].expand(11, -1, -1, -1)) and not torch.equal(points[1, 11], x[1])
    alpha = companion_training.TEACHER_ALPHAS[24]
    without, with_words = (base(x[2:], torch.tensor([39]), context) for context in (empty, told[2:]))
    predicted = without + companion_training.CFG * (with_words - without)
    torch.testing.assert_close(points[2:, -1], (x[2:] - (1 - alpha).sqrt() * predicted) / alpha.sqrt())


def test_the_prefix_is_always_three_pieces():
    tokenizer = pack.tokenizer_of(read_pack(pack_path("world"))[0])
    ours = [captions.full_caption(world.THINGS[0], language) for language in captions.LANGUAGES]
    for text in ["", ":", "//", ")", "1girl", "size", "e", " a", *ours]:
        assert tokenizer.encode("summarize:" + text, out_type=str)[:3] == PREFIX
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()) == (0, 1, 2, -1)
