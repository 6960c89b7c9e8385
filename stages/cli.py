"""``fd3d``: one sub-command per stage, and commands to look, plan, convert and compare."""

import sys
import warnings

try:
    import typer
except ImportError:
    sys.exit("fd3d: the command line needs more than the store's reader; install it with: pip install 'fd3d[pipeline]'")

from pipeline.errors import FD3DError
from pipeline.files import system_errors
from stages.check import check
from stages.complexity import complexity
from stages.convert import convert
from stages.detect import detect
from stages.dump import dump
from stages.evaluate import evaluate
from stages.evidence import evidence
from stages.expert import expert
from stages.export import export
from stages.index import index
from stages.inspect import inspect
from stages.plan import plan
from stages.report import report
from stages.start import started
from stages.stopping import MESSAGE, Stopped, leave, stoppable
from stages.sweep import sweep
from stages.train import train
from stages.verify import verify
from stages.world import world
from store_schema.errors import StoreError

STAGES = (check, world, index, expert, dump, train, evaluate, report)
TOOLS = (sweep, evidence, inspect, verify, complexity, convert, detect, export, plan)

app = typer.Typer(
    name="fd3d", help="FD3D as an offline two-stage pipeline.", no_args_is_help=True, pretty_exceptions_enable=False
)
for command in (*STAGES, *TOOLS):
    app.command(help=command.__doc__)(stoppable(started(command)))


def main() -> None:
    """Run a command; bad input ends with one line and exit status 1, a signal with one line and 128 and its number."""
    warnings.formatwarning = lambda message, *where, **more: f"warning: {message}\n"
    warnings.filterwarnings("ignore", module=r"(mmengine|mmcv|mmdet|mmdet3d|torch|numba|zarr)(\.|$)")
    try:
        with system_errors():
            app()
    except (FD3DError, StoreError) as error:
        leave(error, 1)
    except Stopped as stopped:
        leave(MESSAGE, stopped.status)


if __name__ == "__main__":
    main()
