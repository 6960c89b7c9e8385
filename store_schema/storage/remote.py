"""A store's files in an object store that fsspec knows."""

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import zarr
from zarr.abc.store import Store

from ..checksum import crc32c_text
from ..errors import StoreError
from .base import BLOCK, LOCK, Storage, is_held

LEASE_SECONDS = 30.0
"""A remote lock that did not change for so long belongs to a dead process."""


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
            filesystem, root = url_to_fs(self.url, use_listings_cache=False, **self.options)
            return filesystem, root
        except ImportError as error:
            scheme = self.url.split("://")[0]
            needed = "fd3d[s3]" if scheme in ("s3", "s3a") else f"fsspec and its package for {scheme}"
            raise StoreError(f"store {self.url} needs {needed}: {error}; install it with pip") from error
        except (ValueError, TypeError) as error:
            raise StoreError(f"store {self.url} is not understood: {error}; give a path or a URL of fsspec") from error

    @contextmanager
    def _requests(self, verb: str) -> Iterator[tuple[Any, str]]:
        """File system and root; an error of a request becomes one line: each cloud's library has its own errors."""
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
            content: bytes = fs.cat_file(f"{root}/{name}")
            return content

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
        """Write a new object.

        Raises:
            FileExistsError: there is an object of this name.
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
            blocks = ((start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))
            return crc32c_text(fs.cat_file(path, start=start, end=end) for start, end in blocks)

    @contextmanager
    def lock(self) -> Iterator[Callable[[], None]]:
        lease = _Lease(self)
        try:
            yield lease.check
        finally:
            lease.release()

    def sweep(self) -> None:
        """Do nothing: an object that was not sent whole does not exist."""

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

    The object is created only where there is none (a conditional PUT on S3 and Google Cloud Storage). An object of
    another owner is watched: a change means that its owner lives, and this dump is refused; no change for
    ``LEASE_SECONDS`` means that its owner is dead, and the lock is taken over. No clocks are compared.
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
                raise is_held(self.storage, now.decode().split(" ", 2)[2])
        self.storage.write(LOCK, self._content())
        time.sleep(self.beat)  # of several that take over at once the last to write has it
        if not self._mine():
            raise is_held(self.storage)

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
