"""``fd3d``: one sub-command per stage, and commands to look, plan, convert and compare."""

import signal
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Any

try:
    import typer
except ImportError:
    sys.exit("fd3d: the command line needs more than the store's reader; install it with: pip install 'fd3d[pipeline]'")

from pipeline.errors import FD3DError
from pipeline.files import space_errors
from stages.complexity import complexity
from stages.convert import convert
from stages.detect import detect
from stages.dump import dump
from stages.evaluate import evaluate
from stages.evidence import evidence
from stages.expert import expert
from stages.index import index
from stages.inspect import inspect
from stages.plan import plan
from stages.report import report
from stages.sweep import sweep
from stages.train import train
from stages.verify import verify
from stages.world import world
from store_schema.errors import StoreError

STAGES = (world, index, expert, dump, train, evaluate, report)
TOOLS = (sweep, evidence, inspect, verify, complexity, convert, detect, plan)

app = typer.Typer(
    name="fd3d",
    help="FD3D, the Focal Distiller, as an offline two-stage pipeline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class Stopped(Exception):
    """Ctrl-C or another request to end, which click would answer with a word of its own."""


def stoppable(command: Callable[..., None]) -> Callable[..., None]:
    """Command that raises :class:`Stopped` in place of KeyboardInterrupt."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt as error:
            raise Stopped from error

    return run


for command in (*STAGES, *TOOLS):
    app.command(help=command.__doc__)(stoppable(command))

_received = [signal.SIGINT]


def _stop(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number))
    raise KeyboardInterrupt


def _stop_on_signals() -> None:
    """Have SIGTERM (of batch systems, containers and timeouts) and SIGHUP (of a closed terminal) end a command like Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _stop)


def main() -> None:
    """Run a command.

    Bad input ends with one line and exit status 1; a signal to end with one line and 128 and the signal's number as status.
    """
    _stop_on_signals()
    warnings.filterwarnings("ignore", module=r"(mmengine|mmcv|mmdet|mmdet3d|torch|numba|zarr)(\.|$)")
    try:
        with space_errors():
            app()
    except (FD3DError, StoreError) as error:
        print(f"fd3d: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, Stopped):
        print("fd3d: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + _received[-1])


if __name__ == "__main__":
    main()
