"""The MuLan language adapter: multilingual text states in, the context of a diffusion model's cross-attention out.

Source: MuLan's ``LanguageAdapter`` (mulankit 1.0.2, mulankit/models): an MLP, then a transformer whose decoder reads
the text states with learned queries; all published ones have one layer on each side. Nothing is masked: the rows of
padding take part.

Modules bear the published names but for `in_proj`: ``torch.nn.MultiheadAttention`` keeps that packed projection as two
bare parameters, ``in_proj_weight`` and ``in_proj_bias``. Here it is a Linear, because ComfyUI casts, streams and
quantizes layers, and LoRA keys are those of layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..checkpoints.weight_check import count_layers, shape_of

NUM_HEADS = 8
MLP_RATIO = 4
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class AdapterShape:
    """The sizes of an adapter, all of which its tensors tell."""

    text_hidden_size: int
    context_dim: int
    num_queries: int
    intermediate_size: int
    num_encoder_layers: int = 1
    num_decoder_layers: int = 1

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], prefix: str = "") -> AdapterShape:
        """Read the sizes from a state dict, in published names or the module's own.

        Raises KeyError where a tensor is missing, ValueError for shapes that no adapter has.
        """
        _, num_queries, context_dim = tensor_shape(state_dict, f"{prefix}queries", 3)
        if context_dim % NUM_HEADS:
            raise ValueError(f"{prefix}queries has {context_dim} channels, expected a multiple of {NUM_HEADS}")
        encoder, decoder = (f"{prefix}transformer.{side}.layers." for side in ("encoder", "decoder"))
        return cls(
            text_hidden_size=tensor_shape(state_dict, f"{prefix}proj.0.weight", 2)[1],
            context_dim=context_dim,
            num_queries=num_queries,
            intermediate_size=tensor_shape(state_dict, f"{encoder}0.linear1.weight", 2)[0],
            num_encoder_layers=count_layers(state_dict, encoder),
            num_decoder_layers=count_layers(state_dict, decoder) or 1,  # where all are gone, the first is missed
        )


def tensor_shape(state_dict: Mapping[str, Any], name: str, dimensions: int) -> tuple[int, ...]:
    """Return the shape of one of a state dict's tensors; see `shape_of`."""
    return shape_of({name: state_dict[name].shape}, name, dimensions)


def published_key(key: str) -> str:
    """Return the published name of one of the module's keys; published names stay as they are."""
    return key.replace("in_proj.", "in_proj_")


def from_published(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the keys of a published adapter to the module's: ``in_proj_weight`` -> ``in_proj.weight``."""
    return {key.replace("in_proj_", "in_proj."): tensor for key, tensor in state_dict.items()}


def to_published(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the module's keys to the published ones, which upstream's strict loading expects."""
    return {published_key(key): tensor for key, tensor in state_dict.items()}


class Attention(nn.Module):
    """Multi-head attention, of VisionLLM's decoders too.

    `in_proj` has the rows of queries, then keys, then values, as torch.nn.MultiheadAttention packs them.
    """

    def __init__(self, hidden_size: int, num_heads: int, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = operations.Linear(hidden_size, 3 * hidden_size, dtype=dtype, device=device)
        self.out_proj = operations.Linear(hidden_size, hidden_size, dtype=dtype, device=device)

    def forward(self, queries, keys=None, values=None, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return what the queries read, [B, Q, D].

        queries [B, Q, D] or [1, Q, D], the same for all; keys [B, K, D], by default the queries; values [B, K, D], by
        default the keys; mask bool broadcastable to [B, heads, Q, K] (True: may be seen).
        """
        keys = queries if keys is None else keys
        values = keys if values is None else values
        of_queries = self.in_proj(queries)
        of_keys = of_queries if keys is queries else self.in_proj(keys)
        of_values = of_keys if values is keys else self.in_proj(values)
        q, k, v = of_queries.chunk(3, dim=-1)[0], of_keys.chunk(3, dim=-1)[1], of_values.chunk(3, dim=-1)[2]
        q, k, v = (rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for rows in (q, k, v))
        out = F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Layer of ``torch.nn.TransformerEncoder``, norms first: x [B, T, D] -> [B, T, D]."""

    def __init__(self, hidden_size, num_heads, intermediate_size, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.self_attn = Attention(hidden_size, num_heads, operations=operations, **kw)
        self.linear1 = operations.Linear(hidden_size, intermediate_size, **kw)
        self.linear2 = operations.Linear(intermediate_size, hidden_size, **kw)
        self.norm1 = operations.LayerNorm(hidden_size, eps=LAYER_NORM_EPS, **kw)
        self.norm2 = operations.LayerNorm(hidden_size, eps=LAYER_NORM_EPS, **kw)

    def forward(self, x):
        x = x + self.self_attn(self.norm1(x))
        return x + self.linear2(F.relu(self.linear1(self.norm2(x))))


class DecoderLayer(nn.Module):
    """Layer of ``torch.nn.TransformerDecoder``, norms first: x [1 or B, Q, D], memory [B, T, D] -> [B, Q, D]."""

    def __init__(self, hidden_size, num_heads, intermediate_size, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        kw = dict(dtype=dtype, device=device)
        self.self_attn = Attention(hidden_size, num_heads, operations=operations, **kw)
        self.multihead_attn = Attention(hidden_size, num_heads, operations=operations, **kw)
        self.linear1 = operations.Linear(hidden_size, intermediate_size, **kw)
        self.linear2 = operations.Linear(intermediate_size, hidden_size, **kw)
        self.norm1 = operations.LayerNorm(hidden_size, eps=LAYER_NORM_EPS, **kw)
        self.norm2 = operations.LayerNorm(hidden_size, eps=LAYER_NORM_EPS, **kw)
        self.norm3 = operations.LayerNorm(hidden_size, eps=LAYER_NORM_EPS, **kw)

    def forward(self, x, memory):
        x = x + self.self_attn(self.norm1(x))
        x = x + self.multihead_attn(self.norm2(x), memory)
        return x + self.linear2(F.relu(self.linear1(self.norm3(x))))


class Stack(nn.Module):
    """The encoder or decoder with its final norm, under the names of ``torch.nn.Transformer``."""

    def __init__(self, layers: Iterable[nn.Module], hidden_size, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = operations.LayerNorm(hidden_size, eps=LAYER_NORM_EPS, dtype=dtype, device=device)

    def forward(self, x, *memory):
        for layer in self.layers:
            x = layer(x, *memory)
        return self.norm(x)


class LanguageAdapter(nn.Module):
    """Text states [B, T, text_hidden_size] -> context [B, num_queries, context_dim]; the number of rows does not depend
    on T.

    T must be what the adapter was trained with (77 rows for SD1.5 and SD2.1, padding included), because padding is read
    too.
    """

    def __init__(self, shape: AdapterShape, num_heads: int = NUM_HEADS, dtype=None, device=None, operations: Any = nn):
        super().__init__()
        kw = dict(dtype=dtype, device=device, operations=operations)
        dim = shape.context_dim
        self.shape = shape
        self.proj = nn.Sequential(
            operations.Linear(shape.text_hidden_size, dim, dtype=dtype, device=device),
            nn.GELU(),
            operations.Linear(dim, dim, dtype=dtype, device=device),
        )
        self.queries = nn.Parameter(torch.zeros(1, shape.num_queries, dim, dtype=dtype, device=device))
        sizes = dim, num_heads, shape.intermediate_size
        self.transformer = nn.ModuleDict(
            {
                "encoder": Stack((EncoderLayer(*sizes, **kw) for _ in range(shape.num_encoder_layers)), dim, **kw),
                "decoder": Stack((DecoderLayer(*sizes, **kw) for _ in range(shape.num_decoder_layers)), dim, **kw),
            }
        )

    def forward(self, states):
        """Return the context [B, num_queries, context_dim] of states [B, T, text_hidden_size]."""
        memory = self.transformer["encoder"](self.proj(states))
        # [1, Q, D]: the same for every text until they have read its memory
        queries = self.queries.to(dtype=memory.dtype, device=memory.device)
        return self.transformer["decoder"](queries, memory)
