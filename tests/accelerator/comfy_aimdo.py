"""ComfyUI's dynamic VRAM for the accelerator that is not there: what comfy-aimdo does for NVIDIA's devices alone.

With --enable-dynamic-vram ComfyUI keeps each layer's weights in such a VBAR and asks for them (`vbar_fault`) when they
are used: they lie there still, are given room to be sent to, or are refused, and then sent for this once. Room goes to
whoever allocates when there is none left. Pages are not rounded here, and nothing is pinned: needs
--disable-pinned-memory.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
import types

from torch import Tensor, empty, uint8
from torch_npu import memory

_signatures = itertools.count(1)
_bars: list[ModelVBAR] = []  # the one used last at the end


class Allocation:
    """Room for one layer: `held` is its bytes while they are on the device."""

    def __init__(self, size: int):
        self.size, self.signature, self.is_pinned = size, 0, False
        self.held: Tensor | None = None

    def free(self) -> int:
        """Give the bytes back, whatever still looks at them, as a page that is unmapped does."""
        if self.held is None or self.is_pinned:
            return 0
        self.held.block.free()
        self.held = None
        return self.size


class ModelVBAR:
    """A model's layers, in the order in which they were given room."""

    def __init__(self, size: int, device: int):
        self.allocations: list[Allocation] = []
        _bars.append(self)

    def alloc(self, size: int) -> Allocation:
        self.allocations.append(Allocation(size))
        return self.allocations[-1]

    def prioritize(self) -> None:
        _bars.remove(self)
        _bars.append(self)

    def loaded_size(self) -> int:
        return sum(allocation.size for allocation in self.allocations if allocation.held is not None)

    def free_memory(self, size: float) -> int:
        freed = 0
        for allocation in reversed(self.allocations):
            if freed >= size:
                break
            freed += allocation.free()
        return freed


def _relieve(size: int, bars: list[ModelVBAR]) -> None:
    for bar in bars:
        size -= bar.free_memory(size) if size > 0 else 0


def vbar_fault(allocation: Allocation) -> int | None:
    if allocation.held is None:
        owner = next(bar for bar in _bars if allocation in bar.allocations)
        short = memory.used + allocation.size - memory.total
        _relieve(short, _bars[: _bars.index(owner)])
        if memory.used + allocation.size > memory.total - memory.headroom:
            return None
        allocation.held = empty(allocation.size, dtype=uint8, device="npu")
        allocation.signature = next(_signatures)
    allocation.is_pinned = True
    return allocation.signature


def vbar_unpin(allocation: Allocation | None) -> None:
    if allocation is not None:
        allocation.is_pinned = False


class ModelMMAP:
    def __init__(self, path: str):
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._bytes = ctypes.c_ubyte.from_buffer(self._map)

    def get(self) -> int:
        return ctypes.addressof(self._bytes)

    def get_file_handle(self) -> None:
        """None: ComfyUI then copies from memory."""


class HostBuffer:
    size = 0

    def __init__(self, *_, **__):
        pass


def _module(name: str, **contents) -> None:
    module = types.ModuleType(f"{__name__}.{name}")
    vars(module).update(contents)
    sys.modules[module.__name__] = globals()[name] = module


memory.relieve = lambda size: _relieve(size, _bars)
_levels = ("debug", "detail", "info", "warning", "error", "critical")
_module(
    "control",
    init=lambda **_: None,
    init_devices=lambda _: True,
    analyze=lambda: None,
    **{f"set_log_{level}": lambda: None for level in _levels},
)
_module("host_buffer", HostBuffer=HostBuffer)
_module("vram_buffer")
_module("model_mmap", ModelMMAP=ModelMMAP)
_module(
    "model_vbar",
    ModelVBAR=ModelVBAR,
    vbar_fault=vbar_fault,
    vbar_unpin=vbar_unpin,
    vbar_signature_compare=lambda a, b: a is not None and a == b,
    vbars_analyze=lambda _=None: sum(bar.loaded_size() for bar in _bars),
    vbars_reset_watermark_limits=lambda: None,
)
_module("torch", aimdo_to_tensor=lambda allocation, device: allocation.held)
