"""The mappers (`sd.` and `ip2p.`): hidden states of [GEN] or [EDIT] -> the context of a diffusion model.

The models are Stable Diffusion 1.5 and InstructPix2Pix.

Source: VisionLLMv2/visionllmv2/model/stable_diffusion, instruct_pix2pix. They are MuLan's adapter with other sizes,
and three of its names differ.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ....mulan.checkpoints.config import Config
from ....mulan.checkpoints.weight_check import count_layers, shape_of
from ....mulan.checkpoints.weight_source import WeightSource
from ....mulan.conditioning.adapter import NUM_HEADS, AdapterShape, LanguageAdapter
from . import PACKED, Rename, sources_of

RENAMES: tuple[Rename, ...] = (
    PACKED,
    (r"^queries$", "llm2sd_mapper_queries"),
    (r"^proj\.", "emb_proj."),
    (r"^transformer\.", "llm2sd_mapper."),
)


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Config) -> AdapterShape:
    """Return the sizes, from the tensors' shapes. Raises KeyError where a tensor is missing, ValueError for shapes."""
    _, num_queries, context_dim = shape_of(shapes, "llm2sd_mapper_queries", 3)
    if context_dim % NUM_HEADS:
        raise ValueError(f"llm2sd_mapper_queries has {context_dim} channels, expected a multiple of {NUM_HEADS}")
    return AdapterShape(
        text_hidden_size=shape_of(shapes, "emb_proj.0.weight", 2)[1],
        context_dim=context_dim,
        num_queries=num_queries,
        intermediate_size=shape_of(shapes, "llm2sd_mapper.encoder.layers.0.linear1.weight", 2)[0],
        num_encoder_layers=count_layers(shapes, "llm2sd_mapper.encoder.layers."),
        num_decoder_layers=count_layers(shapes, "llm2sd_mapper.decoder.layers.") or 1,  # as in the adapter
    )


def sources(config: AdapterShape) -> dict[str, WeightSource]:
    """Return the published tensor of each of the mapper's."""
    return sources_of(LanguageAdapter(config, operations=nn, device="meta"), *RENAMES)


def unused(name: str) -> bool:
    """Whether it is of the diffusion model itself, which ComfyUI loads from a checkpoint of its own."""
    return name.startswith(("sd_text_encoder.", "sd_vae.", "sd_unet."))
