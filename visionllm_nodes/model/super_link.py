"""The super link: learned embeddings behind a tool token, whose hidden states are what a decoder is asked with.

Source: the paper's section 3.2; VisionLLMv2/visionllmv2/model/modeling_visionllmv2.py (`emb_embeddings_*`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .special_tokens import DETECT, EDIT, EMBEDDINGS, GENERATE, GROUND, POSE, SEGMENT

TABLE_OF = {
    DETECT: "det",
    GROUND: "det",
    SEGMENT: "det",
    POSE: "pose",
    GENERATE: "gen",
    EDIT: "edit",
}  # three tools share one table


@dataclass(frozen=True)
class SuperLinkConfig:
    width: int
    rows: Mapping[str, int]  # of each table: 4 for decoders of pictures, 64 for diffusion models


@dataclass(frozen=True)
class Link:
    """A tool token of a prompt and the places of its embeddings."""

    tool: str
    start: int
    count: int

    @property
    def places(self) -> slice:
        return slice(self.start, self.start + self.count)


class SuperLink(nn.Module):
    """The learned rows of each tool."""

    def __init__(self, config: SuperLinkConfig, *, operations, dtype=None, device=None):
        super().__init__()
        self.config = config
        self.tables = nn.ModuleDict(
            {
                name: operations.Embedding(count, config.width, dtype=dtype, device=device)
                for name, count in config.rows.items()
            }
        )

    def links(self, ids: Sequence[int], id_of: Mapping[str, int]) -> list[Link]:
        """The links of a prompt, in its order. Raises ValueError where a tool token's [EMB]s are not all behind it."""
        tool_of = {id_of[tool]: tool for tool in TABLE_OF}
        first = id_of[EMBEDDINGS[0]]
        found = []
        for position, id in enumerate(ids):
            if id not in tool_of:
                continue
            tool = tool_of[id]
            count = self.config.rows[TABLE_OF[tool]]
            # The decoders' four are [EMB] [EMB2] [EMB3] [EMB4]; a diffusion model's are all [EMB].
            expected = [first] * count if tool in (GENERATE, EDIT) else list(range(first, first + count))
            if list(ids[position + 1 : position + 1 + count]) != expected:
                raise ValueError(
                    f"the tool token {tool} at position {position} is not followed by its {count} [EMB] tokens"
                )
            found.append(Link(tool, position + 1, count))
        return found

    def rows(self, tool: str) -> torch.Tensor:
        """What stands behind a tool token: [count, width], in the table's own dtype."""
        table = self.tables[TABLE_OF[tool]]
        return table(torch.arange(table.num_embeddings, device=table.weight.device))

    def write(self, embeddings: torch.Tensor, links: Sequence[Sequence[Link]]) -> torch.Tensor:
        """Puts the learned rows in their places: embeddings [B, T, width] and the links of each row of the batch -> [B, T, width]."""
        batch = [number for number, of_row in enumerate(links) for link in of_row for _ in range(link.count)]
        places = [place for of_row in links for link in of_row for place in range(link.start, link.start + link.count)]
        if not places:
            return embeddings
        tables = {tool: self.rows(tool).to(embeddings) for tool in {link.tool for of_row in links for link in of_row}}
        rows = torch.cat([tables[link.tool] for of_row in links for link in of_row])
        at = torch.tensor(batch, device=embeddings.device), torch.tensor(places, device=embeddings.device)
        return embeddings.index_put(at, rows)


def read(states: torch.Tensor, links: Sequence[Link]) -> torch.Tensor:
    """What a decoder is asked with: states [T, width] of one prompt, links of one count -> [links, count, width], in the prompt's order."""
    return torch.stack([states[link.places] for link in links])
