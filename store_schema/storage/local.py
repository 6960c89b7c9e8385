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
from ..errors import StoreError
from .base import BLOCK, LOCK, TEMPORARY, Storage, is_held
from .folders import left_as_found, make_folders, sync, sync_folder
from .interrupted import close, repeated
from .lease import LEASE_SECONDS, Lease
from .own import FOLDERS, LEASE, MANIFEST, RECIPE, is_temporary
from .regular import irregular, open_regular, parts, regular
from .trouble import ABSENT, FULL, UNSUPPORTED, trouble, unwritable_lock
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
        object.__setattr__(self, "path", self.path.absolute())

    def __str__(self) -> str:
        return self.shown

    def trouble(self, verb: str, error: Exception) -> StoreError:
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

    def write_all(self, files: Iterable[tuple[str, bytes | memoryview]]) -> None:
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
            return repeated(self._list, self.path / folder)
        except OSError as error:
            raise self.trouble("read", error) from error

    def _list(self, top: Path) -> dict[str, int]:
        found: dict[str, int] = {}

        def failed(error: OSError) -> None:
            if not isinstance(error, ABSENT):
                raise error

        seen = set()
        for place, folders, names in os.walk(top, onerror=failed, followlinks=True):
            if Path(place) == self.path:
                if odd := [name for name in (RECIPE, MANIFEST, LOCK) if name in folders]:
                    raise irregular(f"{self.path}/{odd[0]}")
                # what a link of another name leads to may be a whole disk
                for folder in [name for name in folders if name not in FOLDERS and os.path.islink(f"{place}/{name}")]:
                    folders.remove(folder)
                    found[folder] = 0
            with _unless_gone():
                here = os.stat(place)
                if (here.st_dev, here.st_ino) in seen:  # links in a ring
                    folders.clear()
                    continue
                seen.add((here.st_dev, here.st_ino))
            for name in names:
                file = Path(place, name)
                with _unless_gone():
                    found[file.relative_to(self.path).as_posix()] = file.stat().st_size
        return found

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
                tidy = after.enter_context(left_as_found(str(self.path), LOCK))
                file = self._open_lock(place, after)
            except PermissionError as error:
                told = unwritable_lock(self, error) if error.filename == place else self.trouble("written", error)
                raise told from error
            except OSError as error:
                raise self.trouble("written", error) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not self._is_same(file):  # a refused command took its lock away meanwhile
                    file = self._open_lock(place, after)
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

    def _open_lock(self, place: str, after: ExitStack) -> int:
        make_folders(str(self.path))
        self._check_links()
        file = open_regular(place, os.O_WRONLY | os.O_CREAT)

        def closed() -> None:
            with suppress(OSError):  # nothing was written to it
                close(file)

        after.callback(closed)
        return file

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

    def check_writable(self) -> None:
        try:
            for folder in (self.path, *(self.path / name for name in FOLDERS)):
                if os.path.isdir(folder):
                    with tempfile.TemporaryFile(dir=folder):
                        pass
        except OSError as error:
            raise self.trouble("written", error) from error

    def sweep(self) -> None:
        with suppress(OSError):  # nothing is wrong with a store that has such files
            for name in os.listdir(self.path / TEMPORARY):
                if is_temporary(f"{TEMPORARY}/{name}"):
                    repeated(os.unlink, f"{self.path}/{TEMPORARY}/{name}")
            os.rmdir(self.path / TEMPORARY)

    def zarr_store(self) -> Store:
        return FolderStore(self.path, read_only=True)


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Leave out a file that is gone meanwhile, and a link that leads nowhere or in a ring."""
    try:
        yield
    except ABSENT:
        return
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
