"""The trained models read back from their packs, narrow again."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mulan_nodes.mulan.conditioning.adapter import LanguageAdapter, from_published
from mulan_nodes.mulan.tiny_models.full_width import ADAPTER, AUTOENCODER, CLIP, UNET

from . import narrow, pack
from .base_training import Base
from .text_training import TextEncoder, llama


def load_packed(
    packed: Mapping[str, torch.Tensor],
    base: Base,
    autoencoder: narrow.TinyAutoencoder,
    adapter: LanguageAdapter,
    unet_heads: int = 8,
) -> None:
    """Fills narrow models of a pack's sizes from it."""
    unet = _part(packed, UNET, unet_heads)
    base.unet.load_state_dict({name: unet[pack.unet_name(name)] for name in base.unet.state_dict()})
    base.clip.load_state_dict(_part(packed, CLIP))
    autoencoder.load_state_dict(_part(packed, AUTOENCODER))
    adapter.load_state_dict(from_published(_part(packed, ADAPTER)))
    for model in (base, autoencoder, adapter):
        model.requires_grad_(False)


def packed_text_encoder(packed: Mapping[str, torch.Tensor]) -> TextEncoder:
    """The text encoder of the pack that has it."""
    text = llama(len(packed["model.embed_tokens.weight"]))
    of_text = {name: tensor for name, tensor in _part(packed, "model.").items() if not name.startswith("diffusion")}
    text.load_state_dict(of_text)
    return TextEncoder(text, pack.tokenizer_of(packed))


def _part(packed: Mapping[str, torch.Tensor], prefix: str, unet_heads: int = 8) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): pack.unscaled_queries(name, tensor.float(), unet_heads)
        for name, tensor in packed.items()
        if name.startswith(prefix)
    }
