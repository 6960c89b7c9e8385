"""Generating the cells that losses read against generating the whole map: ``python -m benchmarks.generators``.

One generator forward and backward per figure, by turns, on maps with rectangles for objects; prints milliseconds and ratios by channels
and share of cells. :mod:`pipeline.distill.cells` takes its limit from here.
"""

import os
import statistics
import time
from functools import partial
from typing import Annotated

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402
import typer  # noqa: E402

from pipeline.distill.cells import Cells, rows_of  # noqa: E402
from pipeline.distill.generators import FeatureGenerator  # noqa: E402
from pipeline.models.load import best_device  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def objects(maps: int, rows: int, columns: int, share: float) -> torch.Tensor:
    """Random rectangles, a tenth of a map long, until they take a share of the cells: bool (maps, rows, columns)."""
    chance, cells = torch.Generator().manual_seed(0), torch.zeros(maps, rows, columns, dtype=torch.bool)
    while cells.float().mean() < share:
        n, y, x = (int(torch.randint(high, (1,), generator=chance)) for high in (maps, rows, columns))
        cells[n, y : y + max(rows // 10, 2), x : x + max(columns // 10, 2)] = True
    return cells


@app.command()
def main(
    maps: Annotated[int, typer.Option(help="Number of maps: cameras times frames.")] = 6,
    rows: Annotated[int, typer.Option(help="Rows of a map.")] = 58,
    columns: Annotated[int, typer.Option(help="Columns of a map.")] = 100,
    repeats: Annotated[int, typer.Option(min=1, help="Number of repeats, of which the median counts.")] = 3,
) -> None:
    """Print the table."""
    device = best_device()
    print(f"{maps} maps of {rows}x{columns} on {device}, {torch.get_num_threads()} thread(s), ms forward and backward")
    print(f"{'channels':>8} {'share':>6} {'map':>8} {'cells':>8} {'ratio':>6}")
    for channels in (64, 128, 256):
        generator = FeatureGenerator(channels, channels).to(device)
        features = torch.randn(maps, channels, rows, columns, device=device, requires_grad=True)
        for share in (0.05, 0.1, 0.2, 0.3, 0.4, 0.6):
            cells = objects(maps, rows, columns, share).to(device)
            took: dict[str, list[float]] = {"map": [], "cells": []}
            for _ in range(repeats):
                for name in ("map", "cells"):
                    started = time.perf_counter()
                    if name == "map":
                        loss = (generator(features) * cells[:, None]).square().sum()
                    else:
                        everywhere = torch.ones_like(cells)
                        loss = generator.at(partial(rows_of, features), everywhere, Cells(cells)).square().sum()
                    loss.backward()
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    took[name].append(time.perf_counter() - started)
            whole, chosen = (1e3 * statistics.median(times) for times in took.values())
            print(f"{channels:>8} {share:>6.2f} {whole:>8.1f} {chosen:>8.1f} {chosen / whole:>6.2f}", flush=True)


if __name__ == "__main__":
    app()
