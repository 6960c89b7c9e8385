"""A guard of worker processes: it kills them once the main process is gone, however that ended and whatever they do.

A worker that watches its parent by a thread is deaf while it loads libraries, which takes seconds.
"""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

MARK = "FD3D_GUARDED"
"""Environment variable of a guarded process."""
# Of the standard library, so that the guard is there in hundredths of a second. Where there is no /proc nothing is found.
# A process that is just being started has no environment yet, and one that is killed may wait for a disk before it ends: the
# guard of a main process that was killed looks until nothing was found for a while.
_GUARD = """
import glob, os, signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)

def kill():
    found = False
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                if sys.argv[1].encode() in file.read().split(b"\\0"):
                    os.kill(int(path.split("/")[2]), signal.SIGKILL)
                    found = True
        except OSError:
            pass
    return found

quiet = 0 if sys.stdin.buffer.read() == b"ended" else 0.5
seen = time.monotonic()
while True:
    if kill():
        seen = time.monotonic()
    elif time.monotonic() >= seen + quiet:
        break
    time.sleep(0.02)
"""


@contextmanager
def guarded() -> Iterator[str]:
    """Guard while the context lasts; its value is what :data:`MARK` is to be in the environment of a process."""
    value = uuid.uuid4().hex
    # dask leaves the mark of an earlier dump in this process's environment, and prefers what is there to what it is given
    os.environ.pop(MARK, None)
    command = [sys.executable, "-I", "-S", "-c", _GUARD, f"{MARK}={value}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as guard:
        yield value
        assert guard.stdin is not None
        with suppress(OSError):  # a guard that was killed
            guard.stdin.write(b"ended")
            guard.stdin.close()
