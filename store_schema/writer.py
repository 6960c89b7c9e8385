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
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.core.buffer import Buffer

from .encoding import compressor
from .errors import StoreError
from .manifest import MANIFEST, RECIPE, fingerprint, manifest_checksum, read_json, refuse_difference
from .schema import SCHEMA_VERSION, ArraySpec, StoreSchema
from .shards import DONE, ShardWriter
from .storage import LOCK, TEMPORARY, Storage, crc32c, open_storage


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
        self.storage, self.schema, self.frames_per_shard = open_storage(path, options), schema, frames_per_shard
        # sorted, as the manifest's JSON is, so that a reader derives the same rows
        self.scenes = {name: list(scenes[name]) for name in sorted(scenes)}
        self.plan = plan_shards(self.scenes, frames_per_shard)
        self.manifest = {
            "schema_version": SCHEMA_VERSION,
            "schema": schema.to_dict(),
            "frames_per_shard": frames_per_shard,
            "scenes": self.scenes,
            **manifest,
        }
        self.fingerprint = fingerprint(self.manifest)
        self.shards = ShardWriter(self.storage, schema, self.plan, self.scenes, frames_per_shard, self.fingerprint)
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
            self.storage.write_all(self.metadata().items())
            self.storage.write(f"{DONE}/arrays", self.fingerprint.encode())
        if self.pending():
            # while shards are redone nothing of this store is to be read
            self.storage.delete(MANIFEST)

    def metadata(self) -> dict[str, bytes]:
        """Files of the store before its first shard: metadata of every group and array, and the tokens."""
        files: dict[str, Buffer] = {}
        group = zarr.create_group(zarr.storage.MemoryStore(files), zarr_format=3)
        for spec in self.schema.arrays().values():
            zarr.create_array(**self._array_arguments(group, spec))
        tokens = self.token_rows()
        frame = zarr.create_array(
            group.store_path / "frame" / "token",
            shape=tokens.shape,
            chunks=tokens.shape,
            dtype="uint8",
            dimension_names=("frame", "character"),
            overwrite=True,
            attributes={"about": "ASCII sample token of each row, zero for padding rows"},
        )
        frame[:] = tokens
        return {name: buffer.to_bytes() for name, buffer in files.items()}

    def token_rows(self) -> np.ndarray:
        """``frame/token``, (rows, 32) uint8: ASCII filled up with blanks, zero for padding rows."""
        tokens = np.zeros((self.rows_total, 32), np.uint8)
        for name, start in self._starts().items():
            for i, token in enumerate(self.scenes[name]):
                tokens[start + i] = np.frombuffer(token.encode("ascii").ljust(32)[:32], np.uint8)
        return tokens

    def _array_arguments(self, group: zarr.Group, spec: ArraySpec) -> dict[str, Any]:
        compress = compressor(spec)
        inner: list[Any] = [BytesCodec(), *([] if compress is None else [compress])]
        inner.append(Crc32cCodec())
        if spec.kind == "count":
            chunk: tuple[int, ...] = (self.frames_per_shard,)
            shard: tuple[int, ...] = (self.frames_per_shard,)
        else:
            chunk = (1, *spec.chunk)
            rounded = [-(-n // c) * c for n, c in zip(spec.shape, spec.chunk, strict=True)]
            shard = (self.frames_per_shard, *rounded)
        attributes = {
            key: value for key, value in (("units", spec.units), ("about", spec.about)) if value
        } | spec.attributes
        return dict(
            store=group.store_path / spec.path,
            shape=(self.rows_total, *spec.shape),
            chunks=shard,
            dtype=spec.dtype,
            dimension_names=("frame", *spec.dims),
            fill_value=0,
            attributes=attributes,
            serializer=ShardingCodec(chunk_shape=chunk, codecs=inner, index_location="end"),
            compressors=None,
            filters=None,
            overwrite=True,
            config={"write_empty_chunks": False},
        )

    @property
    def rows_total(self) -> int:
        """Rows, padding included."""
        return len(self.plan) * self.frames_per_shard

    def _starts(self) -> dict[str, int]:
        starts = {}
        for shard, names in enumerate(self.plan):
            row = shard * self.frames_per_shard
            for name in names:
                starts[name] = row
                row += len(self.scenes[name])
        return starts

    def shard_scenes(self, shard: int) -> list[str]:
        """Scenes that a shard holds, in the order of its rows."""
        return self.plan[shard]

    def pending(self) -> list[int]:
        """Shards without a valid done-marker: it is of this dump, and the files that it names are there in full length."""
        names = [self.shards.marker(shard) for shard in range(len(self.plan))]
        found = self.storage.read_many(names)
        markers = [_marker_files(found.get(name), self.fingerprint) for name in names]
        sizes = self.storage.sizes(name for files in markers if files is not None for name in files)
        return [
            shard
            for shard, files in enumerate(markers)
            if files is None or any(sizes.get(name) != entry["bytes"] for name, entry in files.items())
        ]

    def write_constants(self, constants: Mapping[str, np.ndarray]) -> None:
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

    def write_shard(self, shard: int, frames: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Write all frames of a shard, see :meth:`ShardWriter.write`."""
        self._check_held()
        self.shards.write(shard, frames)

    def sums(self) -> list[dict[str, Any]]:
        """What each shard's writer was given as ``sums``, in shard order, so that adding them up has one result."""
        names = [self.shards.marker(shard) for shard in range(len(self.plan))]
        found = self.storage.read_many(names)
        return [json.loads(found[name])["sums"] for name in names]

    def finalise(self, statistics: Mapping[str, Any]) -> None:
        """Check every file and write the manifest, which makes the store readable; sweep temporary files.

        Raises:
            StoreError: shards are missing or damaged; those are redone by the next dump.
        """
        self._check_held()
        missing = self.pending()
        if missing:
            raise StoreError(
                f"{len(missing)} of {len(self.plan)} shards of {self.storage} are not written; run the dump again"
            )
        found = self.storage.read_many(self.shards.marker(shard) for shard in range(len(self.plan)))
        shards = {
            f"{shard:05d}": json.loads(found[self.shards.marker(shard)])["files"] for shard in range(len(self.plan))
        }
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
                self.storage.delete(self.shards.marker(shard))
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
        frames, coverage = sum(map(len, self.scenes.values())), {}
        for name, total in cells.items():
            counts = group[f"{name}/count"]
            assert isinstance(counts, zarr.Array)
            coverage[name] = round(float(np.asarray(counts[:]).sum()) / (frames * total), 5)
        return coverage

    def _other_files(self) -> dict[str, dict[str, Any]]:
        """Size and checksum of what is not a shard: metadata, tokens, constants."""
        names = sorted(self.metadata())
        files = {}
        for path, spec in self.schema.constants().items():
            names += [f"{path.split('/')[0]}/zarr.json", f"{path}/zarr.json"]
            names.append("/".join([path, "c", *["0"] * len(spec.shape)]))
        for name, data in sorted(self.storage.read_many(dict.fromkeys(names)).items()):
            files[name] = {"bytes": len(data), "crc32c": crc32c(data)}
        return files


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


def plan_shards(scenes: Mapping[str, Sequence[str]], frames_per_shard: int) -> list[list[str]]:
    """Scenes by shard, packed in order; a scene is never split.

    Raises:
        StoreError: a scene has more frames than a shard.
    """
    plan: list[list[str]] = []
    room = 0
    for name, tokens in scenes.items():
        if len(tokens) > frames_per_shard:
            raise StoreError(
                f"scene {name} has {len(tokens)} frames, a shard {frames_per_shard}; raise frames_per_shard to at least that"
            )
        if len(tokens) > room:
            plan.append([])
            room = frames_per_shard
        plan[-1].append(name)
        room -= len(tokens)
    return plan
