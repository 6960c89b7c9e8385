"""``sweep``: the trainings of a grid, into one table of results."""

import os
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import FD3DError


def sweep(
    grid: Annotated[Path, typer.Option(help="The grid file, see docs/sweep.md.")] = Path("configs/sweep.yaml"),
    group: Annotated[list[str] | None, typer.Option(help="Only this group; may be repeated.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Only this family; may be repeated.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only rows of this name; may be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; may be repeated.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes at once; one per core by default.")] = None,
    dry_run: Annotated[bool, typer.Option(help="Only list the rows, and what is missing for them.")] = False,
    force: Annotated[bool, typer.Option(help="Train rows again that the table has.")] = False,
    keep: Annotated[bool, typer.Option(help="Keep checkpoints and submissions after the evaluation.")] = False,
) -> None:
    """Train and evaluate the rows that the table lacks; a stopped sweep goes on where it was."""
    from pipeline.study.grid import Grid, chosen
    from pipeline.study.runner import Sweep

    read = Grid(grid)
    trainings = chosen(read.trainings, group or (), family or (), row or (), seed or ())
    work = Sweep(read, jobs or os.cpu_count() or 1, force, keep)
    if dry_run:
        for training in trainings:
            missing = ", ".join(work.missing(training))
            state = "done" if work.is_done(training) else "to run" + (f"; first: {missing}" if missing else "")
            others = "".join(f" = {a}/{b}" for a, b in training.rows[1:])
            print(f"{training.name}{others}: {state}")
        return
    made = work.run(trainings)
    print(f"{read.table}: {len(made.done)} rows made, {len(made.skipped)} were there, {len(made.failed)} failed")
    if made.claimed:
        print(f"in work in another sweep: {', '.join(made.claimed)}")
    if made.failed:
        raise FD3DError("failed:\n" + "\n".join(f"  {name}: {why}" for name, why in made.failed.items()))
