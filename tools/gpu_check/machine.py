"""What the machine is and how fast it is, and the kernels that VisionLLM's decoders hang on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .measuring import Section, measured, peak, relative_error, seconds

PACKAGES = ("torch", "transformers", "numpy", "safetensors", "comfy-kitchen", "comfy-aimdo")


def machine(section: Section) -> None:
    """Versions and backends, bandwidth, matrix rate."""
    section.case("versions", lambda: _versions(section))
    count = 2**22 if section.quick else 2**31
    source = torch.empty(count, dtype=torch.uint8, device=section.device)
    target = torch.empty_like(source)
    section.case("copy", lambda: {"GB/s": 2 * count / seconds(lambda: target.copy_(source)) / 1e9})
    size = 256 if section.quick else 8192
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(size, size, device=section.device, dtype=dtype) for _ in range(2))
        section.case(f"matmul {dtype}", lambda a=a, b=b: {"TFLOP/s": 2 * size**3 / seconds(lambda: a @ b) / 1e12})
    main_memory = torch.empty(2**20 if section.quick else 2**30, dtype=torch.uint8)
    section.case(
        "main memory to device, pageable, as the prefix cache goes",
        lambda: {"GB/s": main_memory.numel() / seconds(lambda: main_memory.to(section.device), 2) / 1e9},
    )


def _versions(section: Section) -> dict[str, Any]:
    import comfy.model_management
    import comfy_kitchen

    found: dict[str, Any] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["kitchen"] = {
        name: bool(backend["available"] and not backend["disabled"])
        for name, backend in comfy_kitchen.list_backends().items()
    }
    found["text_encoder_device"] = str(comfy.model_management.text_encoder_device())
    found["vram_state"] = comfy.model_management.vram_state.name
    found["bf16"] = comfy.model_management.should_use_bf16(section.device)
    found["fp16"] = comfy.model_management.should_use_fp16(section.device)
    if not section.on_cpu:
        found["card"], found["cuda"] = torch.cuda.get_device_name(), torch.version.cuda
    return found


def kernels(section: Section) -> None:
    """Deformable attention and DCNv3 at 800 x 1344."""
    from mulan_nodes.visionllm_nodes.model.deformable_attention import sample_pyramid
    from mulan_nodes.visionllm_nodes.model.internimage import deformable_convolution

    device = section.device
    shapes = ((20, 34), (10, 17), (5, 9), (3, 5)) if section.quick else ((100, 168), (50, 84), (25, 42), (13, 21))
    count = sum(height * width for height, width in shapes)
    for dtype in (torch.float32, torch.bfloat16):
        value = torch.randn(1, count, 8, 32, device=device, dtype=dtype)
        points = torch.rand(1, count, 8, 4, 4, 2, device=device)
        weights = torch.rand(1, count, 8, 4, 4, device=device)

        def sample(value=value, points=points, weights=weights) -> dict[str, Any]:
            ours = sample_pyramid(value, shapes, points, weights)
            expected = sample_pyramid(value.cpu(), shapes, points.cpu(), weights.cpu())
            figures = measured(lambda: sample_pyramid(value, shapes, points, weights), 5)
            return {**figures, "relative": relative_error(ours, expected)}

        section.case(f"deformable attention, {count} queries, {str(dtype)[6:]}", sample)
    height, width = (20, 34) if section.quick else (200, 336)
    dtype = torch.float32 if section.on_cpu else torch.bfloat16
    x = torch.randn(1, height, width, 320, device=device, dtype=dtype)
    offsets = torch.randn(1, height, width, 180, device=device)
    shares = torch.randn(1, height, width, 90, device=device)

    def convolve() -> torch.Tensor:
        return deformable_convolution(x, offsets, shares)

    section.case(
        "DCNv3 of InternImage-H's first level", lambda: {"s": seconds(convolve, 5), "peak_GiB": peak(convolve)[0]}
    )
