"""The diffusion MODEL: which family it is of, and the weights of it that some adapters bring."""

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
    """The family whose text a MODEL reads; None for one that MuLan has no adapter for."""
    if isinstance(model.model, comfy.model_base.PixArt):
        return PIXART
    width = model.model.model_config.unet_config.get("context_dim")
    return next((family for family in FAMILIES if family is not PIXART and family.context_dim == width), None)


def check_family(model: ModelPatcher, family: Family, what: str) -> None:
    """Raises ValueError where `what` (such as "the adapter x.pth") is of another family than the MODEL."""
    found = detect_family(model)
    if found is family:
        return
    name = type(model.model.model_config).__name__
    is_one = f"a {found.title} model ({name})" if found else f"a {name}, a model that MuLan has no adapter for"
    raise ValueError(
        f"{what} is for {family.title}, but the connected MODEL is {is_one}. "
        f"Take {'what is made for ' + found.title if found else 'another checkpoint'}, or a {family.title} checkpoint."
    )


def apply_adapter(model: ModelPatcher, adapter: AdapterFile) -> ModelPatcher:
    """The MODEL with the weights an adapter replaces; itself where there are none.

    A replacement forgets what was patched before it, so it goes to the front of its weight's list: LoRAs and merges act in either order.
    Raises ValueError where the MODEL has no such weights, WrongFile where they are damaged: the picture would be black.
    """
    replaced = adapter.model_patch()
    if not replaced:
        return model
    damaged = next((name for name, tensor in replaced.items() if not tensor.isfinite().all()), None)
    if damaged:
        raise WrongFileError(
            f"{describe_path(adapter.file.path)} is damaged: its weights for {damaged} hold NaN or infinity. Download it again."
        )
    patched = model.clone()
    done = patched.add_patches({name: ("set", (tensor,)) for name, tensor in replaced.items()})
    if len(done) != len(replaced):
        lacking = sorted(replaced.keys() - set(done))[0]
        raise ValueError(
            f"the adapter {adapter.file.path.name} replaces weights that the connected {type(model.model.model_config).__name__} lacks, "
            f"the first is {lacking}: take the plain {adapter.family.title} checkpoint."
        )
    for name, tensor in replaced.items():
        *earlier, ours = patched.patches[name]
        patched.patches[name] = [ours, *_acting_on(tensor, earlier)]
    return patched


def _acting_on(tensor: torch.Tensor, patches: list) -> list:
    """The host's patches of a weight as they act on its replacement.

    A merge's patch is another model's weight with that one's own patches: it is replaced there too. Older replacements are gone.
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
