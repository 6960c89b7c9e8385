"""Folders of a local store, and flushing what was written to the disk."""

import os
import stat

from .interrupted import close, repeated
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
