"""``plan``: size of a store and the work saved by it, before anything is run."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import FD3DError
from pipeline.profile import read_profile


def plan(
    config: Annotated[Path, typer.Argument(help="Expert config.")],
    frames: Annotated[int, typer.Option(min=1, help="Number of frames of the data set.")],
    rate: Annotated[float, typer.Option(help="Measured frames per second of one worker's expert.")],
    workers: Annotated[int, typer.Option(min=1, help="Number of workers, each with its own device.")] = 1,
    students: Annotated[int, typer.Option(min=1, help="Number of trainings that read the store.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Number of epochs of a training.")] = 24,
    like: Annotated[Path | None, typer.Option(help="Finished store to take coverage and compression from.")] = None,
    coverage: Annotated[
        list[str] | None, typer.Option(help="Share of a map's cells stored, MAP=SHARE as in bev=0.05, repeatable.")
    ] = None,
    height: Annotated[int, typer.Option(min=1, help="Rows of the original images.")] = 900,
    width: Annotated[int, typer.Option(min=1, help="Columns of the original images.")] = 1600,
    params: Annotated[Path, typer.Option(help="Profile; its sections 'focal' and 'dump' are used.")] = Path(
        "params.yaml"
    ),
) -> None:
    """Print bytes, files and expert hours of a store for a config and a data set's size, beside online distillation."""
    from pipeline.cost.complexity import rig_cameras
    from pipeline.cost.plan import RATIOS, Measured, coverage_of, expert_schema, plan_store, plan_work, table
    from pipeline.models.build import load_config

    if rate <= 0:
        raise FD3DError(f"--rate is {rate}; give the measured frames per second")
    settings = read_profile(params).dump
    schema = expert_schema(load_config(config), rig_cameras(height, width), settings)
    measured = Measured.of(like) if like else Measured({}, {})
    shares = coverage_of(coverage, schema, measured.coverage)
    store = plan_store(schema, frames, settings.frames_per_shard, replace(measured, coverage=shares))
    print("\n".join(table(store, shares)))
    source = str(like) if like else f"defaults of pipeline/cost/plan.py ({', '.join(RATIOS)})"
    print(
        f"compression as of {source}; {settings.frames_per_shard} frames per shard, {100 * measured.fill:.0f} % filled\n"
    )
    print(f"{'':24} {'expert passes':>14} {'worker-hours':>13} {'hours':>9} {'store, GB':>10}")
    for name, passes, size in (
        ("dump once", frames, store.total),
        (f"online, {students} x {epochs} epochs", frames * epochs * students, 0.0),
    ):
        work = plan_work(passes, rate, workers)
        print(f"{name:24} {work.passes:14d} {work.hours:13.1f} {work.elapsed:9.1f} {size / 1e9:10.2f}")
