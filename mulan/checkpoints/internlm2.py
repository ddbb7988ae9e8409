"""InternLM2's tensors as LLaMA's: the same network under other names, its queries, keys and values in one tensor."""

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


def sources(layers: int, key_value_heads: int, head: int) -> dict[str, WeightSource]:
    """LLaMA's names (`layers.0.self_attn.q_proj.weight`, `lm_head.weight`...) -> InternLM2's. `head`: channels of one."""
    found = {
        "embed_tokens.weight": WeightSource(("model.tok_embeddings.weight",)),
        "norm.weight": WeightSource(("model.norm.weight",)),
        "lm_head.weight": WeightSource(("output.weight",)),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for part in "qkv":
            arrange = partial(split, part=part, key_value_heads=key_value_heads, head=head)
            found[f"layers.{layer}.self_attn.{part}_proj.weight"] = WeightSource(
                (f"{at}.attention.wqkv.weight",), arrange
            )
        for ours, published in LAYER.items():
            found[f"layers.{layer}.{ours}.weight"] = WeightSource((f"{at}.{published}.weight",))
    return found


def split(packed: torch.Tensor, part: str, key_value_heads: int, head: int) -> torch.Tensor:
    """The rows of `part` ("q", "k" or "v"): per key-value head the packed rows are its queries' heads, the key's, the value's."""
    grouped = rearrange(packed, "(g n d) c -> g n d c", g=key_value_heads, d=head)
    return rearrange(
        {"q": grouped[:, :-2], "k": grouped[:, -2:-1], "v": grouped[:, -1:]}[part], "g n d c -> (g n d) c"
    ).contiguous()
