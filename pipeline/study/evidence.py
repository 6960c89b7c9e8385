"""Evidence from a sweep's table, as text in a document and as figures."""

import os
from pathlib import Path

from pipeline.distill.settings import FD3D, PLAIN
from pipeline.errors import FD3DError
from pipeline.files import between_markers, write_atomically
from pipeline.study.plots import curve_panels, curves_figure, differences_figure, gains_figure, save
from pipeline.study.statistics import MAIN, Comparison, comparisons
from pipeline.study.table import read_table
from pipeline.study.tables import MARKERS, markdown


def build_evidence(table: Path, figures: Path, document: Path) -> str:
    """Write a figure per group as SVG, and the tables between the document's markers.

    Args:
        table: table of a sweep.
        figures: folder for ``TABLE_GROUP_SPLIT.svg``, TABLE being the table's name.
        document: document with the markers.

    Returns:
        the tables as text.

    Raises:
        FD3DError: there is no table, or the document lacks its markers.
    """
    if not table.is_file():
        raise FD3DError(f"{table} does not exist; run 'fd3d sweep', or give another by --table")
    lines = read_table(table)
    made: dict[tuple[str, str], Path] = {}
    by_group: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons(lines):
        by_group.setdefault((comparison.group, comparison.split), []).append(comparison)
    for (group, split), found in by_group.items():
        curves = [c for c in found if curve_panels([c])]
        shown = [c for c in found if any(r.row != PLAIN for r in c.students) and c.find(PLAIN)]
        if not shown:
            continue
        made[group, split] = figures / f"{table.stem}_{group}_{split}.svg"
        variants = [c for c in shown if group != MAIN and c.find(FD3D)]
        drawn = curves_figure(curves) if curves else differences_figure(variants) if variants else gains_figure(shown)
        save(drawn, made[group, split])

    links = {names: _relative(path, document.parent) for names, path in made.items()}
    text = markdown(lines, links)
    if not document.is_file():
        raise FD3DError(f"{document} does not exist; give another by --document")
    whole = between_markers(document.read_text(), text, MARKERS, document)
    write_atomically(document, lambda file: file.write(whole))
    return text


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
