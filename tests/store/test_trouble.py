"""A failed system call is told by its own name; only a checksum, a length or an absent file is damage."""

import errno
import fcntl
import os
import resource
import shutil
import stat
import warnings
from pathlib import Path

import pytest

from store_schema import StoreError, StoreReader, StoreSchema, StoreWriter, verify
from store_schema.direct import ShardFile
from store_schema.storage import local
from tests.store.synthetic import SCENES, digest, make_frame, write, writer

TOKENS = [token for tokens in SCENES.values() for token in tokens]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write(tmp_path / "store")
    return tmp_path / "store"


def failing(number: int):
    def call(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EMFILE, "Too many open files; raise the limit of open files"),
        (errno.EACCES, "Permission denied; check owner and permissions"),
        (errno.EIO, "Input/output error; the disk or its connection fails"),
        (errno.ESTALE, "Stale file handle; the network mount was lost"),
        (errno.EINVAL, "Invalid argument; what is done stays; mend this"),
    ],
)
@pytest.mark.parametrize("call", ["open", "pread"])
def test_a_read_that_fails_is_no_damage(store, monkeypatch, number, advice, call):
    reader = StoreReader(store)
    reader.read(TOKENS[0])
    reader._arrays["query/boxes"]._files.clear()  # type: ignore[union-attr]
    where = "store_schema.direct.os"
    with monkeypatch.context() as patch, pytest.raises(StoreError, match=f"cannot be read: {advice}") as caught:
        patch.setattr(f"{where}.{call}", failing(number))
        reader.read(TOKENS[1])
    assert "damaged" not in str(caught.value) and ".done" not in str(caught.value)
    reader.read(TOKENS[1])


def test_too_few_open_files_are_told_and_nothing_is_given_up(tmp_path):
    path, tokens = tmp_path / "s", [f"{i:032d}" for i in range(20)]
    schema = StoreSchema((4, 5, 3), [(2, 3, 3, (8, 8))], ("A", "B"), 2, 10, [12], reading="none")
    with StoreWriter(path, schema, {}, {token: [token] for token in tokens}, 1) as made:
        for shard in made.pending():
            frame = {name: array for name, array in make_frame("a").items() if name in schema.frame_keys()}
            made.write_shard(shard, {tokens[shard]: frame})
        made.finalise({})
    reader, limits = StoreReader(path), resource.getrlimit(resource.RLIMIT_NOFILE)
    reader.read(tokens[0])
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, limits[1]))
        with pytest.raises(StoreError, match=r"Too many open files \(.*\); raise the limit of open files"):
            for token in tokens:
                reader.read(token)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    for token in tokens:
        reader.read(token)


def test_a_checksum_that_cannot_be_computed_gives_up_no_shard(store, monkeypatch):
    before = digest(store)
    with writer(store) as made, monkeypatch.context() as patch:
        patch.setattr(local, "checksums", failing(errno.EIO))
        with pytest.raises(StoreError, match="cannot be read: Input/output error"):
            made.finalise({})
        problems = verify(store).problems
        assert problems and all("cannot be read: Input/output error" in problem for problem in problems)
    assert digest(store) == before


@pytest.mark.parametrize("call", ["stat", "listdir"])
def test_a_folder_without_permission_is_not_taken_for_an_empty_one(store, monkeypatch, call):
    with monkeypatch.context() as patch, pytest.raises(StoreError, match="cannot be read: Permission denied"):
        if call == "stat":
            patch.setattr("store_schema.storage.local.os.stat", failing(errno.EACCES))
            StoreReader(store)
        else:
            patch.setattr("os.scandir", failing(errno.EACCES))
            local.LocalStorage(store).list()


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.ENOSPC,
            r"No space left on device \(\d+ MB free\): no space or no inodes left \(df -h, df -i\); what is done stays, make room",
        ),
        (errno.EDQUOT, r"Disk quota exceeded \(\d+ MB free\); what is done stays, make room"),
        (errno.EROFS, "Read-only file system; the file system can only be read; mount it for writing"),
        (errno.EIO, "Input/output error; the disk or its connection fails"),
        (errno.EACCES, "Permission denied; check owner and permissions"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_only_a_full_disk_is_told_to_make_room(tmp_path, monkeypatch, call, number, message):
    with monkeypatch.context() as patch, pytest.raises(StoreError, match=message) as caught:
        patch.setattr(f"store_schema.storage.local.os.{call}", failing(number))
        write(tmp_path / "s")
    assert ("make room" in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))
    write(tmp_path / "s")
    assert verify(tmp_path / "s").problems == []


def test_a_file_system_that_flushes_no_folders_holds_a_store(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("store_schema.storage.local.os.fsync", files_only)
        patch.setattr("store_schema.storage.local.os.fchmod", failing(errno.EPERM))
        write(tmp_path / "s")
    assert verify(tmp_path / "s").problems == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_holds_a_store_by_a_lease(tmp_path, monkeypatch, number):
    monkeypatch.setattr(local, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(fcntl, "flock", failing(number))
    with pytest.warns(UserWarning, match="has no locks; a file .lease that this dump rewrites takes their place"):
        write(tmp_path / "s")
    assert verify(tmp_path / "s").problems == [] and not (tmp_path / "s/.lease").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            writer(tmp_path / "s"),
            pytest.raises(StoreError, match=r"is being written by process \d+ on"),
            writer(tmp_path / "s"),
        ):
            pass
        (tmp_path / "s/.lease").write_text("dead 1 process 7 on nowhere")
        write(tmp_path / "s")  # a lease that nobody renews


def test_a_lock_that_fails_otherwise_is_not_taken_for_another_dump(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(StoreError, match="cannot be locked: Input/output error"), writer(tmp_path / "s"):
        pass


def test_a_lock_that_is_shared_by_hard_links_is_told(store, tmp_path):
    shutil.copytree(store, tmp_path / "copy", copy_function=os.link)
    with writer(store):
        told = r"is being written by another process, or a copy of it is: .*/copy/\.lock is a hard link \(as of cp -l\) .*; wait, or delete this link"
        with pytest.raises(StoreError, match=told), writer(tmp_path / "copy"):
            pass
        (tmp_path / "copy/.lock").unlink()
        write(tmp_path / "copy")
    with pytest.raises(StoreError, match="is being written by another process; wait"), writer(store), writer(store):
        pass
    os.link(store / ".lock", tmp_path / "link")
    write(store)  # nobody holds it


def test_a_lock_that_may_not_be_written_is_told(store, monkeypatch):
    opened = os.open

    def refusing(path, flags, *rest, **more):  # root may write to all
        place = Path(path)
        written = place if place.exists() else place.parent
        if flags & os.O_WRONLY and not written.stat().st_mode & 0o200:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    (store / ".lock").chmod(0o444)
    told = r"cannot be locked: Permission denied to write .*/store/\.lock \(mode 0444\); make it writable"
    with pytest.raises(StoreError, match=told):
        write(store)
    (store / ".lock").unlink()
    store.chmod(0o555)
    told = r"cannot be locked: Permission denied to write .*/store \(mode 0555\); make it writable \(chmod u\+w"
    with pytest.raises(StoreError, match=told):
        write(store)
    with pytest.raises(StoreError, match=told):
        local.LocalStorage(store).clear()
    assert verify(store).problems == []


def test_a_working_folder_that_changes_changes_no_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("s"))
    reader = StoreReader("s")
    monkeypatch.chdir("/")
    assert reader.read(TOKENS[0]) and str(reader.storage) == "s" and verify(reader.storage).problems == []


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "s").symlink_to(tmp_path / "none")
    with pytest.raises(StoreError, match=r"cannot be written: File exists \(.*/s\); a link that leads nowhere"):
        write(tmp_path / "s")


def test_a_shard_file_that_is_cut_is_damage(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    with pytest.raises(ValueError, match="has 3 bytes, fewer than its index"):
        ShardFile(str(tmp_path / "f"), 4)
