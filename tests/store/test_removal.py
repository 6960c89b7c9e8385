"""Only a store's own files are ever deleted, under the lock, the manifest first and the recipe last."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pipeline.dumping.dump import opened
from store_schema import OtherStoreError, StoreError, StoreReader, open_storage, verify
from store_schema.storage import LocalStorage
from tests.store.synthetic import CONSTANTS, SCENES, STATISTICS, digest, make_frame, write, writer

FOREIGN = ("letter.txt", "bev/mine.txt", "bev/mean/zarr.json", "bev/mean/c/0/0", ".done/notes", "other/zarr.json")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    write(tmp_path / "store")
    return tmp_path / "store"


def replace(path: Path) -> None:
    """A dump of the expert ``y`` with ``--replace``."""
    store = writer(path, "y")
    with opened(store, replace_other=True):
        store.write_constants(CONSTANTS)
        for shard in store.pending():
            store.write_shard(shard, {t: make_frame(t) for t in store.layout.tokens(shard)})
        store.finalise(STATISTICS)


def test_what_is_not_the_stores_stays(made):
    """A note, an array that someone added, another store below this one."""
    write(made / "inner/store", "z")
    inner = digest(made / "inner/store")
    for name in FOREIGN:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text("mine")
    replace(made)
    assert StoreReader(made).manifest["expert"]["checkpoint_sha256"] == "y"
    open_storage(made).clear()
    assert digest(made / "inner/store") == inner
    left = {str(file.relative_to(made)) for file in made.rglob("*") if file.is_file()} - {".lock"}
    assert {name for name in left if not name.startswith("inner/")} == set(FOREIGN)
    assert not (made / "query").exists()  # folders that became empty


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("after", [0, 1, 2, 10, 40])
def test_a_replace_that_is_killed_goes_on(made, tmp_path, monkeypatch, after, foreign):
    """Killed after any number of removals: the recipe is still there, so that the folder is still a store."""
    if foreign:
        (made / "letter.txt").write_text("mine")
    calls, unlink = [], os.unlink

    def dying(path, *args, **kwargs):
        calls.append(str(path))
        if len(calls) > after:
            raise KeyboardInterrupt
        unlink(path, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "unlink", dying)
        replace(made)
    assert calls[0].endswith("manifest.json") or after == 0
    assert (made / "recipe.json").exists()
    if after:
        with pytest.raises(StoreError, match="its dump is not finished"):
            StoreReader(made)
    with pytest.raises(OtherStoreError, match='checkpoint_sha256 = "x", now it is "y"'), writer(made, "y"):
        pass
    replace(made)
    write(tmp_path / "fresh", "y")
    letter = {"letter.txt"} if foreign else set()
    assert {name: data for name, data in digest(made).items() if name not in letter} == digest(tmp_path / "fresh")


def test_files_of_a_killed_dump_without_markers_are_the_stores_too(tmp_path):
    with writer(tmp_path / "s") as store:
        store.write_shard(0, {t: make_frame(t) for t in store.layout.tokens(0)})
    for marker in ("shard-00000.json", "arrays"):
        (tmp_path / "s/.done" / marker).unlink()
    open_storage(tmp_path / "s").clear()
    assert digest(tmp_path / "s") == {}


def test_a_store_that_is_being_written_is_not_deleted(made):
    with writer(made), pytest.raises(StoreError, match="is being written by another process"):
        open_storage(made).clear()
    assert verify(made).problems == []


def test_a_folder_that_is_no_store_is_not_emptied(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"is no store \(it has letter.txt\); nothing is deleted"):
        open_storage(tmp_path).clear()
    assert (tmp_path / "letter.txt").read_text() == "mine"
    open_storage(tmp_path / "none").clear()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "files",
    [
        {
            "manifest.json": {"version": 1, "packages": {}, "files": {"app.R": {"checksum": "a"}, "data/a.csv": {}}},
            "app.R": "code",
            "data/a.csv": "1,2",
        },
        {"recipe.json": {"schema": {"x": 1}, "files": {"notes.txt": 1}}, "notes.txt": "mine", "zarr.json": {}},
        {"manifest.json": "{half", "zarr.json": {}, "bev/c/0/0": "mine"},
        {
            "recipe.json": {"schema_version": 1, "schema": {"x": 1}, "scenes": {}, "files": {"a": 1}},
            "a": "mine",
            ".done/b": {},
        },
    ],
    ids=["RStudio Connect", "a recipe", "half a manifest", "a recipe with a version"],
)
def test_records_of_other_programs_make_no_store(tmp_path: Path, files: dict[str, str | dict]) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    before = digest(tmp_path)
    with pytest.raises(StoreError, match=r"is no store \(it has .*\); nothing is deleted"):
        open_storage(tmp_path).clear()
    assert digest(tmp_path) == before


def test_a_foreign_manifest_in_a_store_lists_no_file_of_the_store(made: Path) -> None:
    (made / "manifest.json").write_text(json.dumps({"files": {"app.R": {}}, "version": 1}))
    (made / "app.R").write_text("mine")
    open_storage(made).clear()
    assert set(digest(made)) == {"app.R", "manifest.json"}


def test_links_to_folders_stay_and_what_they_lead_to_is_the_stores_only(tmp_path):
    disk, array = tmp_path / "disk", tmp_path / "array"
    disk.mkdir()
    (tmp_path / "store").symlink_to(disk)
    write(tmp_path / "store")
    (disk / "bev/values").rename(array)
    (disk / "bev/values").symlink_to(array)
    (array / "mine.txt").write_text("mine")
    assert [p for p in verify(tmp_path / "store").problems if "mine.txt" not in p] == []
    replace(tmp_path / "store")
    assert (tmp_path / "store").is_symlink() and (disk / "bev/values").is_symlink()
    assert StoreReader(tmp_path / "store").manifest["expert"]["checkpoint_sha256"] == "y"
    open_storage(tmp_path / "store").clear()
    assert (tmp_path / "store").is_symlink() and disk.is_dir()
    assert {str(file.relative_to(array)) for file in array.rglob("*") if file.is_file()} == {"mine.txt"}


def test_files_that_are_links_are_removed_and_not_what_they_lead_to(made, tmp_path):
    """As a cache of DVC lays them out."""
    file = made / "query/boxes/c/0/0/0"
    file.rename(tmp_path / "cached")
    file.symlink_to(tmp_path / "cached")
    data = (tmp_path / "cached").read_bytes()
    replace(made)
    assert not file.is_symlink() and (tmp_path / "cached").read_bytes() == data


def test_a_ring_of_links_ends(made):
    (made / "bev/again").symlink_to(made)
    assert set(LocalStorage(made).list()) >= {"manifest.json", "bev/values/zarr.json"}
    replace(made)
    assert len(StoreReader(made).tokens) == sum(map(len, SCENES.values()))


def test_the_root_of_a_bucket_is_left_alone():
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed (extra 's3')")
    assert s3fs
    for url, is_root in (
        ("s3://bucket", True),
        ("s3://bucket/", True),
        ("s3://bucket/store", False),
        ("s3://bucket/a/store/", False),
        ("memory://store", False),
    ):
        assert open_storage(url).is_root is is_root, url
    with pytest.raises(
        StoreError, match="s3://bucket is the root of a bucket, where nothing is deleted; dump to a folder"
    ):
        open_storage("s3://bucket").clear()


@pytest.mark.parametrize("expert", ["x", "theirs"])
def test_a_writer_whose_lock_was_taken_with_the_folder_touches_nothing(tmp_path: Path, expert: str) -> None:
    """A store that is compared for hours may be removed, and another one be dumped in its place."""
    mine = writer(tmp_path / "s")
    mine.replacing = lambda error: None
    with mine.locked():
        shutil.rmtree(tmp_path / "s")
        write(tmp_path / "s", expert)
        there = digest(tmp_path / "s")
        with pytest.raises(StoreError, match="was deleted or moved"), mine:
            pass
        assert digest(tmp_path / "s") == there
