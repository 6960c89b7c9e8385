"""The interface of a storage: files of a store by name.

Every write goes through :meth:`Storage.write_all`, which leaves a file either whole or absent.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

from zarr.abc.store import Store

from ..errors import StoreError
from ..layout import DONE
from .own import LEASE, LOCK, MANIFEST, RECIPE, TEMPORARY, is_foreign, is_record, own_files

__all__ = ["BLOCK", "LEASE", "LOCK", "MANIFEST", "RECIPE", "TEMPORARY", "Storage", "is_held"]

BLOCK = 1 << 24
"""Bytes that a checksum reads at a time."""


class Storage(ABC):
    """Files by name, relative to the store, with ``/`` between folders; a storage may be sent to other processes."""

    parallel: ClassVar[int] = 1
    """Number of checksums that are computed at a time."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: there is no such file.
        """

    @abstractmethod
    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        """Contents of small files by name; missing files are left out."""

    @property
    @abstractmethod
    def beat(self) -> float:
        """Seconds of silence after which an owner has to ask whether the store is still its own."""

    @abstractmethod
    def write_all(
        self, files: Iterable[tuple[str, bytes | memoryview]], check: Callable[[], None] = lambda: None
    ) -> None:
        """Write files by name, each whole: on an error each file is the old or the new one.

        Args:
            check: called before each file gets its name; an error of it is passed on.

        Raises:
            StoreError: the disk is full, or the place cannot be written.
        """

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Write one file, as :meth:`write_all` does."""
        self.write_all([(name, data)])

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file; a missing file is no error."""

    @abstractmethod
    def delete_all(self, names: Iterable[str]) -> None:
        """Remove files, in any order; on a disk also the folders that become empty."""

    @abstractmethod
    def list(self, folder: str = "") -> dict[str, int]:
        """Bytes of every file below a folder by name; empty where there is no folder."""

    def first(self, wanted: Callable[[str], bool]) -> str | None:
        """Name of some file that is wanted, by its name; not all files are listed if one of the first is."""
        return next((name for name in self.list() if wanted(name)), None)

    @abstractmethod
    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of the named files; missing files are left out."""

    @abstractmethod
    def stamp(self, name: str) -> Any:
        """What tells a file from one that was written later under the same name, without reading; None without a file."""

    @abstractmethod
    def checksum(self, name: str) -> dict[str, str]:
        """Checksums of a file as it is stored, see :func:`~store_schema.checksum.checksums`.

        Raises:
            FileNotFoundError: there is no such file.
        """

    @abstractmethod
    def lock(self) -> AbstractContextManager[Callable[[], None]]:
        """Context manager that holds the store for one dump; its value is a check, which raises when the store is lost.

        Raises:
            StoreError: another process holds the store, or the place cannot be written.
        """

    def is_being_written(self) -> bool:
        """Whether a dump on this machine certainly holds the store."""
        return False

    @abstractmethod
    def check_writable(self) -> None:
        """Refuse a store in which nothing could be written after long work; the caller holds the lock.

        Raises:
            StoreError: naming the folder.
        """

    @abstractmethod
    def sweep(self) -> None:
        """Remove files that killed writers left half written."""

    @property
    def lists(self) -> bool:
        """Whether the files that are there can be listed."""
        return True

    @property
    def is_root(self) -> bool:
        """Whether the store has a whole bucket for its folder."""
        return False

    def clear(self) -> None:
        """Remove the store, under its lock; files that are not the store's own stay.

        Raises:
            StoreError: the store is being written, is no store, or lies at a bucket's root.
        """
        self.check_clearable()
        if self.first(lambda name: True) is None:
            return
        with self.lock() as held:
            self.empty(held)
            held()
            if not is_foreign(self.read_many([RECIPE]).get(RECIPE, b"")):
                self.delete(RECIPE)

    def check_clearable(self) -> None:
        """Refuse to delete at the root of a bucket, where other data lie.

        Raises:
            StoreError: the store lies at a bucket's root.
        """
        if self.is_root:
            raise StoreError(
                f"store {self} is the root of a bucket, where nothing is deleted; dump to a folder of it, such as {self}/store"
            )

    def empty(self, held: Callable[[], None]) -> None:
        """Remove the store's own files but lock and recipe, the manifest first.

        Args:
            held: the check of the lock, which the caller holds.

        Raises:
            StoreError: there is no store, the store lies at a bucket's root, or another process took it over.
        """
        self.check_clearable()
        named = [RECIPE, MANIFEST, *self.list(DONE)]
        found = self.read_many(named)
        records = {name: data for name, data in found.items() if not is_foreign(data)}
        # what is damaged is the store's only beside a file that is recognisably a store's
        if not any(is_record(*file) for file in found.items()) and (
            foreign := self.first(lambda name: name not in (LOCK, LEASE))
        ):
            raise StoreError(f"{self} is no store (it has {foreign}); nothing is deleted")
        there = self.list()
        others = set(named) - records.keys()
        own = [name for name in own_files(there, records) if name not in others]
        held()
        if MANIFEST in own:
            self.delete(MANIFEST)
        held()
        markers = {name for name in own if name.startswith(f"{DONE}/")}
        self.delete_all(name for name in own if name != MANIFEST and name not in markers)
        held()
        self.delete_all(markers)  # last, so that a kill leaves no shards without them

    @abstractmethod
    def zarr_store(self) -> Store:
        """The same files as a read-only store of zarr-python."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self.sizes([name]))

    @abstractmethod
    def trouble(self, verb: str, error: Exception) -> StoreError:
        """The line for a call that failed though the store may be whole, such as one without permission.

        Args:
            verb: what the store cannot be, ``read`` or ``written``.
        """

    @contextmanager
    def named(self) -> Iterator[None]:
        """Tell errors of reading whole files through zarr-python by name.

        Raises:
            StoreError: in place of any other error.
        """
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            raise self.trouble("read", error) from error

    def checksums(self, names: Iterable[str]) -> Iterator[tuple[str, dict[str, str] | StoreError | None]]:
        """Name and checksums of files in the order given; None for one that is not there, the error for one that cannot be read."""

        def one(name: str) -> tuple[str, dict[str, str] | StoreError | None]:
            try:
                return name, self.checksum(name)
            except FileNotFoundError:
                return name, None
            except StoreError as error:
                return name, error

        if self.parallel == 1:
            yield from map(one, names)
            return
        with ThreadPoolExecutor(self.parallel) as pool:
            try:
                found = pool.map(one, names)
            except RuntimeError as error:
                raise self.trouble("read", error) from error
            yield from found


def is_held(storage: object, by: str = "another process", shared: str | None = None) -> StoreError:
    """The refusal of a store that another process holds.

    Args:
        shared: the lock, if it has other names: a store copied by hard links may share it, whose dumps hold this one too.
    """
    if shared is not None:
        return StoreError(
            f"store {storage} is being written by {by}, or a copy of it is: {shared} is a hard link (as of cp -l) that other stores may share; "
            "wait, or delete this link if no dump of this store runs"
        )
    return StoreError(f"store {storage} is being written by {by}; wait for it or stop it")
