"""Stage ``index``: everything about a data set but its pixels, in one file."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.data.asked import check_made, naming_a_profile
from pipeline.data.folder import table_folder
from pipeline.data.source import check_generated
from pipeline.errors import counted
from pipeline.profile import read_profile


def index(
    root: Annotated[
        Path | None, typer.Option(help="Root of a nuScenes-format data set; default: the profile's.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Folder of the data set's tables; default: the profile's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write; default: the profile's, or runs/index.npz.")] = None,
    skip_incomplete: Annotated[
        bool | None, typer.Option(help="Frames that lack a camera or the LiDAR left out; default: as the profile says.")
    ] = None,
    params: Annotated[
        Path | None,
        typer.Option(help="Profile; default: params.yaml, which is not read with both --root and --version."),
    ] = None,
) -> None:
    """Index frames, calibration, ego motion, boxes and image sizes with the devkit."""
    asked, own = None, False
    if params is not None or root is None or version is None:
        profile = read_profile(params or Path("params.yaml"))
        asked = profile.data
        if root is None or version is None:
            profile.check_checkpoints()
        root, version, out = root or asked.root, version or asked.version, out or asked.index
        check_generated(root, version, asked.generate, profile.path)
        own = version == asked.version and out.resolve() == asked.index.resolve()
    table_folder(root, version)
    from pipeline.data.index import build_index
    from pipeline.data.rig import Rig
    from pipeline.data.splits import scenes_by_split

    out = out or Path("runs/index.npz")
    if asked is not None and own:  # before images are read
        asked.check_splits(scenes_by_split(root, version))
    skip = skip_incomplete if skip_incomplete is not None else asked is not None and asked.skip_incomplete
    rig = Rig(asked.cameras, asked.reference) if asked else None
    with naming_a_profile(asked):
        made = build_index(root, version, out, asked.classes if asked else None, skip, rig, print)
    if asked is not None and own:
        check_made(made, root, asked)
    print(
        f"{out}: {counted(len(made), 'frame')} in {counted(len(made.scenes), 'scene')}, splits {', '.join(made.splits)}, sha256 {made.sha256[:12]}"
    )
