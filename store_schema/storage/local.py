"""A store's files in a local folder."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import zarr
from zarr.abc.store import Store

from ..checksum import crc32c_text
from ..errors import StoreError
from .base import BLOCK, LOCK, TEMPORARY, Storage, is_held


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder. Files are written below ``.tmp`` and renamed into place; the lock is the operating system's."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        found = {}
        for name in names:
            try:
                found[name] = self.read(name)
            except OSError:
                continue
        return found

    def write_all(self, files: Iterable[tuple[str, bytes | memoryview]]) -> None:
        temporary: dict[str, str] = {}  # by the file's own path
        try:
            gained = _make_folders(f"{self.path}/{TEMPORARY}")
            with ExitStack() as opened:
                descriptors = []
                for name, data in files:
                    descriptor, place = tempfile.mkstemp(dir=f"{self.path}/{TEMPORARY}")
                    temporary[f"{self.path}/{name}"] = place
                    file = opened.enter_context(os.fdopen(descriptor, "wb", buffering=0))
                    rest = memoryview(data)
                    while rest:
                        rest = rest[file.write(rest) :]
                    os.fchmod(descriptor, 0o644)
                    descriptors.append(descriptor)
                # one after the other: a file system that keeps a journal writes all at the first
                for descriptor in descriptors:
                    os.fsync(descriptor)
            for target in temporary:
                folder = os.path.dirname(target)
                gained |= _make_folders(folder) | {folder}
            for target in list(temporary):
                os.replace(temporary[target], target)
                del temporary[target]
            # a file is safe when the entries that lead to it are
            for folder in sorted(gained):
                _sync_folder(folder)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            for place in temporary.values():
                Path(place).unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> StoreError:
        place = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        free = shutil.disk_usage(place).free / 1e6
        return StoreError(
            f"store {self} cannot be written: {error.strerror or error} ({free:.0f} MB free); what is done stays, make room and run the dump again"
        )

    def delete(self, name: str) -> None:
        try:
            (self.path / name).unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unwritable(error) from error
        _sync_folder(os.path.dirname(f"{self.path}/{name}"))

    def list(self, folder: str = "") -> dict[str, int]:
        found = {}
        for place, _, names in os.walk(self.path / folder):
            for name in names:
                file = Path(place, name)
                found[file.relative_to(self.path).as_posix()] = file.stat().st_size
        return found

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        found = {}
        for name in names:
            try:
                found[name] = os.stat(f"{self.path}/{name}").st_size
            except OSError:
                continue
        return found

    def checksum(self, name: str) -> str:
        with open(self.path / name, "rb") as file:
            return crc32c_text(iter(lambda: file.read(BLOCK), b""))

    @contextmanager
    def lock(self) -> Iterator[Callable[[], None]]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / LOCK, "w")  # noqa: SIM115 - held until the end
        except OSError as error:
            raise self._unwritable(error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise is_held(self) from error
            yield lambda: None

    def sweep(self) -> None:
        shutil.rmtree(self.path / TEMPORARY, ignore_errors=True)

    def clear(self) -> None:
        try:
            shutil.rmtree(self.path)
        except OSError as error:
            raise self._unwritable(error) from error

    def zarr_store(self) -> Store:
        return zarr.storage.LocalStore(self.path, read_only=True)


def _make_folders(folder: str) -> set[str]:
    """Create a folder with its parents; returns the folders that have a new entry."""
    if os.path.isdir(folder):
        return set()
    parent = os.path.dirname(folder) or "."
    gained = _make_folders(parent)
    with suppress(FileExistsError):
        os.mkdir(folder)
    return gained | {parent}


def _sync_folder(path: str) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
