"""``sweep``: the trainings of a grid, into one table of results."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import FD3DError, counted
from pipeline.settings import read_yaml


def sweep(
    grid: Annotated[Path, typer.Option(help="Grid file, see docs/sweep.md.")] = Path("configs/sweep.yaml"),
    group: Annotated[list[str] | None, typer.Option(help="Group to run, repeatable; default: all.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Family to run, repeatable; default: all.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Row to run, by name, repeatable; default: all.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed to run, repeatable; default: all.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Number of processes at once; default: one per core.")] = None,
    dry_run: Annotated[
        bool, typer.Option(help="List of the rows and of what is missing for them, without running.")
    ] = False,
    force: Annotated[bool, typer.Option(help="New training of rows that the table has.")] = False,
    keep: Annotated[bool, typer.Option(help="Checkpoints and submissions kept after the evaluation.")] = False,
) -> None:
    """Train and evaluate the rows that the table lacks; a stopped sweep goes on where it was."""
    read_yaml(grid)  # names a file that is missing before torch is imported
    from pipeline.study.grid import Grid, chosen
    from pipeline.study.runner import Sweep

    read = Grid(grid)
    trainings = chosen(read.trainings, group or (), family or (), row or (), seed or ())
    work = Sweep(read, jobs or os.cpu_count() or 1, force, keep)
    if dry_run:
        done = 0
        for training in trainings:
            ready = work.is_done(training)
            done += ready
            missing = ", ".join(work.missing(training))
            state = "done" if ready else "to run" + (f"; first: {missing}" if missing else "")
            others = "".join(f" = {row.group}/{row.row}" for row in training.rows[1:])
            print(f"{training.name}{others}: {state}")
        print(
            f"{counted(len(trainings), 'training')}, {done} done (known once index and expert are there)",
            file=sys.stderr,
        )
        return
    made = work.run(trainings)
    print(
        f"{read.table}: {counted(len(made.done), 'row')} made, {len(made.skipped)} were there, {len(made.failed)} failed"
    )
    if made.claimed:
        print(f"being trained by another sweep: {', '.join(made.claimed)}")
    if made.failed:
        raise FD3DError("failed:\n" + "\n".join(f"  {name}: {why}" for name, why in made.failed.items()))
