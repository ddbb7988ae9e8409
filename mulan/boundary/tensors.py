"""Images and masks from outside, in whatever form another pack gives them, and what goes out, in ComfyUI's form."""

from __future__ import annotations

import math

import torch

from .limits import MAX_IMAGE_PIXELS
from .values import describe

CHANNELS = (1, 3, 4)  # gray, RGB, RGBA
MAX_VALUE = 16.0  # of a pixel: some HDR and upscaled images go past 1, images of 0 to 255 go far past it


def check_images(value) -> torch.Tensor:
    """Return images as float32 [B, H, W, 3 or 4], B >= 1.

    Accepts one image [H, W, C], gray ones, and any floating dtype. Raises ValueError for what is not an image.
    """
    images = _tensor(value, "images", "[batch, height, width, 3]")
    if _is_one_image(images) and images.shape[-1] != 1:
        images = images[None]
    if images.ndim != 4 or images.shape[-1] not in CHANNELS:
        first = images.ndim == 4 and images.shape[1] in CHANNELS
        raise ValueError(
            f"expected images [batch, height, width, 3], got a tensor of shape {list(images.shape)}"
            + (": its channels come first. Move them to the end" if first else "")
        )
    if not images.dtype.is_floating_point:
        raise ValueError(f"expected images as numbers from 0 to 1, got {_name(images.dtype)}. Divide them by 255")
    if not len(images):
        raise ValueError("the batch is empty: there is no image in it")
    _check_pixels(images.shape[1], images.shape[2], "an image")
    images = images.to(torch.float32)
    highest = _highest(images, "images")
    if highest > MAX_VALUE:
        raise ValueError(f"expected images as numbers from 0 to 1, got values up to {highest:g}")
    return images.expand(*images.shape[:3], 3) if images.shape[-1] == 1 else images


def check_masks(value) -> torch.Tensor:
    """Return masks as float32 [N, H, W] in the CPU's memory; N may be 0.

    Accepts one mask [H, W], masks with a channel ([N, 1, H, W], [N, H, W, 1]), and any real dtype; 0 to 255 in uint8.
    Raises ValueError for what is not a mask.
    """
    masks = _tensor(value, "masks", "[batch, height, width]")
    shape = list(masks.shape)
    if masks.ndim == 2:
        masks = masks[None]
    elif masks.ndim == 4 and 1 in (masks.shape[1], masks.shape[3]):
        masks = masks.squeeze(1 if masks.shape[1] == 1 else 3)
    if masks.ndim != 3 or _is_one_image(masks):
        raise ValueError(
            f"expected masks [batch, height, width], got a tensor of shape {shape}"
            + (", which is an image. Use Convert Image to Mask" if masks.ndim == 3 else "")
        )
    _check_pixels(masks.shape[1], masks.shape[2], "a mask")
    numbers = masks.cpu().to(torch.float32)
    if len(numbers) and _highest(numbers, "masks") > 1 and masks.dtype == torch.uint8:
        numbers = numbers / 255
    return numbers


def to_intermediate(value, casts: bool = True):
    """Return `value` with its tensors on the device that ComfyUI passes tensors on, as other nodes' are.

    Looks into lists, tuples and dicts. casts: floating ones in the dtype that it passes images and masks on in, too.
    """
    if isinstance(value, torch.Tensor):
        from comfy import model_management  # which chooses the device: commands do so first

        dtype = model_management.intermediate_dtype() if casts and value.is_floating_point() else value.dtype
        return value.to(model_management.intermediate_device(), dtype)
    if isinstance(value, dict):
        return {name: to_intermediate(part, casts) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [to_intermediate(part, casts) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _tensor(value, kind: str, form: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"expected {kind} {form}, got {describe(value)}")
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type == "meta":
        raise ValueError(f"expected {kind} {form}, got a tensor that holds no plain numbers ({_form(value)})")
    return value.detach()


def _is_one_image(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is [H, W, C] rather than a batch of images without channels, a few pixels wide."""
    return tensor.ndim == 3 and tensor.shape[-1] in CHANNELS and min(tensor.shape[:2]) > CHANNELS[-1]


def _highest(values: torch.Tensor, kind: str) -> float:
    """Return the highest value, in no further memory; NaN is both the lowest and the highest of what holds it."""
    low, high = (value.item() for value in values.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"the {kind} contain NaN or infinity. Look at the node that made them")
    return high


def _check_pixels(height: int, width: int, kind: str) -> None:
    if not height or not width:
        raise ValueError(f"{kind} of {width} x {height} pixels has no pixels")
    if height * width > MAX_IMAGE_PIXELS:
        raise ValueError(f"{kind} has {width} x {height} pixels, and at most {MAX_IMAGE_PIXELS} are allowed. Shrink it")


def _form(tensor: torch.Tensor) -> str:
    if tensor.device.type == "meta":
        return "meta"
    return str(tensor.layout if tensor.layout != torch.strided else tensor.dtype).removeprefix("torch.")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
