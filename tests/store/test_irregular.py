"""A named pipe, a socket or a folder in place of a store's file is told at once, in one line that names the file."""

import errno
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from store_schema import StoreError, StoreReader, describe, verify
from store_schema.storage import LocalStorage
from tests.store.synthetic import CONSTANTS, SCENES, STATISTICS, make_frame, write, writer

TOKENS = [token for tokens in SCENES.values() for token in tokens]
SHARD = "pv/0/values/c/1/0/0"
SECONDS = 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("irregular") / "store"
    write(path)
    return path


@contextmanager
def soon() -> Iterator[None]:
    """A call that waits for the other side of a pipe is interrupted."""

    def late(*args: object) -> None:
        pytest.fail("waited")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def plug(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner/file").write_text("a user's")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def read(path: Path) -> None:
    reader = StoreReader(path)
    for token in TOKENS:
        reader.read(token)
    assert reader.constants


def read_through_zarr(path: Path) -> None:
    reader = StoreReader(path)
    reader.path = None
    for token in TOKENS:
        reader.read(token)


def check(path: Path) -> None:
    if problems := verify(path).problems:
        raise StoreError(" / ".join(problems))


def replace(path: Path) -> None:
    made = writer(path, "y")
    made.replacing = lambda error: None
    with made as opened:
        opened.write_constants(CONSTANTS)
        for shard in opened.pending():
            opened.write_shard(shard, {token: make_frame(token) for token in opened.layout.tokens(shard)})
        opened.finalise(STATISTICS)


WORK: dict[str, Callable[[Path], Any]] = {
    "read": read,
    "zarr": read_through_zarr,
    "verify": check,
    "describe": describe,
    "dump": write,
    "replace": replace,
    "clear": lambda path: LocalStorage(path).clear(),
}
FILES = {
    "manifest.json": set(WORK),
    "recipe.json": {"verify", "dump", "replace", "clear"},
    ".lock": {"dump", "replace", "clear"},
    ".done/arrays": {"verify", "dump", "replace", "clear"},
    ".done/shard-00001.json": {"verify", "dump", "replace", "clear"},
    "zarr.json": {"read", "zarr", "verify", "describe"},
    "bev/count/zarr.json": {"read", "zarr", "verify", "describe", "dump"},
    "bev/count/c/0": {"read", "zarr", "verify", "describe", "dump"},
    "decoder/value_proj_weight/c/0/0/0": {"read", "zarr", "verify", "describe", "dump"},
    SHARD: {"read", "zarr", "verify", "describe", "dump"},
}
"""Work that needs each of the files; a store is deleted file by file, whatever lies there."""


@pytest.mark.parametrize("instead", [pipe, plug, device, folder])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_regular_file_is_named_at_once(whole: Path, tmp_path: Path, name: str, instead: Callable) -> None:
    store = tmp_path / "s"
    # a folder in place of a marker is a user's to the command that deletes
    alone = {"clear"} if instead is folder and name.startswith(".done/") else set()
    for doing in FILES[name] - alone:
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(whole, store)
        (store / name).unlink()
        instead(store / name)
        with soon(), pytest.raises(StoreError) as caught:
            WORK[doing](store)
        told = str(caught.value)
        assert f"{name} is no regular file: a pipe" in told and "\n" not in told, (doing, told)


@pytest.mark.parametrize("instead", [pipe, plug, device])
def test_a_store_with_such_a_file_is_deleted_with_it(whole: Path, tmp_path: Path, instead: Callable) -> None:
    shutil.copytree(whole, tmp_path / "s")
    (tmp_path / "s" / SHARD).unlink()
    instead(tmp_path / "s" / SHARD)
    with soon():
        LocalStorage(tmp_path / "s").clear()
    assert [file.name for file in (tmp_path / "s").rglob("*")] == [".lock"]


def test_a_pipe_of_another_name_is_let_be(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "s")
    pipe(tmp_path / "s/a_users")
    with soon():
        read(tmp_path / "s")
        write(tmp_path / "s")
        assert verify(tmp_path / "s").problems == ["a_users is not in manifest.json; delete it"]
        LocalStorage(tmp_path / "s").clear()
    assert (tmp_path / "s/a_users").is_fifo()


def test_a_leased_file_is_waited_for_as_before(whole: Path, tmp_path: Path, monkeypatch) -> None:
    """A file server's lease of a regular file answers an opening that does not wait."""
    opened = os.open

    def leased(path: str, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_NONBLOCK:
            raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), path)
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", leased)
    read(whole)
