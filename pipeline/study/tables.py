"""A sweep's table as text: one table a group and family, between the markers of a document."""

from collections.abc import Mapping, Sequence

from pipeline.distill.settings import FD3D, PLAIN
from pipeline.study.statistics import STARTS, Comparison, Interval, comparisons, paired
from pipeline.study.table import Line
from pipeline.study.training import EXPERT

NO_ROWS = "No rows yet: `fd3d sweep` makes them.\n"
"""Text of a table without lines."""
MARKERS = "<!-- evidence: written by 'fd3d evidence' -->", "<!-- /evidence -->"

_HEAD = (
    "row",
    "seeds",
    "NDS",
    "mAP",
    "gain in NDS",
    "of the gap",
    "over the start",
    "FD3D minus it",
    "training, s",
    "on",
    "store, MB",
)


def _table(found: Comparison) -> list[str]:
    out = [f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|"]
    for r in found.results:
        cells = [r.row, str(len(r.nds)), Interval.of(r.nds.values()).text(), Interval.of(r.map.values()).text()]
        compared = r.method != EXPERT and r.row != PLAIN
        fd3d, share = found.fd3d_beside(r), found.share(r) if compared else None
        cells += [
            found.gain(r).text(True) if compared else "",
            "" if share is None else f"{share:.0%}" if share <= 1 else "> 100%",
        ]
        start = found.start_beside(r) if compared else None
        cells += [paired(r.nds, start.nds).text(True) if start and start is not r else ""]
        cells += [paired(fd3d.nds, r.nds).text(True) if fd3d and fd3d is not r and r.method != EXPERT else ""]
        cells += [
            "" if r.seconds is None else f"{r.seconds:.0f}",
            r.device,
            f"{r.store_bytes / 1e6:.0f}" if r.store_bytes else "",
        ]
        out.append(f"| {' | '.join(cells)} |")
    return out


def _best_other_note(found: Comparison) -> list[str]:
    fd3d, best = found.find(FD3D), found.best_other()
    if fd3d is None or best is None:
        return []
    return ["", f"FD3D minus the best other distiller ({best.row}): {paired(fd3d.nds, best.nds).text(True)} NDS."]


def markdown(lines: Sequence[Line], figures: Mapping[tuple[str, str], str]) -> str:
    """Tables of every group and family.

    Args:
        lines: lines of the sweep's table.
        figures: link of a group's figure by the names of the group and its split.
    """
    if not lines:
        return NO_ROWS
    revisions = sorted({line["revision"] for line in lines})
    dates = sorted(line["date"] for line in lines)
    found_starts = {line["row"] for line in lines} | {line["row"].removesuffix(f"-{line['expert']}") for line in lines}
    start = next((name for name in STARTS if name in found_starts), STARTS[0])
    out = [
        "NDS and mAP in per cent by the devkit; mean over seeds ± half the 95 % interval (Student's t); one seed has none. Gains and "
        "differences are paired by seed. *Of the gap*: the mean gain over what the expert has above the plain student. "
        f"*Over the start*: over the row `{start}` of the same expert, or over the group's only one.",
        "",
        f"Revisions: {', '.join(revisions)}; {dates[0]} to {dates[-1]}. "
        "Any row again: `fd3d sweep --group GROUP --family FAMILY --row ROW --seed SEED --force`.",
    ]
    group = None
    for found in comparisons(lines):
        if (found.group, found.split) != group:
            group = found.group, found.split
            out += ["", f"### {found.group}, on split {found.split}"]
            if group in figures:
                out += ["", f"![{found.group} on {found.split}]({figures[group]})"]
        out += ["", f"**{found.family}**", "", *_table(found), *_best_other_note(found)]
    return "\n".join(out) + "\n"
