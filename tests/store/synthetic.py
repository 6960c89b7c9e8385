"""A small store that needs no expert: five frames in three scenes and two shards, each a seeded function of its token."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store_schema import StoreSchema, StoreWriter
from store_schema.layout import StoreLayout
from store_schema.manifest import canonical
from store_schema.storage import Storage

SCHEMA = StoreSchema(
    bev=(4, 5, 3),
    pv=[(2, 3, 3, (8, 8))],
    cameras=("A", "B"),
    queries=2,
    layers=1,
    heads=1,
    points=2,
    query_channels=3,
    bev_kmax=10,
    pv_kmax=[12],
)
SCENES = {"s1": ["a" * 32, "b" * 32], "s2": ["c" * 32], "s3": ["d" * 32, "e" * 32]}
STATISTICS = {"bev": {"mean": [0.0] * 3, "std": [1.0] * 3}, "pv": [{"mean": [0.0] * 3, "std": [1.0] * 3}]}
CONSTANTS = {
    "decoder/value_proj_weight": np.ones((1, 3, 3), np.float32),
    "decoder/value_proj_bias": np.zeros((1, 3), np.float32),
}
Metadata = dict[str, dict[str, bytes]]
"""Metadata files of layouts."""


def make_frame(token: str, bev_cells: int = 4, pv_cells: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(int(hashlib.md5(token.encode()).hexdigest()[:8], 16))
    return {
        "bev/values": rng.normal(size=(bev_cells, 3)).astype(np.float16),
        "bev/index": np.sort(rng.choice(20, bev_cells, replace=False)),
        "pv/0/values": rng.normal(size=(pv_cells, 3)).astype(np.float16),
        "pv/0/index": np.sort(rng.choice(12, pv_cells, replace=False)),
        "query/boxes": rng.normal(size=(2, 9)).astype(np.float32),
        "query/score": rng.random(2).astype(np.float32),
        "query/label": rng.integers(0, 10, 2),
        "query/reference": rng.random((2, 3)).astype(np.float32),
        "query/features": rng.normal(size=(2, 3)).astype(np.float16),
        "query/sampling": rng.random((1, 2, 1, 2, 2)).astype(np.float32),
        "query/attention": rng.random((1, 2, 1, 2)).astype(np.float16),
    }


def writer(path: Path | str | Storage, expert: str = "x", allow_versions: bool = False, **sections: Any) -> StoreWriter:
    manifest = {"expert": {"checkpoint_sha256": expert}, "focal": {}} | sections
    return StoreWriter(path, SCHEMA, manifest, SCENES, 3, allow_versions=allow_versions)


def write(path: Path | str | Storage, expert: str = "x", pause: float = 0.0, **sections: Any) -> None:
    with writer(path, expert, **sections) as store:
        store.write_constants(CONSTANTS)
        for shard in store.pending():
            time.sleep(pause)
            store.write_shard(shard, {t: make_frame(t) for name in store.plan[shard] for t in SCENES[name]})
        store.finalise(STATISTICS)


def digest(path: Path) -> dict[str, str]:
    files = [f for f in path.rglob("*") if f.is_file() and f.name != ".lock"]
    return {str(f.relative_to(path)): hashlib.md5(f.read_bytes()).hexdigest() for f in files}


@contextmanager
def remembered_metadata() -> Iterator[Metadata]:
    """The metadata of equal layouts made once: most of a small store's time goes into zarr-python's making of them."""
    made: Metadata = {}
    make = StoreLayout.metadata

    def metadata(layout: StoreLayout) -> dict[str, bytes]:
        key = canonical([layout.schema.to_dict(), layout.scenes, layout.frames_per_shard])
        if key not in made:
            made[key] = make(layout)
        return dict(made[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreLayout, "metadata", metadata)
        yield made
