"""Stage 1: run the expert once over every frame and write what distillation reads into the store."""

from .coverage import summary, write_curve
from .engine import ClusterSettings, dump
from .moments import RunningMoments
from .rows import (
    DumpSettings,
    focal_cells,
    hash_config,
    make_manifest,
    padded_size,
    scene_rows,
    schema_of,
    store_row,
    stored_values,
)

__all__ = [
    "ClusterSettings",
    "DumpSettings",
    "RunningMoments",
    "dump",
    "focal_cells",
    "hash_config",
    "make_manifest",
    "padded_size",
    "schema_of",
    "scene_rows",
    "store_row",
    "stored_values",
    "summary",
    "write_curve",
]
