"""The tiny models' narrow tensors, widened into tensors of the published sizes.

A pack holds only the channels that were trained. The others are zero, and a full-width layer whose other channels are
zero computes what the narrow one does: its norms and queries were trained with that in mind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

Tensors = dict[str, torch.Tensor]

UNET = "model.diffusion_model."
CLIP = "cond_stage_model.transformer.text_model."
AUTOENCODER = "first_stage_model."
CONTROL = "control_model."
ADAPTER = "adapter."
TEXT = "model.layers.", "model.embed_tokens.", "model.norm."
CLIP_LAYERS, CLIP_VOCABULARY = 12, 49408
UNET_HEADS = "unet_heads"  # a pack's tensor: how many of the UNet's attention heads are live; without it, all
LATENT_SCALE = 0.18215  # SD1.5's: with it the autoencoder's own latents are what the denoiser sees


@dataclass(frozen=True)
class Axis:
    """Where the live channels of one axis stand among all of them."""

    live: torch.Tensor
    full: int

    @classmethod
    def first(cls, live: int, full: int) -> Axis:
        return cls(torch.arange(live), full)

    @classmethod
    def blocks(cls, count: int, live: int, full: int, live_blocks: int | None = None) -> Axis:
        """`count` blocks (heads, norm groups, packed projections) of `full` channels, the first `live` of each live.

        Where `live_blocks` is given, only so many blocks have live channels.
        """
        blocks = torch.arange(count if live_blocks is None else live_blocks)
        return cls((blocks[:, None] * full + torch.arange(live)).flatten(), count * full)

    def twice(self) -> Axis:
        return Axis(torch.cat([self.live, self.full + self.live]), 2 * self.full)


def scatter(tensor: torch.Tensor, axes: Sequence[Axis]) -> torch.Tensor:
    """Return the full-width tensor, zero in every channel that is not live."""
    full = torch.zeros([axis.full for axis in axes], dtype=tensor.dtype)
    full[torch.meshgrid(*[axis.live for axis in axes], indexing="ij")] = tensor
    return full


@dataclass(frozen=True)
class Layout:
    """How a model's tensors are widened: every axis by its length, except those that attention heads divide."""

    by_length: dict[int, Axis]
    heads: Axis
    into_heads: tuple[str, ...]  # parts of the names of projections whose output is divided among heads
    out_of_heads: tuple[str, ...]  # and of those whose input is
    packed: int = 1  # projections in one tensor

    def widen(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return the full-width tensor."""
        return scatter(tensor, self.axes(name, tensor.shape))

    def axes(self, name: str, shape: Sequence[int]) -> list[Axis]:
        """Return the axes of the tensor `name` that has this shape in the narrow model."""
        axes = [self.by_length.get(length, Axis.first(length, length)) for length in shape]
        if any(part in name for part in self.into_heads):
            axes[0] = self._packed_heads()
        if any(part in name for part in self.out_of_heads) and name.endswith("weight"):
            axes[1] = self.heads
        return axes

    def _packed_heads(self) -> Axis:
        offsets = torch.arange(self.packed)[:, None] * self.heads.full
        return Axis((offsets + self.heads.live).flatten(), self.packed * self.heads.full)


def layouts(unet_heads: int = 8) -> dict[str, Layout]:
    """Return the layout of each model, by the prefix of its tensors' names; so many of the UNet's heads are live."""
    channels, hidden = Axis.blocks(32, 2, 10), Axis.first(256, 1280)
    unet = Layout(
        by_length={64: channels, 128: channels.twice(), 256: hidden, 512: hidden.twice(), 96: Axis.first(96, 768)},
        heads=Axis.blocks(8, 64 // unet_heads, 40, unet_heads),
        into_heads=("to_q", "to_k", "to_v"),
        out_of_heads=("to_out",),
    )
    # A ControlNet is made of the UNet's blocks behind convolutions of its own, which no norm follows.
    hint = {live: Axis.first(live, full) for live, full in ((12, 16), (20, 32), (40, 96), (48, 256))}
    return {
        UNET: unet,
        CONTROL: replace(unet, by_length={**unet.by_length, **hint}),
        CLIP: Layout(
            by_length={96: Axis.first(96, 768), 384: Axis.first(384, 3072)},
            heads=Axis.blocks(12, 8, 64),
            into_heads=("q_proj", "k_proj", "v_proj"),
            out_of_heads=("out_proj",),
        ),
        AUTOENCODER: Layout(
            by_length={live: Axis.first(live, 64) for live in (24, 32)},
            heads=Axis.first(0, 0),
            into_heads=(),
            out_of_heads=(),
        ),
        ADAPTER: Layout(
            by_length={96: Axis.first(96, 768), 192: Axis.first(192, 3072)},
            heads=Axis.blocks(8, 12, 96),
            into_heads=("in_proj",),
            out_of_heads=("out_proj",),
            packed=3,
        ),
    }


def _widen(stored: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    layout = layouts(int(stored.get(UNET_HEADS, 8)))[prefix]
    return {name: layout.widen(name, tensor) for name, tensor in stored.items() if name.startswith(prefix)}


def checkpoint(stored: Mapping[str, torch.Tensor]) -> Tensors:
    """Return an SD1.5 checkpoint: UNet, CLIP and autoencoder."""
    clip = _widen(stored, CLIP)
    embedding = f"{CLIP}embeddings.token_embedding.weight"
    rows = clip[embedding]
    clip[embedding] = torch.zeros(CLIP_VOCABULARY, rows.shape[1], dtype=rows.dtype).index_copy_(
        0, stored["clip_tokens"].long(), rows
    )
    layers = f"{CLIP}encoder.layers."
    trained = 1 + max(int(name.removeprefix(layers).split(".")[0]) for name in clip if name.startswith(layers))
    first = {
        name.removeprefix(f"{layers}0."): tensor for name, tensor in clip.items() if name.startswith(f"{layers}0.")
    }
    for layer in range(trained, CLIP_LAYERS):  # all zero, a layer adds nothing to what goes past it
        clip |= {
            f"{layers}{layer}.{name}": torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)  # takes no memory
            for name, tensor in first.items()
        }
    autoencoder = _widen(stored, AUTOENCODER) | {f"{AUTOENCODER}vae_scale": torch.tensor(LATENT_SCALE)}
    return _widen(stored, UNET) | clip | autoencoder


def text_encoder(stored: Mapping[str, torch.Tensor]) -> Tensors:
    """Return the text encoder with its tokenizer; both are in the pack as they are."""
    return {name: tensor for name, tensor in stored.items() if name.startswith(TEXT) or name == "spiece_model"}


def adapter(stored: Mapping[str, torch.Tensor]) -> Tensors:
    """Return the adapter under its published names."""
    return {name.removeprefix(ADAPTER): tensor for name, tensor in _widen(stored, ADAPTER).items()}


def lora(stored: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    """Return the LoRA whose tensors have this prefix, for the full-width UNet."""
    layout, tensors = layouts()[UNET], {}
    for name in [name for name in stored if name.startswith(prefix) and name.endswith(".lora_down.weight")]:
        down, up = stored[name], stored[name.replace("lora_down", "lora_up")]
        layer = name.removeprefix(prefix).removesuffix(".lora_down.weight")
        out_axis, in_axis = layout.axes(f"{layer}.weight", (len(up), down.shape[1]))
        rank, *kernel = [Axis.first(length, length) for length in (len(down), *down.shape[2:])]
        tensors[f"{layer}.lora_down.weight"] = scatter(down, [rank, in_axis, *kernel])
        tensors[f"{layer}.lora_up.weight"] = scatter(up, [out_axis, rank, *(Axis.first(1, 1) for _ in up.shape[2:])])
        tensors[f"{layer}.alpha"] = torch.tensor(float(len(down)))  # the rank: neither amplified nor weakened
    return tensors


def controlnet(stored: Mapping[str, torch.Tensor]) -> Tensors:
    """Return the ControlNet."""
    return _widen(stored, CONTROL)
