"""Writing one shard; what a worker of a dump needs to know of the store."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from .errors import StoreError
from .files import disk_errors, replace_text, sync_and_sum, sync_folder
from .schema import ArraySpec, StoreSchema, pack_sampling

DONE = ".done"


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards of a store that a :class:`StoreWriter` holds open; may be sent to other processes.

    Attributes:
        path: folder of the store.
        plan: scenes of each shard, in the order of its rows.
        scenes: tokens of each scene in time order.
        frames_per_shard: rows of a shard.
        fingerprint: of the dump, kept in done-markers.
    """

    path: Path
    schema: StoreSchema
    plan: list[list[str]]
    scenes: dict[str, list[str]]
    frames_per_shard: int
    fingerprint: str

    def marker(self, shard: int) -> Path:
        """Done-marker of a shard."""
        return self.path / DONE / f"shard-{shard:05d}.json"

    def write(
        self, shard: int, frames: Mapping[str, Mapping[str, np.ndarray]], sums: Mapping[str, Any] | None = None
    ) -> None:
        """Write all frames of a shard.

        Args:
            frames: by token; focal ``values`` (k, C) and ``index`` (k,) are padded here.
            sums: plain values over the shard's frames, kept in its done-marker, see :meth:`StoreWriter.sums`.

        Raises:
            StoreError: a frame is missing, unknown or does not fit, or the disk is full.
        """
        tokens = [token for name in self.plan[shard] for token in self.scenes[name]]
        if set(frames) != set(tokens):
            odd = sorted(set(frames) ^ set(tokens))[0]
            raise StoreError(
                f"shard {shard} holds {len(tokens)} frames, {len(frames)} were given; the first that differs is {odd}"
            )
        for token in tokens:
            self.schema.check_frame(token, dict(frames[token]))
        self.marker(shard).unlink(missing_ok=True)
        start = shard * self.frames_per_shard
        group = zarr.open_group(self.path)
        written = []
        with disk_errors(self.path):
            for path, spec in self.schema.arrays().items():
                block = self._block(path, spec, [frames[token] for token in tokens])
                array = group[path]
                assert isinstance(array, zarr.Array)
                array[start : start + self.frames_per_shard] = block
                chunk_file = self.path / path / "/".join(["c", str(shard), *["0"] * len(spec.shape)])
                if chunk_file.exists():  # an all-empty shard has no file
                    written.append(chunk_file)
            files = {
                str(file.relative_to(self.path)): {"bytes": file.stat().st_size, "crc32c": sync_and_sum(file)}
                for file in written
            }
            for folder in {file.parent for file in written}:
                sync_folder(folder)
            marker = {"fingerprint": self.fingerprint, "files": files, "sums": dict(sums or {})}
            replace_text(self.marker(shard), json.dumps(marker, sort_keys=True))

    def _block(self, path: str, spec: ArraySpec, frames: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        block = np.zeros((self.frames_per_shard, *spec.shape), spec.dtype)
        for row, frame in enumerate(frames):
            if spec.kind == "count":
                block[row] = len(frame[path.replace("/count", "/index")])
            elif spec.kind in ("values", "index"):
                values = frame[path]
                # adding zero turns -0.0 into 0.0, so that empty chunks stay empty
                block[row, : len(values)] = values + 0 if spec.kind == "values" else values
            elif path == "query/sampling":
                block[row] = pack_sampling(frame[path])
            else:
                block[row] = frame[path]
        return block
