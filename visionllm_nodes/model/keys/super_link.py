"""The super link's names: `emb_embeddings_det.weight` and its three sisters, at the top of the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from ....mulan.checkpoints.weight_source import WeightSource
from ..super_link import TABLE_OF, SuperLinkConfig

PREFIX = "emb_embeddings_"


def configuration(shapes: Mapping[str, tuple[int, ...]], told: Mapping) -> SuperLinkConfig:
    found = {
        table: shapes[f"{table}.weight"] for table in dict.fromkeys(TABLE_OF.values()) if f"{table}.weight" in shapes
    }
    return SuperLinkConfig(
        width=next(iter(found.values()))[1], rows={table: rows for table, (rows, _) in found.items()}
    )


def sources(config: SuperLinkConfig) -> dict[str, WeightSource]:
    return {f"tables.{table}.weight": WeightSource((f"{table}.weight",)) for table in config.rows}


def unused(name: str) -> bool:
    return False
