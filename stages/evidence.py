"""``evidence``: a sweep's table as text and figures."""

from pathlib import Path
from typing import Annotated

import typer


def evidence(
    table: Annotated[Path, typer.Option(help="Table of a sweep.")] = Path("benchmarks/results/evidence.csv"),
    figures: Annotated[Path, typer.Option(help="Folder for the figures, one SVG per group and split.")] = Path(
        "docs/figures"
    ),
    document: Annotated[Path, typer.Option(help="Document between whose markers the tables go.")] = Path(
        "docs/results.md"
    ),
) -> None:
    """Write means, intervals over seeds, paired gains and curves of a sweep's table."""
    from pipeline.study.evidence import build_evidence

    print(build_evidence(table, figures, document))
