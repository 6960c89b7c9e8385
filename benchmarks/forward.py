"""Milliseconds per frame and peak memory of detectors, by part: ``python -m benchmarks.forward [CONFIG ...]``.

Every row is measured in a process of its own, so that peaks do not mix.
"""

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

# Idle threads that sleep: those that spin on busy cores slow the others down. Read by OpenMP when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch  # noqa: E402
import typer  # noqa: E402

from benchmarks.measure import LIMITS, PARTS, Case, measure  # noqa: E402

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
COLUMNS = ("config", "batch", "device", "precision", "sampler", "model", *PARTS, "peak MiB")
WIDTHS = (24, 5, 6, 9, 7, 9, *[9] * (len(PARTS) + 1))


@app.command()
def main(
    configs: Annotated[
        list[Path] | None, typer.Argument(help="Config files; default: all of BEVFormer and DETR3D.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Number of frames at once, repeatable; default: 1 and 4.")
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="Device to measure; default: all there are.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Number of timed frames, of which the median is printed.", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="Number of CPU threads.", min=1)] = 2,
    reference: Annotated[bool, typer.Option("--reference", help="Comparison with the official way, batch 1.")] = False,
    fold: Annotated[bool, typer.Option(help="Batch normalisation folded into our convolutions.")] = True,
    json_out: Annotated[Path | None, typer.Option("--json", help="JSON file for the rows.")] = None,
) -> None:
    """Time the forward pass of detectors; exit status 1 where ours and the reference differ or a row failed."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    paths = configs or sorted(p for family in ("bevformer", "detr3d") for p in (CONFIGS / family).glob("*.py"))
    batches = batch or [1, 4]
    devices = [device] if device else ["cpu", *["cuda"] * torch.cuda.is_available()]
    modes = {"cpu": [("fp32", "-")], "cuda": list(product(("fp32", "bf16"), ("op", "pytorch")))}
    print(f"torch {torch.__version__}, {threads} CPU threads, medians of {repeats} frames, ms per frame")
    print_row(COLUMNS)
    rows = []
    for path, frames, where in product(paths, batches, devices):
        for precision, sampler in modes[where]:
            case = Case(str(path), frames, where, precision, sampler, fold, threads, repeats)
            compare = reference and frames == 1 and precision == "fp32"
            rows += run(case, compare)
            if json_out is not None:
                json_out.write_text(json.dumps(rows, indent=1) + "\n")
    # a NaN is not within its limit
    agree = all(value <= LIMITS[kind] for row in rows for kind, value in row.get("difference", {}).items())
    sys.exit(0 if agree and not any("error" in row for row in rows) else 1)


def run(case: Case, compare: bool) -> list[dict[str, Any]]:
    """Measure and print one case; with ``compare`` against the reference too."""
    names = ("ours", "reference") if compare else ("ours",)
    try:
        rows = apart(case, names)
        if compare:
            # both were in one process; what each needs alone is another measurement
            for row in rows:
                row["peak_mib"] = apart(replace(case, repeats=1), (row["model"],))[0]["peak_mib"]
    except Exception as error:  # a row that fails is a result too, most often that memory is short
        killed = isinstance(error, BrokenProcessPool)
        reason = "killed, memory short?" if killed else f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        print_row((*labels(case, "ours"), reason))
        return [vars(case) | {"config": case.name, "model": "ours", "error": reason}]
    for row in rows:
        times = [f"{row['ms'][p]:.1f}" if p in row["ms"] else "-" for p in PARTS]
        print_row((*labels(case, row["model"]), *times, f"{row['peak_mib']:.0f}"))
    if compare:
        mine, theirs = (row["ms"] for row in rows)
        ratios = [f"{theirs[p] / mine[p]:.2f}x" if p in mine else "-" for p in PARTS]
        print_row((*labels(case, "ratio"), *ratios, f"{rows[1]['peak_mib'] / rows[0]['peak_mib']:.2f}x"))
        found = rows[0]["difference"].items()
        print("  largest difference: " + ", ".join(f"{k} {v:.1e} (limit {LIMITS[k]:.0e})" for k, v in found))
    return rows


def apart(case: Case, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """:func:`~benchmarks.measure.measure` in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.measure"])  # imported once, by a server that measures nothing
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measure, case, names).result()


def labels(case: Case, model: str) -> tuple[Any, ...]:
    """The first cells of a row."""
    return case.name, case.batch, case.device, case.precision, case.sampler, model


def print_row(cells: tuple[Any, ...]) -> None:
    """Cells in columns: labels to the left, figures to the right."""
    texts = [
        str(cell).ljust(width) if column < COLUMNS.index(PARTS[0]) else str(cell).rjust(width)
        for column, (cell, width) in enumerate(zip(cells, WIDTHS, strict=False))
    ]
    print("  ".join(texts), flush=True)


if __name__ == "__main__":
    app()
