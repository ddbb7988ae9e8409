"""InternLM2's tensors as LLaMA's: the same network under other names, with packed queries, keys and values."""

from __future__ import annotations

from functools import partial

import torch
from einops import rearrange

from .weight_source import WeightSource

LAYER = {
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def sources(num_layers: int, num_key_value_heads: int, head_dim: int) -> dict[str, WeightSource]:
    """Return LLaMA's names (`layers.0.self_attn.q_proj.weight`, `lm_head.weight`...) -> InternLM2's."""
    found = {
        "embed_tokens.weight": WeightSource(("model.tok_embeddings.weight",)),
        "norm.weight": WeightSource(("model.norm.weight",)),
        "lm_head.weight": WeightSource(("output.weight",)),
    }
    for layer in range(num_layers):
        at = f"model.layers.{layer}"
        for part in "qkv":
            arrange = partial(split, part=part, num_key_value_heads=num_key_value_heads, head_dim=head_dim)
            found[f"layers.{layer}.self_attn.{part}_proj.weight"] = WeightSource(
                (f"{at}.attention.wqkv.weight",), arrange
            )
        for ours, published in LAYER.items():
            found[f"layers.{layer}.{ours}.weight"] = WeightSource((f"{at}.{published}.weight",))
    return found


def split(packed: torch.Tensor, part: str, num_key_value_heads: int, head_dim: int) -> torch.Tensor:
    """Return the rows of `part` ("q", "k" or "v") of a packed [rows, C].

    Per key-value head the packed rows are those of its query heads, of the key, of the value.
    """
    grouped = rearrange(packed, "(g n d) c -> g n d c", g=num_key_value_heads, d=head_dim)
    return rearrange(
        {"q": grouped[:, :-2], "k": grouped[:, -2:-1], "v": grouped[:, -1:]}[part], "g n d c -> (g n d) c"
    ).contiguous()
