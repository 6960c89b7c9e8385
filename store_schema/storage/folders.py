"""Folders of a local store, and flushing what was written to the disk."""

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


@contextmanager
def left_as_found(folder: str, lock: str) -> Iterator[Callable[[], None]]:
    """Remove at the end the folders that were made meanwhile and are empty, so that a refused command leaves nothing.

    The context's value, called by the owner of ``lock``, removes that file too, if there was none before and nothing else was put into the folder.
    """
    parents, made = folder, []
    while not os.path.lexists(parents):
        made.append(parents)
        parents = os.path.dirname(parents)
    before: set[str] | None = set() if made else None
    if not made and not os.path.lexists(f"{folder}/{lock}"):
        with suppress(OSError):  # a folder that may be written to but not read
            before = set(os.listdir(folder))

    def tidy() -> None:
        with suppress(OSError):
            if before is None or (new := set(os.listdir(folder)) - before) - {lock, TEMPORARY}:
                return
            if TEMPORARY in new:  # of a lease
                os.rmdir(f"{folder}/{TEMPORARY}")
            os.unlink(f"{folder}/{lock}")

    try:
        yield tidy
    finally:
        with suppress(OSError):
            for place in made:
                os.rmdir(place)
