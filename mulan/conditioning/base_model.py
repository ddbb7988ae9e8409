"""The diffusion MODEL: its family, and the weights of it that some adapters replace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.model_base
import torch

from ..checkpoints.tensor_files import WrongFileError, describe_path
from .families import FAMILIES, PIXART, Family
from .model_files import AdapterFile

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


def detect_family(model: ModelPatcher) -> Family | None:
    """Return the family of a MODEL; None for one that MuLan has no adapter for."""
    if isinstance(model.model, comfy.model_base.PixArt):
        return PIXART
    context_dim = model.model.model_config.unet_config.get("context_dim")
    return next((family for family in FAMILIES if family is not PIXART and family.context_dim == context_dim), None)


def check_family(model: ModelPatcher, family: Family, what: str) -> None:
    """Raise ValueError where `what` (such as "the adapter x.pth") is of another family than the MODEL."""
    detected = detect_family(model)
    if detected is family:
        return
    name = type(model.model.model_config).__name__
    kind = f"a {detected.title} model ({name})" if detected else f"a {name}, a model that MuLan has no adapter for"
    other = f"Use one that is made for {detected.title}, or connect" if detected else "Connect"
    raise ValueError(
        f"{what} is for {family.title}, but the connected MODEL is {kind}. {other} a {family.title} checkpoint."
    )


def apply_adapter(model: ModelPatcher, adapter: AdapterFile) -> ModelPatcher:
    """Return the MODEL with the weights an adapter replaces; the MODEL itself where there are none.

    A replacement forgets what was patched before it, so it goes to the front of its weight's list: LoRAs and merges act
    in either order. Raises ValueError where the MODEL has no such weights, WrongFileError where they are damaged: the
    image would be black.
    """
    replaced = adapter.model_patch()
    if not replaced:
        return model
    damaged = next((name for name, tensor in replaced.items() if not tensor.isfinite().all()), None)
    if damaged:
        raise WrongFileError(
            f"{describe_path(adapter.file.path)} is damaged: its weights for {damaged} contain NaN or infinity. "
            "Download it again."
        )
    patched = model.clone()
    done = patched.add_patches({name: ("set", (tensor,)) for name, tensor in replaced.items()})
    if len(done) != len(replaced):
        lacking = sorted(replaced.keys() - set(done))[0]
        raise ValueError(
            f"the adapter {adapter.file.path.name} replaces weights that the connected "
            f"{type(model.model.model_config).__name__} lacks, the first is {lacking}: "
            f"connect a plain {adapter.family.title} checkpoint."
        )
    for name, tensor in replaced.items():
        *earlier, ours = patched.patches[name]
        patched.patches[name] = [ours, *_acting_on(tensor, earlier)]
    return patched


def _acting_on(tensor: torch.Tensor, patches: list) -> list:
    """Return ComfyUI's patches of a weight as they act on its replacement.

    A merge's patch is another model's weight with that one's own patches: it is replaced there too. Older replacements
    go.
    """
    acting = []
    for strength, value, *rest in patches:
        if isinstance(value, list):
            (_, convert), *own = value
            value = [(tensor, convert), *_acting_on(tensor, own)]
        elif isinstance(value, tuple) and value[0] == "set":
            continue
        acting.append((strength, value, *rest))
    return acting
