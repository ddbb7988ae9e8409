"""The super link: `emb_embeddings_det.weight` and its three sisters, at the top of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ....mulan.checkpoints.weight_source import WeightSource
from ..super_link import TABLE_OF, SuperLink, SuperLinkConfig
from . import sources_of

PREFIX = "emb_embeddings_"


def configuration(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> SuperLinkConfig:
    """Return the tables that are there, and their sizes."""
    tables = {
        table: shapes[f"{table}.weight"] for table in dict.fromkeys(TABLE_OF.values()) if f"{table}.weight" in shapes
    }
    return SuperLinkConfig(
        hidden_size=next(iter(tables.values()))[1], rows={table: rows for table, (rows, _) in tables.items()}
    )


def sources(config: SuperLinkConfig) -> dict[str, WeightSource]:
    """Return the published tensor of each table."""
    return sources_of(SuperLink(config, operations=nn, device="meta"))


def unused(name: str) -> bool:
    """Return False: every tensor is read."""
    return False
