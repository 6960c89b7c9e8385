"""A dump that slept until its lease had run out deletes and overwrites nothing of the dump that has the store by now."""

import errno
import fcntl
import os
import pickle
import re
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store_schema import ShardWriter, StoreError, StoreWriter, verify
from store_schema.storage import RemoteStorage, local, remote
from store_schema.storage.folders import sync
from store_schema.storage.lease import Lease
from store_schema.storage.own import own_files
from tests.store.synthetic import CONSTANTS, SCENES, STATISTICS, digest, make_frame, write, writer

pytest.importorskip("fsspec", reason="fsspec is not installed")
TAKEN = "was taken over by another process, since this one was silent"
OTHER = "was deleted or replaced by another dump while this one was writing it; stop one of them"
FRAMES = {t: make_frame(t) for name in ("s1", "s2") for t in SCENES[name]}


@pytest.fixture
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteStorage]:
    """A store in memory whose owners renew no lease."""
    monkeypatch.setattr(remote, "LEASE_SECONDS", 0.1)
    monkeypatch.setattr(Lease, "_renew", lambda lease: None)
    made = RemoteStorage(f"memory://silent/{re.sub(r'[^a-z]', '', request.node.name)}")
    yield made
    made.delete_all(made.list())


def contents(storage: RemoteStorage) -> dict[str, bytes]:
    return storage.read_many(storage.list())


def replace_by(place: RemoteStorage, expert: str) -> dict[str, bytes]:
    """Another process's dump, from the wait for the dead lease to the end; what it leaves."""
    made = writer(place, expert)
    made.replacing = lambda error: None
    with made:
        made.write_constants(CONSTANTS)
        for shard in made.pending():
            made.write_shard(shard, {t: make_frame(t) for t in made.layout.tokens(shard)})
        made.finalise(STATISTICS)
    return contents(place)


def late(store: StoreWriter) -> None:
    pickle.loads(pickle.dumps(store.shards)).write(0, FRAMES)


DOING: dict[str, Callable[[StoreWriter], object]] = {
    "a shard": lambda store: store.write_shard(0, FRAMES),
    "a shard through its writer": lambda store: store.shards.write(0, FRAMES),
    "constants": lambda store: store._write_marked(".done/constants", store.layout.constant_files(CONSTANTS)),
    "the manifest": lambda store: store.finalise({}),
    "another opening": lambda store: store._open(),
}


@pytest.mark.parametrize("expert", ["x", "y"])
@pytest.mark.parametrize("doing", DOING)
def test_an_owner_that_wakes_up_leaves_the_store_of_another_alone(place, doing, expert):
    write(place)
    with writer(place) as store:
        now = replace_by(place, expert)
        with pytest.raises(StoreError, match=f"{TAKEN}|is finished" if doing.endswith("its writer") else TAKEN):
            DOING[doing](store)
        assert contents(place) == now and verify(place).problems == []


def test_a_worker_of_another_process_that_wakes_up_finds_another_recipe(place):
    """It knows nothing of the lock; while the other dump is at work there is no manifest."""
    with writer(place) as store:
        other = writer(place, "y")
        other.replacing = lambda error: None
        with other:
            before = contents(place)
            with pytest.raises(StoreError, match=OTHER):
                late(store)
            assert contents(place) == before
    place.delete_all(place.list())
    with pytest.raises(StoreError, match=OTHER):
        late(store)
    assert contents(place) == {}


def test_an_owner_that_slept_while_it_compared_does_not_replace(place):
    write(place)
    store = writer(place, "y")
    store.replacing = lambda error: None
    with store.locked():
        now = replace_by(place, "z")
        with pytest.raises(StoreError, match=TAKEN), store:
            pass
    assert contents(place) == now


@pytest.mark.parametrize("doing", ["clear", "replace"])
def test_an_owner_that_slept_while_it_looked_for_what_to_delete_deletes_nothing(place, monkeypatch, doing):
    write(place)
    store, now, moment = writer(place, "y"), {}, "store_schema.storage.base.own_files"
    store.replacing = lambda error: None

    def slowly(there: dict[str, int], records: dict[str, bytes]) -> list[str]:
        own = own_files(there, records)
        monkeypatch.setattr(moment, own_files)
        now.update(replace_by(place, "z"))
        return own

    monkeypatch.setattr(moment, slowly)
    with pytest.raises(StoreError, match=TAKEN):
        if doing == "clear":
            place.clear()
        else:
            store.__enter__()
    assert now and contents(place) == now


@pytest.mark.parametrize("expert", ["x", "y"])
def test_an_owner_that_slept_while_it_checked_the_files_writes_no_manifest(place, monkeypatch, expert):
    write(place)
    check, now = StoreWriter._check_files, {}

    def slowly(self: StoreWriter, lists: object) -> None:
        monkeypatch.setattr(StoreWriter, "_check_files", check)
        check(self, lists)  # type: ignore[arg-type]
        now.update(replace_by(place, expert))

    with writer(place) as store:
        monkeypatch.setattr(StoreWriter, "_check_files", slowly)
        with pytest.raises(StoreError, match=TAKEN):
            store.finalise({})
    assert now and contents(place) == now


@pytest.mark.parametrize("slept", ["while it encoded", "between two files"])
def test_an_owner_that_slept_within_a_shard_writes_no_further_file(place, monkeypatch, slept):
    """Not even where the other dump has finished meanwhile, so that no later look at the store would tell."""
    now: dict[str, bytes] = {}
    encode, looks = ShardWriter._encode, iter(range(100))

    def slowly(self: ShardWriter, *rest: Any) -> bytes | None:
        if next(looks) == {"while it encoded": 0, "between two files": 3}[slept]:
            monkeypatch.setattr(ShardWriter, "_encode", encode)
            now.update(replace_by(place, "y"))
        return encode(self, *rest)

    with writer(place) as store:
        store.write_constants(CONSTANTS)
        monkeypatch.setattr(ShardWriter, "_encode", slowly)
        with pytest.raises(StoreError, match=TAKEN):
            store.write_shard(0, {t: make_frame(f"{t}x") for t in FRAMES})  # other bytes
    assert now and contents(place) == now and verify(place).problems == []


def test_files_that_follow_at_once_cost_no_look_at_the_lease(place, monkeypatch):
    monkeypatch.setattr(remote, "LEASE_SECONDS", 600)
    with writer(place) as store:
        store.write_constants(CONSTANTS)
        looks, mine = [], Lease._mine
        monkeypatch.setattr(Lease, "_mine", lambda lease: (looks.append(1), mine(lease))[1])  # type: ignore[func-returns-value]
        store.shards.write(0, FRAMES)
        monkeypatch.setattr(Lease, "_mine", mine)
    assert 2 <= len(looks) <= 4  # at the beginning, before what has no cells is deleted, and before the marker


def test_an_owner_that_slept_before_it_finishes_is_told_of_the_other_and_not_of_the_network(place, monkeypatch):
    """The other dump deletes files while this one reads them."""
    write(place)

    def gone(*args: object) -> None:
        place.write(".lock", b"other 1 process 7 on host")
        raise place.trouble("read", FileNotFoundError("bev/count/c/0"))

    with writer(place) as store:
        monkeypatch.setattr("store_schema.writer.stored_shares", gone)
        with pytest.raises(StoreError, match=TAKEN):
            store.finalise(STATISTICS)
    with writer(RemoteStorage("memory://silent/unreadable")) as store:
        store.write_constants(CONSTANTS)
        for shard in store.pending():
            store.write_shard(shard, {t: make_frame(t) for t in store.layout.tokens(shard)})
        monkeypatch.setattr("store_schema.writer.stored_shares", lambda *a: (_ for _ in ()).throw(StoreError("a 403")))
        with pytest.raises(StoreError, match="^a 403$"):  # the store is still this dump's
            store.finalise(STATISTICS)
        store.storage.delete_all(name for name in store.storage.list() if name != ".lock")


def test_of_two_owners_neither_deletes_what_is_the_others(place):
    """The first one slept within a renewal, and its lease was written over that of the second."""
    write(place)
    with writer(place) as first:
        lease, second = place.read(".lock"), writer(place, "y")
        second.replacing = lambda error: None
        with second:
            second.write_constants(CONSTANTS)
            place.write(".lock", lease)
            before = contents(place)
            with pytest.raises(StoreError, match=TAKEN):
                second.write_shard(0, FRAMES)
            for doing in ("a shard", "a shard through its writer", "constants", "the manifest"):
                with pytest.raises(StoreError, match=f"{OTHER}|shards of .* are not written"):
                    DOING[doing](first)
            assert contents(place) == before
    write(place, "y")
    assert verify(place).problems == []


def test_a_lease_that_cannot_be_read_is_not_taken_for_held(place, monkeypatch):
    with writer(place) as store:
        with monkeypatch.context() as patch, pytest.raises(StoreError, match="cannot be read: gone"):
            patch.setattr(
                RemoteStorage, "read", lambda self, name: (_ for _ in ()).throw(StoreError("cannot be read: gone"))
            )
            store.write_shard(0, FRAMES)
        store.write_shard(0, FRAMES)


@pytest.fixture
def unlocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a store on a file system without locks."""

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(local, "LEASE_SECONDS", 0.6)
    warnings.simplefilter("ignore")
    write(tmp_path / "s")
    return tmp_path / "s"


def test_an_owner_on_a_disk_without_locks_that_slept_before_files_get_their_names_leaves_them(unlocked, monkeypatch):
    monkeypatch.setattr(Lease, "_renew", lambda lease: None)
    now: dict[str, str] = {}

    def slowly(descriptor: int) -> None:
        sync(descriptor)
        monkeypatch.setattr(local, "sync", sync)
        write(unlocked)
        now.update(digest(unlocked))

    (unlocked / ".done/shard-00000.json").unlink()
    with writer(unlocked) as store:
        changed = {t: make_frame(f"{t}x") for t in FRAMES}
        monkeypatch.setattr(local, "sync", slowly)
        with pytest.raises(StoreError, match=TAKEN):
            store.write_shard(0, changed)
    assert now and digest(unlocked) == now and verify(unlocked).problems == []


@pytest.mark.parametrize("content", [b"", b"\n", b"one", b"one two", b"\xff\xfe \xff \xff", b"a b c\nd" * 999])
def test_a_lease_with_odd_contents_is_waited_for_and_taken_over(unlocked, content):
    (unlocked / ".lease").write_bytes(content)
    write(unlocked)
    assert not (unlocked / ".lease").exists() and verify(unlocked).problems == []


@pytest.mark.parametrize(
    ("content", "owner"), [("", "another process"), ("one", "another process"), ("a b c\nd", "c d1")]
)
def test_a_lease_with_odd_contents_that_change_is_anothers(unlocked, monkeypatch, content, owner):
    read, looks = local.LocalStorage.read, iter(range(100))

    def changing(self: local.LocalStorage, name: str) -> bytes:
        return f"{content}{next(looks)}".encode() if name == ".lease" else read(self, name)

    monkeypatch.setattr(local.LocalStorage, "read", changing)
    with pytest.raises(StoreError, match=f"is being written by {owner}; wait") as caught:
        write(unlocked)
    assert "\n" not in str(caught.value)


def test_a_link_in_place_of_a_lease_that_leads_nowhere_is_replaced(unlocked, tmp_path):
    (unlocked / ".lease").symlink_to(tmp_path / "none")
    begun = time.monotonic()
    write(unlocked)
    assert 0.5 < time.monotonic() - begun < 30
    assert not os.path.lexists(unlocked / ".lease") and not (tmp_path / "none").exists()
    assert verify(unlocked).problems == []


def test_a_folder_or_a_ring_in_place_of_a_lease_is_one_line(unlocked):
    (unlocked / ".lease").mkdir()
    with pytest.raises(StoreError, match=r"\.lease is no regular file: a pipe, socket, device or folder"):
        write(unlocked)
    (unlocked / ".lease").rmdir()
    (unlocked / ".lease").symlink_to(".lease")
    with pytest.raises(StoreError, match="links in a ring; mend the links"):
        write(unlocked)
