"""New hashes for a sweep's table after a change that alters hashes but no result: another index format, say.

A line is the training of its group, split, row, family, method and seed in the grid; its hash becomes that of this training now. Lines
whose expert is not on this machine (weights of early iterations) keep their old hash, and are named. Needs the profile's index
and experts, which ``fd3d sweep`` makes; ``--dry-run`` only counts::

    python -m benchmarks.rehash --dry-run
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.study.grid import Grid
from pipeline.study.table import key_of, put_lines, read_table
from pipeline.study.training import Training


def main(
    grid: Annotated[Path, typer.Option(help="Grid file of the sweep.")] = Path("configs/sweep.yaml"),
    dry_run: Annotated[bool, typer.Option(help="Counting only; the table stays as it is.")] = False,
) -> None:
    """Replace the hashes of a table's lines."""
    read = Grid(grid)
    trainings: dict[tuple[str, ...], Training] = {
        (row.group, row.split, row.row, t.family, t.method, str(t.seed)): t for t in read.trainings for row in t.rows
    }
    hashes: dict[tuple[str, str], str] = {}
    changed, left = [], []
    for line in read_table(read.table):
        name, training = "/".join(key_of(line)), trainings.get(key_of(line))
        if training is None:
            left.append(f"{name}: not in the grid")
            continue
        try:
            same = training.identity(), line["split"]
            made = hashes[same] = hashes.get(same) or read.config_hash(training, line["split"])
        except FileNotFoundError as error:
            left.append(f"{name}: {error.filename} is not there")
            continue
        if line["config"] != made:
            changed.append(line | {"config": made})
    print("\n".join([*left, f"{len(changed)} lines get another hash, {len(left)} keep theirs"]))
    if changed and not dry_run:
        put_lines(read.table, changed)


if __name__ == "__main__":
    typer.run(main)
