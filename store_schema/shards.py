"""The writer of one shard, all that a worker of a dump needs of the store."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checksum import entry
from .codes import MapCode
from .coding import as_stored, check_frame
from .encoding import TAG, encode_shard, index_bytes, tag_of
from .errors import StoreError
from .layout import StoreLayout, shard_file
from .manifest import MANIFEST, seal
from .provenance import check_recipe
from .schema import StoreSchema
from .specs import ArraySpec
from .storage import Storage


def _now() -> float:
    """Seconds on a clock that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards of a store that a :class:`StoreWriter` holds open; a shard writer may be sent to other processes.

    Attributes:
        storage: files of the store.
        layout: rows and files of the store.
        fingerprint: the dump's, kept in done-markers.
        libraries: versions that make the rows, by name, kept in done-markers.
        source: SHA-256 of the program's code that makes the rows, kept in done-markers.
        codes: codes by map, for coded features.
        code_tag: checksum of the codes' constants, kept in done-markers.
        held: check of the store's lock, in the process that holds it; other processes have none.
    """

    storage: Storage
    layout: StoreLayout
    fingerprint: str
    libraries: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    codes: Mapping[str, MapCode] = field(default_factory=dict)
    code_tag: str | None = None
    held: Callable[[], None] | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"held": None}

    def check(self) -> None:
        """Refuse to write or delete when another dump has the store by now, as after a sleep of this process.

        Raises:
            StoreError: the lock was lost, or the store was deleted or replaced.
        """
        if self.held is not None:
            self.held()
        check_recipe(self.storage, self.fingerprint)

    def watch(self) -> Callable[[], None]:
        """:meth:`check` for each of many files: it costs requests, and is left out where the last one was moments ago."""
        last = _now()

        def check() -> None:
            nonlocal last
            if _now() - last >= self.storage.beat:  # a lease lasts six times as long
                self.check()
                last = _now()

        return check

    @property
    def schema(self) -> StoreSchema:
        """Schema of the store."""
        return self.layout.schema

    def write(
        self, shard: int, frames: Mapping[str, Mapping[str, NDArray[Any]]], sums: Mapping[str, Any] | None = None
    ) -> None:
        """Write all frames of a shard.

        Args:
            frames: by token; focal ``values`` (k, C) and ``index`` (k,) are padded here.
            sums: plain values over the shard's frames, kept in its done-marker, see :meth:`StoreWriter.sums`.

        Raises:
            StoreError: a frame is missing, unknown or does not fit, the disk is full, or the store is finished or another dump's.
        """
        tokens = self.layout.tokens(shard)
        if set(frames) != set(tokens):
            odd = sorted(set(frames) ^ set(tokens))[0]
            raise StoreError(
                f"shard {shard} was given other frames ({len(frames)}) than it holds ({len(tokens)}); the first that differs is {odd}"
            )
        if self.schema.code is not None and self.code_tag is None:
            raise StoreError(f"store {self.storage} has coded features; write its constants before the first shard")
        for token in tokens:
            check_frame(self.schema, token, frames[token])
        if self.storage.exists(MANIFEST):
            raise StoreError(f"store {self.storage} is finished; a shard is redone by opening it for writing again")
        self.check()
        watch = self.watch()
        self.storage.delete(self.layout.marker(shard))
        files: dict[str, dict[str, Any]] = {}
        self.storage.write_all(self._files(shard, [frames[token] for token in tokens], files), watch)
        marker = {"shard": shard, "fingerprint": self.fingerprint, "files": files, "sums": dict(sums or {})}
        if self.code_tag is not None:
            marker["code"] = self.code_tag
        if self.source is not None:
            marker["source_sha256"] = self.source
        self.check()
        self.storage.write(self.layout.marker(shard), seal(marker | {"libraries": dict(self.libraries)}))

    def listing(self, shard: int, frames: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, dict[str, Any]]:
        """Sizes and checksums of the files that :meth:`write` would write, by name, as a done-marker lists the files."""
        rows = [frames[token] for token in self.layout.tokens(shard)]
        return {name: self._entry(spec, data) for name, spec, data in self._encoded(shard, rows) if data is not None}

    def _files(
        self, shard: int, frames: Sequence[Mapping[str, NDArray[Any]]], listed: dict[str, dict[str, Any]]
    ) -> Iterator[tuple[str, bytes]]:
        """Names and contents of a shard's files; what a marker says of each goes to ``listed``."""
        for name, spec, data in self._encoded(shard, frames):
            if data is None:  # an earlier attempt's file would be read in its place
                self.check()
                self.storage.delete(name)
                continue
            listed[name] = self._entry(spec, data)
            yield name, data

    def _encoded(
        self, shard: int, frames: Sequence[Mapping[str, NDArray[Any]]]
    ) -> Iterator[tuple[str, ArraySpec, bytes | None]]:
        """Name, array and content of a shard's files, one in memory at a time; no content where all is empty."""
        for path, spec in self.schema.arrays().items():
            yield shard_file(path, spec, shard), spec, self._encode(path, spec, frames)

    def _entry(self, spec: ArraySpec, data: bytes) -> dict[str, Any]:
        return entry(data) | {"tag": tag_of(data[-index_bytes(self._chunks(spec)) - TAG :])}

    def _chunks(self, spec: ArraySpec) -> int:
        """Chunks of a shard of an array."""
        return 1 if spec.kind == "count" else self.layout.frames_per_shard * -(-spec.shape[0] // spec.chunk[0])

    def _encode(self, path: str, spec: ArraySpec, frames: Sequence[Mapping[str, NDArray[Any]]]) -> bytes | None:
        """An array's shard file, made in memory, so that one write puts it there and its checksum is of what was meant."""
        if spec.kind == "count":  # all frames in one chunk
            counts = np.zeros(self.layout.frames_per_shard, spec.dtype)
            counts[: len(frames)] = [len(frame[path.replace("/count", "/index")]) for frame in frames]
            whole = replace(spec, shape=counts.shape, chunk=counts.shape)
            return encode_shard(whole, [counts], 1)
        return encode_shard(
            spec, (as_stored(path, spec, frame[path]) for frame in frames), self.layout.frames_per_shard
        )
