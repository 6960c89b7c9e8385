"""A store's files in an object store that fsspec knows."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import zarr
from zarr.abc.store import Store

from ..checksum import checksums
from ..errors import StoreError, check_threads, want_of_threads
from ..threads import start_zarr
from .base import BLOCK, LOCK, Storage
from .lease import LEASE_SECONDS, Lease

ANSWER = 30
"""Seconds within which a server must answer the first request, and half of the seconds within which further bytes of a web server must come."""
_FIRST = 100  # objects that are looked at before all are listed
_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "ossfs", "obs", "b2", "r2", "tos")
"""Schemes of which the first part of a path is a bucket."""


@dataclass(frozen=True)
class RemoteStorage(Storage):
    """A prefix of an object store. One PUT replaces an object whole, so nothing is renamed; the lock is a lease."""

    url: str
    options: dict[str, Any] = field(default_factory=dict)
    parallel: ClassVar[int] = 8

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_kept"}

    def filesystem(self) -> tuple[Any, str]:
        """The fsspec file system and the store's path in it; fsspec keeps one per process, and archives are kept here."""
        kept = self.__dict__.get("_kept")
        if kept is not None and kept[0] == os.getpid():  # forked processes would move each other's place in the file
            return kept[1], kept[2]
        try:
            from fsspec.core import url_to_fs

            # other processes write too, so listings are not to be remembered
            filesystem, root = url_to_fs(self.url, **self._arguments())
            if not filesystem.cachable:  # an archive, which would be opened again for each request
                object.__setattr__(self, "_kept", (os.getpid(), filesystem, root))
            return filesystem, root
        except ImportError as error:
            scheme = self.url.split("://")[0]
            needed = "fd3d[s3]" if scheme in ("s3", "s3a") else f"fsspec and its package for {scheme}"
            raise StoreError(f"store {self.url} needs {needed}: {error}; install it with pip") from error
        except RuntimeError as error:
            # fsspec, too, would wait for ever for a thread that was not started
            from fsspec.asyn import reset_after_fork

            reset_after_fork()
            check_threads(error)
            raise
        except (ValueError, TypeError) as error:
            raise StoreError(f"store {self.url} is not understood: {error}; give a path or a URL of fsspec") from error
        except Exception as error:
            if "::" not in self.url:
                raise
            raise self.trouble("read", error) from error  # an archive, which is opened here

    def _arguments(self) -> dict[str, Any]:
        """Arguments of the file system; fsspec gives a file of a web server five minutes, however large, and as long to a silent server."""
        given = {"use_listings_cache": False, **self.options}
        if self._is_http and "::" not in self.url:
            from aiohttp import ClientTimeout

            limits = ClientTimeout(total=None, sock_connect=ANSWER, sock_read=2 * ANSWER)
            given["client_kwargs"] = {"timeout": limits, **given.get("client_kwargs", {})}
        return given

    @contextmanager
    def _requests(self, verb: str) -> Iterator[tuple[Any, str]]:
        """File system and root; an error of a request becomes one line: each cloud's library has its own errors."""
        try:
            yield self.filesystem()
        except (FileExistsError, StoreError):
            raise
        except FileNotFoundError as error:
            if verb == "read":
                raise
            raise StoreError(
                f"store {self} cannot be {verb}: its bucket is not there; create it or mend the URL"
            ) from error
        except Exception as error:
            raise self.trouble(verb, error) from error

    def trouble(self, verb: str, error: Exception) -> StoreError:
        if (told := want_of_threads(error)) is not None:
            return told
        return StoreError(f"store {self} cannot be {verb}: {_first_line(error)}; check URL and access, then run again")

    @property
    def _is_http(self) -> bool:
        return self.url.split("://")[0].split("::")[-1] in ("http", "https")

    @property
    def lists(self) -> bool:
        return not self._is_http  # of some servers fsspec reads the page of links

    @property
    def is_root(self) -> bool:
        scheme = self.url.split("://")[0].split("::")[-1]
        root = self.filesystem()[1].strip("/")
        return not root or (scheme in _BUCKETS and "/" not in root)

    def read(self, name: str) -> bytes:
        with self._requests("read") as (fs, root):
            content: bytes = fs.cat_file(f"{root}/{name}")
            return content

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        with self._requests("read") as (fs, root):
            paths = {f"{root}/{name}": name for name in names}
            found = fs.cat(list(paths), on_error="return") if paths else {}
            found = {
                path.lstrip("/"): data for path, data in found.items()
            }  # some file systems leave out the root's slash
            failed = [e for e in found.values() if isinstance(e, Exception) and not isinstance(e, FileNotFoundError)]
            if failed:
                raise failed[0]
        return {name: data for path, name in paths.items() if isinstance(data := found.get(path.lstrip("/")), bytes)}

    @property
    def beat(self) -> float:
        return LEASE_SECONDS / 6

    def write_all(
        self, files: Iterable[tuple[str, bytes | memoryview]], check: Callable[[], None] = lambda: None
    ) -> None:
        for name, data in files:
            check()
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

    def delete_all(self, names: Iterable[str]) -> None:
        with self._requests("written") as (fs, root), suppress(FileNotFoundError):
            if paths := [f"{root}/{name}" for name in names]:
                fs.rm(paths)

    def list(self, folder: str = "") -> dict[str, int]:
        with self._requests("read") as (fs, root), suppress(FileNotFoundError):  # no such bucket
            found = fs.find(f"{root}/{folder}".rstrip("/"), detail=True)
            # a prefix is not always ended at a slash; an archive's root is empty
            start = f"{root}/".lstrip("/")
            inside = {path.lstrip("/"): entry for path, entry in found.items() if path.lstrip("/").startswith(start)}
            return {path.removeprefix(start): entry["size"] for path, entry in inside.items()}
        return {}

    def first(self, wanted: Callable[[str], bool]) -> str | None:
        with self._requests("read") as (fs, root), suppress(FileNotFoundError):
            if hasattr(fs, "_lsdir") and "s3" in fs.protocol:  # one request; other file systems have no call for it
                from fsspec.asyn import sync

                found = sync(fs.loop, fs._lsdir, root, max_items=_FIRST, delimiter="")
                names = [entry["name"].removeprefix(f"{root}/") for entry in found]
                if (name := next(filter(wanted, names), None)) is not None or len(names) < _FIRST:
                    return name
        return super().first(wanted)

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        wanted = list(names)
        if len(wanted) > 1:  # one listing is a request per thousand objects
            found = self.list()
            return {name: found[name] for name in wanted if name in found}
        with self._requests("read") as (fs, root), suppress(FileNotFoundError):
            return {name: _info(fs, f"{root}/{name}")["size"] for name in wanted}
        return {}

    def stamp(self, name: str) -> Any:
        with self._requests("read") as (fs, root), suppress(FileNotFoundError):
            if not self._is_http:
                return fs.ukey(f"{root}/{name}")
            facts = fs.info(f"{root}/{name}")
            told = [facts.get(key) for key in ("ETag", "Last-Modified")]
            return (*told, facts["size"]) if any(told) else self.checksum(name)
        return None

    def checksum(self, name: str) -> dict[str, str]:
        with self._requests("read") as (fs, root):
            path = f"{root}/{name}"
            size = None if self._is_http else fs.info(path)["size"]
            if size is None:
                return checksums([fs.cat_file(path)])
            blocks = ((start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))
            return checksums(fs.cat_file(path, start=start, end=end) for start, end in blocks)

    @contextmanager
    def lock(self) -> Iterator[Callable[[], None]]:
        if self._is_http:
            raise StoreError(
                f"store {self} can only be read, since HTTP has no way to write; dump to a folder or an object store, and serve that"
            )
        self.exists(LOCK)  # which is not waited for long where nothing answers
        lease = Lease(self, LOCK, LEASE_SECONDS)
        try:
            yield lease.check
        finally:
            lease.release()

    def check_writable(self) -> None:
        """Do nothing: the lease has been written."""

    def sweep(self) -> None:
        """Do nothing: an object that was not sent whole does not exist."""

    def zarr_store(self) -> Store:
        start_zarr()
        return zarr.storage.FsspecStore.from_url(self.url, self._arguments(), read_only=True)


def _info(fs: Any, path: str) -> dict[str, Any]:
    """Facts of an object: the first request to a server, so it is not tried again and again for minutes.

    Raises:
        TimeoutError: the server did not answer in time.
    """
    from fsspec.asyn import AsyncFileSystem, sync

    if not isinstance(fs, AsyncFileSystem) or not fs.async_impl:
        found: dict[str, Any] = fs.info(path)
        return found
    try:
        found = sync(fs.loop, fs._info, path, timeout=ANSWER)
    except TimeoutError as error:
        client = getattr(getattr(fs, "_s3", None), "meta", None)
        where = getattr(client, "endpoint_url", None) or "its server"
        raise TimeoutError(f"{where} did not answer within {ANSWER} s") from error
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
