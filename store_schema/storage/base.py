"""The interface of a storage: files of a store by name.

Every write goes through :meth:`Storage.write_all`, which leaves a file either whole or absent.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import ClassVar

from zarr.abc.store import Store

from ..errors import StoreError

LOCK = ".lock"
TEMPORARY = ".tmp"
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

    @abstractmethod
    def write_all(self, files: Iterable[tuple[str, bytes | memoryview]]) -> None:
        """Write files by name, each whole: on an error each file is the old or the new one.

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
    def list(self, folder: str = "") -> dict[str, int]:
        """Bytes of every file below a folder by name; empty where there is no folder."""

    @abstractmethod
    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        """Bytes of the named files; missing files are left out."""

    @abstractmethod
    def checksum(self, name: str) -> str:
        """CRC-32C of a file as it is stored, hexadecimal.

        Raises:
            FileNotFoundError: there is no such file.
        """

    @abstractmethod
    def lock(self) -> AbstractContextManager[Callable[[], None]]:
        """Context manager that holds the store for one dump; its value is a check, which raises when the store is lost.

        Raises:
            StoreError: another process holds the store, or the place cannot be written.
        """

    @abstractmethod
    def sweep(self) -> None:
        """Remove files that killed writers left half written."""

    @abstractmethod
    def clear(self) -> None:
        """Remove all files of the store."""

    @abstractmethod
    def zarr_store(self) -> Store:
        """The same files as a read-only store of zarr-python."""

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


def is_held(storage: Storage, by: str = "another process") -> StoreError:
    """The refusal of a store that another process holds."""
    return StoreError(f"store {storage} is being written by {by}; wait for it or stop it")
