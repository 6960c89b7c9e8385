"""Where a store's files lie: a local folder, or a prefix of an object store by fsspec URL.

All that is written goes through :meth:`Storage.write`, which leaves a file either whole or not there.
"""

import fcntl
import os
import shutil
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import google_crc32c
import numpy as np
import zarr
from zarr.abc.store import Store

from .errors import StoreError

LOCK = ".lock"
TEMPORARY = ".tmp"
LEASE_SECONDS = 30.0
"""A remote lock that did not change for so long belongs to a dead process."""
_BLOCK = 1 << 24


def open_storage(path: "str | Path | Storage", options: Mapping[str, Any] | None = None) -> "Storage":
    """The storage that a local path or a URL names.

    Args:
        path: a folder, ``file://`` or any URL that fsspec knows, such as ``s3://bucket/prefix``.
        options: of the fsspec file system, such as ``{"endpoint_url": ...}``; the environment variables of the
            cloud's library (``AWS_ENDPOINT_URL``, ``AWS_PROFILE``, ...) work without.

    Raises:
        StoreError: fsspec or the file system's package is not installed, or the URL is not understood.
    """
    if isinstance(path, Storage):
        return path
    scheme, _, rest = str(path).partition(":/")  # a Path holds a URL's two slashes as one
    if not rest or "/" in scheme or len(scheme) < 2:
        return LocalStorage(Path(path))
    if scheme == "file":
        return LocalStorage(Path("/", unquote(rest.lstrip("/"))))
    storage = RemoteStorage(f"{scheme}://{rest.strip('/')}", dict(options or {}))
    storage.filesystem()  # a package that is missing is found here, not in a worker
    return storage


class Storage(ABC):
    """Files by name, relative to the store, with ``/`` between folders. May be sent to other processes."""

    parallel: ClassVar[int] = 1
    """Checksums that are computed at a time."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """Small files by name; those that are not there are left out."""

    @abstractmethod
    def write_all(self, files: Iterable[tuple[str, bytes | memoryview]]) -> None:
        """Write files by name, each whole: when this returns all are on the disk; when it fails each is the old or the new one.

        Raises:
            StoreError: the disk is full, or the place cannot be written.
        """

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write one file, as :meth:`write_all` does."""
        self.write_all([(name, data)])

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file if it is there."""

    @abstractmethod
    def list(self, folder: str = "") -> dict[str, int]:
        """Bytes of every file below a folder by name; empty where there is no folder."""

    @abstractmethod
    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of the named files; those that are not there are left out."""

    @abstractmethod
    def checksum(self, name: str) -> str:
        """CRC-32C of a file as it is stored, hexadecimal.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def lock(self) -> Any:
        """Context manager that holds the store for one dump; its value is called to see that it is still held.

        Raises:
            StoreError: another process holds it, or the place cannot be written.
        """

    @abstractmethod
    def sweep(self) -> None:
        """Remove what killed writers left half written."""

    @abstractmethod
    def clear(self) -> None:
        """Remove everything."""

    @abstractmethod
    def zarr_store(self) -> Store:
        """For zarr, read-only."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self.sizes([name]))

    def checksums(self, names: Iterable[str]) -> Iterator[tuple[str, str | None]]:
        """Name and CRC-32C of files in the order given, None for one that is not there or cannot be read."""

        def one(name: str) -> tuple[str, str | None]:
            try:
                return name, self.checksum(name)
            except OSError:
                return name, None

        if self.parallel == 1:
            yield from map(one, names)
            return
        with ThreadPoolExecutor(self.parallel) as pool:
            yield from pool.map(one, names)


def crc32c(data: bytes | memoryview) -> str:
    """CRC-32C of bytes, hexadecimal."""
    return _crc32c([data])


def _crc32c(blocks: Iterable[bytes | memoryview]) -> str:
    value = 0
    for block in blocks:
        view = np.frombuffer(block, np.uint8)
        view.flags.writeable = False  # google_crc32c takes nothing else
        value = google_crc32c.extend(value, view)
    return f"{value:08x}"


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
            return _crc32c(iter(lambda: file.read(_BLOCK), b""))

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
                raise _is_held(self) from error
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


def _is_held(storage: Storage, by: str = "another process") -> StoreError:
    return StoreError(f"store {storage} is being written by {by}; wait for it or stop it")


def _make_folders(folder: str) -> set[str]:
    """Create a folder; the folders that have a new entry since."""
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


@dataclass(frozen=True)
class RemoteStorage(Storage):
    """A prefix of an object store. One PUT replaces an object whole, so nothing is renamed; the lock is a lease."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    parallel: ClassVar[int] = 8

    def __str__(self) -> str:
        return self.url

    def filesystem(self) -> tuple[Any, str]:
        """The fsspec file system and the store's path in it; fsspec keeps one per process."""
        try:
            from fsspec.core import url_to_fs

            # other processes write too, so listings are not to be remembered
            return url_to_fs(self.url, use_listings_cache=False, **self.options)
        except ImportError as error:
            scheme = self.url.split("://")[0]
            needed = "fd3d[s3]" if scheme in ("s3", "s3a") else f"fsspec and its package for {scheme}"
            raise StoreError(f"store {self.url} needs {needed}: {error}; install it with pip") from error
        except (ValueError, TypeError) as error:
            raise StoreError(f"store {self.url} is not understood: {error}; give a path or a URL of fsspec") from error

    @contextmanager
    def _requests(self, verb: str) -> Iterator[tuple[Any, str]]:
        """File system and root; what a request meets becomes one line, since each cloud's library has its own errors."""
        try:
            yield self.filesystem()
        except (FileNotFoundError, FileExistsError, StoreError):
            raise
        except Exception as error:
            raise StoreError(
                f"store {self} cannot be {verb}: {_first_line(error)}; check URL and access, then run again"
            ) from error

    def read(self, name: str) -> bytes:
        with self._requests("read") as (fs, root):
            return fs.cat_file(f"{root}/{name}")

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        with self._requests("read") as (fs, root):
            paths = {f"{root}/{name}": name for name in names}
            found = fs.cat(list(paths), on_error="return") if paths else {}
            failed = [e for e in found.values() if isinstance(e, Exception) and not isinstance(e, FileNotFoundError)]
            if failed:
                raise failed[0]
        return {name: found[path] for path, name in paths.items() if isinstance(found[path], bytes)}

    def write_all(self, files: Iterable[tuple[str, bytes | memoryview]]) -> None:
        for name, data in files:
            with self._requests("written") as (fs, root):
                fs.pipe_file(f"{root}/{name}", bytes(data))

    def create(self, name: str, data: bytes) -> None:
        """Write an object that is not there.

        Raises:
            FileExistsError: it is.
        """
        with self._requests("written") as (fs, root):
            try:
                fs.pipe_file(f"{root}/{name}", data, mode="create")
            except OSError as error:
                # s3fs passes on S3's refusal of a conditional PUT as it comes
                if "PreconditionFailed" in repr(error) or "pre-conditions" in str(error):
                    raise FileExistsError(name) from error
                raise

    def delete(self, name: str) -> None:
        with self._requests("written") as (fs, root), suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{name}")

    def list(self, folder: str = "") -> dict[str, int]:
        with self._requests("read") as (fs, root):
            found = fs.find(f"{root}/{folder}".rstrip("/"), detail=True)
            return {path[len(root) + 1 :]: entry["size"] for path, entry in found.items()}

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        wanted = list(names)
        if len(wanted) > 1:  # one listing is a request per thousand objects
            found = self.list()
            return {name: found[name] for name in wanted if name in found}
        with self._requests("read") as (fs, root), suppress(FileNotFoundError):
            return {name: fs.info(f"{root}/{name}")["size"] for name in wanted}
        return {}

    def checksum(self, name: str) -> str:
        with self._requests("read") as (fs, root):
            path = f"{root}/{name}"
            size = fs.info(path)["size"]
            blocks = ((start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))
            return _crc32c(fs.cat_file(path, start=start, end=end) for start, end in blocks)

    @contextmanager
    def lock(self) -> Iterator[Callable[[], None]]:
        lease = _Lease(self)
        try:
            yield lease.check
        finally:
            lease.release()

    def sweep(self) -> None:
        """Nothing: an object that was not sent whole is not there."""

    def clear(self) -> None:
        with self._requests("written") as (fs, root), suppress(FileNotFoundError):
            fs.rm(root, recursive=True)

    def zarr_store(self) -> Store:
        return zarr.storage.FsspecStore.from_url(
            self.url, {"use_listings_cache": False, **self.options}, read_only=True
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


class _Lease:
    """A lock object that its owner rewrites every sixth of ``LEASE_SECONDS``.

    It is created only where none is (a conditional PUT on S3 and Google Cloud Storage). One that is there is watched: when
    it changes its owner lives and this dump is refused, when it does not for ``LEASE_SECONDS`` it is taken over. No
    clocks are compared.
    """

    def __init__(self, storage: RemoteStorage) -> None:
        self.storage, self.beat = storage, LEASE_SECONDS / 6
        self.owner = f"process {os.getpid()} on {os.uname().nodename}"
        self.secret = uuid.uuid4().hex
        self.held, self.number = True, 0
        self._acquire()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="fd3d-lease", daemon=True)
        self._thread.start()

    def _content(self) -> bytes:
        self.number += 1
        return f"{self.secret} {self.number} {self.owner}".encode()

    def _read(self) -> bytes | None:
        try:
            return self.storage.read(LOCK)
        except FileNotFoundError:
            return None

    def _acquire(self) -> None:
        with suppress(FileExistsError):
            self.storage.create(LOCK, self._content())
            return
        seen, since = self._read(), time.monotonic()
        while time.monotonic() - since < LEASE_SECONDS:
            time.sleep(self.beat / 2)
            now = self._read()
            if now is None:
                return self._acquire()
            if now != seen:
                raise _is_held(self.storage, now.decode().split(" ", 2)[2])
        self.storage.write(LOCK, self._content())
        time.sleep(self.beat)  # of several that take over at once the last to write has it
        if not self._mine():
            raise _is_held(self.storage)

    def _mine(self) -> bool:
        return (self._read() or b"").startswith(self.secret.encode())

    def _renew(self) -> None:
        while not self._stop.wait(self.beat):
            try:
                if not self._mine():
                    self.held = False
                    return
                self.storage.write(LOCK, self._content())
            except StoreError:  # the network may be back at the next beat; if not, another dump takes over
                continue

    def check(self) -> None:
        """Refuse to go on when another process has taken over."""
        if not self.held:
            raise StoreError(
                f"store {self.storage} was taken over by another process, since this one was silent for {LEASE_SECONDS:.0f} s; stop one of them"
            )

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        if self.held and self._mine():
            self.storage.delete(LOCK)
