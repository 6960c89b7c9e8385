"""A sweep's table as figures: gains, differences, and curves over experts of falling quality."""

import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from pipeline.distill.settings import FD3D, PLAIN
from pipeline.files import write_atomically
from pipeline.study.statistics import Comparison, Interval, Result, paired
from pipeline.study.training import EXPERT

matplotlib.use("Agg")


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
        gap = top - Interval.of(plain.nds.values()).mean if plain and top is not None else 0.0
        if gap > 0:
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
    the plain student more than most experts move a distilled one. Kinds without a curve of two points have no panel.
    """
    panels = curve_panels(compared)
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


def curve_panels(compared: Sequence[Comparison]) -> list[tuple[Comparison, str]]:
    """Families and kinds of expert with a row of two experts whose own NDS are known."""
    kinds = [(c, match[1]) for c in compared for match in (kind_of(r.expert) for r in c.students) if match]
    panels = [panel for i, panel in enumerate(kinds) if panel not in kinds[:i]]
    return [(found, kind) for found, kind in panels if any(len(c) > 1 for c in _curves(found, kind).values())]


def _curves(found: Comparison, kind: str) -> dict[str, list[tuple[float, Result]]]:
    """By row the quality of its experts of a kind, and of the whole one, with the students."""
    curves: dict[str, list[tuple[float, Result]]] = {}
    for r in found.students:
        match, at = kind_of(r.expert), found.expert_nds(r.expert)
        if r.row != PLAIN and at is not None and (match is None or match[1] == kind):
            curves.setdefault(r.series, []).append((at, r))
    return curves


def kind_of(expert: str) -> re.Match[str] | None:
    return re.fullmatch(r"(.+)-([\d.]+)", expert)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, with the same bytes for the same figure."""
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        write_atomically(path, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
