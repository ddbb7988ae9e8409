"""The language model's own embeddings as contexts for diffusion models, in the place of CLIP's states."""

from __future__ import annotations

import comfy.model_management
import torch

from . import prompt_templates
from .image_inputs import Picture
from .prefill import View, ask, prepare, progress, prompt_of
from .special_tokens import PATCH, REGION
from .super_link import read
from .visionllm import Prompt
from .visionllm_loader import LoadedVisionLLM


@torch.no_grad()
def generation_context(loaded: LoadedVisionLLM, prompt: str) -> torch.Tensor:
    """What Stable Diffusion 1.5 is to draw: float32 [1, 77, 768], in the place of CLIP's states."""
    mapper = _mapper(loaded, "generate")
    ids = prompt_of(loaded, [prompt_templates.generation(prompt)], [])
    links = loaded.model.super_link.links(ids, loaded.ids)
    prepare(loaded, [], len(ids))
    states, _ = loaded.model.read(
        [Prompt(ids, links=links)],
        loaded.ids[PATCH],
        loaded.ids[REGION],
        dtype=loaded.dtype,
        device=loaded.device,
        after_layer=progress(loaded, 1),
    )
    return mapper(read(states[0], links)).float().to(comfy.model_management.intermediate_device())


@torch.no_grad()
def editing_context(loaded: LoadedVisionLLM, picture: Picture, prompt: str) -> torch.Tensor:
    """How InstructPix2Pix is to change the picture: float32 [1, 77, 768], in the place of CLIP's states."""
    mapper = _mapper(loaded, "edit")
    (states,) = ask(loaded, View(loaded, picture), [prompt_templates.editing(prompt)])
    return mapper(states).float().to(comfy.model_management.intermediate_device())


def _mapper(loaded: LoadedVisionLLM, name: str):
    mapper = getattr(loaded.model, name)
    if mapper is None:
        raise ValueError(
            f"{loaded.name} has no mapper to {'Stable Diffusion' if name == 'generate' else 'InstructPix2Pix'}: "
            f"it was saved without it"
        )
    return mapper
