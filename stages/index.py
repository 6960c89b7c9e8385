"""Stage ``index``: everything about a data set but its pixels, in one file."""

from pathlib import Path
from typing import Annotated

import typer


def index(
    root: Annotated[Path, typer.Option(help="Root of a nuScenes-format data set.")],
    version: Annotated[str, typer.Option(help="Folder of its tables, for example v1.0-mini.")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("runs/index.npz"),
) -> None:
    """Index frames, calibration, ego motion and boxes with the devkit."""
    from pipeline.data.index import build_index

    made = build_index(root, version, out)
    print(
        f"{out}: {len(made)} frames in {len(made.scenes)} scenes, splits {', '.join(made.splits)}, sha256 {made.sha256[:12]}"
    )
