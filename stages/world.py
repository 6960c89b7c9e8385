"""Stage ``world``: generate the embedded data set."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import counted
from pipeline.profile import read_profile


def world(
    root: Annotated[
        Path | None, typer.Option(help="Folder of the data set; default: the profile's, where it is generated.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Number of processes that render.")] = 2,
    params: Annotated[Path, typer.Option(help="Profile; its section 'world' is used.")] = Path("params.yaml"),
) -> None:
    """Write a small nuScenes-format data set, the same bytes for the same settings."""
    profile = read_profile(params)
    root = root or (profile.data.root if profile.data.generated else Path("data/world"))
    from pipeline.data.world.generate import generate_world

    made = generate_world(root, profile.world, workers)
    print(
        f"{root}: {counted(made['scenes'], 'scene')}, {counted(made['frames'], 'frame')}, {counted(made['rows']['sample_annotation'], 'box')}"
    )
