"""An accelerator that is not there, for tests of what ComfyUI does with its memory: torch gets a device `npu` of
limited memory.

ComfyUI looks for a module of this name, the one that Huawei's devices come with, and then runs unchanged as it does on
them: it loads models to the device, in part where they do not fit, and evicts them. Here the CPU computes. What the
device watches over, as a real one does: every byte on it is counted, more than there is raises torch.OutOfMemoryError,
and tensors of two devices do not mix.

It shows nothing of kernels, streams, pinned memory or speed. The dynamic loading that ComfyUI has for NVIDIA's devices
alone is in comfy_aimdo.py. Its tensors have no address, so safetensors cannot save them. Random numbers are the CPU's.
"""

from __future__ import annotations

import weakref

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

BETWEEN_DEVICES = {"aten::copy_", "aten::_to_copy", "aten::_copy_from"}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}  # indices may lie on the CPU
ON_NO_DEVICE = (
    "empty.memory_format",
    "empty_strided",
    "_copy_from",
)  # reach the device past the tensors' own `__torch_dispatch__`


class Memory:
    """`used` of `total` bytes; `work` counts what was computed there.

    `relieve` is asked for room where there is too little; weights leave `headroom` free.
    """

    total = 4 * 2**30
    used = 0
    work = 0
    headroom = 0

    @staticmethod
    def relieve(size: int) -> None:
        pass


memory = Memory()


class Block:
    """Bytes of the device, for as long as any tensor lies in them."""

    def __init__(self, size: int):
        if memory.used + size > memory.total:
            memory.relieve(memory.used + size - memory.total)
        if memory.used + size > memory.total:
            raise torch.OutOfMemoryError(f"npu: {size} bytes do not fit, {memory.used} of {memory.total} are in use")
        self.size = size
        memory.used += size

    def free(self) -> None:
        memory.used -= getattr(self, "size", 0)
        self.size = 0

    __del__ = free


_blocks: weakref.WeakValueDictionary[int, Block] = (
    weakref.WeakValueDictionary()
)  # by the address of the CPU's storage that stands for it


class NpuTensor(torch.Tensor):
    """A tensor on the device: `held` is the CPU's that stands for it."""

    @staticmethod
    def __new__(cls, held: torch.Tensor, block: Block):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("npu", 0),
        )

    def __init__(self, held: torch.Tensor, block: Block):
        self.held, self.block = held, block

    def __repr__(self):
        return f"{self.held!r} on npu"

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.tolist:  # refused to every class but torch's own
            return args[0].cpu().tolist()
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if not all(kind in (torch.Tensor, torch.nn.Parameter, cls) for kind in types):
            return NotImplemented  # a quantized one knows what is to be done, with tensors of ours inside
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            return function.decompose(*args, **kwargs or {})
        return _run(function, *args, **kwargs or {})


def _run(function, *args, **kwargs):
    """Has the CPU compute, on what stands for the device's tensors; the result is on the device where its tensors are,
    or where it is asked for.
    """
    name = function._schema.name
    if name == "aten::_has_compatible_shallow_copy_type":  # whether `a.data = b` may do: `held` would stay the old one
        return False
    if name == "aten::_copy_from":
        source, target = (value.held if isinstance(value, NpuTensor) else value for value in args[:2])
        target.copy_(source)
        return args[1]
    values, form = tree_flatten((args, kwargs))
    ours = {id(value.held): value for value in values if isinstance(value, NpuTensor)}
    if ours and name not in BETWEEN_DEVICES:
        _check(name, args[0] if name in INDEXED else values)
    stays = isinstance(args[0], NpuTensor) if name == "aten::copy_" else bool(ours)
    args, kwargs = tree_unflatten([value.held if isinstance(value, NpuTensor) else value for value in values], form)
    if kwargs.get("device") is not None:
        stays = torch.device(kwargs["device"]).type == "npu"
        kwargs["device"] = "cpu"
    memory.work += stays
    made = function(*args, **kwargs)
    if name == "aten::_to_copy" and made.untyped_storage().data_ptr() == args[0].untyped_storage().data_ptr():
        made = made.clone()  # the CPU saves itself a copy to where a tensor is already
    return tree_map(lambda value: _placed(value, ours, stays), made)


def _check(name: str, values) -> None:
    for value in values if isinstance(values, list) else [values]:
        if isinstance(value, torch.Tensor) and value.dim() and not isinstance(value, NpuTensor):
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {name} got one on npu and one on {value.device}, "
                f"{list(value.shape)}"
            )


def _placed(value, ours: dict[int, NpuTensor], stays: bool):
    if not isinstance(value, torch.Tensor) or not stays:
        return value
    if id(value) in ours:
        return ours[id(value)]  # written in place
    storage = value.untyped_storage()
    block = _blocks.get(storage.data_ptr())
    if block is None:
        block = Block(storage.nbytes())
        if storage.nbytes():
            _blocks[storage.data_ptr()] = block
    return NpuTensor(value, block)


class _AnyGenerator(type(torch.Generator)):
    def __instancecheck__(cls, value) -> bool:
        return isinstance(value, torch._C.Generator)


class Generator(torch.Generator, metaclass=_AnyGenerator):
    """One of the device is the CPU's, which computes."""

    def __new__(cls, device="cpu"):
        is_ours = torch.device(device).type == "npu"
        return super().__new__(cls, "cpu" if is_ours else device)


class Npu(_DummyBackendModule):
    """`torch.npu`."""

    def get_device_name(self, device=None) -> str:
        return "none, a test's"

    def memory_stats(self, device=None) -> dict[str, int]:
        return {"active_bytes.all.current": memory.used, "reserved_bytes.all.current": memory.used}

    def mem_get_info(self, device=None) -> tuple[int, int]:
        return memory.total - memory.used, memory.total

    def empty_cache(self) -> None:
        pass


def _set_up() -> list[torch.library.Library]:
    """What is registered holds only as long as the libraries that this gives."""
    _setup_privateuseone_for_python_backend("npu", backend_module=Npu())
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(_run, "PrivateUse1")
    for name in ON_NO_DEVICE:
        packet, _, overload = name.partition(".")
        function = getattr(getattr(torch.ops.aten, packet), overload or "default")
        aten.impl(name, lambda *args, function=function, **kwargs: _run(function, *args, **kwargs), "PrivateUse1")
    return [every, aten]


_raw_data = torch._C.TensorBase.data


def _set_data(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """`a.data = b` across devices, which torch refuses to tensors of two classes."""
    if isinstance(tensor, NpuTensor) or isinstance(value, NpuTensor):
        torch.utils.swap_tensors(tensor, torch.nn.Parameter(value, requires_grad=False))
    else:
        _raw_data.__set__(tensor, value)


_libraries = _set_up()
torch.Generator = Generator
torch.Tensor.data = property(_raw_data.__get__, _set_data)
torch.version.cuda = None  # a torch for such a device is built without it, and ComfyUI asks
