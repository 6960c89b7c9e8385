"""What a sweep's table says: means with intervals, gains paired by seed, figures, and the text of docs/results.md."""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from pipeline.distill.settings import FD3D, PLAIN
from pipeline.errors import FD3DError
from pipeline.files import write_atomically
from pipeline.sweep.grid import EXPERT
from pipeline.sweep.table import Line, read_table

matplotlib.use("Agg")

BEGIN, END = "<!-- evidence: written by 'fd3d evidence' -->", "<!-- /evidence -->"
CONFIDENCE = 0.95
MAIN = "main"
"""The group of the main comparison."""
START = f"{PLAIN}-inherit"
"""The row of what the weights that students start from give without any distillation."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % confidence interval, mean - half to mean + half.

    Attributes:
        half: None with one seed, which tells nothing about the spread.
        count: of seeds.
    """

    mean: float
    half: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Interval":
        """Student's interval (Student, 1908): half = t(0.975, n - 1) s / sqrt(n), s with n - 1 in its denominator."""
        x = np.array(list(values), float)
        if len(x) == 0:
            return cls(float("nan"), None, 0)
        if len(x) == 1:
            return cls(float(x[0]), None, 1)
        quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1)
        return cls(float(x.mean()), float(quantile * x.std(ddof=1) / np.sqrt(len(x))), len(x))

    def text(self, signed: bool = False) -> str:
        """Two decimals, with the interval where there is one."""
        if self.count == 0:
            return ""
        mean = f"{self.mean:+.2f}" if signed else f"{self.mean:.2f}"
        return mean if self.half is None else f"{mean} ± {self.half:.2f}"


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Interval:
    """Interval of a - b over the seeds that both have: what a seed does to both cancels."""
    return Interval.of(a[seed] - b[seed] for seed in sorted(a.keys() & b.keys()))


@dataclass(frozen=True)
class Result:
    """A row of a group and family over its seeds; metrics in per cent by seed."""

    row: str
    method: str
    expert: str
    nds: dict[int, float]
    map: dict[int, float]
    seconds: float | None
    """Mean training time; None where it is not known, or of several devices."""
    device: str
    """What it was trained on; several separated by commas."""
    store_bytes: int

    @property
    def series(self) -> str:
        """The grid's row: without the expert's name, which a row of several experts appends."""
        return self.row.removesuffix(f"-{self.expert}")


@dataclass(frozen=True)
class Comparison:
    """A group's rows of one family, beside its plain student and its experts."""

    group: str
    family: str
    results: list[Result]

    def find(self, row: str) -> Result | None:
        """A row by name."""
        return next((result for result in self.results if result.row == row), None)

    @property
    def students(self) -> list[Result]:
        """All but the experts."""
        return [result for result in self.results if result.method != EXPERT]

    def expert_nds(self, expert: str) -> float | None:
        """An expert's own NDS, the mean of its lines."""
        for result in self.results:
            if result.method == EXPERT and result.expert == expert:
                return Interval.of(result.nds.values()).mean
        return None

    def fd3d_beside(self, result: Result) -> Result | None:
        """FD3D as profiled, of the same expert."""
        return self.find(FD3D) or self.find(f"{FD3D}-{result.expert}")

    def start_beside(self, result: Result) -> Result | None:
        """What the start from the same expert's weights gives alone."""
        return self.find(START) or self.find(f"{START}-{result.expert}")

    def gain(self, result: Result, seeds: Collection[int] | None = None) -> Interval:
        """NDS over the plain student, paired by seed; of ``seeds`` only, if given."""
        plain = self.find(PLAIN)
        if plain is None:
            return Interval.of([])
        return paired({s: nds for s, nds in result.nds.items() if seeds is None or s in seeds}, plain.nds)

    def share(self, result: Result) -> float | None:
        """The mean gain as a share of the mean gap between the plain student, on the same seeds, and the expert."""
        plain, expert = self.find(PLAIN), self.expert_nds(result.expert)
        seeds = result.nds.keys() & plain.nds.keys() if plain else ()
        if not plain or expert is None or not seeds:
            return None
        gap = expert - Interval.of(plain.nds[seed] for seed in seeds).mean
        return self.gain(result).mean / gap if gap > 0 else None

    def best_other(self) -> Result | None:
        """The other distiller that FD3D leads least, or trails most, on the seeds that both have."""
        fd3d = self.find(FD3D)
        if fd3d is None:
            return None
        others = [r for r in self.students if r.method not in (PLAIN, FD3D) and r.nds.keys() & fd3d.nds.keys()]
        return min(others, key=lambda r: paired(fd3d.nds, r.nds).mean, default=None)


def comparisons(lines: Sequence[Line]) -> list[Comparison]:
    """A table's lines by group and family: group 'main' first; plain and FD3D before the other students, experts last."""
    cells: dict[tuple[str, str], dict[tuple[str, str], list[Line]]] = {}
    for line in sorted(lines, key=lambda line: line["group"] != MAIN):
        rows = cells.setdefault((line["group"], line["family"]), {})
        rows.setdefault((line["row"], line["method"]), []).append(line)
    return [
        Comparison(group, family, sorted(map(_result, rows.values()), key=_place))
        for (group, family), rows in cells.items()
    ]


def _place(result: Result) -> tuple[bool, int, list[tuple[float, str]]]:
    """Sorts students: plain, FD3D, the others by name with the numbers in it as numbers."""
    first = {PLAIN: 0, FD3D: 1}.get(result.row, 2)
    parts = re.findall(r"([\d.]+)|([^\d.]+)", result.row)
    return result.method == EXPERT, first, [(float(number) if number else -1.0, text) for number, text in parts]


def _result(lines: Sequence[Line]) -> Result:
    first = lines[0]
    seconds = [float(line["seconds"]) for line in lines if line["seconds"]]
    devices = sorted({line["device"] for line in lines})
    return Result(
        first["row"],
        first["method"],
        first["expert"],
        {int(line["seed"]): float(line["NDS"]) for line in lines},
        {int(line["seed"]): float(line["mAP"]) for line in lines},
        float(np.mean(seconds)) if seconds and len(devices) == 1 else None,
        ", ".join(devices),
        max(int(line["store_bytes"]) for line in lines),
    )


# Text


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


def markdown(lines: Sequence[Line], figures: Mapping[str, str]) -> str:
    """Tables of every group and family.

    Args:
        lines: of the sweep's table.
        figures: link of a group's figure by the group's name.
    """
    revisions = sorted({line["revision"] for line in lines})
    dates = sorted(line["date"] for line in lines)
    out = [
        "NDS and mAP in per cent by the devkit; mean over seeds ± half the 95 % interval (Student's t); one seed has none. Gains and "
        "differences are paired by seed. *Of the gap*: the mean gain over what the expert has above the plain student. "
        f"*Over the start*: over the row `{START}` of the same expert.",
        "",
        f"Revisions: {', '.join(revisions)}; {dates[0]} to {dates[-1]}. "
        "Any row again: `fd3d sweep --group GROUP --family FAMILY --row ROW --seed SEED --force`.",
    ]
    group = None
    for found in comparisons(lines):
        if found.group != group:
            group = found.group
            out += ["", f"### {group}"]
            if group in figures:
                out += ["", f"![{group}]({figures[group]})"]
        out += ["", f"**{found.family}**", "", *_table(found), *_best_other_note(found)]
    return "\n".join(out) + "\n"


def between_markers(text: str, content: str, where: object) -> str:
    """A document with what stands between its markers replaced.

    Raises:
        FD3DError: the document lacks a marker.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise FD3DError(f"{where} lacks the lines '{BEGIN}' and '{END}'; put them where the tables belong")
    return f"{before}{BEGIN}\n{content}{END}{after}"


# Figures


def gains_figure(found: Sequence[Comparison]) -> Figure:
    """Gain in NDS over the plain student with its interval, a row of points per student and a panel per family."""
    tallest = max(len(c.students) for c in found)
    figure = Figure(figsize=(5.5 * len(found), 1.2 + 0.3 * tallest), layout="constrained")
    for i, comparison in enumerate(found):
        axes = figure.add_subplot(1, len(found), i + 1)
        shown = [r for r in reversed(comparison.students) if r.row != PLAIN]
        gains = [comparison.gain(r) for r in shown]
        for y, (result, gain) in enumerate(zip(shown, gains, strict=True)):
            color = "tab:red" if result.method == FD3D else "tab:blue"
            axes.errorbar(gain.mean, y, xerr=gain.half or 0, fmt="o", color=color, capsize=3)
        plain, top = comparison.find(PLAIN), _profile_expert(comparison)
        if plain and top is not None:
            gap = top - Interval.of(plain.nds.values()).mean
            axes.axvline(
                gap / 2, color="tab:gray", ls=":", lw=1, label=f"half of the gap to the expert ({gap:.1f} NDS)"
            )
            axes.legend(fontsize=7, loc="best")
        axes.axvline(0, color="black", lw=0.8)
        axes.set(title=comparison.family, xlabel="gain in NDS over the plain student, 95 % interval")
        axes.set_yticks(range(len(shown)), [r.row for r in shown])
        axes.grid(axis="x", alpha=0.3)
    return figure


def differences_figure(found: Sequence[Comparison]) -> Figure:
    """NDS of FD3D's variants minus that of FD3D as profiled, by the seeds that both have, a panel per family."""
    tallest = max(len(c.students) for c in found)
    figure = Figure(figsize=(6.5 * len(found), 1.2 + 0.24 * tallest), layout="constrained")
    for i, comparison in enumerate(found):
        axes = figure.add_subplot(1, len(found), i + 1)
        shown, means = [r for r in reversed(comparison.students) if r.row not in (PLAIN, FD3D)], list[float]()
        for y, result in enumerate(shown):
            difference = paired(result.nds, comparison.find(FD3D).nds)
            axes.errorbar(difference.mean, y, xerr=difference.half or 0, fmt="o", color="tab:red", capsize=3)
            means.append(difference.mean)
        # the interval of two seeds would otherwise set the scale
        axes.set_xlim(min([0, *means]) - 0.7, max([0, *means]) + 0.7)
        axes.axvline(0, color="black", lw=0.8)
        axes.set(title=comparison.family, xlabel="NDS minus FD3D's by seed, 95 % interval")
        axes.set_yticks(range(len(shown)), [f"{r.row} ({len(r.nds)})" for r in shown])
        axes.grid(axis="x", alpha=0.3)
    return figure


def _profile_expert(found: Comparison) -> float | None:
    experts = [r for r in found.results if r.row == EXPERT]
    return Interval.of(experts[0].nds.values()).mean if experts else None


def curves_figure(compared: Sequence[Comparison]) -> Figure:
    """Gain over the plain student against the expert's quality, a panel per family and kind of expert.

    Experts are named KIND-NUMBER and placed at their own NDS. All points of a panel are of the seeds that they share: a seed moves
    the plain student more than most experts move a distilled one.
    """
    kinds = [(c, match[1]) for c in compared for match in (_kind(r.expert) for r in c.students) if match]
    panels = [panel for i, panel in enumerate(kinds) if panel not in kinds[:i]]
    names = sorted({r.series for c, _ in panels for r in c.students} - {FD3D})
    colors = {name: f"C{i + i // 3}" for i, name in enumerate(names)} | {FD3D: "tab:red"}  # skips C3, which is that red
    figure = Figure(figsize=(4.5 * len(panels), 3.6), layout="constrained")
    for i, (found, kind) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        drawn = _curves(found, kind)
        curves = {name: curve for name, curve in drawn.items() if len(curve) > 1}
        of_points = [set(r.nds) for curve in curves.values() for _, r in curve]
        shared = sorted(set.intersection(*of_points)) if of_points else []
        for series, curve in curves.items():
            points = sorted((at, found.gain(result, shared)) for at, result in curve)
            axes.errorbar(
                [x for x, _ in points],
                [gain.mean for _, gain in points],
                yerr=[gain.half or 0 for _, gain in points],
                fmt="o-",
                capsize=3,
                color=colors[series],
                label=series,
            )
        for series, curve in drawn.items():  # a start from the same weights, whatever is made worse later
            if len(curve) == 1 and curve[0][1].method == PLAIN:
                axes.axhline(found.gain(curve[0][1], shared).mean, color=colors[series], ls=":", label=series)
        seeds = f"seed{'s' * (len(shared) > 1)} {', '.join(map(str, shared))}" if shared else "no seed in common"
        axes.set(title=f"{found.family}: {kind} ({seeds})", xlabel="NDS of the expert", ylabel="gain in NDS over plain")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return figure


def _curves(found: Comparison, kind: str) -> dict[str, list[tuple[float, Result]]]:
    """By row the quality of its experts of a kind, and of the whole one, with the students."""
    curves: dict[str, list[tuple[float, Result]]] = {}
    for r in found.students:
        match, at = _kind(r.expert), found.expert_nds(r.expert)
        if r.row != PLAIN and at is not None and (match is None or match[1] == kind):
            curves.setdefault(r.series, []).append((at, r))
    return curves


def _kind(expert: str) -> re.Match[str] | None:
    return re.fullmatch(r"(.+)-([\d.]+)", expert)


def _save(figure: Figure, path: Path) -> None:
    """As SVG with the same bytes for the same figure."""
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        write_atomically(path, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))


def build_evidence(table: Path, out: Path, figures: Path, document: Path) -> str:
    """Write the text, a figure per group as SVG, and the tables between the document's markers.

    Args:
        table: of a sweep.
        out: Markdown file.
        figures: folder for ``evidence_GROUP.svg``.
        document: with markers.

    Returns:
        the text.

    Raises:
        FD3DError: there is no table, or the document lacks its markers.
    """
    lines = read_table(table)
    if not lines:
        raise FD3DError(f"{table} has no rows; run 'fd3d sweep'")
    made: dict[str, Path] = {}
    by_group: dict[str, list[Comparison]] = {}
    for comparison in comparisons(lines):
        by_group.setdefault(comparison.group, []).append(comparison)
    for group, found in by_group.items():
        curves = [c for c in found if any(_kind(r.expert) for r in c.students)]
        shown = [c for c in found if any(r.row != PLAIN for r in c.students) and c.find(PLAIN)]
        if not shown:
            continue
        made[group] = figures / f"evidence_{group}.svg"
        variants = [c for c in shown if group != MAIN and c.find(FD3D)]
        drawn = curves_figure(curves) if curves else differences_figure(variants) if variants else gains_figure(shown)
        _save(drawn, made[group])

    def text(place: Path) -> str:
        links = {group: _relative(path, place.parent) for group, path in made.items()}
        return markdown(lines, links)

    if not document.is_file():
        raise FD3DError(f"{document} does not exist; give another by --document")
    whole = between_markers(document.read_text(), text(document), document)
    write_atomically(document, lambda file: file.write(whole))
    write_atomically(out, lambda file: file.write("# Evidence\n\n" + text(out)))
    return text(out)


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
