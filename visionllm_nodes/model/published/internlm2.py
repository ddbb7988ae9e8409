"""InternLM2's tensors (`llm.` of the 26B model) as LLaMA's: the same network under other names, its queries, keys and values in one tensor."""
from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from einops import rearrange

from ....mulan.published import Source
from ..language_model import LanguageConfig

HEAD = 128  # channels, where the number of heads is not told
ROPE_THETA = 1e6
LAYER = {
    "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
}


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> LanguageConfig:
    """Sizes from the tensors; the number of heads from `told` (`llm_config`), else heads of 128. Raises KeyError where one is missing."""
    vocabulary, width = shapes["model.tok_embeddings.weight"]
    heads = told.get("num_attention_heads") or width // HEAD
    rows = shapes["model.layers.0.attention.wqkv.weight"][0]
    return LanguageConfig(
        vocabulary=vocabulary, width=width, feed_forward=shapes["model.layers.0.feed_forward.w1.weight"][0],
        layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")), heads=heads,
        key_value_heads=(rows * heads // width - heads) // 2,
        norm_eps=told.get("rms_norm_eps") or LanguageConfig.norm_eps, rope_theta=told.get("rope_theta") or ROPE_THETA,
    )


def split(packed: torch.Tensor, part: str, key_value_heads: int, head: int) -> torch.Tensor:
    """The rows of `part` ("q", "k" or "v"): per key-value head the packed rows are its queries' heads, the key's, the value's."""
    grouped = rearrange(packed, "(g n d) c -> g n d c", g=key_value_heads, d=head)
    return rearrange({"q": grouped[:, :-2], "k": grouped[:, -2:-1], "v": grouped[:, -1:]}[part], "g n d c -> (g n d) c").contiguous()


def sources(config: LanguageConfig) -> dict[str, Source]:
    found = {"embed_tokens.weight": Source(("model.tok_embeddings.weight",)), "norm.weight": Source(("model.norm.weight",)),
             "lm_head.weight": Source(("output.weight",))}
    head = config.width // config.heads
    for layer in range(config.layers):
        at = f"model.layers.{layer}"
        for part in "qkv":
            arrange = partial(split, part=part, key_value_heads=config.key_value_heads, head=head)
            found[f"layers.{layer}.self_attn.{part}_proj.weight"] = Source((f"{at}.attention.wqkv.weight",), arrange)
        for ours, published in LAYER.items():
            found[f"layers.{layer}.{ours}.weight"] = Source((f"{at}.{published}.weight",))
    return found


def unused(name: str) -> bool:
    return name.endswith("rotary_emb.inv_freq")  # some files keep it; it follows from the number of heads
