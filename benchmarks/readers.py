"""Digest of a store as the installed zarr-python reads it: ``python benchmarks/readers.py STORE...``.

Needs zarr and numpy alone, so the script runs in an environment of any version. The same digest means the same bytes: every
array whole, and of arrays of frames single rows, parts of rows and two rows at once, which are read through the shards' index.
"""

import hashlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr


def arrays(group: zarr.Group, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Arrays below a group, by path."""
    for name, member in sorted(group.members(), key=lambda item: item[0]):
        path = f"{prefix}{name}"
        if isinstance(member, zarr.Group):
            yield from arrays(member, f"{path}/")
        else:
            yield path, member


def digest(stores: list[str]) -> str:
    """SHA-256 of everything that is read."""
    found = hashlib.sha256()
    for store in stores:
        for path, array in arrays(zarr.open_group(store, mode="r")):
            found.update(path.encode())
            parts = [array[:]]
            if array.ndim > 1 and array.shape[0] > 3:
                rows = (0, 1, array.shape[0] // 2, array.shape[0] - 1)
                parts += [array[row] for row in rows] + [array[row, : array.shape[1] // 3] for row in rows]
                parts.append(array[1:3])
            for part in parts:
                found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    start = time.perf_counter()
    print(f"zarr {zarr.__version__}: {digest(sys.argv[1:])[:16]} in {time.perf_counter() - start:.1f} s")
