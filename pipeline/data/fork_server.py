"""What the fork server of data workers imports first, so that neither the server nor a worker outlives the main process.

A worker holds the pipe by which the server would notice that the main process is gone, and can watch its parent itself only
once it has imported the data set, which takes seconds. So the server asks for its parent again and again, and its children
ask the system for a signal at their first step (Linux).
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_SECONDS = 0.2
_parent, _server, _is_worker = os.getppid(), os.getpid(), False


def _end_with_parent(*_: object) -> None:
    if os.getppid() != _parent:
        os._exit(1)


def _end_with_server() -> None:
    global _is_worker
    if _is_worker:  # a worker's own child
        return
    _is_worker = True
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != _server:  # the server ended before the call
            os._exit(1)


# The system's signal comes when the forking thread ends, and a timer is one process's own: other processes than the server,
# which has one thread, are left alone. A thread that waits would be half copied into workers.
if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    os.register_at_fork(after_in_child=_end_with_server)
    signal.signal(signal.SIGALRM, _end_with_parent)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS, _SECONDS)
