"""How a tensor of a module is made of the published ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

SCALE, MARK = "weight_scale", "comfy_quant"  # of an 8-bit layer, beside its `weight`


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
    """Return `sources` (key -> published ones) with scale and mark of each weight that the file has in 8 bits."""
    complete = dict(sources)
    for ours, source in sources.items():
        layers = [name.removesuffix("weight") for name in source.names]
        if f"{layers[0]}{MARK}" not in shapes:
            continue
        layer, scales = ours.removesuffix("weight"), tuple(f"{published}{SCALE}" for published in layers)
        per_row = len(shapes.get(scales[0], ())) > 0
        complete[f"{layer}{SCALE}"] = WeightSource(scales, source.arrange if per_row else None)
        complete[f"{layer}{MARK}"] = WeightSource((f"{layers[0]}{MARK}",))
    return complete
