"""Sizes of a finished store's arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .reader import StoreReader, array_of
from .storage import Storage


def describe(path: str | Path | Storage) -> list[dict[str, Any]]:
    """A row per array: name, shape, type, bytes on disk, bytes uncompressed without padding rows and cells."""
    reader = StoreReader(path)
    rows, per_frame = [], reader.schema.arrays()
    counts = reader.counts()
    lists = [reader.manifest["files"], *reader.manifest["shards"].values()]
    sizes = {file: entry["bytes"] for files in lists for file, entry in files.items()}
    for name, spec in (per_frame | reader.schema.constants()).items():
        array = array_of(reader.group, name)
        stored = sum(size for file, size in sizes.items() if file.startswith(f"{name}/"))
        items = int(np.prod(array.shape, dtype=np.int64))
        if name in per_frame:
            items = len(reader.tokens) * int(np.prod(array.shape[1:], dtype=np.int64))
        map_name = name.rpartition("/")[0]
        if map_name in counts and not name.endswith("/count"):
            items = int(counts[map_name].sum()) * int(np.prod(array.shape[2:], dtype=np.int64))
        rows.append(
            {
                "array": name,
                "shape": tuple(array.shape),
                "dtype": str(array.dtype),
                "bytes": stored,
                "raw_bytes": items * array.dtype.itemsize,
                "about": spec.about,
            }
        )
    return rows
