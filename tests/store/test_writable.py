"""Before a store is deleted for another one it is found out that the other one can be written in its place."""

import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from store_schema import StoreError, open_storage, verify
from store_schema.storage import LocalStorage
from store_schema.storage.folders import new_lock
from tests.store.synthetic import digest, write, writer

DISK = "lies on another disk than the store, and files cannot be renamed from one disk to another; move the whole store"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder of another disk."""
    place = Path("/dev/shm")
    if not place.is_dir() or place.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no disk of its own here")
    made = Path(tempfile.mkdtemp(dir=place))
    yield made
    shutil.rmtree(made)


def replace(path: Path) -> None:
    made = writer(path, "y")
    made.replacing = lambda error: pytest.fail(f"{error} was to be deleted")
    made.__enter__()


@pytest.mark.parametrize("folder", ["bev", ".done", "pv/0/values", "pv/0/values/c/0"])
def test_a_store_part_of_which_is_on_another_disk_is_not_deleted(tmp_path, elsewhere, folder):
    write(tmp_path / "s")
    shutil.move(tmp_path / "s" / folder, elsewhere / "part")
    (tmp_path / "s" / folder).symlink_to(elsewhere / "part")
    before = digest(tmp_path / "s"), digest(elsewhere)
    for refused in (replace, lambda path: open_storage(path).check_writable()):
        with pytest.raises(StoreError, match=f"^folder {folder} of store .*s {DISK}") as caught:
            refused(tmp_path / "s")
        assert "\n" not in str(caught.value)
    assert (digest(tmp_path / "s"), digest(elsewhere)) == before and verify(tmp_path / "s").problems == []


def test_temporary_files_on_another_disk_are_refused(tmp_path, elsewhere):
    write(tmp_path / "s")
    (tmp_path / "s/.tmp").symlink_to(elsewhere)
    before = digest(tmp_path / "s")
    with pytest.raises(StoreError, match=f"^folder .tmp of store .*s {DISK}"):
        replace(tmp_path / "s")
    assert digest(tmp_path / "s") == before
    (tmp_path / "s/manifest.json").unlink()
    (tmp_path / "s/.done/shard-00000.json").unlink()
    with pytest.raises(StoreError, match="cannot be written: .*; a folder of the store lies on another disk or mount"):
        write(tmp_path / "s")


def test_a_store_that_is_a_link_to_another_disk_is_replaced(tmp_path, elsewhere):
    (tmp_path / "s").symlink_to(elsewhere)
    write(tmp_path / "s")
    open_storage(tmp_path / "s").check_writable()
    assert verify(elsewhere).problems == []


@pytest.mark.parametrize("folder", ["pv/0/values/c/0/0", "query/boxes", "decoder/value_proj_weight/c"])
def test_a_store_of_which_a_deep_folder_cannot_be_written_is_not_deleted(tmp_path, monkeypatch, folder):
    """Nothing is refused to root, so the system's answer is made here."""
    write(tmp_path / "s")
    (tmp_path / "s/bev/mine").mkdir()  # not the store's
    for name in (folder, "bev/mine"):
        (tmp_path / "s" / name).chmod(0o555)

    def allowed(path: str, mode: int, effective_ids: bool) -> bool:
        return mode == os.W_OK | os.X_OK and effective_ids and bool(os.stat(path).st_mode & stat.S_IWUSR)

    monkeypatch.setattr(os, "access", allowed)
    before = digest(tmp_path / "s")
    for refused in (replace, lambda path: open_storage(path).check_writable()):
        with pytest.raises(StoreError, match=rf"cannot be written: Permission denied \(.*/{folder}\); check owner"):
            refused(tmp_path / "s")
    assert digest(tmp_path / "s") == before and verify(tmp_path / "s").problems == []
    (tmp_path / "s" / folder).chmod(0o755)
    open_storage(tmp_path / "s").check_writable()


@pytest.mark.parametrize("name", [".done", "bev", "pv/0"])
def test_a_file_in_place_of_a_folder_is_refused(tmp_path, name):
    write(tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / name)
    (tmp_path / "s" / name).touch()
    with pytest.raises(StoreError, match=rf"Not a directory \(.*{name}\); a file lies where a folder"):
        open_storage(tmp_path / "s").check_writable()


def test_a_lock_that_is_a_link_that_leads_nowhere_makes_nothing(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/.lock").symlink_to(tmp_path / "none")
    with pytest.raises(
        StoreError, match=r"No such file or directory \(.*\.lock\); .* a link on its path leads nowhere"
    ):
        write(tmp_path / "s")
    assert not (tmp_path / "none").exists() and os.listdir(tmp_path / "s") == [".lock"]


def test_what_a_path_leaves_again_is_not_made(tmp_path):
    with LocalStorage(tmp_path / "no/../d/s").lock():
        assert sorted(os.listdir(tmp_path)) == ["d"]
    assert os.listdir(tmp_path) == []


def test_a_new_lock_is_held_before_it_has_its_name(tmp_path, monkeypatch):
    """So that of two refused commands the one that made it takes it away."""
    link, seen = os.link, []

    def linking(*args: object, **more: object) -> None:
        seen.append((tmp_path / "lock").exists())
        link(*args, **more)  # type: ignore[arg-type]
        with open(tmp_path / "lock") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        seen.append(True)

    monkeypatch.setattr(os, "link", linking)
    made = new_lock(f"{tmp_path}/lock")
    assert made is not None and seen == [False, True] and os.fstat(made).st_nlink == 1
    assert new_lock(f"{tmp_path}/lock") is None
    os.close(made)


def test_where_files_without_names_are_not_known_a_lock_is_made_by_its_name(tmp_path, monkeypatch):
    def unknown(*args: object, **more: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", unknown)
    write(tmp_path / "s")
    assert verify(tmp_path / "s").problems == []
    with writer(tmp_path / "s"), pytest.raises(StoreError, match="is being written by another process"):
        write(tmp_path / "s")


def test_of_a_foreign_folder_the_first_entry_is_looked_at(tmp_path, monkeypatch):
    for number in range(50):
        (tmp_path / f"{number}.jpg").touch()
    looked: list[str] = []

    class Counting(type(Path())):  # type: ignore[misc]
        def stat(self, **more: bool) -> os.stat_result:
            looked.append(str(self))
            return super().stat(**more)

    monkeypatch.setattr("store_schema.storage.listing.Path", Counting)
    for refused in (write, lambda path: open_storage(path).clear()):
        looked.clear()
        with pytest.raises(StoreError, match=r"no store \(it has \d+.jpg\)"):
            refused(tmp_path)
        assert len(looked) <= 2
    assert len(open_storage(tmp_path).list()) == 50 < len(looked)
