"""Requests to end a command: Ctrl-C, SIGTERM of batch systems and containers, SIGHUP of a terminal that was closed."""

import signal
import sys
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Any, NoReturn

MESSAGE = "stopped; the same command goes on from here"
_received = [signal.SIGINT]


def leave(line: object, status: int) -> NoReturn:
    """End the program with one line and an exit status."""
    print(f"fd3d: {line}", file=sys.stderr)
    sys.exit(status)


class Stopped(Exception):
    """A request to end, in place of KeyboardInterrupt, which click would answer with a word of its own."""

    @property
    def status(self) -> int:
        """Exit status: 128 and the number of the signal."""
        return 128 + _received[-1]


def stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """Command that raises :class:`Stopped` where it is asked to end.

    While the command runs, all such signals raise KeyboardInterrupt, so that the command ends in order.
    """

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
                signal.signal(number, _stop)
        try:
            command(*args, **options)
        except KeyboardInterrupt as error:
            raise Stopped from error

    return run


def _stop(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number))
    raise KeyboardInterrupt
