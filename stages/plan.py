"""``plan``: what store, expert and trainings take, before anything is run."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import FD3DError
from pipeline.files import check_needed
from pipeline.profile import read_profile


def plan(
    config: Annotated[Path | None, typer.Argument(help="Expert config; default: the profile's families.")] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Number of frames of the data set; default: the index's training split.")
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Measured frames per second of one worker's expert.")] = None,
    train_rate: Annotated[float | None, typer.Option(help="Measured frames per second of one GPU's training.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Family to plan, repeatable; default: all.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of GPUs; default: 1, of families 1 and 8.")] = None,
    students: Annotated[int, typer.Option(min=1, help="Number of trainings that read the store.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of a training; of families the schedule's.")] = 24,
    like: Annotated[Path | None, typer.Option(help="Finished store to take coverage and compression from.")] = None,
    coverage: Annotated[
        list[str] | None, typer.Option(help="Share of a map's cells stored, MAP=SHARE as in bev=0.05, repeatable.")
    ] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Rows of the original images; default: 900.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Columns of the original images; default: 1600.")] = None,
    index: Annotated[
        Path | None,
        typer.Option(help="Frame index of cameras and frames; default: nuScenes' rig, and the profile's frames."),
    ] = None,
    params: Annotated[Path, typer.Option(help="Profile.")] = Path("params.yaml"),
) -> None:
    """Print bytes, files and expert hours of a store beside online distillation; for families also training memory and hours."""
    if index is not None and (height is not None or width is not None):
        raise FD3DError("--index brings its images' size; leave out --height and --width")
    profile = read_profile(params)
    if config is not None and family:
        raise FD3DError(f"--family is of the profile, but {config} is given; leave one of them out")
    pairs = [profile.family(name) for name in family or profile.families]
    check_needed(config=config)
    from pipeline.cost.cameras import frame_cameras, rig_cameras, training_scenes
    from pipeline.cost.early import Outlook, check_configs

    gpus = (workers,) if workers else (1,) if config else (1, 8)
    scenes = {} if frames else training_scenes(profile, index)
    count = frames or sum(map(len, scenes.values()))
    cameras = rig_cameras(height or 900, width or 1600) if index is None else frame_cameras(index)
    outlook = Outlook(count, cameras, rate, train_rate, gpus, students, epochs, like, coverage, scenes)
    check_configs(config, pairs, cameras, profile.dump.rule.num_queries)
    from pipeline.cost.outlook import config_lines, family_lines
    from pipeline.models.build import load_config

    if config is not None:
        print("\n".join(config_lines(load_config(config), profile.dump, outlook)))
    for pair in pairs if config is None else ():
        print("\n".join([*family_lines(profile, pair, outlook), ""]))
