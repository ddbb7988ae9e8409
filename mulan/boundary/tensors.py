"""Images and masks from outside, in whatever form another pack gives them."""

from __future__ import annotations

import torch

from .limits import MAX_IMAGE_PIXELS

CHANNELS = (1, 3, 4)  # gray, RGB, RGBA
MAX_VALUE = 16.0  # of a pixel: some HDR and upscaled images go past 1, images of 0 to 255 go far past it


def check_images(value) -> torch.Tensor:
    """Return images as float32 [B, H, W, 3 or 4], B >= 1.

    Accepts one image [H, W, C], gray ones, and any floating dtype. Raises ValueError for what is not an image.
    """
    images = _tensor(value, "images", "[batch, height, width, 3]")
    if images.ndim == 3 and images.shape[-1] in CHANNELS[1:] and min(images.shape[:2]) > CHANNELS[-1]:
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
    images = _finite(images.to(torch.float32), "images")
    if images.amax() > MAX_VALUE:
        raise ValueError(f"expected images as numbers from 0 to 1, got values up to {images.amax():g}")
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
    if masks.ndim != 3:
        raise ValueError(f"expected masks [batch, height, width], got a tensor of shape {shape}")
    _check_pixels(masks.shape[1], masks.shape[2], "a mask")
    scale = 255.0 if masks.dtype == torch.uint8 and masks.numel() and masks.amax() > 1 else 1.0
    return _finite(masks.cpu().to(torch.float32), "masks") / scale


def _tensor(value, kind: str, form: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"expected {kind} {form}, got {_article(value)}")
    if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.device.type == "meta":
        raise ValueError(f"expected {kind} {form}, got a tensor that holds no plain numbers ({_form(value)})")
    return value.detach()


def _finite(values: torch.Tensor, kind: str) -> torch.Tensor:
    if not torch.isfinite(values).all():
        raise ValueError(f"the {kind} contain NaN or infinity. Look at the node that made them")
    return values


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


def _article(value) -> str:
    return "nothing (None)" if value is None else f"a value of type {type(value).__name__}"
