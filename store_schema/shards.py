"""Writing one shard; what a worker of a dump needs to know of the store."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import Buffer, cpu

from .errors import StoreError
from .manifest import MANIFEST
from .schema import ArraySpec, StoreSchema, pack_sampling
from .storage import Storage, crc32c

DONE = ".done"


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards of a store that a :class:`StoreWriter` holds open; may be sent to other processes.

    Attributes:
        storage: of the store.
        plan: scenes of each shard, in the order of its rows.
        scenes: tokens of each scene in time order.
        frames_per_shard: rows of a shard.
        fingerprint: of the dump, kept in done-markers.
    """

    storage: Storage
    schema: StoreSchema
    plan: list[list[str]]
    scenes: dict[str, list[str]]
    frames_per_shard: int
    fingerprint: str

    @staticmethod
    def marker(shard: int) -> str:
        """Name of a shard's done-marker."""
        return f"{DONE}/shard-{shard:05d}.json"

    def write(
        self, shard: int, frames: Mapping[str, Mapping[str, np.ndarray]], sums: Mapping[str, Any] | None = None
    ) -> None:
        """Write all frames of a shard.

        Args:
            frames: by token; focal ``values`` (k, C) and ``index`` (k,) are padded here.
            sums: plain values over the shard's frames, kept in its done-marker, see :meth:`StoreWriter.sums`.

        Raises:
            StoreError: a frame is missing, unknown or does not fit, the disk is full, or the store is finished.
        """
        tokens = [token for name in self.plan[shard] for token in self.scenes[name]]
        if set(frames) != set(tokens):
            odd = sorted(set(frames) ^ set(tokens))[0]
            raise StoreError(
                f"shard {shard} holds {len(tokens)} frames, {len(frames)} were given; the first that differs is {odd}"
            )
        for token in tokens:
            self.schema.check_frame(token, dict(frames[token]))
        if self.storage.exists(MANIFEST):
            raise StoreError(f"store {self.storage} is finished; a shard is redone by opening it for writing again")
        self.storage.delete(self.marker(shard))
        files = {}
        arrays = self.schema.arrays()
        metadata = self.storage.read_many(f"{path}/zarr.json" for path in arrays)
        for path, spec in arrays.items():
            name = shard_file(path, spec, shard)
            data = self._encode(shard, path, spec, metadata[f"{path}/zarr.json"], [frames[token] for token in tokens])
            if data is None:  # all empty; an earlier attempt's file would be read in its place
                self.storage.delete(name)
                continue
            self.storage.write(name, data)
            files[name] = {"bytes": len(data), "crc32c": crc32c(data)}
        marker = {"fingerprint": self.fingerprint, "files": files, "sums": dict(sums or {})}
        self.storage.write(self.marker(shard), json.dumps(marker, sort_keys=True).encode())

    def _encode(
        self, shard: int, path: str, spec: ArraySpec, metadata: bytes, frames: Sequence[Mapping[str, np.ndarray]]
    ) -> memoryview | None:
        """An array's shard file; zarr encodes it in memory, so that one write makes it and its checksum is of what was meant."""
        files: dict[str, Buffer] = {f"{path}/zarr.json": cpu.Buffer.from_bytes(metadata)}
        array = zarr.open_array(zarr.storage.MemoryStore(files), path=path)
        block = self._block(path, spec, frames)
        start = shard * self.frames_per_shard
        if block.size:
            array[(slice(start, start + len(block)), *(slice(n) for n in block.shape[1:]))] = block
        encoded = files.get(shard_file(path, spec, shard))
        return None if encoded is None else memoryview(encoded.as_numpy_array().data)

    def _block(self, path: str, spec: ArraySpec, frames: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        shape = spec.shape
        if spec.kind not in ("plain", "count"):
            # whole chunks up to the shard's largest frame: the capacity may be a hundred times more
            largest, chunk = max(len(frame[path]) for frame in frames), spec.chunk[0]
            shape = (min(-(-largest // chunk) * chunk, shape[0]), *shape[1:])
        block = np.zeros((self.frames_per_shard, *shape), spec.dtype)
        for row, frame in enumerate(frames):
            if spec.kind == "count":
                block[row] = len(frame[path.replace("/count", "/index")])
            elif spec.kind in ("values", "affine", "index"):
                values = frame[path]
                # adding zero turns -0.0 into 0.0, so that empty chunks stay empty
                block[row, : len(values)] = values + 0 if spec.kind == "values" else values
            elif path == "query/sampling":
                block[row] = pack_sampling(frame[path])
            else:
                block[row] = frame[path]
        return block


def shard_file(path: str, spec: ArraySpec, shard: int) -> str:
    """Name of the file that holds a shard of an array; it is absent when all is zero."""
    return "/".join([path, "c", str(shard), *["0"] * len(spec.shape)])
