"""What every storage of a store's files can do.

All that is written goes through :meth:`Storage.write_all`, which leaves a file either whole or not there.
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
    def lock(self) -> AbstractContextManager[Callable[[], None]]:
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


def is_held(storage: Storage, by: str = "another process") -> StoreError:
    """The refusal of a store that another process holds."""
    return StoreError(f"store {storage} is being written by {by}; wait for it or stop it")
