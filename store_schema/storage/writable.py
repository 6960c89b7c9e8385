"""Whether all folders of a local store can be written: found out before long work, and before anything is deleted."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping

from ..errors import StoreError
from .interrupted import repeated
from .own import FOLDERS, own_folders
from .trouble import ABSENT

_EFFECTIVE = os.access in os.supports_effective_ids


def check_folders(storage: object, top: str, records: Mapping[str, bytes]) -> None:
    """Refuse a store of which a folder cannot be written, is a file, or lies on another disk, where no rename leads.

    Args:
        storage: for messages.
        top: folder of the store.
        records: recipe or manifest by name, which tell what deeper folders are the store's.

    Raises:
        StoreError: naming the folder on another disk.
        OSError: of the folder that cannot be written.
    """
    for folder in (top, *(f"{top}/{name}" for name in FOLDERS)):
        if os.path.isdir(folder):
            repeated(_try_file, folder)
    if not os.path.isdir(top):
        return
    disk, names = repeated(os.stat, top).st_dev, own_folders(records)
    for name in _folders(top, *names):
        place = f"{top}/{name}"
        if repeated(os.stat, place).st_dev != disk:
            raise StoreError(
                f"folder {name} of store {storage} lies on another disk than the store, and files cannot be renamed from one disk to another; "
                "move the whole store to that disk (its folder may be a link), or choose another folder"
            )
        if not os.access(place, os.W_OK | os.X_OK, effective_ids=_EFFECTIVE):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place)


def _folders(top: str, known: set[str], is_shards: Callable[[str], bool]) -> Iterator[str]:
    """Names of the store's folders that are there, parents first; those of other owners are not looked into."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        try:
            found = repeated(_entries, f"{top}/{folder}")
        except ABSENT:
            continue
        except PermissionError:
            if folder:  # the top may be one that may be written to but not read
                raise
            continue
        for entry in found:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if name not in known and not is_shards(name):
                continue
            if repeated(entry.is_dir):
                waiting.append(name)
                yield name
            elif name in known:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), f"{top}/{name}")


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _try_file(folder: str) -> None:
    """Make a file without a name: the file system may know more than modes tell."""
    with tempfile.TemporaryFile(dir=folder):
        pass
