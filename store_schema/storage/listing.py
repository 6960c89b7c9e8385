"""The files below a local store's folder, one after the other."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .own import FOLDERS, LOCK, MANIFEST, RECIPE
from .regular import irregular
from .trouble import ABSENT


def walked(store: Path, top: Path | None = None) -> Iterator[tuple[str, int]]:
    """Name and bytes of every file, also behind links that a store may have.

    Args:
        store: the folder that names are relative to.
        top: where to begin; default: the store.

    Raises:
        StoreError: a folder has the name of a file of the store.
        OSError: a folder cannot be read.
    """

    def failed(error: OSError) -> None:
        if not isinstance(error, ABSENT):
            raise error

    seen = set()
    for place, folders, names in os.walk(top or store, onerror=failed, followlinks=True):
        if Path(place) == store:
            if odd := [name for name in (RECIPE, MANIFEST, LOCK) if name in folders]:
                raise irregular(f"{store}/{odd[0]}")
            # what a link of another name leads to may be a whole disk
            for folder in [name for name in folders if name not in FOLDERS and os.path.islink(f"{place}/{name}")]:
                folders.remove(folder)
                yield folder, 0
        with _unless_gone():
            here = os.stat(place)
            if (here.st_dev, here.st_ino) in seen:  # links in a ring
                folders.clear()
                continue
            seen.add((here.st_dev, here.st_ino))
        for name in names:
            file, size = Path(place, name), -1
            with _unless_gone():
                size = file.stat().st_size
            if size >= 0:
                yield file.relative_to(store).as_posix(), size


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
