"""A tiny SDXL that draws the world's shapes, and a MuLan adapter for it: trained narrow, written as ComfyUI loads it.

The UNet is the smallest that ComfyUI takes for SDXL (KOALA's depths at one level). Its own text encoders, narrow CLIP-L
and CLIP-G, are needed in training only: they would be 1.4 GB of zeros in a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mulan_nodes.mulan.conditioning.adapter import AdapterShape
from mulan_nodes.mulan.conditioning.adapter_sdxl import AdapterShapeXL
from mulan_nodes.mulan.tiny_models import full_width
from mulan_nodes.mulan.tiny_models.full_width import AUTOENCODER, UNET, Axis, Layout, Tensors
from mulan_nodes.mulan.tiny_models.packs import pack_path, read_pack
from mulan_nodes.mulan.training import text_states, trainer
from mulan_nodes.mulan.training.adapters import SIZE_CHANNELS, SIZES, TwoAdapters, init_weights, size_vector
from mulan_nodes.mulan.training.diffusion import Context, as_context

from .. import graphs
from . import captions, narrow, world
from .adapter_training import CAPTIONS_PER_PICTURE, TextStates
from .base_training import alphas_cumprod, clip_tokens, denoising_loss, english_texts, latents_of, score_of
from .pack import METADATA, write_pack_file
from .stages import SEED, draw_corpus, is_finished, train_stage
from .text_training import PREFIX, TextEncoder

CHANNELS, HEADS, HEAD_CHANNELS = 64, 4, 64  # of 320 channels, of 5 heads; of a published head
HIDDEN = 256  # of the 1280 of the timestep's embedding
FIRST, SECOND = 144, 96  # of the 1280 and 768 channels of an adapter's halves
POOLED, QUERIES, WINDOW = FIRST, 120, 83
LATENT_SCALE = 0.13025  # SDXL's
PACK = Path(__file__).with_name("sdxl.safetensors.gz")
CHECKPOINT, ADAPTER = "tiny_sdxl.safetensors", "tiny_sdxl_adapter.safetensors"

UNET_SHAPE: dict[str, Any] = dict(
    image_size=8,
    in_channels=4,
    out_channels=4,
    model_channels=CHANNELS,
    num_res_blocks=[3],
    channel_mult=[1],
    num_head_channels=CHANNELS // HEADS,
    use_spatial_transformer=True,
    use_linear_in_transformer=True,
    legacy=False,
    transformer_depth=[0, 2, 5],
    transformer_depth_output=[0, 0, 1, 1],
    transformer_depth_middle=-2,
    context_dim=FIRST + SECOND,
    num_classes="sequential",
    adm_in_channels=POOLED + SIZES * SIZE_CHANNELS,
    dtype=torch.float32,
)

# SDXL's own encoders stand in its context as 768 + 1280 channels, an adapter's halves as 1280 + 768: both have their
# live ones here.
_CLIP_L, _SHARED, _SECOND = range(96), range(768, 768 + FIRST - 96), range(1280, 1280 + SECOND)
_HALF = Axis(torch.tensor([*_CLIP_L, *_SHARED]), 1280)
CONTEXT = Axis(torch.tensor([*_CLIP_L, *_SHARED, *_SECOND]), 2048)
VECTOR = Axis(torch.tensor([*range(POOLED), *range(1280, 2816)]), 2816)  # pooled text, then the sizes' sinusoids


def unet() -> nn.Module:
    """SDXL's UNet, 64 of 320 channels wide: ComfyUI's class with padded norms. Needs ComfyUI's folder on the path."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    model: Any = UNetModel(**UNET_SHAPE, operations=comfy.ops.disable_weight_init)
    for module in model.modules():  # which ComfyUI's classes leave as memory was
        if isinstance(module, nn.Linear):
            nn.Linear.reset_parameters(module)
        elif isinstance(module, nn.Conv2d):
            nn.Conv2d.reset_parameters(module)
        elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    model.model_channels = narrow.UNET_FULL_WIDTH  # of the timestep's sinusoids
    model.time_embed[0] = nn.Linear(narrow.UNET_FULL_WIDTH, HIDDEN)
    narrow.pad_norms(model, narrow.UNET_FULL_WIDTH // CHANNELS)
    return model


def adapter() -> TwoAdapters:
    """MuLan's adapter for SDXL of the layout noembed_attnpool, narrow."""
    halves = [
        AdapterShape(text_hidden_size=128, context_dim=width, num_queries=QUERIES, intermediate_size=2 * width)
        for width in (FIRST, SECOND)
    ]
    model = TwoAdapters(AdapterShapeXL(*halves, pooled_dim=POOLED, text_embeds_dim=None), embeds=False)
    narrow.pad_layer_norms(model.adapter1, 1280)
    narrow.pad_layer_norms(model.adapter2, 768)
    return model


class Base(nn.Module):
    """The UNet and its two CLIPs."""

    def __init__(self, texts: Sequence[str]):
        super().__init__()
        ids = clip_tokens(texts)
        self.places = dict(zip(texts, torch.searchsorted(ids.unique(), ids), strict=True))
        self.clips = nn.ModuleList(narrow.clip(len(ids.unique()), width) for width in (96, FIRST + SECOND - 96))
        self.pooling = nn.Linear(FIRST + SECOND - 96, POOLED)
        self.unet = unet()

    def context(self, texts: Sequence[str]) -> Context:
        """Texts -> rows [B, 77, 240], and the vector of the pooled text, zeros for "", and of sizes of any image."""
        ids = torch.stack([self.places[text] for text in texts])
        first, second = (clip(ids) for clip in self.clips)
        said = torch.tensor([[bool(text)] for text in texts])
        pooled = self.pooling(second.pooler_output) * said
        vector = torch.cat([pooled, size_vector(torch.stack([any_sizes() for _ in texts]))], dim=1)
        return Context(torch.cat([first.last_hidden_state, second.last_hidden_state], dim=2), vector=vector)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: Context) -> torch.Tensor:
        given = as_context(context)
        return self.unet(x, timesteps, context=given.rows, y=given.vector)


def any_sizes(generator: torch.Generator | None = None) -> torch.Tensor:
    """SDXL's numbers of a whole square image of any side: the tiny world looks the same at each."""
    side = 64 * int(torch.randint(1, 17, (), generator=generator))
    return torch.tensor([side, side, 0, 0, side, side])


def train_base(work_dir: Path, autoencoder: narrow.TinyAutoencoder, steps: int = 2000) -> Base:
    """Learns all things, the held-out pairs too, under English captions only."""
    torch.manual_seed(SEED)
    model = Base(english_texts())
    if is_finished("sdxl_base", work_dir):
        model.load_state_dict(load_file(work_dir / "sdxl_base.safetensors"))
        return model
    latents, alphas = latents_of(autoencoder, draw_corpus(SEED)), alphas_cumprod()

    def loss_of(rng):
        things = rng.integers(len(latents), size=32)
        clean = latents[things, rng.integers(latents.shape[1], size=32)]
        texts = [
            captions.caption(world.THINGS[i], "en", rng, captions.choose_attributes(rng, drop=0.1)) for i in things
        ]
        texts = ["" if empty else text for empty, text in zip(rng.random(32) < 0.1, texts, strict=True)]
        return denoising_loss(model, clean, model.context(texts), alphas, rng)

    def score(copied):
        return score_of(autoencoder, copied, copied.context)

    train_stage("sdxl_base", work_dir, model, loss_of, steps=steps, learning_rate=2e-3, average=0.995, score=score)
    return model


class Examples(torch.utils.data.Dataset):
    """Latents of the things that are not held out, each under several English captions."""

    def __init__(self, autoencoder: narrow.TinyAutoencoder):
        self.latents = latents_of(autoencoder, draw_corpus(SEED, things=world.SEEN_THINGS))

    def __len__(self):
        things, variants = self.latents.shape[:2]
        return things * variants * CAPTIONS_PER_PICTURE

    def __getitem__(self, index):
        rng = np.random.default_rng((SEED, index))
        thing, variant = divmod(index // CAPTIONS_PER_PICTURE, self.latents.shape[1])
        text = captions.caption(world.SEEN_THINGS[thing], "en", rng, captions.choose_attributes(rng, drop=0.25))
        sizes = any_sizes(torch.Generator().manual_seed(index))
        return {"latent": self.latents[thing, variant], "caption": text, "sizes": sizes}


class SizedStates:
    """Captions and sizes -> what SDXL's adapter reads: every text stands behind the prefix, the empty one too."""

    def __init__(self, text_encoder: TextEncoder):
        english = [captions.full_caption(thing, "en") for thing in world.SEEN_THINGS]
        self.states = TextStates(text_encoder, english, WINDOW)

    def __call__(self, texts: Sequence[str], sizes: torch.Tensor | None = None, swapped: bool = False):
        behind_prefix = [PREFIX + text for text in texts]
        rows = self.states.swapped(behind_prefix) if swapped else self.states(behind_prefix)
        if sizes is None:
            sizes = torch.stack([any_sizes() for _ in texts])
        return text_states.TextStates(rows, torch.tensor([not text for text in texts]), sizes=sizes)


def train_adapter(
    work_dir: Path, autoencoder: narrow.TinyAutoencoder, text_encoder: TextEncoder, base: Base, steps: int = 2000
) -> TwoAdapters:
    """Trains the adapter with the library's trainer on English captions of the things that are not held out."""
    base.requires_grad_(False)
    model, states = adapter(), SizedStates(text_encoder)
    init_weights(model, SEED)
    settings = trainer.TrainSettings(
        steps=steps,
        batch_size=32,
        learning_rate=1.5e-3,
        seed=SEED,
        high_noise_share=0.4,
        high_noise_weight=True,
        ema=0.995,
        save_every=500,
        validate_every=500,
        out_dir=work_dir / "sdxl_adapter",
        result_dtype="fp32",
    )

    def report(step, steps, loss, seconds_left):
        if step % 100 == 0:
            print(f"sdxl_adapter: step {step} of {steps}, loss {loss:.4f}, {seconds_left:.0f} s left", flush=True)

    def validate(step, adapter):
        for language in captions.LANGUAGES if step == steps else ("en", "zh", "hi"):
            score = score_of(autoencoder, base, lambda texts: adapter(states(texts)), language)
            print(f"sdxl_adapter: {language}: {score}", flush=True)

    return trainer.train_adapter(
        model,
        base,
        lambda texts, sizes: states(texts, sizes, swapped=True),
        Examples(autoencoder),
        alphas_cumprod(),
        settings,
        report=report,
        validate=validate,
        resume=True,
    )


def build(work_dir: Path) -> Path:
    """Write the pack of UNet and adapter."""
    base = load_file(work_dir / "sdxl_base.safetensors")
    unet_tensors = {name.removeprefix("unet."): tensor for name, tensor in base.items() if name.startswith("unet.")}
    trained = load_file(work_dir / "sdxl_adapter" / "adapter.safetensors")
    return write_pack_file(PACK, gather(unet_tensors, trained), METADATA)


def gather(unet_tensors: Mapping[str, torch.Tensor], adapter_tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Narrow tensors, the adapter's under published names -> the pack's."""
    tensors = {UNET + name: tensor for name, tensor in unet_tensors.items()}
    tensors |= {full_width.ADAPTER + name: tensor for name, tensor in adapter_tensors.items()}
    return {name: _as_published(name, tensor) for name, tensor in tensors.items()}


def _as_published(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Queries make up for the published heads' width, by whose square root attention divides."""
    if name.startswith(UNET):
        return tensor * math.sqrt(HEAD_CHANNELS * HEADS / CHANNELS) if ".to_q." in name else tensor
    scale = math.sqrt(2048 / (FIRST + SECOND) if "pool_caption" in name else 1280 / FIRST if "adapter1" in name else 8)
    if "in_proj_" in name:
        queries = len(tensor) // 3
        return torch.cat([tensor[:queries] * scale, tensor[queries:]])
    return tensor * scale if ".q_proj." in name else tensor


def _widen(name: str, tensor: torch.Tensor) -> torch.Tensor:
    channels, hidden = Axis.blocks(32, 2, 10), Axis.first(HIDDEN, 1280)
    if name.startswith(UNET):
        layout = Layout(
            by_length={
                CHANNELS: channels,
                2 * CHANNELS: channels.twice(),
                HIDDEN: hidden,
                2 * HIDDEN: hidden.twice(),
                FIRST + SECOND: CONTEXT,
                len(VECTOR.live): VECTOR,
            },
            heads=Axis.blocks(5, CHANNELS // HEADS, HEAD_CHANNELS, HEADS),
            into_heads=("to_q", "to_k", "to_v"),
            out_of_heads=("to_out",),
        )
    elif "pool_caption" in name:
        layout = Layout(
            by_length={FIRST + SECOND: CONTEXT, POOLED: Axis.first(POOLED, 1280)},
            heads=Axis.blocks(8, (FIRST + SECOND) // 8, 256),
            into_heads=("q_proj", "k_proj", "v_proj"),
            out_of_heads=("c_proj",),
        )
    else:
        live, full = (FIRST, 1280) if "adapter1" in name else (SECOND, 768)
        layout = Layout(
            by_length={
                live: _HALF if live == FIRST else Axis.first(live, full),
                2 * live: Axis.first(2 * live, 4 * full),
            },
            heads=Axis.blocks(8, live // 8, full // 8),
            into_heads=("in_proj",),
            out_of_heads=("out_proj",),
            packed=3,
        )
    return layout.widen(name, tensor)


def checkpoint_of(stored: Mapping[str, torch.Tensor]) -> Tensors:
    """A pack's tensors -> an SDXL checkpoint without text encoders, its autoencoder that of the tiny SD1.5."""
    tensors = {name: _widen(name, tensor) for name, tensor in stored.items() if name.startswith(UNET)}
    tiny_sd15 = full_width.checkpoint(read_pack(pack_path("world"))[0])
    tensors |= {name: tensor for name, tensor in tiny_sd15.items() if name.startswith(AUTOENCODER)}
    return tensors | {f"{AUTOENCODER}vae_scale": torch.tensor(LATENT_SCALE)}


def adapter_of(stored: Mapping[str, torch.Tensor]) -> Tensors:
    """A pack's tensors -> the adapter under its published names."""
    prefix = full_width.ADAPTER
    return {name.removeprefix(prefix): _widen(name, stored[name]) for name in stored if name.startswith(prefix)}


def write_models(models: Path) -> None:
    """Write both files below a ComfyUI's models folder."""
    stored, _ = read_pack(PACK)
    save_file(checkpoint_of(stored), models / "checkpoints" / CHECKPOINT)
    save_file(adapter_of(stored), models / "mulan" / ADAPTER)


def graph(text_to_image: Mapping[str, Any]) -> dict[str, Any]:
    """The graph of text to image with the tiny SDXL."""
    changed = graphs.change(dict(text_to_image), "CheckpointLoaderSimple", ckpt_name=CHECKPOINT)
    return graphs.change(changed, "MuLan Loader", adapter=ADAPTER)
