"""Processes that decode images for a data loader: how they start, what they need, and their errors in one line."""

import multiprocessing
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any

from pipeline.errors import FD3DError

TIMEOUT = 600
"""Seconds after which a batch that no worker brings is an error."""
_LOOK = 2.0  # seconds after which a dead worker is noticed
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
        "multiprocessing_context": WatchedWorkers(),
        "prefetch_factor": prefetch,
        "timeout": TIMEOUT,
        "worker_init_fn": begin_worker,
    }


class WatchedQueue(Queue):
    """Queue whose :meth:`get` gives up as soon as a process that was started with the queue has died.

    With a timeout a data loader looks for dead workers only when the timeout is over; it looks too when the queue gives up.
    """

    processes: tuple[BaseProcess, ...] = ()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """As of any queue.

        Raises:
            queue.Empty: nothing has come in time, or a process has died.
        """
        if not block or timeout is None:
            return super().get(block, timeout)
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > _LOOK:
            died = any(
                process.exitcode for process in self.processes
            )  # before the wait, for what it sent while it lived
            try:
                return super().get(True, _LOOK)
            except Empty:
                if died:
                    raise
        return super().get(True, max(left, 0))


class WatchedWorkers(ForkServerContext):
    """Start method of workers whose queues are :class:`WatchedQueue`. Where a loader hands no queue to its workers, nothing is watched."""

    def Queue(self, maxsize: int = 0) -> WatchedQueue:  # noqa: N802
        """A queue."""
        return WatchedQueue(maxsize, ctx=self.get_context())

    def Process(self, *args: Any, **options: Any) -> BaseProcess:  # type: ignore[override]  # noqa: N802
        """A process, which the queues among its arguments watch."""
        process = ForkServerProcess(*args, **options)
        for queue in options.get("args", ()):
            if isinstance(queue, WatchedQueue):
                queue.processes = (*queue.processes, process)
        return process


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
            raise FD3DError(
                f"a worker that decodes images died, for want of memory or by the error that the worker printed; {_ADVICE}"
            ) from error
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
