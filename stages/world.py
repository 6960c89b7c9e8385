"""Stage ``world``: generate the embedded data set."""

from pathlib import Path
from typing import Annotated

import typer

from stages.params import read_params


def world(
    root: Annotated[Path, typer.Option(help="Folder of the data set.")] = Path("data/world"),
    workers: Annotated[int, typer.Option(help="Processes that render.")] = 2,
    params: Annotated[Path, typer.Option(help="Reads section 'world'.")] = Path("params.yaml"),
) -> None:
    """Write a small nuScenes-format data set, the same bytes for the same settings."""
    from pipeline.data.world.config import WorldConfig
    from pipeline.data.world.generate import generate_world
    from pipeline.settings import from_mapping

    made = generate_world(root, from_mapping(WorldConfig, read_params(params, "world"), "world"), workers)
    print(f"{root}: {made['scenes']} scenes, {made['frames']} frames, {made['rows']['sample_annotation']} boxes")
