"""The super link: `emb_embeddings_det.weight` and its three sisters, at the top of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ....mulan.checkpoints.config import Config
from ....mulan.checkpoints.weight_check import shape_of
from ....mulan.checkpoints.weight_source import WeightSource
from ..special_tokens import EMBEDDINGS, count
from ..super_link import TABLE_OF, SuperLink, SuperLinkConfig
from . import sources_of

PREFIX = "emb_embeddings_"


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Config) -> SuperLinkConfig:
    """Return the tables that are there, and their sizes. Raises ValueError where one has no row, or too many.

    A model may have other numbers of embeddings than the published one has; those of prompts are checked at loading.
    """
    tables = {}
    for tool, table in TABLE_OF.items():
        if f"{table}.weight" in shapes:
            tables[table] = shape_of(shapes, f"{table}.weight", 2)
            most = len(EMBEDDINGS) if count(tool) <= len(EMBEDDINGS) else tables[table][0]
            if not 1 <= tables[table][0] <= most:
                raise ValueError(f"{table}.weight has {tables[table][0]} rows, expected 1 to {most}")
    return SuperLinkConfig(
        hidden_size=next(iter(tables.values()))[1], rows={table: rows for table, (rows, _) in tables.items()}
    )


def sources(config: SuperLinkConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each table."""
    return sources_of(SuperLink(config, operations=nn, device="meta"))


def unused(name: str) -> bool:
    """Return False: every tensor is read."""
    return False
