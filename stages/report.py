"""Stage ``report``: expert, plain and distilled apprentice side by side."""

from pathlib import Path
from typing import Annotated

import typer

from stages.params import read_params


def report(
    out: Annotated[Path, typer.Option(help="Folder for index.html and summary.md.")] = Path("report"),
    runs: Annotated[Path, typer.Option(help="Folder with the stages' outputs.")] = Path("runs"),
    metrics: Annotated[Path, typer.Option(help="Folder with the metrics; takes summary.json.")] = Path("metrics"),
    params: Annotated[Path, typer.Option(help="Reads 'data' and 'families'.")] = Path("params.yaml"),
) -> None:
    """Write the table, loss curves, PR curves and pictures."""
    from pipeline.report import build_report, markdown

    data, families = read_params(params, "data"), list(read_params(params, "families"))
    print(markdown(build_report(families, Path(data["index"]), Path(data["root"]), data["val"], runs, metrics, out)))
