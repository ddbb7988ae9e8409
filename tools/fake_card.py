"""A CUDA card that is not there, for models at full size: no value is computed, but every byte on the card is counted.

Tensors are torch's fake ones: shapes, dtypes and devices without contents. What asks a tensor for a value (`.item()`,
an `if`) gets one, and is counted, since it makes a real card wait. A selection by a mask keeps everything. What kernels
take for themselves is not counted, but for the copy of an attention mask whose width they cannot read.
"""

from __future__ import annotations

import weakref
from collections import Counter
from contextlib import ExitStack
from typing import Any
from unittest import mock

import comfy.ldm.modules.attention
import comfy.model_management
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CARD = torch.device("cuda:0")
ALIGNMENT = 8  # of a mask's width: PyTorch pads others for its memory-efficient kernel


class _Attention(TorchFunctionMode):
    """The output of attention, and what its kernels are known to need."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        return function(*args, **kwargs)


def _attend(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    assert q.device == k.device == v.device and q.dtype == k.dtype == v.dtype
    assert q.shape[0] == k.shape[0] and k.shape[:-1] == v.shape[:-1]
    if attn_mask is not None:
        assert attn_mask.device == q.device
        torch.broadcast_shapes(attn_mask.shape, (*q.shape[:-1], k.shape[-2]))
        if attn_mask.shape[-1] % ALIGNMENT:
            attn_mask = F.pad(attn_mask, (0, -attn_mask.shape[-1] % ALIGNMENT))
    return torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)


class FakeCard(TorchDispatchMode):
    """While it is entered, tensors are fake, and those on `CARD` are counted.

    held, peak: bytes. operations: how often each kernel of PyTorch ran. syncs: how often a value of the card was asked
    for.
    """

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self.operations: Counter[str] = Counter()
        self.syncs = 0
        self._storages: weakref.WeakSet[Any] = weakref.WeakSet()
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._stack = ExitStack()

    def __enter__(self):
        attention = comfy.ldm.modules.attention
        self._stack.enter_context(mock.patch.object(comfy.model_management, "ENABLE_PYTORCH_ATTENTION", True))
        self._stack.enter_context(mock.patch.object(attention, "optimized_attention", attention.attention_pytorch))
        self._stack.enter_context(self._mode)
        self._stack.enter_context(_Attention())
        self._stack.enter_context(torch.no_grad())
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._stack.close()

    def start(self) -> None:
        """Count from here on: the peak above what is held now, operations and syncs."""
        self._base, self.peak, self.syncs = self.held, self.held, 0
        self.operations.clear()

    @property
    def peak_since_start(self) -> int:
        return self.peak - self._base

    @property
    def operation_count(self) -> int:
        return sum(self.operations.values())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name
        on_card = any(
            isinstance(leaf, torch.Tensor) and leaf.device.type == "cuda" for leaf in tree_leaves((args, kwargs))
        )
        if name == "aten::_local_scalar_dense":
            self.syncs += on_card
            return _value(function, args[0])
        if name == "aten::nonzero":
            self.syncs += on_card
            (tensor,) = args
            return torch.empty(tensor.numel(), tensor.dim(), dtype=torch.long, device=tensor.device)
        if name == "aten::index" and any(each is not None and each.dtype == torch.bool for each in args[1]):
            self.syncs += on_card
            tensor, (mask,) = args
            return tensor.new_empty(mask.numel(), *tensor.shape[mask.dim() :])
        result = function(*args, **kwargs)
        for leaf in tree_leaves(result):
            if _is_on_card(leaf):
                on_card = True
                self._count(leaf.untyped_storage())
            elif on_card and isinstance(leaf, torch.Tensor):
                self.syncs += 1  # it went to main memory
        if on_card and function.namespace == "aten":
            self.operations[name.removeprefix("aten::")] += 1
        return result

    def _count(self, storage) -> None:
        if storage in self._storages:
            return
        self._storages.add(storage)
        size = storage.nbytes()
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.held -= size


def _is_on_card(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


def _value(function, tensor) -> Any:
    try:
        return function(tensor)
    except Exception as error:
        if "DataDependent" not in type(error).__name__:
            raise
        return True if tensor.dtype == torch.bool else 1.0 if tensor.dtype.is_floating_point else 1
