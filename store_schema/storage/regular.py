"""Opening a store's files where a named pipe, a socket, a device or a folder may lie in their place.

A pipe would be waited for until another process writes to it, and a device such as ``/dev/zero`` may have no end.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import StoreError
from .interrupted import close

_NO_FILE = (errno.ENXIO, errno.EISDIR)
"""What opening a socket, a pipe that nobody reads, and a folder for writing is answered with."""


def irregular(path: object) -> StoreError:
    """The refusal of what is no regular file."""
    return StoreError(
        f"{path} is no regular file: a pipe, socket, device or folder lies where a store has a file; move it away and run again"
    )


def open_regular(path: str, flags: int = os.O_RDONLY) -> int:
    """Descriptor of a regular file; nothing is waited for.

    Raises:
        StoreError: there is something else of this name.
        OSError: the file cannot be opened.
    """
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK, 0o644)
    except BlockingIOError:  # another program has a lease of the file, which only regular files have
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise irregular(path) from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise irregular(path)
    except BaseException:
        close(descriptor)
        raise
    return descriptor


@contextmanager
def regular(path: str) -> Iterator[int]:
    """Descriptor of a regular file to read, closed at the end; see :func:`open_regular`."""
    descriptor = open_regular(path)
    try:
        yield descriptor
    finally:
        close(descriptor)


def parts(descriptor: int, size: int) -> Iterator[bytes]:
    """What is left of a file, in parts of at most ``size`` bytes."""
    while data := os.read(descriptor, size):
        yield data
