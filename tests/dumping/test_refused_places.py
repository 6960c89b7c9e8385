"""A place that a dump cannot use is refused before the expert is loaded, and is left as it was found."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.dumping.dump import check_place, continued, dump
from pipeline.dumping.early import place_of
from pipeline.errors import FD3DError
from store_schema import OtherStoreError, StoreError, open_storage, verify
from store_schema.manifest import seal
from store_schema.storage import local
from store_schema.storage.regular import open_regular
from tests.store.synthetic import write, writer

MANIFEST = {"expert": {"config": "a.py", "config_sha256": "c", "checkpoint_sha256": "y"}, "focal": {}}
OPENING: dict[str, Callable[[Path], object]] = {
    "the command": place_of,
    "the dump": lambda path: check_place(open_storage(path), MANIFEST, False),
    "its replacement": lambda path: check_place(open_storage(path), MANIFEST, True),
    "a program": lambda path: writer(path).__enter__(),
    "its deletion": lambda path: open_storage(path).clear(),
}


def found(folder: Path) -> dict[str, object]:
    """Everything below a folder, with the contents of files and the times of folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else os.path.islink(p) for p in folder.rglob("*")}


FOREIGN = ("photo.jpg", "deep/er/photo.jpg", ".tmp/mine", "recipe.json", "manifest.json")


# a damaged record may be what is left of a store, which is deleted when that is asked for
@pytest.mark.parametrize(
    ("opening", "name"), [(o, n) for o in OPENING for n in FOREIGN if o != "its deletion" or not n.endswith(".json")]
)
def test_a_folder_of_other_files_is_left_as_it_was_found(tmp_path, opening, name):
    (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "s" / name).write_text("mine")
    before = found(tmp_path)
    with pytest.raises(StoreError, match=r"is not empty and no store|is no store|is damaged, and no whole file"):
        OPENING[opening](tmp_path / "s")
    assert found(tmp_path) == before


@pytest.mark.parametrize("there", [(), ("a",), ("a", "a/b"), ("a", "a/b", "a/b/s")])
def test_a_place_that_can_be_used_is_left_as_it_was_found(tmp_path, there):
    for name in there:
        (tmp_path / name).mkdir()
    before = found(tmp_path)
    for opening in ("the command", "the dump"):
        OPENING[opening](tmp_path / "a/b/s")
        assert found(tmp_path) == before
    write(tmp_path / "a/b/s")
    assert (tmp_path / "a/b/s/.lock").exists()
    before = found(tmp_path)
    place_of(tmp_path / "a/b/s")
    assert found(tmp_path) == before


def test_a_place_without_locks_is_left_as_it_was_found(tmp_path, monkeypatch):
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(local, "LEASE_SECONDS", 0.6)
    (tmp_path / "s").mkdir()
    for stale in (False, True):  # which is replaced by a file from .tmp
        if stale:
            (tmp_path / "s/.lease").write_text("dead 1 process 7 on nowhere")
        with pytest.warns(UserWarning, match="has no locks"):
            place_of(tmp_path / "s")
        assert found(tmp_path / "s") == {}


def test_a_lock_that_a_refused_command_took_away_is_made_anew(tmp_path, monkeypatch):
    """The lock was opened before it was unlinked; the one that is made in its place is not left behind by a refused command either."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s/.lock").touch()
    times: list[int] = []

    def late(path: str, *rest: int) -> int:
        descriptor = open_regular(path, *rest)
        if path.endswith(".lock") and not times:
            times.append(1)
            os.unlink(path)
        return descriptor

    monkeypatch.setattr(local, "open_regular", late)
    with writer(tmp_path / "s"):
        assert times and (tmp_path / "s/.lock").exists()
        with pytest.raises(StoreError, match="is being written by another process"):
            place_of(tmp_path / "s")
    shutil.rmtree(tmp_path / "s")
    (tmp_path / "s").mkdir()
    (tmp_path / "s/.lock").touch()
    times.clear()
    place_of(tmp_path / "s")
    assert times and found(tmp_path) == {"s": False}


@pytest.mark.parametrize("instead", ["a file", "below a file", "a link to a file", "a link that leads nowhere"])
def test_a_place_that_is_no_folder_is_one_line(tmp_path, instead):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "s").symlink_to("none" if instead.endswith("nowhere") else "file")
    before, path = found(tmp_path), tmp_path / "file" if instead == "a file" else tmp_path / "s"
    with pytest.raises(StoreError, match="a file lies where") as caught:
        place_of(tmp_path / "file/s" if instead == "below a file" else path)
    assert "\n" not in str(caught.value) and found(tmp_path) == before


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    for path in (tmp_path / ("a" * 300), tmp_path / ("a" * 300) / "s"):
        with pytest.raises(StoreError, match="File name too long"):
            place_of(path)
    assert found(tmp_path) == {}


def test_a_link_to_a_store_is_the_store(tmp_path):
    write(tmp_path / "s")
    (tmp_path / "link").symlink_to("s")
    before = found(tmp_path)
    place_of(tmp_path / "link")
    with pytest.raises(OtherStoreError, match='expert.checkpoint_sha256 = "x", now it is "y"'):
        check_place(open_storage(tmp_path / "link"), MANIFEST, False)
    write(tmp_path / "link")
    assert found(tmp_path) == before


@pytest.fixture
def without_permission(monkeypatch) -> None:
    """Refuses new files in a folder of mode 0555 to root, too."""
    made = tempfile.TemporaryFile

    def refusing(*args: Any, dir: Path, **more: Any) -> Any:
        if not os.stat(dir).st_mode & 0o200:
            raise PermissionError(errno.EACCES, "Permission denied", str(dir))
        return made(*args, dir=dir, **more)

    monkeypatch.setattr(tempfile, "TemporaryFile", refusing)


@pytest.mark.parametrize("folder", ["", "bev", ".done"])
def test_a_store_whose_folder_may_not_be_written_is_refused_before_the_expert_is_loaded(
    tmp_path, folder, without_permission, expert_config, source, settings, monkeypatch
):
    """Though its lock may be."""
    write(tmp_path / "s")
    (tmp_path / "s" / folder).chmod(0o555)
    before = found(tmp_path)
    for opening in ("the command", "the dump", "its replacement"):
        with pytest.raises(StoreError, match=r"s cannot be written: Permission denied \(.*\); check owner and perm"):
            OPENING[opening](tmp_path / "s")
    monkeypatch.setattr("pipeline.dumping.session.load_expert", None)
    with pytest.raises(StoreError, match="s cannot be written: Permission denied"):
        dump(expert_config, None, source, tmp_path / "s", replace(settings, frames_per_shard=3), workers=0)
    assert found(tmp_path) == before
    (tmp_path / "s" / folder).chmod(0o755)


@pytest.mark.parametrize(
    "expert", ["text", None, [1], 3, {}, {"config_sha256": "c"}, {"config_sha256": "c", "config": 3}]
)
def test_a_recipe_whose_expert_is_odd_is_one_line(tmp_path, expert):
    write(tmp_path / "s")
    recipe = json.loads((tmp_path / "s/recipe.json").read_text()) | {"expert": expert}
    (tmp_path / "s/recipe.json").write_bytes(seal({key: recipe[key] for key in recipe if key != "crc32c"}))
    storage = open_storage(tmp_path / "s")
    with pytest.raises(OtherStoreError, match=r"s was made with expert.* = .*; delete the store") as caught:
        check_place(storage, MANIFEST, False)
    assert "\n" not in str(caught.value)
    check_place(storage, MANIFEST, True)
    assert continued(storage, MANIFEST) == MANIFEST


def test_a_store_of_an_earlier_revision_is_refused_before_the_expert_is_loaded(tmp_path):
    write(tmp_path / "s")
    recipe = json.loads((tmp_path / "s/recipe.json").read_text())
    (tmp_path / "s/recipe.json").write_text(json.dumps({key: recipe[key] for key in recipe if key != "crc32c"}))
    place_of(tmp_path / "s")
    with pytest.raises(OtherStoreError, match="was written by an earlier revision"):
        check_place(open_storage(tmp_path / "s"), MANIFEST, False)
    check_place(open_storage(tmp_path / "s"), MANIFEST, True)


def test_a_dump_that_is_stopped_while_it_learns_codes_leaves_what_was_there(
    tmp_path, scenes, settings, expert_config, monkeypatch
):
    """SIGTERM is an interrupt to the command; a store to be replaced stays, too. A full disk at the constants is one line."""
    coded = replace(settings, values="pq", code_bytes=1, code_frames=12)
    write(tmp_path / "other")
    before = found(tmp_path)

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.dumping.session.learn_code", stopped)
        for name in ("new", "other"):
            with pytest.raises(KeyboardInterrupt):
                dump(expert_config, None, scenes, tmp_path / name, coded, workers=0, replace_other=True)
            assert found(tmp_path) == before
    write_all = local.LocalStorage.write_all

    def full(self: local.LocalStorage, files: Any, *check: Any) -> None:
        listed = list(files)
        if any(name.startswith("code/") for name, _ in listed):
            raise self.trouble("written", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        write_all(self, listed)

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="No space left on device .*make room and run"):
        patch.setattr(local.LocalStorage, "write_all", full)
        dump(expert_config, None, scenes, tmp_path / "new", coded, workers=0)
    dump(expert_config, None, scenes, tmp_path / "new", coded, workers=0)
    assert verify(tmp_path / "new").problems == []


@pytest.mark.parametrize("finished", [True, False])
def test_a_url_below_a_store_is_refused_as_a_folder_in_a_store_is(tmp_path, finished):
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    for place in (f"memory://nested-{finished}/s", str(tmp_path / "s")):
        write(place)
        if not finished:
            open_storage(place).delete("manifest.json")
        for inner in ("deep", "deep/er", "bev"):
            with pytest.raises(FD3DError, match=r"cannot be written: .*/s is a store; give a place outside of it"):
                place_of(f"{place}/{inner}")
        place_of(f"{place}-beside")
        place_of(place)


def test_a_path_that_leaves_a_folder_that_is_not_there_makes_nothing(tmp_path):
    place_of(tmp_path / "no/../d/s")
    assert found(tmp_path) == {}
