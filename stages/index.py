"""Stage ``index``: everything about a data set but its pixels, in one file."""

from pathlib import Path
from typing import Annotated

import typer

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
        bool, typer.Option("--skip-incomplete", help="Frames that lack a camera or the LiDAR left out.")
    ] = False,
    params: Annotated[Path, typer.Option(help="Profile, checked whole; not read with --root and --version.")] = Path(
        "params.yaml"
    ),
) -> None:
    """Index frames, calibration, ego motion, boxes and image sizes with the devkit."""
    profile = None
    if root is None or version is None:
        profile = read_profile(params)
        profile.check_checkpoints()
        root, version, out = root or profile.data.root, version or profile.data.version, out or profile.data.index
        check_generated(root, version, profile.data.generate, profile.path)
    table_folder(root, version)
    from pipeline.data.devkit import open_truth
    from pipeline.data.index import build_index
    from pipeline.data.rig import Rig
    from pipeline.data.source import check_boxes
    from pipeline.data.splits import scenes_by_split

    out = out or Path("runs/index.npz")
    if profile is not None and version == profile.data.version:  # before images are read
        profile.data.check_splits(scenes_by_split(root, version))
    classes = profile.data.classes if profile else None
    rig = Rig(profile.data.cameras, profile.data.reference) if profile else None
    made = build_index(root, version, out, classes, skip_incomplete, rig, print)
    if profile is not None and made.version == profile.data.version:
        profile.data.check_splits(made.splits)
        named = {"data.train": profile.data.train, "data.val": profile.data.val}
        check_boxes({key: (split, made.boxes_of(made.select(split))[1]) for key, split in named.items()})
        open_truth(root, version, made.splits.get(profile.data.val, made.scenes), made)
    print(
        f"{out}: {counted(len(made), 'frame')} in {counted(len(made.scenes), 'scene')}, splits {', '.join(made.splits)}, sha256 {made.sha256[:12]}"
    )
