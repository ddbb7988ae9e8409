"""How a tensor of a module is made of the published ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from .nvfp4 import tiled, untiled

SCALE, MARK = "weight_scale", "comfy_quant"  # of a quantized layer, beside its `weight`
TENSOR_SCALE = "weight_scale_2"  # of one in nvfp4, whose `SCALE` is that of its blocks


def has_quantized(names: Iterable[str]) -> bool:
    """Return whether these are names of tensors of which some are a quantized layer's."""
    return any(name.endswith(f".{MARK}") for name in names)


@dataclass(frozen=True)
class WeightSource:
    """The published tensors (`names`) of one tensor: concatenated along the rows, or put together by `arrange`.

    Works on tensors of any device, "meta" included, so that shapes can be checked before anything is read.
    """

    names: tuple[str, ...]
    arrange: Callable[..., torch.Tensor] | None = None

    def read(self, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """Return the tensor; `read` gives a published one by name."""
        tensors = [read(name) for name in self.names]
        if self.arrange is not None:
            return self.arrange(*tensors)
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def under(self, prefix: str) -> WeightSource:
        """Return the same with `prefix` before each published name."""
        return WeightSource(tuple(prefix + name for name in self.names), self.arrange)


def with_scales(sources: Mapping[str, WeightSource], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, WeightSource]:
    """Return `sources` (key -> published ones) with scales and mark of each weight that the file has quantized."""
    complete = dict(sources)
    for ours, source in sources.items():
        layers = [name.removesuffix("weight") for name in source.names]
        if f"{layers[0]}{MARK}" not in shapes:
            continue
        layer, scales = ours.removesuffix("weight"), tuple(f"{published}{SCALE}" for published in layers)
        arrange = source.arrange if len(shapes.get(scales[0], ())) > 0 else None
        if f"{layers[0]}{TENSOR_SCALE}" in shapes:
            complete[f"{layer}{TENSOR_SCALE}"] = WeightSource((f"{layers[0]}{TENSOR_SCALE}",))
            arrange = arrange and _arrange_tiles(arrange, shapes[source.names[0]])
        complete[f"{layer}{SCALE}"] = WeightSource(scales, arrange)
        complete[f"{layer}{MARK}"] = WeightSource((f"{layers[0]}{MARK}",))
    return complete


def _arrange_tiles(arrange: Callable[..., torch.Tensor], packed: tuple[int, ...]) -> Callable[..., torch.Tensor]:
    """Return what arranges the rows of nvfp4's scales, which lie in tiles, as `arrange` does those of the weight."""
    return lambda scales: tiled(arrange(untiled(scales, (packed[0], 2 * packed[1]))))
