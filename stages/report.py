"""Stage ``report``: expert, plain and distilled student side by side."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.files import check_needed
from pipeline.profile import read_profile


def report(
    out: Annotated[Path, typer.Option(help="Folder for index.html and summary.md.")] = Path("report"),
    runs: Annotated[Path, typer.Option(help="Folder with the stages' outputs.")] = Path("runs"),
    metrics: Annotated[Path, typer.Option(help="Folder with the metrics, where summary.json goes.")] = Path("metrics"),
    document: Annotated[
        Path | None, typer.Option(help="Document between whose markers '<!-- result -->' a table goes too.")
    ] = None,
    params: Annotated[Path, typer.Option(help="Profile.")] = Path("params.yaml"),
) -> None:
    """Write the table, loss curves, PR curves and pictures."""
    profile = read_profile(params)
    data = profile.data
    check_needed(index=data.index)
    for family in profile.families:
        folder = metrics / "detectors" / family
        if not any(folder.glob("*.json")):
            check_needed(output=folder / "expert.json")
    from pipeline.report.report import build_report, markdown, put_result

    published = {name: family.published for name, family in profile.families.items()}
    families = list(profile.families)
    summary = build_report(families, data.index, data.root, data.val, runs, metrics, out, published=published)
    if document is not None:
        put_result(summary, document)
    print(markdown(summary))
