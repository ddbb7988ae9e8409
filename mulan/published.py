"""How one of our tensors is made of the published ones."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Source:
    """The published tensors (`names`) that one of ours consists of: joined along the rows, or put together by `arrange`.

    Works on tensors of any device, "meta" included, so that shapes can be checked before anything is read.
    """

    names: tuple[str, ...]
    arrange: Callable[..., torch.Tensor] | None = None

    def read(self, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        tensors = [read(name) for name in self.names]
        if self.arrange is not None:
            return self.arrange(*tensors)
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)

    def under(self, prefix: str) -> Source:
        """The same with `prefix` before each published name."""
        return Source(tuple(prefix + name for name in self.names), self.arrange)
