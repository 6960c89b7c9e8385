"""Folders of a local store, and flushing what was written to the disk."""

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from .interrupted import close, repeated
from .own import TEMPORARY
from .trouble import ABSENT, UNSUPPORTED


def make_folders(folder: str) -> set[str]:
    """Create a folder with its parents; returns the folders that have a new entry."""
    if _is_folder(folder):
        return set()
    parent = os.path.dirname(folder) or "."
    gained = make_folders(parent)
    try:
        repeated(os.mkdir, folder)
    except FileExistsError:
        if not _is_folder(folder):
            raise
    return gained | {parent}


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(repeated(os.stat, path).st_mode)
    except ABSENT:
        return False


def sync(descriptor: int) -> None:
    """Flush a file or folder to the disk, where the file system can do that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(path: str) -> None:
    """Flush a folder's entries to the disk; a folder that may be written to but not read is left to the system."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        sync(descriptor)
    finally:
        close(descriptor)


def new_lock(place: str) -> int | None:
    """Descriptor of a new file that is locked before it has its name, so that of several commands the one that made it holds it.

    Where the file system has no files without names, or no locks, the file is not locked yet.

    Returns:
        None where there is something of this name, such as a link that leads nowhere.

    Raises:
        OSError: no file can be made.
    """
    folder, name = os.path.split(place)
    opened = []
    try:
        opened.append(os.open(folder, os.O_PATH | os.O_DIRECTORY))
        opened.append(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o644))
        fcntl.flock(opened[1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.link(f"/proc/self/fd/{opened[1]}", name, dst_dir_fd=opened[0], follow_symlinks=True)
        return opened.pop()
    except FileExistsError:
        return None
    except (OSError, AttributeError):  # the second: another system than Linux
        with suppress(FileExistsError):
            return os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        return None
    finally:
        for descriptor in opened:
            close(descriptor)


def tidied(folder: str, lock: str) -> Callable[[], None]:
    """What its owner calls to remove a lock that was just made, if nothing else is put into the folder meanwhile."""
    before = None
    with suppress(OSError):  # a folder that may be written to but not read
        before = set(os.listdir(folder)) - {lock}

    def tidy() -> None:
        with suppress(OSError):
            if before is None or (new := set(os.listdir(folder)) - before) - {lock, TEMPORARY}:
                return
            if TEMPORARY in new:  # of a lease
                os.rmdir(f"{folder}/{TEMPORARY}")
            os.unlink(f"{folder}/{lock}")

    return tidy


@contextmanager
def left_as_found(folder: str) -> Iterator[None]:
    """Remove at the end the folders that were made meanwhile and are empty, so that a refused command leaves nothing."""
    parents, made = folder, []
    while not os.path.lexists(parents):
        made.append(parents)
        parents = os.path.dirname(parents)
    try:
        yield
    finally:
        with suppress(OSError):
            for place in made:
                os.rmdir(place)
