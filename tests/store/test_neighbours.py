"""What lies in a store's folder and is not the store's: links, other programs' files, and markers that a copy left out."""

import errno
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.dumping.dump import check_place, continued, opened
from store_schema import OtherStoreError, StoreError, StoreReader, StoreWriter, open_storage, verify
from store_schema.manifest import seal
from store_schema.storage import LocalStorage
from store_schema.storage.trouble import trouble
from tests.store.synthetic import CONSTANTS, SCENES, SCHEMA, STATISTICS, digest, make_frame, write, writer

NESTED = {"night", "deep", "begun", "inner"}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    write(tmp_path / "store")
    return tmp_path / "store"


def test_other_files_below_the_temporary_folder_stay(made: Path) -> None:
    (made / ".tmp").mkdir()
    for name in ("thesis.txt", "tmpab_d12ef"):
        (made / ".tmp" / name).write_text("mine")
    write(made)
    assert [file.name for file in (made / ".tmp").iterdir()] == ["thesis.txt"]
    open_storage(made).clear()
    assert (made / ".tmp/thesis.txt").read_text() == "mine"


def test_a_folder_with_other_files_below_its_temporary_folder_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "a/.tmp").mkdir(parents=True)
    (tmp_path / "a/.tmp/thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not empty and no store .it has .tmp/thesis.txt.; choose another folder"):
        write(tmp_path / "a")


def test_a_link_into_another_store_is_refused_before_anything_is_written(made: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", "z")
    other = digest(tmp_path / "other")
    shutil.rmtree(made / "bev")
    (made / "bev").symlink_to(tmp_path / "other/bev")
    store = writer(made, "y")
    told = "bev of store .* is a link into the store .*/other; remove the link and run again"
    with pytest.raises(StoreError, match=told), opened(store, replace_other=True):
        pass
    with pytest.raises(StoreError, match=told):
        open_storage(made).clear()
    assert digest(tmp_path / "other") == other and (made / "recipe.json").exists()


def test_a_folder_of_arrays_on_another_disk_is_the_stores(made: Path, tmp_path: Path) -> None:
    shutil.move(made / "bev", tmp_path / "disk")
    (made / "bev").symlink_to(tmp_path / "disk")
    assert verify(made).problems == []
    (made / ".done/shard-00000.json").unlink()
    write(made)
    assert verify(made).problems == [] and (made / "bev").is_symlink()


def test_a_link_to_anywhere_else_is_one_line_of_verify(made: Path, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "disk" / str(number)).mkdir(parents=True)
        (tmp_path / "disk" / str(number) / "file").touch()
    (made / "everything").symlink_to(tmp_path / "disk")
    assert verify(made).problems == ["everything is not in manifest.json; delete it"]
    write(made)
    assert len(list((tmp_path / "disk").rglob("file"))) == 3


def test_another_store_within_is_named_once_and_not_to_be_deleted(made: Path) -> None:
    for place in ("night", "bev/deep/er", "night/inner", "begun"):
        shutil.copytree(made, made / place, ignore=lambda folder, names: NESTED & {*names})
    (made / "begun/manifest.json").unlink()
    (made / "web").mkdir()
    (made / "web/manifest.json").write_text('{"name": "my page"}')
    told = "is another store; move it out of this one"
    assert verify(made).problems == [
        f"begun {told}",
        f"night {told}",
        f"bev/deep/er {told}",
        "web/manifest.json is not in manifest.json; delete it",
    ]


@pytest.mark.parametrize(
    "name", [".DS_Store", "bev/.DS_Store", "bev/values/._c", "Thumbs.db", "desktop.ini", "pv/.nfs00a1"]
)
def test_what_desktops_leave_is_no_problem(made: Path, tmp_path: Path, name: str) -> None:
    (made / name).write_text("x")
    assert verify(made).problems == []
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / Path(name).name).write_text("x")
    write(tmp_path / "new")
    assert verify(tmp_path / "new").problems == []


def test_a_store_that_was_copied_without_hidden_files_is_not_dumped_anew(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy, ignore=shutil.ignore_patterns(".*"))
    before = digest(copy)
    told = "is finished, but its folder .done is gone, as after a copy without hidden files"
    with pytest.raises(StoreError, match=told):
        write(copy)
    assert digest(copy) == before and StoreReader(copy).read("a" * 32)
    assert verify(copy).problems == ["the folder .done is missing, as after a copy without hidden files; copy it too"]
    shutil.copytree(made / ".done", copy / ".done")
    write(copy)
    assert verify(copy).problems == [] and digest(copy) == digest(made)


@pytest.mark.parametrize("marked", [True, False])
def test_an_unfinished_store_that_was_copied_without_hidden_files_is_not_dumped_anew(
    tmp_path: Path, marked: bool
) -> None:
    """Also before the first shard's marker: the markers of metadata and constants are written before any shard."""
    half, copy = tmp_path / "half", tmp_path / "copy"
    with writer(half) as store:
        store.write_constants(CONSTANTS)
        store.write_shard(0, {token: make_frame(token) for token in store.layout.tokens(0)})
    if not marked:
        (half / ".done/shard-00000.json").unlink()
    shutil.copytree(half, copy, ignore=shutil.ignore_patterns(".*"))
    before = digest(copy)
    with pytest.raises(
        OtherStoreError, match="^store .* has shards, but its folder .done is gone, .*; copy the folder"
    ):
        write(copy)
    assert digest(copy) == before
    shutil.copytree(half / ".done", copy / ".done")
    for path in (half, copy):
        with writer(path) as store:
            assert store.pending() == ([1] if marked else [0, 1])
        write(path)
    assert verify(copy).problems == [] and digest(copy) == digest(half)


def test_a_store_without_markers_is_replaced_where_that_is_asked_for(made: Path) -> None:
    before = digest(made)
    shutil.rmtree(made / ".done")
    told: list[OtherStoreError] = []
    store = writer(made)
    store.replacing = told.append
    with store:
        assert [(error.field, error.stored, error.wanted) for error in told] == [("folder .done", "there", "gone")]
        assert store.pending() == [0, 1] and not list(made.glob("bev/values/c/*"))
    write(made)
    assert digest(made) == before


@pytest.mark.parametrize("files", [0, 2, 7])
def test_what_a_kill_leaves_before_the_first_shard_is_gone_on_with(
    made: Path, tmp_path: Path, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe, and metadata or constants without a marker."""
    write_file = LocalStorage.write_all

    def killed(self: LocalStorage, contents: Iterable[tuple[str, bytes]], *rest: Any) -> None:
        given = list(contents)
        write_file(self, given if len(given) == 1 else given[:files], *rest)
        if len(given) > 1:  # the recipe is alone
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write_all", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "s")
    assert (tmp_path / "s/recipe.json").exists() and not list((tmp_path / "s").glob(".done/*"))
    write(tmp_path / "s")
    assert digest(tmp_path / "s") == digest(made)


def test_a_deletion_that_is_killed_leaves_no_shard_without_a_marker(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every file: the dump goes on by itself, as after a kill of its own."""
    before = digest(made)
    unlink, left = os.unlink, [0]

    def killed(place: Any, *args: Any, **kwargs: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        unlink(place, *args, **kwargs)

    for files in range(1, len(before) + 2):
        left[0] = files
        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", killed)
            try:
                open_storage(made).clear()
                gone = True
            except KeyboardInterrupt:
                gone = False
        if gone:
            break
        write(made)
        assert digest(made) == before
    assert gone and files > len(before) // 2


def test_a_store_all_of_whose_files_are_damaged_is_mended_by_the_same_command(made: Path) -> None:
    """Finalising removes the markers of damaged files."""
    before = digest(made)
    with writer(made) as store:  # which mends metadata when it is opened
        for file in made.rglob("*"):
            if (
                file.is_file()
                and ".done" not in file.parts
                and file.name not in ("recipe.json", "manifest.json", ".lock")
            ):
                content = file.read_bytes()
                file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
        with pytest.raises(StoreError, match="does not have the checksum it was written with"):
            store.finalise(STATISTICS)
    write(made)
    assert digest(made) == before


@pytest.mark.parametrize("name", ["manifest.json", "recipe.json", ".done/arrays", ".done/shard-00000.json"])
def test_json_that_is_nested_without_end_is_damage(made: Path, name: str) -> None:
    (made / name).write_text("[" * 100_000)
    assert all("\n" not in problem for problem in verify(made).problems) and verify(made).problems
    write(made)
    assert verify(made).problems == []


def test_a_store_of_the_first_version_is_refused_by_its_version(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    (made / "manifest.json").write_text(
        json.dumps({k: manifest[k] for k in ("schema", "scenes", "shards")} | {"schema_version": 1})
    )
    with pytest.raises(StoreError, match="has schema version 1, this program reads 2 to 3; dump it again"):
        StoreReader(made)


def test_the_place_in_the_way_is_named_not_the_temporary_file() -> None:
    error = OSError(errno.EPERM, os.strerror(errno.EPERM), "s/.tmp/tmpab_d12ef", None, "s/bev/values/c/0/0/0")
    assert "(s/bev/values/c/0/0/0)" in str(trouble("s", "written", error))


def test_an_empty_path_is_named() -> None:
    with pytest.raises(StoreError, match="the store's path is empty; name a folder or a URL"):
        open_storage("")


def test_a_store_that_cannot_be_written_is_known_before_the_expert_is_loaded(made: Path) -> None:
    storage, manifest = open_storage(made), {"expert": {"checkpoint_sha256": "y"}, "focal": {}}
    with pytest.raises(OtherStoreError, match='expert.checkpoint_sha256 = "x", now it is "y"; delete the store'):
        check_place(storage, manifest, replace_other=False)
    check_place(storage, manifest, replace_other=True)
    check_place(storage, {"expert": {"checkpoint_sha256": "x"}, "focal": {}}, replace_other=False)
    with storage.lock(), pytest.raises(StoreError, match="is being written by another process"):
        check_place(open_storage(made), manifest, replace_other=True)


def test_the_name_of_the_configs_file_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    """The config that a training wrote beside its checkpoint is the same expert's."""

    def manifest(name: str, config: str = "c") -> dict:
        return {"expert": {"config": name, "config_sha256": config, "checkpoint_sha256": "x"}, "focal": {}}

    def dumped(sections: dict) -> None:
        sections = continued(open_storage(tmp_path / "s"), sections)
        with StoreWriter(tmp_path / "s", SCHEMA, sections, SCENES, 3) as store:
            store.write_constants(CONSTANTS)
            for shard in store.pending():
                store.write_shard(shard, {t: make_frame(t) for t in store.layout.tokens(shard)})
            store.finalise({})

    dumped(manifest("expert.py"))
    before = digest(tmp_path / "s")
    dumped(manifest("config.py"))
    assert digest(tmp_path / "s") == before
    with pytest.raises(OtherStoreError, match="config"):
        dumped(manifest("config.py", "d"))


def test_a_working_folder_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(StoreError, match="the store's path s is relative, and the working folder was removed"):
        open_storage("s")
    assert open_storage(tmp_path / "s")


@pytest.mark.parametrize("expert", [None, "z"])
def test_a_store_that_is_dumped_again_meanwhile_is_told_as_that(tmp_path: Path, expert: str | None) -> None:
    """Not as a list of all the files that the dump has deleted or written anew."""
    write(tmp_path / "s")
    moments = iter(range(1000))

    def progress(items: Iterable[Any], total: int) -> Iterable[Any]:
        if next(moments) == 0:
            LocalStorage(tmp_path / "s").clear()
            if expert is not None:
                write(tmp_path / "s", expert)
        return items

    (problem,) = verify(tmp_path / "s", progress=progress).problems
    told = "was deleted or is being dumped again" if expert is None else "was replaced since it was opened: expert"
    assert told in problem
    if expert is not None:
        assert verify(tmp_path / "s").problems == []


@pytest.mark.parametrize("section", ["expert", "data", "coordinates", "coverage", "statistics", "scenes", "shards"])
@pytest.mark.parametrize("value", ["text", None, [1], 3])
def test_a_manifest_with_an_odd_section_is_one_line(made: Path, section: str, value: object) -> None:
    manifest = json.loads((made / "manifest.json").read_text()) | {section: value}
    (made / "manifest.json").write_bytes(seal({key: manifest[key] for key in manifest if key != "crc32c"}))
    told = rf"manifest.json of store .* cannot be read \(its {section} is .*, no mapping\); run 'fd3d dump' again"
    with pytest.raises(StoreError, match=told):
        StoreReader(made)
    (problem,) = verify(made).problems
    assert "no mapping" in problem and "\n" not in problem
    write(made)
    assert verify(made).problems == []
