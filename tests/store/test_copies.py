"""Files of another store where a store's own were: copied over a store, into open files, or exchanged."""

import errno
import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store_schema import StoreError, StoreReader, StoreWriter, describe, open_storage, verify
from tests.store.synthetic import CONSTANTS, SCENES, SCHEMA, STATISTICS, digest, make_frame, write, writer

Labels = Mapping[str, list[int]]
TOKENS = [token for scene in SCENES.values() for token in scene]


def labelled(path: Path, labels: Labels, expert: str = "x", shift: float = 0.0) -> Path:
    """A store with given labels, 0 for frames without, and features that are shifted."""
    with writer(path, expert) as store:
        store.write_constants(CONSTANTS)
        for shard in store.pending():
            frames = {token: make_frame(token) for token in store.layout.tokens(shard)}
            for token, frame in frames.items():
                given = labels.get(token, [])
                frame["query/label"] = np.pad(np.array(given, np.uint8), (0, len(frame["query/label"]) - len(given)))
                frame["bev/values"] = frame["bev/values"] + frame["bev/values"].dtype.type(shift)
            store.write_shard(shard, frames)
        store.finalise(STATISTICS)
    return path


def test_a_file_that_the_manifest_does_not_list_is_not_read(tmp_path: Path) -> None:
    """A shard that is all zero has no file; a copy over another store leaves that store's file in its place."""
    own, other = labelled(tmp_path / "own", {}), labelled(tmp_path / "other", {token: [1] for token in TOKENS}, "y")
    assert not list((own / "query/label/c").rglob("0"))
    shutil.copytree(own, other, dirs_exist_ok=True)
    for reader in (StoreReader(other), StoreReader(f"file://{other}")):
        assert not any(reader.read(token)["query/label"].any() for token in TOKENS)
    assert any("query/label/c/0/0 is not in manifest.json" in problem for problem in verify(other).problems)


@pytest.mark.parametrize("part", ["bev", "query"])
def test_a_copy_into_open_files_is_no_store_s_own(tmp_path: Path, part: str) -> None:
    own = labelled(tmp_path / "own", {token: [1] for token in TOKENS})
    other = labelled(tmp_path / "other", {token: [2] for token in TOKENS}, "y", 1.0)
    reader = StoreReader(own)
    before = {token: reader.read(token) for token in TOKENS}
    for file in (other / part).rglob("*"):
        if file.is_file():
            (own / file.relative_to(other)).write_bytes(file.read_bytes())  # the same inode
    for token in TOKENS:
        try:
            found = reader.read(token)
        except StoreError as error:
            assert "is another shard" in str(error) or "does not have the checksum" in str(error)
            continue
        assert all(np.array_equal(found[name], array) for name, array in before[token].items())


def test_a_file_that_is_written_anew_with_the_same_bytes_is_read_on(tmp_path: Path) -> None:
    write(tmp_path / "store")
    reader = StoreReader(tmp_path / "store")
    before = {token: reader.read(token) for token in TOKENS}
    for file in (tmp_path / "store").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes())
    for token, name in itertools.product(TOKENS, before[TOKENS[0]]):
        assert np.array_equal(reader.read(token)[name], before[token][name])


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_shards_with_the_same_chunks_at_other_places_are_told_apart(tmp_path: Path, where: str) -> None:
    first = SCENES["s1"]
    plain = StoreWriter(tmp_path / "probe", SCHEMA, {"expert": {}, "focal": {}}, SCENES, 3)
    shards = [plain.layout.tokens(shard) for shard in range(len(plain.layout.plan))]
    labels = {shards[0][0]: [5], shards[1][1]: [5]}
    assert first and len(shards) == 2
    store = labelled(tmp_path / "store", labels)
    one, two = (store / f"query/label/c/{shard}/0" for shard in range(2))
    assert len(one.read_bytes()) == len(two.read_bytes())
    one.rename(tmp_path / "kept")
    two.rename(one)
    (tmp_path / "kept").rename(two)
    reader = StoreReader(store)
    if where == "memory":
        url = f"memory://copies-{tmp_path.name}/store"
        storage = open_storage(url)
        storage.write_all((name, (store / name).read_bytes()) for name in open_storage(store).list())
        reader = StoreReader(url)
    for token in TOKENS:
        with pytest.raises(
            StoreError, match="query/label/c/[01]/0 is another shard .tag [0-9a-f]{8}, the manifest says"
        ):
            reader.read(token)


def test_a_table_of_a_damaged_store_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "store")
    file = tmp_path / "store/bev/count/c/0"
    content = file.read_bytes()
    for damage in (lambda: file.write_bytes(bytes([content[0] ^ 1]) + content[1:]), file.unlink):
        damage()
        with pytest.raises(
            StoreError, match=r"shard 0 of .* is damaged: bev/count/c/0 .*; delete .done/shard-00000.json and"
        ):
            describe(tmp_path / "store")


def test_a_damaged_constant_is_dumped_again(tmp_path: Path) -> None:
    write(tmp_path / "store")
    reader = StoreReader(tmp_path / "store")
    reader.read(TOKENS[0])
    for file in (tmp_path / "store/decoder").rglob("c/*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[::-1])
    for file in (tmp_path / "store/decoder").rglob("0"):
        if file.is_file():
            file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(
        StoreError, match="a constant of store .* is damaged: .*; run 'fd3d dump' again, which writes it"
    ):
        reader.constants  # noqa: B018


def test_what_is_no_damage_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that went away under an open reader, and a file that may not be read."""
    write(tmp_path / "store")
    reader = StoreReader(tmp_path / "store")
    (tmp_path / "store/manifest.json").rename(tmp_path / "kept")
    with pytest.raises(StoreError, match="^store .* was deleted or is being dumped again since it was opened; wait"):
        reader.constants  # noqa: B018
    (tmp_path / "kept").rename(tmp_path / "store/manifest.json")
    denied = reader.storage.trouble("read", PermissionError(errno.EACCES, os.strerror(errno.EACCES)))

    def refuse(self: object, names: object) -> dict[str, bytes]:
        raise denied

    monkeypatch.setattr(type(reader.storage), "sizes", refuse)
    with pytest.raises(StoreError, match="^store .* cannot be read: Permission denied"):
        reader.counts()


def test_another_program_s_manifest_stays(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "my page", "icons": []}')
    (tmp_path / "index.html").write_text("page")
    with pytest.raises(StoreError, match="is no store .it has index.html.; nothing is deleted"):
        open_storage(tmp_path).clear()
    (tmp_path / "index.html").unlink()
    with pytest.raises(StoreError, match="is no store .it has manifest.json.; nothing is deleted"):
        open_storage(tmp_path).clear()
    assert (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("name", ["run?", "run*", "run[1]"])
def test_patterns_in_urls_are_refused_and_folders_of_such_names_are_not(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="has the character ., which fsspec takes for a pattern of names"):
        open_storage(f"memory://{name}/store")
    write(tmp_path / name / "store")
    assert verify(tmp_path / name / "store").problems == []


def test_urls_of_files_are_folders_however_they_are_spelled(tmp_path: Path) -> None:
    write(tmp_path / "store")
    for url in (
        f"file://{tmp_path}/store",
        f"FILE://{tmp_path}/store",
        f"local://{tmp_path}/store",
        f"file://localhost{tmp_path}/store",
    ):
        assert open_storage(url) == open_storage(tmp_path / "store")
    cached = StoreReader(f"simplecache::file://{tmp_path}/store")
    assert np.array_equal(
        cached.read(TOKENS[0])["query/boxes"], StoreReader(tmp_path / "store").read(TOKENS[0])["query/boxes"]
    )


def test_paths_and_tokens_that_cannot_be_are_one_line(tmp_path: Path) -> None:
    for path in ("~nobody-of-this-name/x", "a\0b"):
        with pytest.raises(StoreError, match="the store's path"):
            open_storage(path)
    write(tmp_path / "store")
    with pytest.raises(StoreError, match="has no frame .'a'."):
        StoreReader(tmp_path / "store").read(["a"])  # type: ignore[arg-type]


def test_tokens_longer_than_nuscenes_have_room(tmp_path: Path) -> None:
    """UUIDs have 36 characters."""
    int_of_numpy: Any = np.int64(3)
    scenes = {"s": ["6f3d4a49-0000-4000-8000-00000000000" + str(i) for i in range(3)]}
    with StoreWriter(
        tmp_path / "s", SCHEMA, {"expert": {"checkpoint_sha256": "x"}, "focal": {}}, scenes, int_of_numpy
    ) as store:
        store.write_constants(CONSTANTS)
        store.write_shard(0, {token: make_frame("a" * 32) for token in scenes["s"]})
        store.finalise(STATISTICS)
    assert verify(tmp_path / "s").problems == [] and list(digest(tmp_path / "s"))
    assert StoreReader(tmp_path / "s").tokens == scenes["s"]
