"""What reading, writing and verifying cost grows with the frames, and with nothing else: requests are counted, not seconds."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import zarr

from store_schema import StoreReader, StoreWriter, verify
from store_schema.storage import remote
from tests.store.synthetic import CONSTANTS, SCHEMA, STATISTICS, make_frame


@pytest.fixture
def requests(monkeypatch):
    """Requests to an object store in memory, by the kind of call."""
    fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra 's3')")
    from fsspec.implementations.memory import MemoryFileSystem

    counts: Counter[str] = Counter()

    def count(name: str) -> None:
        call = getattr(MemoryFileSystem, name)

        def counted(self: Any, path: Any, *args: Any, **options: Any) -> Any:
            counts[name] += 1
            return call(self, path, *args, **options)

        monkeypatch.setattr(MemoryFileSystem, name, counted)

    for name in ("find", "ls", "info", "cat_file", "pipe_file", "rm_file"):
        count(name)
    monkeypatch.setattr(remote, "LEASE_SECONDS", 600.0)  # no beats
    assert fsspec
    return counts


def dump(place: Any, scenes: int, frames_per_shard: int = 1) -> list[str]:
    tokens = {f"s{i:03d}": [f"token-{i}"] for i in range(scenes)}
    with StoreWriter(place, SCHEMA, {}, tokens, frames_per_shard) as store:
        store.write_constants(CONSTANTS)
        for shard in store.pending():
            store.write_shard(shard, {token: make_frame(token) for token in store.layout.tokens(shard)})
        store.finalise(STATISTICS)
    return [token for (token,) in tokens.values()]


def cost(requests: Counter[str], what: Any) -> Counter[str]:
    requests.clear()
    what()
    return Counter(requests)


def test_requests_of_an_object_store_grow_with_the_shards(requests):
    """Of 3, 6 and 12 shards the differences double: no part grows with the square; and listings are as many of few as of many."""
    kinds: dict[str, list[Counter[str]]] = {"dump": [], "again": [], "read": [], "verify": []}
    for shards in (3, 6, 12):
        place = f"memory://growth-{shards}/store"
        kinds["dump"].append(cost(requests, lambda place=place, shards=shards: dump(place, shards)))
        kinds["again"].append(cost(requests, lambda place=place, shards=shards: dump(place, shards)))

        def read(place: str = place) -> None:
            reader = StoreReader(place)
            for token in reader.tokens:
                reader.read(token)

        kinds["read"].append(cost(requests, read))
        kinds["verify"].append(cost(requests, lambda place=place: verify(place)))
    for kind, (few, some, many) in kinds.items():
        for name in many:
            first, second = some[name] - few[name], many[name] - some[name]
            assert second <= 2 * first, (kind, name, few[name], some[name], many[name])
        assert few["find"] == many["find"], (kind, few, many)
    assert kinds["read"][0]["find"] == 0
    assert (
        sum(kinds["read"][2].values()) < 12 * 70
    )  # per frame: a stamp, four counts, and index and chunk of twelve arrays


def test_a_shard_has_room_for_the_frames_that_there_are(tmp_path, monkeypatch):
    tokens = dump(tmp_path / "s", 5, 1_000_000)
    reader = StoreReader(tmp_path / "s")
    assert reader.manifest["frames_per_shard"] == 5 and reader.group["query/boxes"].shape[0] == 5
    np.testing.assert_array_equal(reader.read(tokens[4])["query/boxes"], make_frame(tokens[4])["query/boxes"])
    dump(tmp_path / "s", 5, 2_000_000)  # the same store


def test_verifying_reads_no_padding_rows(tmp_path, monkeypatch):
    """A store that was written with far more rows in a shard than frames."""
    monkeypatch.setattr("store_schema.writer.min", max, raising=False)
    wide = StoreWriter(tmp_path / "s", SCHEMA, {}, {"s": ["a", "b"]}, 3000)
    with wide as store:
        store.write_constants(CONSTANTS)
        store.write_shard(0, {token: make_frame(token) for token in "ab"})
        store.finalise(STATISTICS)
    assert StoreReader(tmp_path / "s").group["bev/index"].shape[0] == 3000
    rows = []
    read = zarr.Array.__getitem__

    def watched(self: Any, where: Any) -> Any:
        if self.ndim > 1 and isinstance(where, slice) and where.stop is not None:
            rows.append(where.stop - (where.start or 0))
        return read(self, where)

    monkeypatch.setattr(zarr.Array, "__getitem__", watched)
    assert verify(tmp_path / "s").problems == []
    assert rows and max(rows) == 2
