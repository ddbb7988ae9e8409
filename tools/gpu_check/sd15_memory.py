"""Stable Diffusion 1.5 with MuLan at full size, with random weights: an image, and the memory that it takes at most."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import comfy.ldm.models.autoencoder
import comfy.sample
import comfy.sd
import comfy.supported_models
import torch
from comfy import model_management
from comfy.model_patcher import CoreModelPatcher, ModelPatcher

from mulan_nodes.mulan.conditioning.clip import encode_prompts, load_clip

from ..bench import weights
from .measuring import GIB, Section, release, synchronize

UPSTREAM_GIB = 25  # what MuLan's authors' pipeline takes for the same image
PROMPT, NEGATIVE = "ein roter Fuchs im Schnee", "blurry"
STEPS, QUICK_STEPS = 20, 2
UNET = dict(
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=320,
    num_res_blocks=[2, 2, 2, 2],
    channel_mult=[1, 2, 4, 4],
    transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
    transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    transformer_depth_middle=1,
    use_linear_in_transformer=False,
    use_spatial_transformer=True,
    use_temporal_attention=False,
    num_heads=8,
    num_head_channels=-1,
    context_dim=768,
    adm_in_channels=None,
    legacy=False,
)
QUICK_UNET = dict(
    model_channels=64,
    num_res_blocks=[1],
    channel_mult=[1],
    transformer_depth=[1],
    transformer_depth_output=[1, 1],
    num_heads=2,
)
VAE = dict(
    double_z=True, z_channels=4, resolution=256, in_channels=3, out_ch=3, ch=128, ch_mult=[1, 2, 4, 4], num_res_blocks=2
) | {"attn_resolutions": [], "dropout": 0.0}


def sd15(section: Section) -> None:
    """512 x 512 in 20 steps, as a graph does it; every model stays where ComfyUI leaves it."""
    sizes = weights.Sizes(1 if section.quick else 32)
    if section.quick:
        sizes = replace(sizes, feed_forward=512, vocabulary=1014)
    folder = section.work / "bench" / sizes.name
    folder.mkdir(parents=True, exist_ok=True)
    adapter = weights.write_adapter(folder / "adapter", sizes)
    model, vae = _model(section), _vae()
    for form in ("int8", "fp16"):
        file = weights.write_own(folder / f"repeated-{form}.safetensors", sizes, form, print)
        section.case(f"SD1.5 and MuLan {form}, 512 x 512", lambda file=file: _draw(section, file, adapter, model, vae))
        model_management.unload_all_models()
        release()


@torch.inference_mode()
def _draw(section: Section, text_encoder: Path, adapter: Path, model: ModelPatcher, vae: comfy.sd.VAE) -> dict:
    clip = load_clip(text_encoder, adapter)
    side, steps = (8, QUICK_STEPS) if section.quick else (64, STEPS)
    if not section.on_cpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    positive, negative = encode_prompts(clip, [PROMPT], [NEGATIVE])
    synchronize()
    encoded = time.perf_counter()
    latent = torch.zeros(1, 4, side, side)
    noise = comfy.sample.prepare_noise(latent, 1)
    samples = comfy.sample.sample(
        model, noise, steps, 7.5, "euler", "normal", positive, negative, latent, disable_pbar=True, seed=1
    )
    synchronize()
    sampled = time.perf_counter()
    image = vae.decode(samples)
    synchronize()
    peak = 0.0 if section.on_cpu else torch.cuda.max_memory_reserved() / GIB
    return {
        "peak_GiB": peak,
        "upstream_GiB": UPSTREAM_GIB,
        "encode_s": encoded - start,
        "sample_s": sampled - encoded,
        "decode_s": time.perf_counter() - sampled,
        "image": list(image.shape),
    }


def _model(section: Section) -> ModelPatcher:
    config = comfy.supported_models.SD15(UNET | (QUICK_UNET if section.quick else {}))
    dtype = torch.float32 if section.on_cpu else torch.float16
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device=torch.device("cpu"))
    _fill(model.diffusion_model)
    return CoreModelPatcher(model, model_management.get_torch_device(), model_management.unet_offload_device())


def _vae() -> comfy.sd.VAE:
    module = comfy.ldm.models.autoencoder.AutoencoderKL(ddconfig=VAE, embed_dim=4)
    _fill(module)
    return comfy.sd.VAE(sd=module.state_dict())


def _fill(module: torch.nn.Module) -> None:
    for parameter in module.requires_grad_(False).parameters():
        parameter.data = torch.randn(parameter.shape).mul_(0.02).to(parameter.dtype)
