"""Whether a store that other code of this project wrote is still what today's code makes: one of its shards is made again.

Nothing in a manifest tells whether an edit of the code changes what is stored. So a store is neither taken for today's
because its settings are, nor dumped again because a comment changed.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.dumping.engine import Engine
from pipeline.dumping.recompute import ArrayError, compare
from pipeline.dumping.session import Job
from pipeline.dumping.shared import source_sha256
from pipeline.errors import FD3DError
from pipeline.files import write_atomically
from store_schema import OtherStoreError, StoreError, StoreReader, StoreWriter
from store_schema.coding import decoded, read_back
from store_schema.manifest import MANIFEST, seal, unseal, unseal_manifest
from store_schema.provenance import check_versions, other_version
from store_schema.storage import LocalStorage, Storage

LIMIT = 1e-3
"""Largest relative error of an array that counts as the same in a finished store: another processor rounds otherwise."""
CELLS, SUMS = 0.01, 0.1
"""Likewise the share of stored cells that another rounding moves, and the relative error of a shard's sums of them."""


@dataclass(frozen=True)
class Note:
    """Which code was found to make the same as a finished store, in a file beside the store.

    The store's own files, which DVC tracks, stay as they are. A note is lost without harm: a shard is compared once more then.

    Attributes:
        path: the note's, ``.NAME.same`` beside a store ``NAME``.
        manifest: SHA-256 of manifest and done-markers of the store that is meant.
    """

    path: Path
    manifest: str

    @classmethod
    def of(cls, storage: Storage, markers: Sequence[str]) -> Self | None:
        """The note of a store; None for one at a URL, beside which nothing is a dump's, and for one without a manifest.

        Args:
            markers: names of the done-markers, by which shards count.
        """
        data = storage.read_many([MANIFEST]).get(MANIFEST)
        if not isinstance(storage, LocalStorage) or not storage.path.name or unseal_manifest(data) is None:
            return None
        total, found = hashlib.sha256(data or b""), storage.read_many(markers)
        for name in markers:
            total.update(hashlib.sha256(found.get(name, b"")).digest())
        return cls(storage.path.with_name(f".{storage.path.name}.same"), total.hexdigest())

    def _content(self, source: str) -> dict[str, str]:
        return {
            "about": "code that makes the store beside it",
            "manifest_sha256": self.manifest,
            "source_sha256": source,
        }

    def says(self, source: str) -> bool:
        """Whether the code of a digest was compared with this very store."""
        with suppress(OSError):
            if self.path.is_file() and (found := unseal(self.path.read_bytes())) is not None:
                return {key: found[key] for key in found if key != "crc32c"} == self._content(source)
        return False

    def write(self, source: str) -> None:
        """Note a digest; in a folder that cannot be written nothing is noted."""
        with suppress(FD3DError):
            write_atomically(self.path, lambda file: file.write(seal(self._content(source))), binary=True)


def outdated_by(
    engine: Engine, job: Job, writer: StoreWriter, constants: Mapping[str, NDArray[Any]]
) -> OtherStoreError | None:
    """Make a shard again that other code wrote, the one with the fewest frames, and compare.

    Shards that are missing would be added by today's code, so those that are there must be equal in every bit then. A
    finished store may be near, and is compared once with each version of the code, see :class:`Note`. How codes are learned is
    not compared: a store keeps the codes that it has.

    Args:
        writer: of the store, locked and not open yet.
        constants: the expert's, as today's code reads them.

    Returns:
        what differs; None where nothing does, or where today's code wrote all shards.
    """
    here, finished = source_sha256(), writer.finished()
    sources = {shard: marker.get("source_sha256") or "unknown" for shard, marker in finished.items()}
    mixed = bool(writer.pending())
    if writer.schema.code is not None and writer.constants() is None and (lost := _uncoded(writer, here)):
        return lost
    other = any(other_version(marker, writer.shards.libraries) for marker in finished.values())
    if mixed and other and not writer.allow_versions:
        return None  # a mixture of bits, which the writer refuses
    others = sorted(set(sources.values()) - {here})
    note = Note.of(writer.storage, writer.layout.markers()) if others and not mixed else None
    if note is not None and note.says(here):
        return None
    for source in others:
        shards = [shard for shard in sources if sources[shard] == source]
        shards.sort(key=lambda shard: (len(writer.layout.tokens(shard)), shard))
        was, now, errors = source[:12], here[:12], None
        while errors is None and shards:  # those that cannot be read are damaged, and written again
            shard = shards.pop(0)
            errors = _errors(writer, shard, finished[shard], engine.again(job, writer.shards, shard), constants, mixed)
        if errors is None:
            note = None  # nothing is known of this code
            continue
        name, worst = max(errors.items(), key=lambda item: item[1], default=("", 0.0))
        if worst > 1:
            times = "" if math.isinf(worst) else f" by {worst:.1f} times what another rounding gives"
            found = f"{name} of shard {shard} made again differs{times}"
            return OtherStoreError(
                f"{writer.storage} was made with fd3d's code = {was}, now it is {now}, and {found}; delete the store or choose another folder",
                "fd3d's code",
                was,
                f"{now}, and {found}",
            )
        same = f"differs by last bits, most of all {name}" if errors else "is the same"
        tqdm.write(
            f"{writer.storage} was made with fd3d's code = {was}, now it is {now}; shard {shard} made again {same}, so the store is kept"
        )
    if note is not None:
        note.write(here)
    return None


def _uncoded(writer: StoreWriter, here: str) -> OtherStoreError | None:
    """What refuses shards whose codes are damaged: codes learned anew may be the same, and nothing can be compared before.

    Raises:
        StoreError: other libraries made the shards, and a mixture was not asked for.
    """
    marked = writer.finished(any_code=True)
    if not writer.allow_versions:
        check_versions(writer.storage, marked, writer.shards.libraries)
    was = next((one for m in marked.values() if (one := m.get("source_sha256") or "unknown") != here), None)
    if was is None:
        return None
    return OtherStoreError(
        f"{writer.storage} was made with fd3d's code = {was[:12]}, now it is {here[:12]}, and its codes are damaged, so its shards cannot be "
        "compared; delete the store or choose another folder",
        "fd3d's code",
        was[:12],
        f"{here[:12]}, and the codes are damaged",
    )


def _errors(
    writer: StoreWriter,
    shard: int,
    marker: Mapping[str, Any],
    again: tuple[Mapping[str, Mapping[str, np.ndarray]], Mapping[str, Any]],
    constants: Mapping[str, NDArray[Any]],
    exact: bool,
) -> dict[str, float] | None:
    """Errors of what differs, by name, in shares of their limits; infinite where every bit counts.

    Returns:
        empty where a shard, its sums and the constants are equal in every bit; None where the shard cannot be read.
    """
    rows, sums = again
    held = writer.constants() or {}  # damaged ones are written anew
    errors = {
        path: _relative(held[path], np.asarray(new, held[path].dtype)) / LIMIT
        for path, new in constants.items()
        if path in held
    }
    same = writer.shards.listing(shard, rows) == marker["files"]
    old, new, none = _leaves(marker["sums"]), _leaves(sums), np.zeros(0)  # JSON keeps every bit
    for name in sorted(old.keys() | new.keys()):
        error = _relative(old.get(name, none), new.get(name, none))
        errors[name] = error / SUMS if not same else math.inf if error else 0.0  # sums of equal rows are equal
    if not same and exact:
        errors["a file"] = math.inf
    elif not same:
        try:
            reader = StoreReader(writer.storage)
            reader.group  # noqa: B018 -- opens the store with all of its small files
        except StoreError:  # nothing but the bits of a store that is not whole can be compared
            return errors | {"a file": math.inf}
        try:
            stored = {token: reader.read(token) for token in rows}
        except StoreError:
            return None
        found: dict[str, ArrayError] = {}
        for token, row in rows.items():
            compare(found, stored[token], decoded(read_back(writer.schema, row), reader.codes))
        for name, array in found.items():
            cells = sum(len(row[name]) for row in rows.values()) if array.cells else 1
            errors[name] = max(array.relative / LIMIT, array.cells / max(cells, 1) / CELLS)
        errors["a file"] = 0.0
    return {name: math.inf if exact and error else error for name, error in errors.items() if error or name == "a file"}


def _leaves(sums: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Sums of a shard by section, map and key."""
    return {
        f"{section} of {name}: {key}": np.asarray(value)
        for section, maps in sums.items()
        for name, entry in maps.items()
        for key, value in entry.items()
    }


def _relative(old: NDArray[Any], new: NDArray[Any]) -> float:
    """Norm of the difference over that of the new values; infinite for another shape or values that are not finite."""
    if old.shape != new.shape:
        return math.inf
    error = ArrayError()
    error.add(old, new)
    return error.relative if math.isfinite(error.relative) else math.inf
