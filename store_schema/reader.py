"""Reading a finished store."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from .direct import DirectArray, direct_arrays
from .errors import StoreError
from .manifest import MANIFEST, read_json
from .schema import SCHEMA_VERSION, StoreSchema, unpack_sampling


class StoreReader:
    """Frames of a store by token. Opens at the first read, so it can be made before worker processes start.

    Args:
        path: folder of a finished store.

    Raises:
        StoreError: there is no store, its dump is not finished, or it has another schema version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).exists():
            done = len(list((self.path / ".done").glob("shard-*.json"))) if self.path.is_dir() else 0
            state = f"its dump is not finished ({done} shards written)" if done else "it is not there"
            raise StoreError(f"store {self.path} cannot be read: {state}; run 'fd3d dump'")
        self.manifest = read_json(self.path / MANIFEST)
        if self.manifest.get("schema_version") != SCHEMA_VERSION:
            raise StoreError(
                f"store {self.path} has schema version {self.manifest.get('schema_version')}, this program reads {SCHEMA_VERSION}; dump it again"
            )
        self.schema = StoreSchema.from_dict(self.manifest["schema"])

    def __getstate__(self) -> dict[str, Any]:
        # An open store owns threads; another process opens its own.
        return {key: value for key, value in self.__dict__.items() if key not in ("group", "_arrays", "_counts")}

    @cached_property
    def group(self) -> zarr.Group:
        """The Zarr group."""
        return zarr.open_group(self.path, mode="r")

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array | DirectArray]:
        return direct_arrays(self.path, open_arrays(self.group, self.schema))

    @cached_property
    def _counts(self) -> dict[str, np.ndarray]:
        return read_counts(self._arrays, self.schema)

    @cached_property
    def _rows(self) -> dict[str, int]:
        from .writer import plan_shards

        size, rows = self.manifest["frames_per_shard"], {}
        # JSON objects are sorted by name, as scenes are when they are dumped
        for shard, names in enumerate(plan_shards(self.manifest["scenes"], size)):
            row = shard * size
            for name in names:
                for token in self.manifest["scenes"][name]:
                    rows[token] = row
                    row += 1
        return rows

    @property
    def tokens(self) -> list[str]:
        """Sample tokens in row order."""
        return list(self._rows)

    def row(self, token: str) -> int:
        """Row of a frame.

        Raises:
            StoreError: the store has no such frame.
        """
        if token not in self._rows:
            raise StoreError(
                f"store {self.path} has no frame {token} ({len(self._rows)} others); dump the split that holds it"
            )
        return self._rows[token]

    def read(self, token: str) -> dict[str, np.ndarray]:
        """All arrays of a frame; focal cells without padding, sampling locations as float32.

        Raises:
            StoreError: the frame is unknown, or a shard is missing or damaged.
        """
        row = self.row(token)
        try:
            return read_row(self._arrays, self._counts, self.schema, row)
        except (ValueError, OSError, KeyError, RuntimeError) as error:
            shard = row // self.manifest["frames_per_shard"]
            raise StoreError(
                f"frame {token} of {self.path} (shard {shard}) is damaged: {error}; delete .done/shard-{shard:05d}.json and dump again"
            ) from error

    @cached_property
    def constants(self) -> dict[str, np.ndarray]:
        """Arrays without a frame dimension."""
        return {path: np.asarray(_array(self.group, path)[:]) for path in self.schema.constants()}


def _array(group: zarr.Group, path: str) -> zarr.Array:
    array = group[path]
    assert isinstance(array, zarr.Array)
    return array


def open_arrays(group: zarr.Group, schema: StoreSchema) -> dict[str, zarr.Array]:
    """Per-frame arrays by path; opening one reads its metadata, so keep them."""
    return {path: _array(group, path) for path in schema.arrays()}


def read_counts(arrays: Mapping[str, zarr.Array | DirectArray], schema: StoreSchema) -> dict[str, np.ndarray]:
    """Stored cells of every row, (N,) by the name of the map (``bev``, ``pv/0``, ...)."""
    paths = [path for path, spec in schema.arrays().items() if spec.kind == "count"]
    return {path.removesuffix("/count"): np.asarray(arrays[path][:]) for path in paths}


def read_row(
    arrays: Mapping[str, zarr.Array | DirectArray], counts: Mapping[str, np.ndarray], schema: StoreSchema, row: int
) -> dict[str, np.ndarray]:
    """One row's arrays as :meth:`StoreReader.read` gives them."""
    out: dict[str, np.ndarray] = {}
    for path, spec in schema.arrays().items():
        if spec.kind in ("values", "index"):
            out[path] = np.asarray(arrays[path][row, : int(counts[path.rsplit("/", 1)[0]][row])])
        elif spec.kind != "count":
            out[path] = np.asarray(arrays[path][row])
    if "query/sampling" in out:
        out["query/sampling"] = unpack_sampling(out["query/sampling"])
    return out


def describe(path: str | Path) -> list[dict[str, Any]]:
    """A row per array: name, shape, type, bytes on disk, bytes uncompressed without padding rows' share."""
    reader = StoreReader(path)
    rows = []
    for name, spec in (reader.schema.arrays() | reader.schema.constants()).items():
        array = _array(reader.group, name)
        stored = sum(file.stat().st_size for file in (reader.path / name).rglob("*") if file.is_file())
        rows.append(
            {
                "array": name,
                "shape": tuple(array.shape),
                "dtype": str(array.dtype),
                "bytes": stored,
                "raw_bytes": int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize,
                "about": spec.about,
            }
        )
    return rows
