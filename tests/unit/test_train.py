"""The trainer, on problems small enough for one thread: exactness of resuming and sharding, real bases, real data, the
command line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mulan_nodes.mulan.conditioning.adapter import AdapterShape, LanguageAdapter, from_published
from mulan_nodes.mulan.conditioning.model_files import open_adapter
from mulan_nodes.mulan.images import image_files
from mulan_nodes.mulan.training import (
    base_models,
    dataset,
    diffusion,
    latents,
    original_layouts,
    run,
    samples,
    tensor_store,
)
from mulan_nodes.mulan.training.__main__ import main
from mulan_nodes.mulan.training.adapters import init_weights
from mulan_nodes.mulan.training.run import TrainSettings
from mulan_nodes.mulan.training.trainer import train_adapter
from mulan_nodes.tests.unit.narrow_sdxl import run_on_two_processes
from mulan_nodes.tools import comfy_server, comfyui

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = ("red", "green", "blue", "black", "white")
ALPHAS = torch.linspace(0.999, 0.005, 1000)
TEXT_WIDTH, WIDTH, ROWS = 12, 16, 7


def text_states(captions: list[str]) -> torch.Tensor:
    return torch.stack(
        [torch.randn(ROWS, TEXT_WIDTH, generator=torch.Generator().manual_seed(sum(map(ord, c)))) for c in captions]
    )


def examples() -> list[dict]:
    latents = torch.randn(len(CAPTIONS), 4, 8, 8, generator=torch.Generator().manual_seed(5))
    return [{"latent": latent, "caption": caption} for latent, caption in zip(latents, CAPTIONS, strict=False)]


def linear_denoiser():
    weight = torch.randn(WIDTH, 4, generator=torch.Generator().manual_seed(6))
    return lambda x, t, context: 0.5 * x + (context.mean(1) @ weight)[:, :, None, None]


def fresh_adapter(width: int = WIDTH) -> LanguageAdapter:
    adapter = LanguageAdapter(AdapterShape(TEXT_WIDTH, width, num_queries=6, intermediate_size=32))
    init_weights(adapter, seed=1)
    return adapter


def settings(**changes) -> TrainSettings:
    return TrainSettings(**{**dict(steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=2), **changes})


def train(changes: dict, **options) -> LanguageAdapter:
    options = {"report": lambda *_: None, **options}
    return train_adapter(
        fresh_adapter(), linear_denoiser(), text_states, examples(), ALPHAS, settings(**changes), **options
    )


def difference(one: LanguageAdapter, other: LanguageAdapter) -> float:
    return max(
        (a - b).abs().max().item() for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=False)
    )


@torch.no_grad()
def context_difference(one: LanguageAdapter, other: LanguageAdapter) -> float:
    states = text_states(list(CAPTIONS))
    return (one(states) - other(states)).abs().max().item()


def interrupt_after(step: int):
    """A report that presses Ctrl-C in the middle of the run; the trainer ends the step it is in before it leaves."""
    return lambda done, *_: signal.raise_signal(signal.SIGINT) if done == step else None


# --- the run ---


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, ema):
    unbroken = train({"ema": ema})
    with pytest.raises(KeyboardInterrupt, match="after step 3 of 6"):
        train({"ema": ema, "out_dir": tmp_path}, report=interrupt_after(2))
    with safe_open(tmp_path / run.STATE_FILE, "pt") as state:
        assert state.metadata()["step"] == "3"
    steps = []
    resumed = train({"ema": ema, "out_dir": tmp_path}, resume=True, report=lambda step, *_: steps.append(step))
    assert steps == [4, 5, 6]
    assert difference(resumed, unbroken) == 0


def test_a_finished_run_resumes_to_its_result(tmp_path):
    finished = train({"out_dir": tmp_path})
    again = train({"out_dir": tmp_path}, resume=True, report=lambda *_: pytest.fail("a finished run took another step"))
    assert difference(again, finished) == 0


def test_the_result_is_published(tmp_path):
    adapter = train({"out_dir": tmp_path, "result_dtype": "fp32"}, metadata={"family": "sd15"})
    path = tmp_path / run.ADAPTER_FILE
    stored = load_file(path)
    assert "transformer.encoder.layers.0.self_attn.in_proj_weight" in stored
    fresh = fresh_adapter()
    fresh.load_state_dict(from_published(stored))
    assert difference(fresh, adapter) == 0
    with safe_open(path, "pt") as file:
        stored = file.metadata()
    assert json.loads(stored.pop("settings"))["learning_rate"] == 1e-2
    assert stored == {"family": "sd15", "steps": "6", "seed": "0"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [run.ADAPTER_FILE, run.STATE_FILE]


def test_a_run_nobody_asked_to_resume_is_kept(tmp_path):
    train({"out_dir": tmp_path})
    with pytest.raises(FileExistsError, match="already holds a training run"):
        train({"out_dir": tmp_path})
    with pytest.raises(ValueError, match=r"learning_rate 0.01 -> 0.02"):
        train({"out_dir": tmp_path, "learning_rate": 2e-2}, resume=True)
    (tmp_path / run.STATE_FILE).write_bytes(b"not a state")
    with pytest.raises(ValueError, match="cannot be read"):
        train({"out_dir": tmp_path}, resume=True)


def test_a_state_that_an_earlier_version_wrote_is_resumed(tmp_path):
    finished = train({"out_dir": tmp_path})
    with safe_open(tmp_path / run.STATE_FILE, "pt") as state:
        metadata, tensors = state.metadata(), {name: state.get_tensor(name) for name in state.keys()}
    before = json.loads(metadata["settings"])
    assert before.pop("min_snr") == 0 and before.pop("buckets") is False
    save_file(tensors, tmp_path / run.STATE_FILE, {**metadata, "settings": json.dumps(before)})
    assert difference(train({"out_dir": tmp_path}, resume=True), finished) == 0


def test_accumulated_batches_equal_one_batch(tmp_path):
    whole = train({"batch_size": 8})
    assert context_difference(train({"batch_size": 4, "gradient_accumulation": 2}), whole) < 1e-4
    assert context_difference(train({"batch_size": 8, "seed": 1}), whole) > 1e-2
    with pytest.raises(KeyboardInterrupt):
        train({"batch_size": 8, "out_dir": tmp_path}, report=interrupt_after(2))
    recut = train({"batch_size": 2, "gradient_accumulation": 4, "out_dir": tmp_path}, resume=True)
    assert context_difference(recut, whole) < 1e-4


def test_two_processes_equal_one(tmp_path):
    run_on_two_processes(__file__, tmp_path)
    both = fresh_adapter()
    both.load_state_dict(from_published(load_file(tmp_path / run.ADAPTER_FILE)))
    assert context_difference(both, train({"batch_size": 8})) < 1e-4


def test_bf16_with_weighted_high_noise_lowers_the_loss():
    losses = []
    adapter = train(
        {"steps": 40, "precision": "bf16", "high_noise_share": 0.4, "high_noise_weight": True},
        report=lambda *told: losses.append(told),
    )
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert [step for step, *_ in losses] == list(range(1, 41)) and losses[-1][3] == 0
    first, last = (sum(loss for _, _, loss, _ in part) for part in (losses[:5], losses[-5:]))
    assert last < 0.5 * first


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    bad = [{"latent": torch.full((4, 8, 8), float("nan")), "caption": "red"}]
    with pytest.raises(FloatingPointError, match="step 1 is nan"):
        train_adapter(fresh_adapter(), linear_denoiser(), text_states, bad, ALPHAS, settings(out_dir=tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"prediction": "x0"}, "'x0', expected epsilon or v_prediction"),
        ({"empty_share": 1.5}, "a share between 0 and 1"),
        ({"ema": 1.0}, "a decay below 1"),
        ({"prediction": "v_prediction", "high_noise_weight": True}, "weighs high noise by itself"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        settings(**change)


def test_half_precision_adapters_are_refused():
    with pytest.raises(ValueError, match="must be float32, not torch.float16"):
        train_adapter(fresh_adapter().half(), linear_denoiser(), text_states, examples(), ALPHAS, settings())


def test_learning_rate_warms_up_and_falls_to_zero():
    plan = settings(steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [run.learning_rate(step, plan) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and rates[99] < 0.001


# --- samples and diffusion ---


def test_samples_depend_on_their_number_alone():
    def stream(**changes):
        return samples.SampleStream(
            examples(), **{**dict(timesteps=1000, seed=3, empty_share=0.3, high_noise_share=0.4), **changes}
        )

    one, other = stream(), stream()
    other.sample(40)
    for number in (17, 3, 12):
        for a, b in zip(one.sample(number), other.sample(number), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    whole = stream(empty_share=0.0)
    for epoch in range(3):
        assert sorted(whole.sample(5 * epoch + i).caption for i in range(5)) == sorted(CAPTIONS)
    drawn = [one.sample(number) for number in range(4000)]
    assert sum(sample.caption == "" for sample in drawn) / 4000 == pytest.approx(0.3, abs=0.03)
    assert sum(sample.timestep >= 600 for sample in drawn) / 4000 == pytest.approx(0.4 + 0.6 * 0.4, abs=0.03)
    assert torch.stack([sample.noise for sample in drawn]).std() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_a_perfect_denoiser_has_no_loss_and_samples_its_picture(prediction):
    """A denoiser that knows the one picture of its world: what it predicts must cost nothing and lead to the "
    "picture."""
    picture = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(0))

    def denoiser(x, t, context):
        a = ALPHAS[t].view(-1, 1, 1, 1)
        noise = (x - a.sqrt() * picture) / (1 - a).sqrt()
        return noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * picture

    t = torch.tensor([10, 500, 999])
    latents, noise, alpha = picture.expand(3, -1, -1, -1), torch.randn(3, 4, 8, 8), ALPHAS[t]
    predicted = denoiser(diffusion.add_noise(latents, noise, alpha), t, None)
    assert diffusion.diffusion_loss(predicted, latents, noise, alpha, prediction) < 1e-8
    context = torch.zeros(2, 6, WIDTH)
    drawn = diffusion.sample(denoiser, context, context[:1], ALPHAS, 10, 3.0, 0, (4, 8, 8), prediction)
    assert (drawn - picture).abs().max() < 1e-3


def test_samples_of_a_batch_do_not_depend_on_the_batch():
    denoiser, adapter = linear_denoiser(), fresh_adapter()
    with torch.no_grad():
        context, empty = adapter(text_states(["red", "blue"])), adapter(text_states([""]))
    both = diffusion.sample(denoiser, context, empty, ALPHAS, 5, 2.0, 7, (4, 8, 8))
    alone = diffusion.sample(denoiser, context[1:], empty, ALPHAS, 5, 2.0, 8, (4, 8, 8))
    assert (both[1:] - alone).abs().max() < 1e-5


def test_guidance_leads_from_the_empty_prompt_to_the_prompt():
    def sampled(denoiser, cfg):
        return diffusion.sample(denoiser, torch.ones(1, 6, 4), torch.zeros(1, 6, 4), ALPHAS, 3, cfg, 0, (4, 8, 8))

    guided = sampled(lambda x, t, context: context.mean(1)[:, :, None, None].expand_as(x), 2.0)
    assert torch.allclose(guided, sampled(lambda x, t, context: torch.full_like(x, 2.0), 1.0), rtol=1e-4)


# --- bases ---


def small_folder(folder: Path, prediction: str = "epsilon", context_dim: int = 768) -> Path:
    """A base as diffusers saves it, with SD1.5's kinds of blocks and few channels; random weights."""
    from diffusers import UNet2DConditionModel

    from mulan_nodes.tests.unit.train_bases import save_vae_and_schedule  # imports ComfyUI, as two processes must not

    torch.manual_seed(0)
    UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=context_dim,
        attention_head_dim=8,
        sample_size=8,
    ).save_pretrained(folder / "unet")
    save_vae_and_schedule(folder, prediction)
    return folder


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    return small_folder(tmp_path_factory.mktemp("base"))


def test_a_diffusers_folder_is_loaded_frozen(base_folder):
    base = base_models.load_base(base_folder)
    assert (base.family.name, base.prediction, base.context_dim, base.latent_channels, base.downscale_factor) == (
        "sd15",
        "epsilon",
        768,
        4,
        2,
    )
    assert base.alphas_cumprod[[0, 999]].tolist() == pytest.approx([0.99915, 0.00466], abs=1e-5)
    latents = base.encode_images(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert latents.shape == (2, 4, 8, 8) and base.decode(latents).shape == (2, 3, 16, 16)
    context = torch.randn(2, 6, 768, requires_grad=True)
    base.denoiser(latents, torch.tensor([3, 900]), context).sum().backward()
    assert context.grad.abs().sum() > 0
    checkpointed = base_models.load_base(base_folder, gradient_checkpointing=True)
    again = context.detach().requires_grad_()
    checkpointed.denoiser(latents, torch.tensor([3, 900]), again).sum().backward()
    assert torch.allclose(again.grad, context.grad, atol=1e-5)
    half = base_models.load_base(base_folder, dtype=torch.bfloat16)
    assert (
        half.denoiser(latents, torch.tensor([3, 900]), context).dtype == torch.float32
        and half.encoder_fingerprint == base.encoder_fingerprint
    )


def test_a_diffusers_folder_of_the_half_variant_is_loaded(tmp_path, base_folder):
    shutil.copytree(base_folder, tmp_path / "half")
    for part in ("unet", "vae"):
        weights = tmp_path / "half" / part / "diffusion_pytorch_model.safetensors"
        save_file(
            {name: tensor.half() for name, tensor in load_file(weights).items()},
            weights.with_suffix(".fp16.safetensors"),
        )
        weights.unlink()
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 6, 768)
    half, full = base_models.load_base(tmp_path / "half"), base_models.load_base(base_folder)
    assert torch.allclose(half.denoiser(x, t, context), full.denoiser(x, t, context), atol=1e-2)


def test_the_adapter_learns_through_a_diffusers_unet(base_folder):
    """What is predicted is the gap between the base under the adapter's context and under a hidden one, so the loss is
    1 + gap^2.
    """
    base = base_models.load_base(base_folder)
    hidden = torch.randn(1, 6, 768, generator=torch.Generator().manual_seed(9))

    def gap(x, t, context):
        return 20 * (base.denoiser(x, t, context) - base.denoiser(x, t, hidden.expand(len(x), -1, -1)))

    losses = []
    train_adapter(
        fresh_adapter(width=768),
        gap,
        text_states,
        [{"latent": torch.zeros(4, 8, 8), "caption": "red"}],
        base.alphas_cumprod,
        settings(steps=30, learning_rate=3e-4, empty_share=0.0),
        report=lambda step, steps, loss, left: losses.append(loss),
    )
    first, last = sum(losses[:3]) / 3 - 1, sum(losses[-5:]) / 5 - 1
    assert first > 1 and last < 0.2 * first, losses


SMALL = dict(
    unet=dict(
        model_channels=64,
        channel_mult=(1, 2, 2),
        transformer_depth=[1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1] * 6 + [0] * 3,
    ),
    vae=dict(ch=32, ch_mult=[1, 2]),
)
PUBLISHED = dict(
    unet=dict(
        model_channels=320,
        channel_mult=(1, 2, 4, 4),
        transformer_depth=[1] * 6 + [0] * 2,
        transformer_depth_output=[1] * 9 + [0] * 3,
    ),
    vae=dict(ch=128, ch_mult=[1, 2, 4, 4]),
)


def original_models(v2: bool, sizes: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    """UNet and autoencoder of SD1.5's or SD2.1's form as ComfyUI's own classes build them, which keep the original
    layout.
    """
    import comfy.ops
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    heads = {"num_head_channels": 64, "use_linear_in_transformer": True} if v2 else {"num_heads": 8}
    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        num_res_blocks=2,
        transformer_depth_middle=1,
        context_dim=1024 if v2 else 768,
        use_spatial_transformer=True,
        legacy=False,
        operations=comfy.ops.disable_weight_init,
        **heads,
        **sizes["unet"],
    )
    vae = AutoencoderKL(
        embed_dim=4,
        ddconfig=dict(
            double_z=True,
            z_channels=4,
            resolution=32,
            in_channels=3,
            out_ch=3,
            num_res_blocks=2,
            attn_resolutions=[],
            dropout=0.0,
            **sizes["vae"],
        ),
    )
    return unet.train(False), vae.train(False)


def original_checkpoint(path: Path, v2: bool) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Writes small models with random weights as a single file; returns them."""
    from mulan_nodes.tests.unit.train_bases import randomize

    torch.manual_seed(1)
    unet, vae = original_models(v2, SMALL)
    for module in (unet, vae):
        randomize(module)
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.state_dict().items()}
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in vae.state_dict().items()}
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return unet, vae


@torch.no_grad()
@pytest.mark.parametrize("v2, suffix", [(False, ".safetensors"), (True, ".safetensors"), (True, ".ckpt")])
def test_a_single_file_computes_what_the_host_computes(tmp_path, monkeypatch, v2, suffix):
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    unet, vae = original_checkpoint(tmp_path / f"base{suffix}", v2)
    base = base_models.load_base(tmp_path / f"base{suffix}", prediction="v_prediction" if v2 else None)
    assert (base.family.name, base.prediction, base.downscale_factor) == (
        ("sd21", "v_prediction", 2) if v2 else ("sd15", "epsilon", 2)
    )
    assert base.side == (768 if v2 else 512)
    assert base.alphas_cumprod[999].item() == pytest.approx(0.00466, abs=1e-5)
    x, t, context = torch.randn(2, 4, 16, 16), torch.tensor([7, 800]), torch.randn(2, 5, base.context_dim)
    theirs = unet(x, t, context=context)
    assert (base.denoiser(x, t, context) - theirs).abs().max() < 2e-5 * theirs.abs().max()
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    moments = vae.quant_conv(vae.encoder(pictures))
    assert torch.allclose(base.encode_images(pictures), moments[:, :4] * 0.18215, atol=1e-5)
    latents = torch.randn(2, 4, 16, 16)
    assert torch.allclose(base.decode(latents), vae.decode(latents / 0.18215).clamp(-1, 1), atol=1e-5)


@pytest.mark.parametrize("v2", [False, True], ids=["sd15", "sd21"])
def test_the_published_sizes_give_the_published_configuration(v2):
    """At full size, where only the shapes exist: what diffusers then builds must have a place for every weight, and the
    known heads.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet, vae = original_models(v2, PUBLISHED)
        tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.state_dict().items()}
        tensors |= {f"first_stage_model.{name}": tensor for name, tensor in vae.state_dict().items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        config = original_layouts.original_config(
            *(
                read(original_layouts.without_prefix(shapes, prefix))
                for read, prefix in (
                    (original_layouts.unet_config, "model.diffusion_model."),
                    (original_layouts.vae_config, "first_stage_model."),
                )
            )
        )
        options = dict(original_config=config, low_cpu_mem_usage=False)
        unet_like = UNet2DConditionModel.from_single_file(tensors, **options)
        vae_like = AutoencoderKL.from_single_file(tensors, **options)
    assert sum(p.numel() for p in unet_like.parameters()) == (865_910_724 if v2 else 859_520_964)
    assert unet_like.config.attention_head_dim == ([5, 10, 20, 20] if v2 else 8)
    assert (
        unet_like.config.block_out_channels == [320, 640, 1280, 1280] and unet_like.config.use_linear_projection == v2
    )
    assert sum(p.numel() for p in vae_like.parameters()) == 83_653_863


def test_bases_that_cannot_serve_are_refused(tmp_path, base_folder):
    original_checkpoint(tmp_path / "v2.safetensors", v2=True)
    with pytest.raises(ValueError, match="v2.safetensors predicts what it does not say: name epsilon or v_prediction"):
        base_models.load_base(tmp_path / "v2.safetensors")
    tensors = load_file(tmp_path / "v2.safetensors")
    lost = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, tmp_path / "lost.safetensors")
    with pytest.raises(ValueError, match="lost.safetensors"):
        base_models.load_base(tmp_path / "lost.safetensors", prediction="epsilon")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "diffusion_model" in name}, tmp_path / "no_vae.safetensors"
    )
    with pytest.raises(
        ValueError,
        match="not a whole SD1.5, SD2.1 or SDXL checkpoint: its UNet or autoencoder lacks 'encoder.conv_in.weight'",
    ):
        base_models.load_base(tmp_path / "no_vae.safetensors")
    save_file({"queries": torch.zeros(1)}, tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match="not a whole SD1.5, SD2.1 or SDXL checkpoint"):
        base_models.load_base(tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match="contexts of width 640"):
        base_models.load_base(small_folder(tmp_path / "other", context_dim=640))
    with pytest.raises(ValueError, match="nowhere"):
        base_models.load_base(tmp_path / "nowhere")
    shutil.copytree(base_folder, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "vae")
    with pytest.raises(ValueError, match="cut cannot be loaded as a diffusers folder: vae"):
        base_models.load_base(tmp_path / "cut")


# --- data ---


def draw_pictures(folder: Path, captions: dict[str, str | None]) -> Path:
    """Pictures 24 x 16, left half red, right half blue; captions of None get no file."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for name, caption in captions.items():
        picture = Image.new("RGB", (24, 16), "blue")
        picture.paste("red", (0, 0, 12, 16))
        picture.save(folder / name)
        if caption is not None:
            (folder / name).with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
    return folder


def test_pictures_are_cut_from_the_middle_and_captioned(tmp_path):
    folder = draw_pictures(tmp_path, {"a.png": "one", "b.webp": None, "c.JPG": "three"})
    (folder / "metadata.jsonl").write_text(
        json.dumps({"file_name": "b.webp", "text": "zwei"}) + "\n\n", encoding="utf-8"
    )
    pictures = dataset.CaptionedImages(folder)
    assert pictures.captions == ["one", "zwei", "three"]
    picture = dataset.load_image(pictures.paths[0], (8, 8))
    assert picture.shape == (3, 8, 8)
    assert picture[:, 4, 0].tolist() == [1, -1, -1] and picture[:, 4, 7].tolist() == [-1, -1, 1]


def test_the_folder_of_save_captions_is_read_in_all_its_languages(tmp_path, monkeypatch):
    """Every image that the nodes caption, with each of its captions: the latent is the image's own."""
    from accelerate import Accelerator

    from mulan_nodes.mulan.images.captions import save_captions
    from mulan_nodes.mulan.images.image_files import SUFFIXES, list_images

    monkeypatch.setattr(tensor_store, "SHARD_BYTES", 6)
    draw_pictures(tmp_path, dict.fromkeys(f"{number}{suffix}" for number, suffix in enumerate(sorted(SUFFIXES))))
    names = [path.name for path in list_images(tmp_path)]
    for language in ("", "de"):
        save_captions(list_images(tmp_path), [f"{name} {language}" for name in names], False, language)
    pictures = dataset.CaptionedImages(tmp_path, ["de"])
    numbers = iter(range(len(names)))
    encode = lambda batch: torch.tensor([next(numbers) for _ in batch]).float().view(-1, 1, 1, 1)  # noqa: E731
    stored = latents.cache_latents(
        pictures, [(8, 8)], encode, "vae", 1, tmp_path / "cache", Accelerator(), lambda *done: None
    )
    assert len(pictures) == len(names) == len(SUFFIXES) and len(stored) == 2 * len(names)
    read = [(int(stored[index]["latent"]), stored[index]["caption"]) for index in range(len(stored))]
    assert read == [(number, f"{name} {code}".strip()) for code in ("", "de") for number, name in enumerate(names)]
    (tmp_path / "0.bmp").with_suffix(".ja.txt").write_text("猫", "utf-8")
    with pytest.raises(ValueError, match=r"7 of 8 images .*write it into a \.ja\.txt of the same name"):
        dataset.CaptionedImages(tmp_path, ["ja"])


def test_pictures_are_upright_as_the_camera_held_them(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # its top is at the right of the stored rows
    picture = Image.new("RGB", (24, 16), "blue")
    picture.paste("red", (0, 0, 12, 16))
    picture.save(tmp_path / "turned.png", exif=exif)
    assert dataset.image_size(tmp_path / "turned.png") == (24, 16)
    turned = dataset.load_image(tmp_path / "turned.png", (24, 16))
    assert turned[:, 0, 0].tolist() == [1, -1, -1] and turned[:, 23, 0].tolist() == [-1, -1, 1]


def test_transparent_pictures_become_white(tmp_path):
    from PIL import Image

    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (dataset.load_image(tmp_path / "clear.png", (4, 4)) == 1).all()


def test_folders_that_cannot_serve_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="gone is not a folder"):
        dataset.CaptionedImages(tmp_path / "gone")
    with pytest.raises(ValueError, match="contains no image"):
        dataset.CaptionedImages(tmp_path)
    bare = draw_pictures(tmp_path / "bare", {"a.png": "one", "b.png": None, "c.png": "", "d.png": None, "e.png": None})
    with pytest.raises(ValueError, match=r"4 of 5 images in .*bare have no caption \(b.png, c.png, d.png, \.\.\.\)"):
        dataset.CaptionedImages(bare)
    (bare / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "ok"}\n{"file": 3}\n')
    with pytest.raises(ValueError, match="metadata.jsonl, line 2"):
        dataset.CaptionedImages(bare)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG and nothing more")
    with pytest.raises(ValueError, match="broken.png cannot be read as an image"):
        dataset.load_image(tmp_path / "broken.png", (8, 8))
    monkeypatch.setattr(image_files, "MAX_IMAGE_PIXELS", 100)
    for read in (dataset.image_size, lambda path: dataset.load_image(path, (8, 8))):
        with pytest.raises(ValueError, match="a.png cannot be read as an image .it has 24 x 16 pixels"):
            read(bare / "a.png")


def test_latents_are_encoded_once(tmp_path, monkeypatch):
    """What is there is kept, whatever else changes: more images, a run that was cut off. Nothing else is taken."""
    from accelerate import Accelerator

    monkeypatch.setattr(latents, "ENCODE_BATCH", 2)
    monkeypatch.setattr(tensor_store, "SHARD_BYTES", 1)
    folder = draw_pictures(tmp_path / "pictures", {f"{i}.png": f"caption {i}" for i in range(5)})
    encoded, told = [], []

    def encode(batch):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(len(batch))
        return batch.mean(dim=(2, 3), keepdim=True) + torch.arange(len(batch)).view(-1, 1, 1, 1)

    def cache(size=8, mark="vae"):
        pictures = dataset.CaptionedImages(folder)
        return latents.cache_latents(
            pictures, [(size, size)], encode, mark, 10, tmp_path / "cache", Accelerator(), lambda *d: told.append(d)
        )

    with pytest.raises(KeyboardInterrupt):
        cache()
    encoded.append(0)
    assert told == [(2, 5), (4, 5)]
    stored = cache()
    assert encoded == [2, 2, 0, 1] and told[2:] == [(1, 1)]
    assert [stored[i]["caption"] for i in range(len(stored))] == [f"caption {i}" for i in range(5)]
    assert stored[3]["latent"].shape == (3, 1, 1) and stored[3]["latent"][0] > stored[2]["latent"][0]
    assert stored[3]["sizes"].tolist() == [16, 24, 0, 2, 8, 8]
    cache()
    assert encoded == [2, 2, 0, 1]
    draw_pictures(folder, {"6.png": "one more"})
    cache()
    assert encoded == [2, 2, 0, 1, 1]
    cache(mark="another vae")
    cache(size=4)
    assert len(encoded) == 11
    shard = min((tmp_path / "cache").glob("*/*.safetensors"))
    shard.unlink()
    shard.write_bytes(b"cut")
    with pytest.raises(ValueError, match="delete it, it will be made again"):
        tensor_store.TensorStore(shard.parent)


# --- the command line ---


@pytest.fixture(scope="module")
def command(tmp_path_factory, base_folder) -> list[str]:
    """Arguments of a run on a small base, upstream's own small text encoder and four pictures."""
    goldens = ROOT / "tests" / "parity" / "goldens" / "mulan"
    encoder = tmp_path_factory.mktemp("text_encoder")
    for file in (*(goldens / "text_encoder").iterdir(), goldens / "tokenizer" / "tokenizer.model"):
        shutil.copy(file, encoder)
    data = draw_pictures(tmp_path_factory.mktemp("data"), {f"{i}.png": caption for i, caption in enumerate(CAPTIONS)})
    return [
        "--base",
        str(base_folder),
        "--text-encoder",
        str(encoder),
        "--data",
        str(data),
        "--size",
        "16",
        "--batch-size",
        "2",
        "--accumulate",
        "1",
        "--warmup",
        "1",
        "--steps",
        "4",
        "--precision",
        "fp32",
    ]


def test_a_graph_that_cannot_draw_is_said_before_anything_is_loaded(tmp_path, command, capsys):
    graph = tmp_path / "graph.json"
    graph.write_text('{"1": {"class_type": "KSampler", "inputs": {}}}', "utf-8")
    assert main([*command, "--out", str(tmp_path / "run"), "--graph", str(graph)]) == 1
    assert "has no MuLan Loader" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "run"), "--graph", str(tmp_path / "none.json")]) == 1
    assert "none.json is not in" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_line_trains_and_resumes(tmp_path, command, capsys):
    from PIL import Image

    out = tmp_path / "run"
    assert main([*command, "--out", str(out), "--save-every", "2", "--prompt", "红色", "--prompt", "red"]) == 0
    assert "step 4 of 4" in capsys.readouterr().out
    trained = open_adapter(out / run.ADAPTER_FILE)
    assert (trained.shape.context_dim, trained.shape.num_queries, trained.shape.intermediate_size) == (768, 120, 3072)
    assert trained.file.metadata["family"] == "sd15" and trained.file.metadata["steps"] == "4"
    with Image.open(out / "validation-000004.png") as drawn:
        assert drawn.size == (32, 16)
    assert main([*command, "--out", str(out)]) == 1
    assert "already holds a training run" in capsys.readouterr().err
    assert main([*command, "--out", str(out), "--resume"]) == 0
    assert (
        main([*command, "--out", str(tmp_path / "on"), "--adapter", str(out / run.ADAPTER_FILE), "--steps", "1"]) == 0
    )


def test_the_command_runs_in_comfyui_s_folder_without_a_gpu(tmp_path, command):
    """Nobody has given ComfyUI --cpu there, as the tests' own process has."""
    module = f"custom_nodes.{comfy_server.pack_name(comfyui.folder())}.mulan.training"
    done = subprocess.run(
        [sys.executable, "-m", module, *command, "--out", str(tmp_path), "--estimate"],
        cwd=comfyui.folder(),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0 and "activations" in done.stdout, done.stderr[-3000:]


def test_the_help_names_the_command_that_users_have(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert f"python -m custom_nodes.{ROOT.name}.mulan.training" in shown and "dev.py" not in shown


@pytest.mark.parametrize("package", ["accelerate", "diffusers"])
def test_a_missing_package_says_what_to_install(package, tmp_path, command, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert main([*command, "--out", str(tmp_path)]) == 1
    assert f"{package} is not installed: run {sys.executable} -m pip install accelerate" in capsys.readouterr().err


def test_the_command_line_says_what_is_wrong(tmp_path, command, capsys):
    assert main([*command, "--out", str(tmp_path), "--size", "15"]) == 1
    assert "--size 15 is not a multiple of 2" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path), "--data", str(tmp_path / "none")]) == 1
    assert "none is not a folder" in capsys.readouterr().err


if __name__ == "__main__":
    train({"batch_size": 4, "out_dir": Path(sys.argv[1]), "result_dtype": "fp32"})
