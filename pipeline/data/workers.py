"""Processes that decode images for a data loader: how they start, what they need, and their errors in one line."""

import multiprocessing
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from pipeline.errors import FD3DError

TIMEOUT = 600
"""Seconds after which a batch that no worker brings is an error; a dead worker is noticed no sooner."""
SHARED = Path("/dev/shm")
_ADVICE = f"workers pass images through {SHARED}: give the container more by --shm-size=8g, or set workers to 0"


def loader_options(workers: int, prefetch: int = 2) -> dict[str, Any]:
    """Arguments of a data loader with that many workers.

    Args:
        prefetch: batches that each worker decodes ahead.
    """
    if not workers:
        return {}
    multiprocessing.set_forkserver_preload(["pipeline.data.fork_server"])
    # A fork would copy the locks of torch's and OpenCV's threads in whatever state they are.
    return {
        "multiprocessing_context": "forkserver",
        "prefetch_factor": prefetch,
        "timeout": TIMEOUT,
        "worker_init_fn": begin_worker,
    }


def begin_worker(number: int = 0) -> None:
    """Set up a worker.

    Args:
        number: of the worker, as data loaders give it.
    """
    # Blosc makes a lock at its first call. Of this start method the lock has no name in the system, so that Python does not warn of
    # a leaked one when the worker is ended; a worker starts no processes.
    multiprocessing.set_start_method("fork", force=True)
    end_with_parent()


def end_with_parent() -> None:
    """End this worker once the process that started it is gone: one that was killed cannot say so, and torch asks the fork server,
    which lives on."""
    if (parent := multiprocessing.parent_process()) is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_shared_memory(batch_bytes: int, workers: int, prefetch: int = 2) -> None:
    """Compare what workers decode ahead with the shared memory there is, since a worker that finds none is silent for ever.

    Args:
        batch_bytes: bytes of a batch's images.
        workers: of all processes on this machine.
        prefetch: as of :func:`loader_options`.

    Raises:
        FD3DError: the batches do not fit.
    """
    ahead = workers * prefetch * batch_bytes
    if ahead and SHARED.is_dir() and ahead > (room := shutil.disk_usage(SHARED).total):
        raise FD3DError(
            f"workers ({workers}) decode {prefetch} batches of {batch_bytes / 1e6:.1f} MB each ahead, which are "
            f"{ahead / 1e6:.0f} MB, but {SHARED} has {room / 1e6:.0f} MB; {_ADVICE}"
        )


@contextmanager
def worker_errors() -> Iterator[None]:
    """Turn what a data loader raises for its workers into the line that the same fault gives without workers.

    Raises:
        FD3DError: bad input that a worker has found, a worker that died, or none that answers.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        if re.match(r"DataLoader worker .*(killed by signal|exited unexpectedly)", text):
            raise FD3DError(f"a worker that decodes images died, most often for want of memory; {_ADVICE}") from error
        if text.startswith("DataLoader timed out"):
            raise FD3DError(f"no worker has brought a batch for {TIMEOUT} s; {_ADVICE}, or look at the disk") from error
        if "Too many open files" in text:
            raise FD3DError(
                "too many files are open; raise the limit (ulimit -n 4096) and run again, or set workers to 0"
            ) from error
        # torch raises the worker's exception anew, with the worker's whole traceback as its message
        kind = re.match(r"Caught (FD3DError|\w*StoreError) in DataLoader worker process", text)
        if kind is None:
            raise
        line = re.split(rf"^[\w.]*{kind[1]}: ", text, flags=re.MULTILINE)[-1]
        raise FD3DError(line.strip()) from error
