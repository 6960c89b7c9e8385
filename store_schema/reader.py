"""Reading a finished store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray

from .cache import FrameCache
from .checksum import fault
from .codes import MapCode
from .coding import decoded, unpack_sampling
from .direct import DirectArray, direct_arrays
from .errors import StoreError, check_threads
from .layout import DONE, StoreLayout, shard_file
from .manifest import MANIFEST, RECIPE, differing, identity, manifest_checksum, read_manifest
from .schema import OLDEST_VERSION, SCHEMA_VERSION, StoreSchema
from .storage import LocalStorage, Storage, open_storage
from .whole import WholeStore

Read = TypeVar("Read")


class StoreReader:
    """Frames of a store by token.

    A reader opens the store at the first read, so a reader can be made before worker processes start. A reader that is
    sent to a process, or inherited by a fork, works on there with a cache of its own. Threads may share a reader.

    Opening checks the manifest and all files but the shards, whose chunks have checksums of their own. After each read it
    is asked whether the manifest is still the one that was read, so that frames of two stores are never mixed.

    Args:
        path: folder or URL of a finished store.
        options: of the URL's file system, see :func:`~store_schema.storage.open_storage`.
        cache_bytes: memory of each process for the frames that were read last, in stored form.

    Attributes:
        storage: the store's files.
        path: the store's folder; None for a URL.

    Raises:
        StoreError: there is no store, its dump is not finished, its manifest is damaged, or its schema version is another.
    """

    def __init__(
        self, path: str | Path | Storage, options: Mapping[str, Any] | None = None, cache_bytes: int = 0
    ) -> None:
        self.storage = open_storage(path, options)
        self.cache_bytes = cache_bytes
        self.path = self.storage.path if isinstance(self.storage, LocalStorage) else None
        if not self.storage.exists(MANIFEST):
            state = "it is not there"
            if self.storage.exists(RECIPE):
                done = sum("/shard-" in name for name in self.storage.list(DONE)) if self.storage.lists else "some"
                state = f"its dump is not finished (shards written: {done})"
            raise StoreError(f"store {self.storage} cannot be read: {state}; run the 'fd3d dump' that makes it")
        self._stamp = self.storage.stamp(MANIFEST)
        self.manifest = self._read_manifest()
        self.schema = StoreSchema.from_dict(self.manifest["schema"])

    def _read_manifest(self) -> dict[str, Any]:
        manifest = read_manifest(self.storage)
        if manifest.get("schema_version") not in (OLDEST_VERSION, SCHEMA_VERSION):
            raise StoreError(
                f"store {self.storage} has schema version {manifest.get('schema_version')}, this program reads {OLDEST_VERSION} to "
                f"{SCHEMA_VERSION}; dump it again"
            )
        if manifest.get("crc32c") != manifest_checksum(manifest):
            raise StoreError(
                f"{MANIFEST} of store {self.storage} does not have the checksum that it states; it was changed or damaged: run "
                "'fd3d dump' again, which writes it anew"
            )
        return manifest

    def __getstate__(self) -> dict[str, Any]:
        # Open files and cached frames stay in this process; another process opens its own.
        opened = ("group", "_arrays", "_counts", "_counted", "_cache", "_stamp", "_constants", "codes")
        return {key: value for key, value in self.__dict__.items() if key not in opened}

    @cached_property
    def group(self) -> zarr.Group:
        """The Zarr group, of which a listed file that is absent is an error.

        Raises:
            StoreError: a file is missing or damaged, or the store was replaced since the manifest was read.
        """
        self._check_same()
        self._check_small_files()
        return zarr.open_group(WholeStore(self.storage.zarr_store(), self._entry), mode="r")

    def _entry(self, name: str) -> dict[str, Any] | None:
        """Size and checksum of a file by the manifest."""
        path, _, place = name.partition("/c/")
        shards: dict[str, Any] = self.manifest["shards"]
        number = place.split("/")[0]
        files = shards.get(f"{int(number):05d}", {}) if number.isdigit() else {}
        entry: dict[str, Any] | None = files.get(name) or self.manifest["files"].get(name)
        return entry

    def _check_same(self, error: Exception | None = None) -> None:
        """Refuse a store that was replaced under this reader, and to take want of threads in ``error`` for damage.

        Raises:
            StoreError: naming what differs, with both values.
        """
        check_threads(error)
        stamp = self.storage.stamp(MANIFEST)
        if stamp is not None and stamp == self.__dict__.get("_stamp"):
            return
        if stamp is None:
            raise StoreError(
                f"store {self.storage} was deleted or is being dumped again since it was opened; wait for the dump, then start again"
            )
        now = self._read_manifest()
        if found := differing(identity(self.manifest), identity(now)):
            raise StoreError(
                f"store {self.storage} was replaced since it was opened: {found[0]} was {found[1]}, now it is {found[2]}; start again "
                "to read the new one"
            )
        self.manifest, self._stamp = now, stamp

    def _check_small_files(self) -> None:
        """Compare all files that are no shards with their checksums; markers and recipe say nothing to a reader."""
        listed = {
            name: entry
            for name, entry in self.manifest["files"].items()
            if name != RECIPE and not name.startswith(f"{DONE}/")
        }
        found = self.storage.read_many(listed)
        for name, entry in listed.items():
            if problem := fault(found.get(name), entry):
                raise StoreError(
                    f"{name} of store {self.storage} {problem}; run 'fd3d dump' again, which writes it anew"
                )

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array[Any] | DirectArray]:
        arrays = open_arrays(self.group, self.schema)
        return {**arrays} if self.path is None else direct_arrays(self.path, arrays, self._shard_entry)

    def _shard_entry(self, path: str, shard: int) -> dict[str, Any] | None:
        return self._entry(shard_file(path, self.schema.arrays()[path], shard))

    @cached_property
    def _counts(self) -> dict[str, NDArray[Any]]:
        return {path: np.zeros(self._arrays[f"{path}/count"].shape, np.int32) for path in _focal_maps(self.schema)}

    @cached_property
    def _counted(self) -> set[int]:
        return set()

    @property
    def cache(self) -> FrameCache:
        """Cache of frames; empty in a forked process, since its parent may have been changing the cache at the fork."""
        cache = self.__dict__.get("_cache")
        if cache is None or cache.pid != os.getpid():
            cache = self._cache = FrameCache(self.cache_bytes)
        return cache

    @cached_property
    def layout(self) -> StoreLayout:
        """Rows and files of the store."""
        return StoreLayout(self.schema, self.manifest["scenes"], self.manifest["frames_per_shard"])

    @property
    def tokens(self) -> list[str]:
        """Sample tokens in row order."""
        return list(self.layout.rows)

    def row(self, token: str) -> int:
        """Row of a frame.

        Raises:
            StoreError: the store has no such frame.
        """
        if not isinstance(token, str) or token not in self.layout.rows:
            raise StoreError(
                f"store {self.storage} has no frame {token} (it has {len(self.layout.rows)}); dump the split that holds it"
            )
        return self.layout.rows[token]

    def read(self, token: str, decode: bool = True) -> dict[str, NDArray[Any]]:
        """All arrays of a frame, writable; focal cells without padding, sampling locations as float32.

        Args:
            decode: give coded features as float32. Otherwise features come as they are stored: ``uint8`` with each cell's scale
                and offset in ``X/affine`` (k, 2), a quarter of the bytes to bring to the device that decodes them; ``pq`` and
                ``pca`` as codes, which :attr:`codes` decode.

        Raises:
            StoreError: the frame is unknown, or a shard is damaged.
        """
        frame = self.cache.get(token) if isinstance(token, str) else None
        if frame is None:
            frame = self._checked(token, lambda row: read_row(self._arrays, self._counts, self.schema, row))
            self.cache.put(token, frame)
        return decoded(frame, self.codes) if decode else frame

    def read_array(self, token: str, path: str) -> NDArray[Any]:
        """One array of a frame that is stored whole and as it is, such as ``query/score`` (K,); no other array's shard is read.

        Raises:
            StoreError: the store has no such array, or as of :meth:`read`.
        """
        if path not in self.schema.plain():
            raise StoreError(f"store {self.storage} has no array '{path}' of whole rows; StoreReader.read gives all")
        return self._checked(token, lambda row: np.asarray(self._arrays[path][row]))

    def _checked(self, token: str, read: Callable[[int], Read]) -> Read:
        """What ``read`` gives of a frame's row, read from files of the store that was opened."""
        row = self.row(token)
        shard = row // self.layout.frames_per_shard
        try:
            self._count(shard)
            found = read(row)
        except StoreError:
            raise
        except (ValueError, KeyError, RuntimeError, FileNotFoundError) as error:
            self._check_same(error)  # a store that was replaced is no damaged one
            raise StoreError(
                f"frame {token} of {self.storage} (shard {shard}) is damaged: {error}; delete {self.layout.marker(shard)} and dump again"
            ) from error
        except Exception as error:
            raise self.storage.trouble("read", error) from error
        self._check_same()  # now that all of the frame's files are open
        return found

    def counts(self) -> dict[str, NDArray[Any]]:
        """Stored cells of every row, (N,) by the name of the map (``bev``, ``pv/0``, ...); copies, which the caller may change.

        Raises:
            StoreError: files of a shard are missing or cut, or its counts are not as they were written; the shard is named.
        """
        for shard in range(len(self.layout.plan)):
            try:
                self._count(shard)
            except StoreError:  # of the system, not of the file
                raise
            except (ValueError, KeyError, RuntimeError, FileNotFoundError) as error:
                self._check_same(error)
                raise StoreError(
                    f"shard {shard} of {self.storage} is damaged: {error}; delete {self.layout.marker(shard)} and dump again"
                ) from error
        return {path: counts.copy() for path, counts in self._counts.items()}

    def _count(self, shard: int) -> None:
        """Check the sizes of a shard's files and read its counts, once."""
        if shard in self._counted:
            return
        self._check_files(shard)
        rows = slice(shard * self.layout.frames_per_shard, (shard + 1) * self.layout.frames_per_shard)
        for path, counts in self._counts.items():
            counts[rows] = np.asarray(_count_array(self._arrays, path)[rows])
        self._counted.add(shard)

    def _check_files(self, shard: int) -> None:
        files = self.manifest["shards"][f"{shard:05d}"]
        # elsewhere each size is a request, and such files are found when they are read
        sizes = (
            {name: entry["bytes"] for name, entry in files.items()} if self.path is None else self.storage.sizes(files)
        )
        for name, entry in files.items():
            if sizes.get(name) != entry["bytes"]:
                have = "is missing" if name not in sizes else f"has {sizes[name]} bytes instead of {entry['bytes']}"
                raise ValueError(f"{name} {have}")

    @cached_property
    def codes(self) -> dict[str, MapCode]:
        """Codes by map, of read-only arrays; empty where features are not coded."""
        return self.schema.codes(self._constants) if self.schema.code else {}

    @property
    def constants(self) -> dict[str, NDArray[Any]]:
        """Arrays without a frame dimension; copies, which the caller may change.

        Raises:
            StoreError: a file is missing or damaged, or the store was replaced since the manifest was read.
        """
        return {path: array.copy() for path, array in self._constants.items()}

    @cached_property
    def _constants(self) -> dict[str, NDArray[Any]]:
        try:
            constants = {path: np.asarray(array_of(self.group, path)[:]) for path in self.schema.constants()}
        except StoreError:
            raise
        except (ValueError, KeyError, FileNotFoundError) as error:
            self._check_same(error)
            raise StoreError(
                f"a constant of store {self.storage} is damaged: {error}; run 'fd3d dump' again, which writes it anew"
            ) from error
        except Exception as error:
            raise self.storage.trouble("read", error) from error
        for array in constants.values():
            array.setflags(write=False)  # codes are handed out, and decode every later frame
        return constants


def array_of(group: zarr.Group, path: str) -> zarr.Array[Any]:
    array = group[path]
    assert isinstance(array, zarr.Array)
    return array


def open_arrays(group: zarr.Group, schema: StoreSchema) -> dict[str, zarr.Array[Any]]:
    """Per-frame arrays by path; opening an array reads its metadata, so keep the result."""
    return {path: array_of(group, path) for path in schema.arrays()}


def read_counts(arrays: Mapping[str, zarr.Array[Any] | DirectArray], schema: StoreSchema) -> dict[str, NDArray[Any]]:
    """Stored cells of every row, (N,) by the name of the map (``bev``, ``pv/0``, ...)."""
    return {path: np.asarray(_count_array(arrays, path)[:]) for path in _focal_maps(schema)}


def _count_array(arrays: Mapping[str, zarr.Array[Any] | DirectArray], path: str) -> zarr.Array[Any]:
    array = arrays[f"{path}/count"]
    assert isinstance(array, zarr.Array)  # it has one dimension, and DirectArray needs two
    return array


def _focal_maps(schema: StoreSchema) -> list[str]:
    """Names of the maps stored by focal cells: ``bev``, ``pv/0``, ..."""
    return [path.removesuffix("/count") for path, spec in schema.arrays().items() if spec.kind == "count"]


def read_row(
    arrays: Mapping[str, zarr.Array[Any] | DirectArray],
    counts: Mapping[str, NDArray[Any]],
    schema: StoreSchema,
    row: int,
) -> dict[str, NDArray[Any]]:
    """One row's arrays as they were given to the writer."""
    out: dict[str, NDArray[Any]] = {}
    for path, spec in schema.arrays().items():
        if spec.kind in ("values", "affine", "index"):
            out[path] = np.asarray(arrays[path][row, : int(counts[path.rsplit("/", 1)[0]][row])])
        elif spec.kind != "count":
            out[path] = np.asarray(arrays[path][row])
    if "query/sampling" in out:
        out["query/sampling"] = unpack_sampling(out["query/sampling"])
    return out
