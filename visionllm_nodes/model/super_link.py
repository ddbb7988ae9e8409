"""The super link: learned embeddings behind a tool token, whose hidden states are the queries of a decoder.

Source: the paper's section 3.2; VisionLLMv2/visionllmv2/model/modeling_visionllmv2.py (`emb_embeddings_*`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

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
    """The language model's hidden size, and the tables."""

    hidden_size: int
    rows: Mapping[str, int]  # of each table: 4 for decoders of images, 64 for diffusion models


@dataclass(frozen=True)
class Link:
    """A tool token of a prompt, and the positions of its embeddings: `count` from `start` on."""

    tool: str
    start: int
    count: int

    @property
    def positions(self) -> slice:
        return slice(self.start, self.start + self.count)


class SuperLink(nn.ModuleDict):
    """The learned rows: an embedding table per key of `config.rows`."""

    def __init__(self, config: SuperLinkConfig, *, operations: Any, dtype=None, device=None):
        super().__init__(
            {
                name: operations.Embedding(count, config.hidden_size, dtype=dtype, device=device)
                for name, count in config.rows.items()
            }
        )
        self.config = config

    def links(self, input_ids: Sequence[int], id_of: Mapping[str, int]) -> list[Link]:
        """Return the links of a prompt, in its order.

        Raises ValueError where a tool token is not followed by all its [EMB] tokens.
        """
        tool_of = {id_of[tool]: tool for tool in TABLE_OF}
        first = id_of[EMBEDDINGS[0]]
        found = []
        for position, input_id in enumerate(input_ids):
            if input_id not in tool_of:
                continue
            tool = tool_of[input_id]
            count = self.config.rows[TABLE_OF[tool]]
            # The decoders' four are [EMB] [EMB2] [EMB3] [EMB4]; a diffusion model's are all [EMB].
            expected = [first] * count if tool in (GENERATE, EDIT) else list(range(first, first + count))
            if list(input_ids[position + 1 : position + 1 + count]) != expected:
                raise ValueError(
                    f"the tool token {tool} at position {position} is not followed by its {count} [EMB] tokens"
                )
            found.append(Link(tool, position + 1, count))
        return found

    def embeddings(self, tool: str) -> torch.Tensor:
        """Return what stands behind a tool token: [count, hidden_size], in the table's own dtype."""
        table = cast(nn.Embedding, self[TABLE_OF[tool]])
        return table(torch.arange(table.num_embeddings, device=table.weight.device))

    def insert(self, embeddings: torch.Tensor, links: Sequence[Sequence[Link]]) -> torch.Tensor:
        """Put the learned rows in their positions: embeddings [B, T, hidden_size] -> the same shape.

        `links`: those of each row of the batch.
        """
        rows = [row for row, row_links in enumerate(links) for link in row_links for _ in range(link.count)]
        positions = [
            position
            for row_links in links
            for link in row_links
            for position in range(link.start, link.start + link.count)
        ]
        if not positions:
            return embeddings
        all_links = [link for row_links in links for link in row_links]
        tables = {tool: self.embeddings(tool).to(embeddings) for tool in {link.tool for link in all_links}}
        values = torch.cat([tables[link.tool] for link in all_links])
        at = torch.tensor(rows, device=embeddings.device), torch.tensor(positions, device=embeddings.device)
        return embeddings.index_put(at, values)


def gather_queries(hidden_states: torch.Tensor, links: Sequence[Link]) -> torch.Tensor:
    """Return the queries of a decoder, [links, count, C], in the prompt's order.

    hidden_states [T, C] of one prompt; all links of one count.
    """
    return torch.stack([hidden_states[link.positions] for link in links])
