"""A store's files in a local folder."""

import errno
import fcntl
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zarr.abc.store import Store

from ..checksum import checksums
from ..errors import StoreError, want_of_threads
from ..threads import start_zarr
from .base import BLOCK, LOCK, TEMPORARY, Storage, is_held
from .folders import left_as_found, make_folders, new_lock, sync, sync_folder, tidied
from .interrupted import close, repeated
from .lease import LEASE_SECONDS, Lease
from .listing import walked
from .own import FOLDERS, LEASE, MANIFEST, RECIPE, is_temporary
from .regular import irregular, open_regular, parts, regular
from .trouble import ABSENT, FULL, UNSUPPORTED, trouble, unwritable_lock
from .writable import check_folders
from .zarr_folder import FolderStore

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN)
_NO_LOCKS = (*UNSUPPORTED, errno.ENOLCK)


@dataclass(frozen=True)
class LocalStorage(Storage):
    """A folder. Files are written below ``.tmp`` and renamed into place; the lock is the operating system's.

    Attributes:
        path: the folder, absolute, so that a process may change its working folder.
        shown: the folder as it was given, for messages.
    """

    path: Path
    shown: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shown", self.shown or str(self.path))
        # what .. leads out of may not be there, and is not to be made
        path = Path(os.path.realpath(self.path)) if ".." in self.path.parts else self.path.absolute()
        object.__setattr__(self, "path", path)

    def __str__(self) -> str:
        return self.shown

    def trouble(self, verb: str, error: Exception) -> StoreError:
        if (told := want_of_threads(error)) is not None:
            return told
        if not isinstance(error, OSError):
            return StoreError(f"store {self} cannot be {verb}: {str(error) or type(error).__name__}; run again")
        free = None
        if error.errno in FULL:
            place = next((folder for folder in (self.path, *self.path.parents) if os.path.exists(folder)), self.path)
            with suppress(OSError):
                free = shutil.disk_usage(place).free / 1e6
        return trouble(self, verb, error, free)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Files that are absent are told by FileNotFoundError, all other errors by name."""
        try:
            yield
        except ABSENT as error:
            raise FileNotFoundError(error.errno, error.strerror, error.filename) from error
        except OSError as error:
            raise self.trouble("read", error) from error

    def read(self, name: str) -> bytes:
        with self._reading():
            return repeated(self._read, f"{self.path}/{name}")

    def _read(self, place: str) -> bytes:
        with regular(place) as descriptor:
            return b"".join(parts(descriptor, os.fstat(descriptor).st_size + 1))

    def read_many(self, names: Iterable[str]) -> dict[str, bytes]:
        found = {}
        for name in names:
            with suppress(FileNotFoundError):
                found[name] = self.read(name)
        return found

    @property
    def beat(self) -> float:
        return LEASE_SECONDS / 6

    def write_all(
        self, files: Iterable[tuple[str, bytes | memoryview]], check: Callable[[], None] = lambda: None
    ) -> None:
        temporary: dict[str, str] = {}  # by the file's own path
        try:
            gained = make_folders(f"{self.path}/{TEMPORARY}")
            with ExitStack() as opened:
                descriptors = []
                for name, data in files:
                    descriptor, place = tempfile.mkstemp(dir=f"{self.path}/{TEMPORARY}")
                    temporary[f"{self.path}/{name}"] = place
                    opened.callback(close, descriptor)
                    rest = memoryview(data).cast("B")
                    while rest:
                        rest = rest[os.write(descriptor, rest) :]
                    with suppress(PermissionError):  # file systems without owners refuse it
                        os.fchmod(descriptor, 0o644)
                    descriptors.append(descriptor)
                # one after the other: a file system that keeps a journal writes all at the first
                for descriptor in descriptors:
                    sync(descriptor)
            for target in temporary:
                folder = os.path.dirname(target)
                gained |= make_folders(folder) | {folder}
            for target in list(temporary):
                check()
                repeated(os.replace, temporary[target], target)
                del temporary[target]
            # a file is safe when the entries that lead to it are
            for folder in sorted(gained):
                sync_folder(folder)
        except OSError as error:
            raise self.trouble("written", error) from error
        finally:
            for place in temporary.values():
                with suppress(OSError):
                    repeated(os.unlink, place)

    def create(self, name: str, data: bytes) -> None:
        """Write a new file.

        Raises:
            FileExistsError: there is a file of this name.
        """
        try:
            descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
            except OSError:
                with suppress(OSError):
                    repeated(os.unlink, f"{self.path}/{name}")
                raise
        except FileExistsError:
            raise
        except OSError as error:
            raise self.trouble("written", error) from error

    def delete(self, name: str) -> None:
        try:
            repeated(os.unlink, f"{self.path}/{name}")
            sync_folder(os.path.dirname(f"{self.path}/{name}"))
        except ABSENT:
            return
        except OSError as error:
            raise self.trouble("written", error) from error

    def delete_all(self, names: Iterable[str]) -> None:
        folders = set()
        try:
            for name in names:
                with suppress(*ABSENT):
                    repeated(os.unlink, f"{self.path}/{name}")
                folders |= {parent for parent in Path(name).parents if parent != Path(".")}
            # a folder with other files, a mount or a link to a folder stays
            for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
                with suppress(OSError):
                    repeated(os.rmdir, f"{self.path}/{folder}")
            sync_folder(str(self.path))
        except OSError as error:
            raise self.trouble("written", error) from error

    def list(self, folder: str = "") -> dict[str, int]:
        try:
            return repeated(lambda: dict(walked(self.path, self.path / folder)))
        except OSError as error:
            raise self.trouble("read", error) from error

    def first(self, wanted: Callable[[str], bool]) -> str | None:
        def look() -> str | None:
            return next((name for name, _ in walked(self.path) if wanted(name)), None)

        try:
            return repeated(look)
        except OSError as error:
            raise self.trouble("read", error) from error

    def sizes(self, names: Iterable[str]) -> dict[str, int]:
        found = {}
        for name in names:
            with suppress(FileNotFoundError), self._reading():
                facts = repeated(os.stat, f"{self.path}/{name}")
                if not stat.S_ISREG(facts.st_mode):
                    raise irregular(f"{self.path}/{name}")
                found[name] = facts.st_size
        return found

    def stamp(self, name: str) -> Any:
        try:
            file = repeated(os.stat, f"{self.path}/{name}")
        except ABSENT:
            return None
        except OSError as error:
            raise self.trouble("read", error) from error
        return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns

    def checksum(self, name: str) -> dict[str, str]:
        def read() -> dict[str, str]:
            with regular(f"{self.path}/{name}") as descriptor:
                return checksums(parts(descriptor, BLOCK))

        with self._reading():
            return repeated(read)

    @contextmanager
    def lock(self) -> Iterator[Callable[[], None]]:
        place = f"{self.path}/{LOCK}"
        with ExitStack() as after:
            try:
                after.enter_context(left_as_found(str(self.path)))
                file, tidy = self._open_lock(place, after)
            except PermissionError as error:
                told = unwritable_lock(self, error) if error.filename == place else self.trouble("written", error)
                raise told from error
            except OSError as error:
                raise self.trouble("written", error) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                while not self._is_same(file):  # a refused command took its lock away meanwhile
                    file, tidy = self._open_lock(place, after)
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in _HELD:
                    raise is_held(self, shared=place if os.fstat(file).st_nlink > 1 else None) from error
                if error.errno not in _NO_LOCKS:
                    raise self.trouble("locked", error) from error
                after.callback(tidy)
                yield from self._leased()
                return
            after.callback(tidy)  # while the lock is held
            yield lambda: self._check_same(file)

    def _open_lock(self, place: str, after: ExitStack) -> tuple[int, Callable[[], None]]:
        """The lock's descriptor, closed at the end, and what is called before that, which removes a lock that was made here."""
        file, tidy = self._made_or_opened(place)

        def closed() -> None:
            with suppress(OSError):  # nothing was written to it
                close(file)

        after.callback(closed)
        return file, tidy

    def _made_or_opened(self, place: str, attempts: int = 100) -> tuple[int, Callable[[], None]]:
        with suppress(FileNotFoundError):
            make_folders(str(self.path))
            self._check_links()
            if (made := new_lock(place)) is not None:
                return made, tidied(str(self.path), LOCK)
        try:
            return open_regular(place, os.O_WRONLY), lambda: None
        except FileNotFoundError:
            if os.path.islink(place) or not attempts:
                raise
        return self._made_or_opened(place, attempts - 1)  # a refused command took lock or folders away in between

    def _check_links(self) -> None:
        """Refuse to write through a link into another store.

        Raises:
            StoreError: naming link and store.
        """
        own = os.path.realpath(self.path)
        for folder in FOLDERS:
            target = os.path.realpath(f"{self.path}/{folder}")
            if not os.path.islink(f"{self.path}/{folder}"):
                continue
            for place in (target, *map(str, Path(target).parents)):
                if place != own and any(os.path.exists(f"{place}/{name}") for name in (RECIPE, MANIFEST)):
                    raise StoreError(
                        f"{folder} of store {self} is a link into the store {place}; remove the link and run again"
                    )

    def _leased(self) -> Iterator[Callable[[], None]]:
        """The lock of a file system that has none."""
        warnings.warn(
            f"the file system of store {self} has no locks; a file {LEASE} that this dump rewrites takes their place, and a "
            f"dump after a kill waits {LEASE_SECONDS:.0f} s",
            stacklevel=2,
        )
        lease = Lease(self, LEASE, LEASE_SECONDS)
        try:
            yield lease.check
        finally:
            lease.release()

    def _check_same(self, descriptor: int) -> None:
        """Refuse to go on when the folder was deleted or replaced, and the lock with it."""
        try:
            same = self._is_same(descriptor)
        except OSError as error:
            raise self.trouble("written", error) from error
        if not same:
            raise StoreError(f"store {self} was deleted or moved while this dump was writing it; run the dump again")

    def _is_same(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), repeated(os.stat, f"{self.path}/{LOCK}"))
        except ABSENT:
            return False

    def is_being_written(self) -> bool:
        with suppress(OSError, StoreError), regular(f"{self.path}/{LOCK}") as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                return error.errno in _HELD
        return False

    def check_writable(self) -> None:
        try:
            found = self.read_many([RECIPE])
            if RECIPE not in found:
                found = self.read_many([MANIFEST])
            check_folders(self, str(self.path), found)
        except OSError as error:
            raise self.trouble("written", error) from error

    def sweep(self) -> None:
        with suppress(OSError):  # nothing is wrong with a store that has such files
            for name in os.listdir(self.path / TEMPORARY):
                if is_temporary(f"{TEMPORARY}/{name}"):
                    repeated(os.unlink, f"{self.path}/{TEMPORARY}/{name}")
            os.rmdir(self.path / TEMPORARY)

    def zarr_store(self) -> Store:
        start_zarr()
        return FolderStore(self.path, read_only=True)
