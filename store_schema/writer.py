"""Writing a store so that a kill at any moment leaves nothing wrong that could be read.

The unit of work is a shard: ``frames_per_shard`` rows that hold whole scenes. Its arrays are written in one assignment
each (zarr writes a temporary file and renames it), synced, and only then a done-marker with sizes and checksums of the
files is renamed into place. A reader needs the manifest, and the manifest is written when every marker is there.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from .errors import StoreError
from .files import disk_errors, file_crc32c, replace_text
from .manifest import MANIFEST, fingerprint, read_json, refuse_difference
from .schema import SCHEMA_VERSION, ArraySpec, StoreSchema
from .shards import DONE, ShardWriter


class StoreWriter:
    """Writes the shards of one store; use as a context manager, which holds the store's lock.

    Args:
        path: folder of the store; created, or continued if an equal dump made it.
        manifest: what makes the store; it decides the fingerprint.
        scenes: tokens of each scene in time order.
        frames_per_shard: rows of a shard, at least the longest scene.

    Raises:
        StoreError: another manifest made the store, another process writes it, or a scene is too long.
    """

    def __init__(
        self,
        path: str | Path,
        schema: StoreSchema,
        manifest: Mapping[str, Any],
        scenes: Mapping[str, Sequence[str]],
        frames_per_shard: int,
    ) -> None:
        self.path, self.schema, self.frames_per_shard = Path(path), schema, frames_per_shard
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
        self.shards = ShardWriter(self.path, schema, self.plan, self.scenes, frames_per_shard, self.fingerprint)
        self._lock: IO[str] | None = None

    def __enter__(self) -> "StoreWriter":
        try:
            (self.path / DONE).mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held until __exit__
        except OSError as error:
            raise StoreError(f"store {self.path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StoreError(
                f"store {self.path} is being written by another process; wait for it or stop it"
            ) from error
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    def _open(self) -> None:
        recipe = self.path / "recipe.json"
        if recipe.exists():
            refuse_difference(read_json(recipe), self.manifest, self.path, "delete the store or choose another folder")
        elif any(
            entry.name not in (DONE, ".lock") for entry in self.path.iterdir() if not entry.name.startswith(".recipe")
        ):
            raise StoreError(f"{self.path} is not empty and no store; choose another folder")
        else:
            replace_text(recipe, json.dumps(self.manifest, sort_keys=True))
        if not (self.path / "zarr.json").exists() or not self._created():
            self._create_arrays()
        if self.pending():
            # while shards are redone nothing of this store is to be read
            (self.path / MANIFEST).unlink(missing_ok=True)

    def _created(self) -> bool:
        return (self.path / DONE / "arrays").exists()

    def _create_arrays(self) -> None:
        """Metadata of every array; done-marked, because a kill may leave some of them out."""
        with disk_errors(self.path):
            group = (
                zarr.create_group(self.path, zarr_format=3, overwrite=False)
                if not (self.path / "zarr.json").exists()
                else zarr.open_group(self.path)
            )
            for spec in self.schema.arrays().values():
                zarr.create_array(**self._array_arguments(group, spec))
            tokens = np.zeros((self.rows_total, 32), np.uint8)
            for name, start in self._starts().items():
                for i, token in enumerate(self.scenes[name]):
                    tokens[start + i] = np.frombuffer(token.encode("ascii").ljust(32)[:32], np.uint8)
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
            replace_text(self.path / DONE / "arrays", self.fingerprint)

    def _array_arguments(self, group: zarr.Group, spec: ArraySpec) -> dict[str, Any]:
        # features do not compress (mantissas are noise), small query arrays and cell numbers do
        inner: list[Any] = [BytesCodec()]
        if spec.kind in ("index", "count") or spec.path.startswith("query/"):
            inner.append(
                ZstdCodec(level=3)
                if spec.kind != "index"
                else BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=np.dtype(spec.dtype).itemsize)
            )
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
        """Shards that have no valid done-marker yet."""
        return [shard for shard in range(len(self.plan)) if not self._is_done(shard)]

    def _is_done(self, shard: int) -> bool:
        if not self.shards.marker(shard).exists():
            return False
        marker = read_json(self.shards.marker(shard))
        if marker["fingerprint"] != self.fingerprint:
            return False
        sizes = {
            name: (self.path / name).stat().st_size if (self.path / name).exists() else -1 for name in marker["files"]
        }
        return all(sizes[name] == entry["bytes"] for name, entry in marker["files"].items())

    def write_constants(self, constants: Mapping[str, np.ndarray]) -> None:
        """Arrays without a frame dimension; a resume finds them written and leaves them.

        Raises:
            StoreError: a name or shape does not fit.
        """
        marker = self.path / DONE / "constants"
        if marker.exists():
            return
        group = zarr.open_group(self.path)
        for path, spec in self.schema.constants().items():
            if path not in constants or constants[path].shape != spec.shape:
                have = constants[path].shape if path in constants else "nothing"
                raise StoreError(f"constant {path} is {have}, expected shape {spec.shape}")
            with disk_errors(self.path):
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
        replace_text(marker, self.fingerprint)

    def write_shard(self, shard: int, frames: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Write all frames of a shard, see :meth:`ShardWriter.write`."""
        self.shards.write(shard, frames)

    def sums(self) -> list[dict[str, Any]]:
        """What each shard's writer was given as ``sums``, in shard order, so that adding them up has one result."""
        return [read_json(self.shards.marker(shard))["sums"] for shard in range(len(self.plan))]

    def rows(self) -> Iterator[dict[str, np.ndarray]]:
        """Frames as written, in row order: for statistics at the end."""
        from .reader import open_arrays, read_counts, read_row

        arrays = open_arrays(zarr.open_group(self.path, mode="r"), self.schema)
        counts = read_counts(arrays, self.schema)
        for name, start in self._starts().items():
            for i in range(len(self.scenes[name])):
                yield read_row(arrays, counts, self.schema, start + i)

    def finalise(self, statistics: Mapping[str, Any]) -> None:
        """Check every shard, sweep temporary files and write the manifest, which makes the store readable.

        Raises:
            StoreError: shards are missing or damaged.
        """
        missing = self.pending()
        if missing:
            raise StoreError(
                f"{len(missing)} of {len(self.plan)} shards of {self.path} are not written; run the dump again"
            )
        shards = {}
        for shard in range(len(self.plan)):
            files = read_json(self.shards.marker(shard))["files"]
            for name, entry in files.items():
                if file_crc32c(self.path / name) != entry["crc32c"]:
                    self.shards.marker(shard).unlink()
                    raise StoreError(
                        f"{self.path / name} does not have the checksum it was written with; run the dump again, it redoes this shard"
                    )
            shards[f"{shard:05d}"] = files
        for stray in [*self.path.rglob("*.partial"), *self.path.rglob(".tmp*")]:
            stray.unlink()
        cells = {"bev": self.schema.bev_cells} if self.schema.bev else {}
        cells |= {f"pv/{i}": n for i, n in enumerate(self.schema.pv_cells)}
        coverage = {}
        if self.schema.layout == "focal":
            group = zarr.open_group(self.path, mode="r")
            frames = sum(map(len, self.scenes.values()))
            for name, total in cells.items():
                counts = group[f"{name}/count"]
                assert isinstance(counts, zarr.Array)
                coverage[name] = round(float(np.asarray(counts[:]).sum()) / (frames * total), 5)
        full = self.manifest | {"statistics": dict(statistics), "coverage": coverage, "shards": shards}
        group = zarr.open_group(self.path)
        group.attrs.update({"fd3d": {key: value for key, value in full.items() if key not in ("shards", "scenes")}})
        replace_text(self.path / MANIFEST, json.dumps(full, sort_keys=True, indent=1))


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
