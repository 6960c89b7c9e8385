"""Writing a store so that a kill at any moment leaves nothing wrong that could be read.

The unit of work is a shard: ``frames_per_shard`` rows that hold whole scenes. Its files are written whole, and only then
a done-marker with their sizes and checksums. A reader needs the manifest, and the manifest is written when every marker
is there and every file has its checksum. What a kill leaves at each moment stands in this folder's README.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer

from .checksum import crc32c_text
from .errors import StoreError
from .layout import DONE, StoreLayout
from .manifest import MANIFEST, RECIPE, fingerprint, manifest_checksum, read_json, refuse_difference
from .schema import SCHEMA_VERSION, StoreSchema
from .shards import ShardWriter
from .storage import LOCK, TEMPORARY, Storage, open_storage


class StoreWriter:
    """Writes the shards of one store; use as a context manager, which holds the store's lock.

    Args:
        path: folder or URL of the store; created, or continued if an equal dump made it.
        manifest: what makes the store; it decides the fingerprint.
        scenes: tokens of each scene in time order.
        frames_per_shard: rows of a shard, at least the longest scene.
        options: of the URL's file system, see :func:`~store_schema.storage.open_storage`.

    Raises:
        StoreError: another manifest made the store, another process writes it, or a scene is too long.
    """

    def __init__(
        self,
        path: str | Path | Storage,
        schema: StoreSchema,
        manifest: Mapping[str, Any],
        scenes: Mapping[str, Sequence[str]],
        frames_per_shard: int,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.storage, self.schema = open_storage(path, options), schema
        self.layout = StoreLayout(schema, scenes, frames_per_shard)
        self.manifest = {
            "schema_version": SCHEMA_VERSION,
            "schema": schema.to_dict(),
            "frames_per_shard": frames_per_shard,
            "scenes": self.layout.scenes,
            **manifest,
        }
        self.fingerprint = fingerprint(self.manifest)
        self.shards = ShardWriter(self.storage, self.layout, self.fingerprint)
        self._held: Callable[[], None] | None = None
        self._exit = ExitStack()

    def __enter__(self) -> "StoreWriter":
        with ExitStack() as stack:
            self._held = stack.enter_context(self.storage.lock())
            self._open()
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.close()
        self._held = None

    def _check_held(self) -> None:
        if self._held is None:
            raise StoreError(f"store {self.storage} is not open for writing; use its StoreWriter as a context manager")
        self._held()

    def _open(self) -> None:
        if self.storage.exists(RECIPE):
            refuse_difference(
                read_json(self.storage, RECIPE),
                self.manifest,
                self.storage,
                "delete the store or choose another folder",
            )
        elif foreign := [name for name in self.storage.list() if name.split("/")[0] not in (DONE, LOCK, TEMPORARY)]:
            raise StoreError(f"{self.storage} is not empty and no store (it has {foreign[0]}); choose another folder")
        else:
            self.storage.write(RECIPE, json.dumps(self.manifest, sort_keys=True).encode())
        self.storage.sweep()
        if not self.storage.exists(f"{DONE}/arrays"):
            self.storage.write_all(self.layout.metadata().items())
            self.storage.write(f"{DONE}/arrays", self.fingerprint.encode())
        if self.pending():
            # while shards are redone nothing of this store is to be read
            self.storage.delete(MANIFEST)

    def shard_scenes(self, shard: int) -> list[str]:
        """Scenes that a shard holds, in the order of its rows."""
        return self.layout.plan[shard]

    def pending(self) -> list[int]:
        """Shards without a valid done-marker, which has this dump's fingerprint and names files of full length."""
        names = self.layout.markers()
        found = self.storage.read_many(names)
        markers = [_marker_files(found.get(name), self.fingerprint) for name in names]
        sizes = self.storage.sizes(name for files in markers if files is not None for name in files)
        return [
            shard
            for shard, files in enumerate(markers)
            if files is None or any(sizes.get(name) != entry["bytes"] for name, entry in files.items())
        ]

    def write_constants(self, constants: Mapping[str, NDArray[Any]]) -> None:
        """Arrays without a frame dimension; a resume finds them written and leaves them.

        Raises:
            StoreError: a name or shape does not fit.
        """
        self._check_held()
        if self.storage.exists(f"{DONE}/constants"):
            return
        files: dict[str, Buffer] = {}
        group = zarr.create_group(zarr.storage.MemoryStore(files), zarr_format=3)
        for path, spec in self.schema.constants().items():
            if path not in constants or constants[path].shape != spec.shape:
                have = constants[path].shape if path in constants else "nothing"
                raise StoreError(f"constant {path} is {have}, expected shape {spec.shape}")
            array = zarr.create_array(
                group.store_path / path,
                shape=spec.shape,
                chunks=spec.shape,
                dtype=spec.dtype,
                dimension_names=spec.dims,
                overwrite=True,
                attributes={"about": spec.about},
            )
            array[:] = constants[path]
        # the root's metadata is there
        self.storage.write_all((name, buffer.to_bytes()) for name, buffer in files.items() if name != "zarr.json")
        self.storage.write(f"{DONE}/constants", self.fingerprint.encode())

    def write_shard(self, shard: int, frames: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Write all frames of a shard, see :meth:`ShardWriter.write`."""
        self._check_held()
        self.shards.write(shard, frames)

    def sums(self) -> list[dict[str, Any]]:
        """The ``sums`` that each shard's writer was given, in shard order, so that adding them up has one result."""
        names = self.layout.markers()
        found = self.storage.read_many(names)
        return [json.loads(found[name])["sums"] for name in names]

    def finalise(self, statistics: Mapping[str, Any]) -> None:
        """Check every file and write the manifest, which makes the store readable; sweep temporary files.

        Raises:
            StoreError: shards are missing or damaged; the next dump redoes these shards.
        """
        self._check_held()
        missing = self.pending()
        if missing:
            raise StoreError(
                f"{len(missing)} of {len(self.layout.plan)} shards of {self.storage} are not written; run the dump again"
            )
        names = self.layout.markers()
        found = self.storage.read_many(names)
        shards = {f"{shard:05d}": json.loads(found[name])["files"] for shard, name in enumerate(names)}
        self._check_shards(shards)
        full = self.manifest | {"statistics": dict(statistics), "coverage": self._coverage()}
        self.storage.write("zarr.json", _with_attributes(self.storage.read("zarr.json"), full))
        full |= {"shards": shards, "files": self._other_files()}
        full["crc32c"] = manifest_checksum(full)
        self.storage.sweep()  # before the store becomes readable, so that a kill in between leaves it tidy
        self._check_held()
        self.storage.write(MANIFEST, json.dumps(full, sort_keys=True, indent=1).encode())
        self.storage.sweep()  # orphans of a killed dump may have gone on writing meanwhile

    def _check_shards(self, shards: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
        expected = {
            name: (int(shard), entry["crc32c"]) for shard, files in shards.items() for name, entry in files.items()
        }
        damaged = [name for name, crc in self.storage.checksums(expected) if crc != expected[name][1]]
        if damaged:
            self.storage.delete(MANIFEST)
            redone = sorted({expected[name][0] for name in damaged})
            for shard in redone:
                self.storage.delete(self.layout.marker(shard))
            raise StoreError(
                f"{damaged[0]} of {self.storage} does not have the checksum it was written with ({len(damaged)} such files); "
                f"run the dump again, it redoes {len(redone)} shards"
            )

    def _coverage(self) -> dict[str, float]:
        """Share of each map's cells that are stored, over all frames."""
        if self.schema.layout != "focal":
            return {}
        cells = {"bev": self.schema.bev_cells} if self.schema.bev else {}
        cells |= {f"pv/{i}": n for i, n in enumerate(self.schema.pv_cells)}
        group = zarr.open_group(self.storage.zarr_store(), mode="r")
        frames, coverage = sum(map(len, self.layout.scenes.values())), {}
        for name, total in cells.items():
            counts = group[f"{name}/count"]
            assert isinstance(counts, zarr.Array)
            coverage[name] = round(float(np.asarray(counts[:]).sum()) / (frames * total), 5)
        return coverage

    def _other_files(self) -> dict[str, dict[str, Any]]:
        """Size and checksum of what is not a shard: metadata, tokens, constants."""
        found = self.storage.read_many(self.layout.other_files())
        return {name: {"bytes": len(data), "crc32c": crc32c_text([data])} for name, data in sorted(found.items())}


def _marker_files(text: bytes | None, fingerprint: str) -> dict[str, Any] | None:
    """Files that a done-marker names; None when there is none, or of another dump, or it is damaged."""
    try:
        marker = json.loads(text or b"")
        return marker["files"] if marker["fingerprint"] == fingerprint else None
    except (ValueError, KeyError, TypeError):
        return None


def _with_attributes(group: bytes, manifest: Mapping[str, Any]) -> bytes:
    """The root group's metadata with the manifest as attribute ``fd3d``, without its long lists."""
    metadata = json.loads(group)
    metadata["attributes"] = {
        "fd3d": {key: value for key, value in manifest.items() if key not in ("shards", "scenes", "files")}
    }
    return json.dumps(metadata, indent=2).encode()
