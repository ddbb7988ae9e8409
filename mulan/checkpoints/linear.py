"""Linear layers whose weights are smaller than what they compute in: 8 bits, or half precision under float32.

ComfyUI turns a whole weight into the input's dtype at every call. On a CPU that takes longer than the product itself,
because the copy goes to memory and back. Here a weight is turned in runs that fit into the CPU's cache, and int8
weights are not turned at all where the CPU multiplies 8-bit integers exactly and fast.

| situation | int8 | fp8, float16, bfloat16 |
| --- | --- | --- |
| CPU, many rows | integers; rows in 8 bits, outlier channels in float32 | float32, in runs |
| CPU, few rows (one token) | integers; rows in 15 bits | float32, in runs |
| CPU without such instructions, or `exact` | float32, in runs | float32, in runs |
| GPU, many rows | the input's dtype | the input's dtype |
| GPU, few rows | integers; rows in 15 bits | the input's dtype |

int8 weights may lie rotated in groups of their columns (ComfyUI's `convrot`), which evens out inputs with long tails;
then the input is rotated too.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor

from .rotation import rotation

RUN_ROWS = 256  # of a weight at a time and thread: a few MB in float32, what a core's cache holds
INT8_LAYOUT = "TensorWiseINT8Layout"
# Layouts whose rows lie one after another, with a scale per row or in all
IN_ROWS = (INT8_LAYOUT, "TensorCoreFP8E4M3Layout", "TensorCoreFP8E5M2Layout")
FEW_ROWS = 4  # up to here, rows go through the product one by one, which only reads the weight once
OUTLIER = 4.0  # a channel is an outlier where its largest value is so many times the mean of all channels' largest
LEVELS = 127.0
VERSION = "2"  # part of what results are known by: raise it where they change
QUANTIZED_ROWS = 160  # at a time: a few MB, what a core's cache holds
MULTIPLIED_ROWS = 512  # at a time: their products stay in memory that is used again
_int_mm: Any = torch._int_mm  # pyright: ignore[reportPrivateImportUsage]: ComfyUI's kernels use it too
SLOWER = 4.0  # between 1 of CPUs with the instructions and 20 or more of those without
TINY = torch.finfo(torch.float32).tiny


def operations_for(kept: torch.dtype | None, exact: bool = False) -> Any:
    """Return ComfyUI's operations with the linear layers of this module.

    `kept`: the dtype of what is not quantized, for a file with quantized layers; None for one without. `exact`: never
    quantize a layer's input, which is what someone wants who asks for float32.
    """
    base: Any = (
        comfy.ops.manual_cast if kept is None else comfy.ops.mixed_precision_ops({}, kept, full_precision_mm=True)
    )

    @cache
    def integers() -> bool:
        multiplies = not exact and multiplies_integers()
        logging.info("MuLan: this CPU computes int8 layers %s", "with integers" if multiplies else "in float32")
        return multiplies

    class Operations(base):  # pyright: ignore[reportGeneralTypeIssues]: ComfyUI makes it in a function
        class Linear(base.Linear):  # pyright: ignore[reportGeneralTypeIssues]
            @property
            def arithmetic(self) -> str:
                """How it computes, for those who keep results."""
                return (
                    f"{VERSION} {'exact' if exact else ''} {'integers' if is_int8(self.weight) and integers() else ''}"
                )

            def forward(self, input, *args, **kwargs):
                weight = self.weight
                on_cpu = input.device.type == weight.device.type == "cpu"
                is_quantized = isinstance(weight, QuantizedTensor)
                if self.weight_function or self.bias_function or input.requires_grad:  # a LoRA; training
                    return super().forward(input, *args, **kwargs)
                if not is_quantized and (not on_cpu or weight.dtype == input.dtype):
                    return super().forward(input, *args, **kwargs)
                comfy.ops.run_every_op()
                if on_cpu:
                    return linear_on_cpu(input, weight, self.bias, is_int8(weight) and integers())
                weight, bias, stream = comfy.ops.cast_bias_weight(
                    self,
                    dtype=weight.dtype,
                    device=input.device,
                    bias_dtype=input.dtype,
                    offloadable=True,
                    compute_dtype=input.dtype,
                    want_requant=True,
                )
                output = linear_on_card(input, weight, bias, not exact and _is_multiplied_fast(weight))
                comfy.ops.uncast_bias_weight(self, weight, bias, stream)
                return output

    return Operations


def multiplies_integers() -> bool:
    """Return whether this CPU multiplies 8-bit integers exactly and fast."""
    return multiplies_exactly() and _multiplies_fast()


def multiplies_exactly() -> bool:
    """Return whether torch's products of 8-bit integers are right on this CPU.

    An x86 CPU without AVX-VNNI, AVX512-VNNI or AMX may hold the sum of two products in 16 bits, where the largest
    values saturate. Other processors compute them right, but slowly.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    width = 64
    weight = torch.full((16, width), 127, dtype=torch.int8, device="cpu")
    products = [_int_mm(weight[:rows], weight.t()) for rows in (1, 16)]  # one row takes another way
    return bool((torch.cat(products) == width * 127**2).all())


def _multiplies_fast() -> bool:
    """Measure whether products of integers take less time than `SLOWER` times those of floats: 0.01 s.

    Some x86 CPUs without the instructions are right and take 25 times as long; no flag tells that in every torch.
    """
    rows, weight = (torch.ones(count, 512, dtype=torch.int8, device="cpu") for count in (64, 256))
    float_rows, float_weight = rows.float(), weight.float()
    in_integers, in_floats = (
        min(_seconds(multiply) for _ in range(5))
        for multiply in (lambda: _int_mm(rows, weight.t()), lambda: float_rows @ float_weight.t())
    )
    return in_integers < SLOWER * in_floats


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def linear_on_cpu(input: torch.Tensor, weight: Any, bias: torch.Tensor | None, integers: bool) -> torch.Tensor:
    """Return input [..., K] times weight [N, K], plus bias [N], in the input's dtype.

    `integers`: multiply an int8 weight as it is.
    """
    if isinstance(weight, QuantizedTensor):
        input, weight = _rotated(input, weight)
    rows = input.reshape(-1, input.shape[-1])
    if integers:
        values, scale = weight._qdata, weight._params.scale.reshape(-1)
        if len(rows) <= FEW_ROWS:
            output = _few_rows(rows.float(), values, scale)
        else:
            output = _many_rows(input.reshape(-1, *input.shape[-2:]).float(), values, scale)
        output = output.to(input.dtype)
    else:
        output = _in_runs(rows, weight)
    if bias is not None:
        output += bias.to(output.dtype)
    return output.reshape(*input.shape[:-1], len(weight))


def linear_on_card(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, integers: bool
) -> torch.Tensor:
    """Return the same on a GPU. `integers`: few rows read an int8 weight as it is, by comfy_kitchen's product."""
    if not isinstance(weight, QuantizedTensor):  # ComfyUI made it float, as patches need it
        return torch.nn.functional.linear(input, weight.to(input.dtype), bias)
    input, weight = _rotated(input, weight.to(dtype=input.dtype))
    rows = input.reshape(-1, input.shape[-1])
    if not integers or len(rows) > FEW_ROWS or not is_int8(weight):
        return torch.nn.functional.linear(input, weight.dequantize(), bias)
    scale, coarse = _to_levels(rows.float())
    coarse *= scale
    both = torch.cat([coarse, rows.float() - coarse]).to(input.dtype)
    halves = torch.nn.functional.linear(both, weight).float()
    output = (halves[: len(rows)] + halves[len(rows) :]).to(input.dtype)
    if bias is not None:
        output += bias
    return output.reshape(*input.shape[:-1], output.shape[-1])


def _rotated(input: torch.Tensor, weight: Any) -> tuple[torch.Tensor, QuantizedTensor]:
    """Return an input as rotated as the weight, and the weight as one that is not."""
    params = weight._params
    if not getattr(params, "convrot", False):
        return input, weight
    turned = input.unflatten(-1, (-1, params.convrot_groupsize)) @ rotation(params.convrot_groupsize).to(input)
    plain = dataclasses.replace(params, convrot=False)
    return turned.flatten(-2), QuantizedTensor(weight._qdata, weight._layout_cls, plain)


def _few_rows(rows: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor) -> torch.Tensor:
    """Multiply each row as two rows of 8 bits: its values, and what their rounding left."""
    scale, coarse = _to_levels(rows)
    rest_scale, rest = _to_levels(rows - coarse * scale)
    products = [_int_mm(row.to(torch.int8), weight.t()) for part in (coarse, rest) for row in part.split(1)]
    coarse, rest = torch.cat(products).float().chunk(2)
    return (coarse * scale + rest * rest_scale) * weight_scale


def _many_rows(input: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor) -> torch.Tensor:
    """Multiply windows [B, T, K] in 8 bits, each row with a scale of its own -> [B, T, N].

    LLaMAs have a few channels far above all others. What reads or writes them is multiplied in float32: read, they
    would take the scale for themselves; written, they make most of the states, and of their error.
    """
    levels, scale, columns, beside = _quantized(input)
    output = input.new_empty(*input.shape[:2], len(weight))
    beside_weight = weight.index_select(1, columns).to(input.dtype).t()
    rows = (part.flatten(0, 1).split(MULTIPLIED_ROWS) for part in (levels, scale, beside, output))
    for its_levels, its_scale, its_beside, its_output in zip(*rows, strict=True):
        its_output.copy_(_int_mm(its_levels, weight.t())).mul_(its_scale)
        its_output.addmm_(its_beside, beside_weight).mul_(weight_scale)
    written = (weight_scale > OUTLIER * weight_scale.mean()).nonzero().flatten()
    if len(written):
        output[..., written] = input @ (weight[written].to(input.dtype).t() * weight_scale[written])
    return output


def _quantized(input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return windows [B, T, K] as int8 and scales [B, T, 1], without their outlier channels: those are told by their
    indices [C] and values [B, T, C].

    Which ones is a matter of each window, so that it comes out the same whatever else is in the batch: elsewhere their
    values are 0. So few windows go at a time that a core's cache holds them.
    """
    levels = torch.empty_like(input, dtype=torch.int8)
    scale = input.new_empty(*input.shape[:2], 1)
    is_outlier = torch.empty(len(input), 1, input.shape[2], dtype=torch.bool, device=input.device)
    step = max(1, QUANTIZED_ROWS // input.shape[1])
    sizes = torch.empty_like(input[:step])
    for start in range(0, len(input), step):
        its = slice(start, start + step)
        windows = input[its]
        values = torch.abs(windows, out=sizes[: len(windows)])
        largest = values.amax(1, keepdim=True)
        torch.gt(largest, OUTLIER * largest.mean(2, keepdim=True), out=is_outlier[its])
        columns = _marked(is_outlier[its])
        inside = ~is_outlier[its, :, columns]
        values[..., columns] *= inside
        torch.div(values.amax(2, keepdim=True), LEVELS, out=scale[its])
        torch.mul(windows, 1 / scale[its].clamp_min(TINY), out=values).round_()
        values[..., columns] *= inside
        levels[its] = values
    columns = _marked(is_outlier)
    return levels, scale, columns, input[..., columns] * is_outlier[..., columns]


def _marked(is_outlier: torch.Tensor) -> torch.Tensor:
    """Return the indices of the channels that are outliers in one of the windows [B, 1, K]."""
    return is_outlier.any(0).flatten().nonzero().flatten()


def _to_levels(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (scale [M, 1], whole numbers from -127 to 127 [M, K] as float32) with rows ~ scale * numbers."""
    scale = rows.abs().amax(1, keepdim=True) / LEVELS
    return scale, (rows / scale.clamp_min(TINY)).round_()


def _in_runs(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply in the rows' dtype, a run of the weight's rows at a time."""
    output = rows.new_empty(len(rows), len(weight))
    for first, run in _runs(weight, rows.dtype):
        output[:, first : first + len(run)] = rows @ run.t()
    return output


def _runs(weight: torch.Tensor, dtype: torch.dtype) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (index of the first row, rows) of a weight in `dtype`; they are overwritten by the next ones."""
    values, scale = weight, None
    if isinstance(weight, QuantizedTensor):
        if weight._layout_cls not in IN_ROWS:
            yield 0, weight.to(dtype=dtype).dequantize()
            return
        values, scale = weight._qdata, weight._params.scale.to(dtype)
    count = min(len(values), RUN_ROWS * torch.get_num_threads())
    buffer = torch.empty(count, values.shape[1], dtype=dtype)
    for first in range(0, len(values), count):
        run = buffer[: min(count, len(values) - first)].copy_(values[first : first + count])
        if scale is not None:
            run.mul_(scale if scale.numel() == 1 else scale.reshape(-1, 1)[first : first + count])
        yield first, run


def _is_multiplied_fast(weight: torch.Tensor) -> bool:
    """Return whether comfy_kitchen has a product for a weight on this GPU."""
    return isinstance(weight, QuantizedTensor) and weight.layout_cls.supports_fast_matmul()


def is_int8(weight: torch.Tensor) -> bool:
    """Return whether a weight is int8 with a scale per row or tensor."""
    return isinstance(weight, QuantizedTensor) and weight._layout_cls == INT8_LAYOUT
