"""Whether a store that other code of this project wrote is still what today's code makes: one of its shards is made again.

Nothing in a manifest tells whether an edit of the code changes what is stored. So a store is neither taken for today's
because its settings are, nor dumped again because a comment changed.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.dumping.engine import Engine
from pipeline.dumping.recompute import ArrayError, compare
from pipeline.dumping.session import Job
from pipeline.dumping.shared import source_sha256
from store_schema import OtherStoreError, StoreError, StoreReader, StoreWriter
from store_schema.coding import decoded
from store_schema.reader import read_back

LIMIT = 1e-3
"""Largest relative error that counts as the same: another GPU rounds otherwise, which moves single codes and cells."""


def outdated_by(
    engine: Engine, job: Job, writer: StoreWriter, constants: Mapping[str, NDArray[Any]]
) -> OtherStoreError | None:
    """Make a shard again that other code wrote, the one with the fewest frames, and compare.

    Args:
        writer: of the store, not open yet.
        constants: the expert's, as today's code reads them.

    Returns:
        what differs; None where nothing does, or where today's code wrote all shards.
    """
    here, finished = source_sha256(), writer.finished()
    sources = {shard: marker.get("source_sha256") or "unknown" for shard, marker in finished.items()}
    for source in sorted(set(sources.values()) - {here}):
        shards = [shard for shard in sources if sources[shard] == source]
        shard = min(shards, key=lambda shard: (len(writer.layout.tokens(shard)), shard))
        errors = _errors(writer, shard, finished[shard], engine.again(job, writer.shards, shard), constants)
        name, worst = max(errors.items(), key=lambda item: item[1], default=("", 0.0))
        was, now = source[:12], here[:12]
        if worst > LIMIT:
            found = f"{name} of shard {shard} made again differs{'' if math.isinf(worst) else f' by {worst:.2%}'}"
            return OtherStoreError(
                f"{writer.storage} was made with fd3d's code = {was}, now it is {now}, and {found}; delete the store or choose another folder",
                "fd3d's code",
                was,
                f"{now}, and {found}",
            )
        same = f"differs by {worst:.1e} at most ({name})" if errors else "is the same"
        tqdm.write(
            f"{writer.storage} was made with fd3d's code = {was}, now it is {now}; shard {shard} made again {same}, so the store is kept"
        )
    return None


def _errors(
    writer: StoreWriter,
    shard: int,
    marker: Mapping[str, Any],
    again: tuple[Mapping[str, Mapping[str, np.ndarray]], Mapping[str, Any]],
    constants: Mapping[str, NDArray[Any]],
) -> dict[str, float]:
    """Relative errors of what differs, by name; empty where a shard, its sums and the constants are equal in every bit."""
    rows, sums = again
    held = writer.constants() or {}  # damaged ones are written anew
    errors = {path: _relative(held[path], new) for path, new in constants.items() if path in held}
    # JSON keeps every bit
    errors |= {name: _relative(old, new) for name, old, new in _pairs(_leaves(marker["sums"]), _leaves(sums))}
    if writer.shards.listing(shard, rows) != marker["files"]:
        try:
            reader = StoreReader(writer.storage)
            stored = {token: reader.read(token) for token in rows}
        except StoreError:  # an unfinished store, of which nothing is read
            return {"a file": math.inf}
        found: dict[str, ArrayError] = {}
        for token, row in rows.items():
            compare(found, stored[token], decoded(read_back(writer.schema, row), reader.codes))
        errors |= {name: max(error.relative, error.cells / max(error.values, 1)) for name, error in found.items()}
        errors["the files"] = 0.0
    return {name: error for name, error in errors.items() if error or name == "the files"}


def _leaves(sums: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Sums of a shard by section, map and key."""
    return {
        f"{section} of {name}: {key}": np.asarray(value)
        for section, maps in sums.items()
        for name, entry in maps.items()
        for key, value in entry.items()
    }


def _pairs(
    old: Mapping[str, NDArray[Any]], new: Mapping[str, NDArray[Any]]
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    none = np.zeros(0)
    return ((name, old.get(name, none), new.get(name, none)) for name in sorted(old.keys() | new.keys()))


def _relative(old: NDArray[Any], new: NDArray[Any]) -> float:
    """Norm of the difference over that of the new values; infinite for another shape."""
    if old.shape != new.shape:
        return math.inf
    error = ArrayError()
    error.add(old, np.asarray(new, old.dtype))
    return error.relative
