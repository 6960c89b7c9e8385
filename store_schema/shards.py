"""Writing one shard; what a worker of a dump needs to know of the store."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .encoding import encode_shard
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
        files: dict[str, dict[str, Any]] = {}
        self.storage.write_all(self._files(shard, [frames[token] for token in tokens], files))
        marker = {"fingerprint": self.fingerprint, "files": files, "sums": dict(sums or {})}
        self.storage.write(self.marker(shard), json.dumps(marker, sort_keys=True).encode())

    def _files(
        self, shard: int, frames: Sequence[Mapping[str, np.ndarray]], listed: dict[str, dict[str, Any]]
    ) -> Iterator[tuple[str, bytes]]:
        """Names and contents of a shard's files, one in memory at a time; what a marker says of each goes to ``listed``."""
        for path, spec in self.schema.arrays().items():
            name = shard_file(path, spec, shard)
            data = self._encode(path, spec, frames)
            if data is None:  # all empty; an earlier attempt's file would be read in its place
                self.storage.delete(name)
                continue
            listed[name] = {"bytes": len(data), "crc32c": crc32c(data)}
            yield name, data

    def _encode(self, path: str, spec: ArraySpec, frames: Sequence[Mapping[str, np.ndarray]]) -> bytes | None:
        """An array's shard file, made in memory, so that one write puts it there and its checksum is of what was meant."""
        if spec.kind == "count":  # all frames in one chunk
            counts = np.zeros(self.frames_per_shard, spec.dtype)
            counts[: len(frames)] = [len(frame[path.replace("/count", "/index")]) for frame in frames]
            whole = replace(spec, shape=counts.shape, chunk=counts.shape)
            return encode_shard(whole, [counts], 1)
        return encode_shard(spec, (as_stored(path, spec, frame[path]) for frame in frames), self.frames_per_shard)


def as_stored(path: str, spec: ArraySpec, array: np.ndarray) -> np.ndarray:
    """An array of a frame, given as the writer takes it, with the bits that are written."""
    if path == "query/sampling":
        return pack_sampling(array)
    if spec.kind != "values" or spec.dtype == "uint8":
        return array
    # -0.0 becomes 0.0, so that empty chunks stay empty; on the bits, since numpy's half precision is emulated
    stored = np.ascontiguousarray(array, spec.dtype)
    bits = stored.view(f"u{stored.itemsize}")
    sign = bits.dtype.type(1 << 8 * stored.itemsize - 1)
    negative = bits == sign
    return np.where(negative, bits.dtype.type(0), bits).view(spec.dtype) if negative.any() else stored


def shard_file(path: str, spec: ArraySpec, shard: int) -> str:
    """Name of the file that holds a shard of an array; it is absent when all is zero."""
    return "/".join([path, "c", str(shard), *["0"] * len(spec.shape)])
