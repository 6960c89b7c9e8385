"""A sweep's table in numbers: means with intervals, and gains paired by seed."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.distill.settings import FD3D, PLAIN
from pipeline.study.table import Line
from pipeline.study.training import EXPERT

CONFIDENCE = 0.95
MAIN = "main"
"""Group of the main comparison."""
STARTS = ("start", f"{PLAIN}-inherit")
"""Rows of the student that starts from the expert's weights without any distillation: as of today, and in older tables."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % confidence interval, mean - half to mean + half.

    Attributes:
        half: None with one seed, which tells nothing about the spread.
        count: number of seeds.
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
    """Mean training time, seconds; None where unknown, or over several devices."""
    device: str
    """Device of the trainings; several are separated by commas."""
    store_bytes: int

    @property
    def series(self) -> str:
        """The grid's row: without the expert's name, which a row of several experts appends."""
        return self.row.removesuffix(f"-{self.expert}")


@dataclass(frozen=True)
class Comparison:
    """A group's rows of one family on one split, beside the group's plain student and experts."""

    group: str
    split: str
    family: str
    results: list[Result]

    def find(self, row: str) -> Result | None:
        """Row by name."""
        return next((result for result in self.results if result.row == row), None)

    @property
    def students(self) -> list[Result]:
        """All rows but the experts'."""
        return [result for result in self.results if result.method != EXPERT]

    def expert_nds(self, expert: str) -> float | None:
        """An expert's own NDS, the mean of its lines."""
        for result in self.results:
            if result.method == EXPERT and result.expert == expert:
                return Interval.of(result.nds.values()).mean
        return None

    def fd3d_beside(self, result: Result) -> Result | None:
        """FD3D as profiled, of the same expert."""
        found = map(self.find, (FD3D, f"{FD3D}-{result.expert}"))
        return next((row for row in found if row and row.expert == result.expert), None)

    def start_beside(self, result: Result) -> Result | None:
        """Row of the start from the same expert's weights alone; the group's one start where no expert has its own."""
        names = [name for start in STARTS for name in (f"{start}-{result.expert}", start)]
        return next((found for name in names if (found := self.find(name))), None)

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
        """The other distiller of the same expert that FD3D leads least, or trails most, on the seeds that both have."""
        fd3d = self.find(FD3D)
        if fd3d is None:
            return None
        others = [r for r in self.students if r.method not in (PLAIN, FD3D) and r.expert == fd3d.expert]
        others = [r for r in others if r.nds.keys() & fd3d.nds.keys()]
        return min(others, key=lambda r: paired(fd3d.nds, r.nds).mean, default=None)


def comparisons(lines: Sequence[Line]) -> list[Comparison]:
    """A table's lines by group, split and family: group 'main' first; plain and FD3D before the other students, experts last."""
    cells: dict[tuple[str, str, str], dict[tuple[str, str], list[Line]]] = {}
    for line in sorted(lines, key=lambda line: line["group"] != MAIN):
        rows = cells.setdefault((line["group"], line["split"], line["family"]), {})
        rows.setdefault((line["row"], line["method"]), []).append(line)
    return [Comparison(*names, sorted(map(_result, rows.values()), key=_place)) for names, rows in cells.items()]


def _place(result: Result) -> tuple[bool, int, list[tuple[float, str]]]:
    """Sorts students: plain, FD3D, the others by name with the numbers in it as numbers."""
    first = {PLAIN: 0, FD3D: 1}.get(result.row, 2)
    parts = re.split(r"(\d+(?:\.\d+)?)", result.row)  # texts and numbers by turns
    return result.method == EXPERT, first, [(float(p), "") if i % 2 else (-1.0, p) for i, p in enumerate(parts)]


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
