"""Threads of zarr-python: the one that it works in, started by us, and those that it hands work to."""

from collections.abc import Iterator
from contextlib import contextmanager

from zarr.core.sync import reset_resources_after_fork, sync

from .errors import check_threads


async def _nothing() -> None:
    pass


def start_zarr() -> None:
    """Start zarr-python's thread where it does not run yet in this process.

    zarr-python takes a thread that could not be started for one that runs, and its next call waits for that thread for ever.

    Raises:
        StoreError: the system starts no more threads; the next call tries again.
    """
    nothing = _nothing()
    try:
        sync(nothing)
    except RuntimeError as error:
        nothing.close()
        reset_resources_after_fork()
        check_threads(error)
        raise


@contextmanager
def zarr_threads() -> Iterator[None]:
    """Calls of zarr-python; also a decorator of a function that makes them.

    Raises:
        StoreError: the system starts no more threads.
    """
    start_zarr()
    try:
        yield
    except RuntimeError as error:
        check_threads(error)
        raise
