"""The language model's own embeddings as contexts for diffusion models, in place of CLIP's hidden states."""

from __future__ import annotations

import comfy.model_management
import torch

from . import prompt_templates
from .image_inputs import ImageLike
from .prefill import ImageView, layer_progress, load_weights, super_link_states, tokenize_prompt
from .special_tokens import PATCH, REGION
from .super_link import gather_queries
from .visionllm import Prompt
from .visionllm_loader import LoadedVisionLLM


@torch.no_grad()
def generation_context(loaded: LoadedVisionLLM, prompt: str) -> torch.Tensor:
    """Return Stable Diffusion 1.5's context of what to draw: float32 [1, 77, 768].

    Raises ValueError where the checkpoint has no mapper for it.
    """
    mapper = _mapper(loaded, "generate")
    input_ids = tokenize_prompt(loaded, [prompt_templates.generation(prompt)], [])
    links = loaded.model.super_link.links(input_ids, loaded.token_ids)
    load_weights(loaded, [], len(input_ids))
    hidden_states, _ = loaded.model.prefill(
        [Prompt(input_ids, links=links)],
        loaded.token_ids[PATCH],
        loaded.token_ids[REGION],
        dtype=loaded.dtype,
        device=loaded.device,
        after_layer=layer_progress(loaded, 1),
    )
    return map_queries(loaded, mapper, gather_queries(hidden_states[0], links))


@torch.no_grad()
def editing_context(loaded: LoadedVisionLLM, image: ImageLike, prompt: str) -> torch.Tensor:
    """Return InstructPix2Pix's context of how to change the image: float32 [1, 77, 768].

    Raises ValueError where the checkpoint has no mapper for it.
    """
    mapper = _mapper(loaded, "edit")
    (queries,) = super_link_states(loaded, ImageView(loaded, image), [prompt_templates.editing(prompt)])
    return map_queries(loaded, mapper, queries)


def map_queries(loaded: LoadedVisionLLM, mapper, queries: torch.Tensor) -> torch.Tensor:
    """Return the context float32 [1, 77, 768] of one link's queries. Raises ValueError where it is not finite."""
    context = loaded.check_finite(mapper(queries), "contexts")
    return context.float().to(comfy.model_management.intermediate_device())


def _mapper(loaded: LoadedVisionLLM, name: str):
    mapper = getattr(loaded.model, name)
    if mapper is None:
        target = "Stable Diffusion" if name == "generate" else "InstructPix2Pix"
        raise ValueError(f"{loaded.name} has no mapper to {target}: it was saved without it")
    return mapper
