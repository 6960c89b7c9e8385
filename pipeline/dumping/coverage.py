"""Coverage: the share of each map inside the focal areas, and the share of the annotated boxes that the areas cover.

Everything is counted in whole cells and boxes, per frame, so that sums over frames and shards are exact.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.data import CLASSES
from pipeline.data.index import Frame
from pipeline.expert import ExpertFrame
from pipeline.expert.rows import Areas, padded_size
from pipeline.files import write_atomically
from pipeline.focal.areas import spans_union, union

DISTANCES = (0, 20, 40, float("inf"))
"""Edges of the distance bins, metres from the LiDAR."""
_BINS = len(DISTANCES) - 1

Cells = tuple[Tensor | None, list[Tensor]]
Counts = dict[str, dict[str, np.ndarray]]
"""By map (``bev``, ``pv/0``, ...):

``cells`` (2,): all cells, and cells in a focal area;
``box_cells`` (2,): cells in an annotated box, and of these cells the ones in a focal area;
``boxes``, ``covered`` (classes, distance bins): annotated boxes (in ``pv``: once for each camera that sees them), and
boxes whose centre's cell is in a focal area;
``rank`` (K + 1,): boxes by the best query whose area includes the centre's cell; the last entry counts boxes in no area.
"""


@dataclass(frozen=True)
class Annotated:
    """Annotated boxes of a frame that count for coverage.

    Attributes:
        boxes: (n, 9) float32, LiDAR frame.
        groups: (n,) class and distance bin as one number.
    """

    boxes: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, truth: Frame, pc_range: Sequence[float]) -> "Annotated":
        """Annotated boxes with a LiDAR or radar point and the centre within ``pc_range``."""
        x0, y0, x1, y1 = (float(pc_range[i]) for i in (0, 1, 3, 4))
        x, y = truth.boxes[:, 0], truth.boxes[:, 1]
        kept = (truth.num_lidar_pts + truth.num_radar_pts > 0) & (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        near = np.digitize(np.hypot(x, y)[kept], DISTANCES[1:-1])
        return cls(truth.boxes[kept].astype(np.float32), truth.labels[kept].astype(np.int64) * _BINS + near)


def frame_coverage(
    frame: ExpertFrame, areas: Areas, around: Areas, cells: Cells, annotated: Annotated, pc_range: Sequence[float]
) -> Counts:
    """Counts of one frame.

    Args:
        areas, around: areas of the queries and of the annotated boxes, see :func:`~pipeline.expert.rows.areas_beside`.
        cells: focal cells of :func:`~pipeline.expert.rows.joined_cells`.
    """
    x0, y0, x1, y1 = (float(pc_range[i]) for i in (0, 1, 3, 4))
    boxes, groups, queries, counts = annotated.boxes, annotated.groups, len(frame.boxes), {}
    # areas stay on the device; what is counted is small
    if areas.bev is not None and around.bev is not None and cells[0] is not None:
        height, width = cells[0].shape
        row = ((boxes[:, 1] - y0) / (y1 - y0) * height).astype(np.int64).clip(max=height - 1)
        column = ((boxes[:, 0] - x0) / (x1 - x0) * width).astype(np.int64).clip(max=width - 1)
        hit = areas.bev[:, row, column].cpu().numpy()
        counts["bev"] = _count(hit, cells[0], union(around.bev), (row, column), groups, queries)
    if around.rectangles is None or around.valid is None:
        return counts
    rectangles = around.rectangles.cpu().numpy()
    box, camera = around.valid.cpu().numpy().nonzero()
    centres = (rectangles[box, camera, :2] + rectangles[box, camera, 2:]) / 2
    for i, (spans, inside, stored) in enumerate(zip(areas.pv, around.pv, cells[1], strict=True)):
        height, width = stored.shape[-2:]
        column, row = (centres / (padded_size(frame)[0] / height)).astype(np.int64).T
        row, column = row.clip(max=height - 1), column.clip(max=width - 1)
        rows, columns = (span.cpu().numpy() for span in spans)
        hit = rows[:, camera, row] & columns[:, camera, column]
        counts[f"pv/{i}"] = _count(hit, stored, spans_union(*inside), (camera, row, column), groups[box], queries)
    return counts


def _count(
    hit: np.ndarray, cells: Tensor, inside: Tensor, at: tuple[np.ndarray, ...], groups: np.ndarray, queries: int
) -> dict[str, np.ndarray]:
    """Counts of one map.

    Args:
        hit: (K', n) whether the area of a query, best first, includes the centre of an annotated box.
        cells, inside: (...) focal cells and those of annotated boxes.
        at: cell numbers (n,) of the boxes' centres, one per dimension of ``cells``.
        groups: (n,) class and distance bin of the boxes as one number.
        queries: K.
    """
    stored, boxes = cells.cpu().numpy(), inside.cpu().numpy()
    first = np.where(hit.any(0), hit.argmax(0), queries) if len(hit) else np.full(len(groups), queries)
    size = (len(CLASSES), _BINS)
    return {
        "cells": np.array([stored.size, np.count_nonzero(stored)]),
        "box_cells": np.array([np.count_nonzero(boxes), np.count_nonzero(boxes & stored)]),
        "boxes": np.bincount(groups, minlength=size[0] * size[1]).reshape(size),
        "covered": np.bincount(groups[stored[at]], minlength=size[0] * size[1]).reshape(size),
        "rank": np.bincount(first, minlength=queries + 1),
    }


def join_counts(parts: Iterable[Mapping[str, Mapping[str, Any]]]) -> Counts:
    """Sum of counts, of frames or of shards."""
    joined: Counts = {}
    for part in parts:
        for name, counts in part.items():
            into = joined.setdefault(name, {})
            for key, value in counts.items():
                into[key] = into.get(key, 0) + np.asarray(value, np.int64)
    return joined


def to_plain(counts: Counts) -> dict[str, dict[str, Any]]:
    """Counts as plain values, for JSON."""
    return {name: {key: value.tolist() for key, value in entry.items()} for name, entry in counts.items()}


def summary(counts: Counts) -> dict[str, dict[str, Any]]:
    """Shares by map, all in 0..1; groups without a box are left out.

    ``cells``: of all cells, those in a focal area; ``box_cells``: of the annotated boxes' cells; ``boxes``: of the
    annotated boxes, those whose centre's cell is in a focal area, also by class and by distance.
    """
    names = [f"{low}-{high} m" if high < float("inf") else f"over {low} m" for low, high in pairwise(DISTANCES)]
    return {
        name: {
            "cells": _share(*entry["cells"][::-1]),
            "box_cells": _share(*entry["box_cells"][::-1]),
            "boxes": _share(entry["covered"].sum(), entry["boxes"].sum()),
            "annotated": int(entry["boxes"].sum()),
            "by_class": _shares(CLASSES, entry, axis=1),
            "by_distance": _shares(names, entry, axis=0),
        }
        for name, entry in counts.items()
    }


def _share(part: int, whole: int) -> float:
    return round(float(part) / max(float(whole), 1.0), 5)


def _shares(names: Sequence[str], entry: Mapping[str, np.ndarray], axis: int) -> dict[str, float]:
    boxes, covered = entry["boxes"].sum(axis), entry["covered"].sum(axis)
    return {name: _share(covered[i], boxes[i]) for i, name in enumerate(names) if boxes[i]}


def write_curve(path: Path, counts: Counts) -> None:
    """CSV of the share of annotated boxes whose centre's cell the best ``queries`` queries cover, by map.

    ``covered`` is the mean over the maps.
    """
    curves = {name: np.cumsum(entry["rank"])[:-1] / max(entry["rank"].sum(), 1) for name, entry in counts.items()}

    def write(file: Any) -> None:
        writer = csv.writer(file)
        writer.writerow(["queries", "covered", *curves])
        for k, shares in enumerate(zip(*curves.values(), strict=True), 1):
            writer.writerow([k, round(float(np.mean(shares)), 5), *(round(float(share), 5) for share in shares)])

    write_atomically(path, write)


def write_coverage(path: Path, frames: int, counts: Counts) -> None:
    """JSON of the number of frames and :func:`summary`; beside it ``coverage.csv``, see :func:`write_curve`."""
    text = json.dumps({"frames": frames, "coverage": summary(counts)}, indent=1)
    write_atomically(path, lambda file: file.write(text + "\n"))
    write_curve(path.with_name("coverage.csv"), counts)


def lines(counts: Counts) -> list[str]:
    """Lines, one per map: share of the map's cells stored, and share of the annotated boxes covered; and one where nothing is stored."""
    found = summary(counts)
    told = [
        f"{name}: {shares['cells']:.1%} of all cells, covering {shares['boxes']:.1%} of the annotated boxes"
        for name, shares in found.items()
    ]
    if found and not any(shares["cells"] for shares in found.values()):
        told.append(
            "no query reached focal.min_score, so no cell is stored; look at the expert, or lower focal.min_score"
        )
    return told
