"""``fd3d``: one sub-command per stage, and ``sweep``, ``evidence``, ``plan``, ``inspect``, ``verify``, ``complexity``, ``convert``, ``detect``."""

import os
import sys
import warnings

# One thread per process unless told otherwise, and idle threads that sleep: two that spin on busy cores are far slower
# than one. Set before torch is imported.
for name, value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
    os.environ.setdefault(name, value)

import typer  # noqa: E402

from pipeline.errors import FD3DError  # noqa: E402
from stages.complexity import complexity  # noqa: E402
from stages.convert import convert  # noqa: E402
from stages.detect import detect  # noqa: E402
from stages.dump import dump  # noqa: E402
from stages.evaluate import evaluate  # noqa: E402
from stages.evidence import evidence  # noqa: E402
from stages.expert import expert  # noqa: E402
from stages.index import index  # noqa: E402
from stages.inspect import inspect  # noqa: E402
from stages.plan import plan  # noqa: E402
from stages.report import report  # noqa: E402
from stages.sweep import sweep  # noqa: E402
from stages.train import train  # noqa: E402
from stages.verify import verify  # noqa: E402
from stages.world import world  # noqa: E402
from store_schema import StoreError  # noqa: E402

app = typer.Typer(
    name="fd3d",
    help="FD3D, the Focal Distiller, as an offline two-stage pipeline.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (
    world,
    index,
    expert,
    dump,
    train,
    evaluate,
    report,
    sweep,
    evidence,
    inspect,
    verify,
    complexity,
    convert,
    detect,
    plan,
):
    app.command(help=command.__doc__)(command)


def main() -> None:
    """Run a command; bad input ends with one line and exit status 1."""
    warnings.filterwarnings("ignore", module=r"(mmengine|mmcv|mmdet|mmdet3d|torch|numba|zarr)(\.|$)")
    try:
        app()
    except (FD3DError, StoreError) as error:
        print(f"fd3d: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("fd3d: stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
