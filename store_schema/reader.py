"""Reading a finished store."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from .errors import StoreError
from .manifest import MANIFEST, RECIPE, read_json
from .schema import SCHEMA_VERSION, StoreSchema, unpack_sampling
from .shards import DONE
from .storage import LocalStorage, Storage, open_storage


class StoreReader:
    """Frames of a store by token. Opens at the first read, so it can be made before worker processes start.

    Args:
        path: folder or URL of a finished store.
        options: of the URL's file system, see :func:`~store_schema.storage.open_storage`.

    Attributes:
        storage: its files.
        path: its folder; None for a URL.

    Raises:
        StoreError: there is no store, its dump is not finished, or it has another schema version.
    """

    def __init__(self, path: str | Path | Storage, options: Mapping[str, Any] | None = None) -> None:
        self.storage = open_storage(path, options)
        self.path = self.storage.path if isinstance(self.storage, LocalStorage) else None
        if not self.storage.exists(MANIFEST):
            done = sum("/shard-" in name for name in self.storage.list(DONE))
            state = (
                f"its dump is not finished ({done} shards written)"
                if self.storage.exists(RECIPE)
                else "it is not there"
            )
            raise StoreError(f"store {self.storage} cannot be read: {state}; run 'fd3d dump'")
        self.manifest = read_json(self.storage, MANIFEST)
        if self.manifest.get("schema_version") != SCHEMA_VERSION:
            raise StoreError(
                f"store {self.storage} has schema version {self.manifest.get('schema_version')}, this program reads {SCHEMA_VERSION}; dump it again"
            )
        self.schema = StoreSchema.from_dict(self.manifest["schema"])

    def __getstate__(self) -> dict[str, Any]:
        # An open store owns threads; another process opens its own.
        return {key: value for key, value in self.__dict__.items() if key not in ("group", "_arrays", "_counts")}

    @cached_property
    def group(self) -> zarr.Group:
        """The Zarr group."""
        return zarr.open_group(self.storage.zarr_store(), mode="r")

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array]:
        return open_arrays(self.group, self.schema)

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
                f"store {self.storage} has no frame {token} ({len(self._rows)} others); dump the split that holds it"
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
                f"frame {token} of {self.storage} (shard {shard}) is damaged: {error}; delete .done/shard-{shard:05d}.json and dump again"
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


def read_counts(arrays: Mapping[str, zarr.Array], schema: StoreSchema) -> dict[str, np.ndarray]:
    """Stored cells of every row, (N,) by the name of the map (``bev``, ``pv/0``, ...)."""
    paths = [path for path, spec in schema.arrays().items() if spec.kind == "count"]
    return {path.removesuffix("/count"): np.asarray(arrays[path][:]) for path in paths}


def read_row(
    arrays: Mapping[str, zarr.Array], counts: Mapping[str, np.ndarray], schema: StoreSchema, row: int
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


def describe(path: str | Path | Storage) -> list[dict[str, Any]]:
    """A row per array: name, shape, type, bytes on disk, bytes uncompressed without padding rows' share."""
    reader = StoreReader(path)
    rows = []
    for name, spec in (reader.schema.arrays() | reader.schema.constants()).items():
        array = _array(reader.group, name)
        stored = sum(reader.storage.list(name).values())
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
