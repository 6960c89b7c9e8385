"""How much of each map the focal areas take, and how much of the annotated boxes they hold.

Everything is counted in whole cells and boxes, per frame, so that sums over frames and shards are exact.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data import CLASSES
from pipeline.data.index import Frame
from pipeline.dumping.rows import padded_size
from pipeline.expert import ExpertFrame
from pipeline.files import write_atomically
from pipeline.focal import bev_footprints, project_boxes, pv_rectangles_to_cells, union

DISTANCES = (0, 20, 40, float("inf"))
"""Edges of the distance bins, metres from the LiDAR."""

Areas = tuple[Tensor | None, list[Tensor]]
Counts = dict[str, dict[str, np.ndarray]]
"""By map (``bev``, ``pv/0``, ...):

``cells`` (2,): all, and those in a focal area;
``box_cells`` (2,): those in an annotated box, and of them those in a focal area;
``boxes``, ``covered`` (classes, distance bins): annotated boxes (in ``pv``: once for each camera that sees them), and
those whose centre's cell is in a focal area;
``rank`` (K + 1,): boxes by the best query whose area holds their centre's cell, the last entry by none.
"""


def frame_coverage(
    frame: ExpertFrame, areas: Areas, cells: Areas, truth: Frame, pc_range: Sequence[float], lidar2img: Tensor
) -> Counts:
    """Counts of one frame; boxes count that have a LiDAR or radar point and their centre within ``pc_range``.

    Args:
        areas: of :func:`~pipeline.dumping.rows.query_areas`.
        cells: of :func:`~pipeline.dumping.rows.joined_cells`.
        lidar2img: (V, 4, 4) to pixels of the expert's unpadded image.
    """
    x0, y0, x1, y1 = (float(pc_range[i]) for i in (0, 1, 3, 4))
    x, y = truth.boxes[:, 0], truth.boxes[:, 1]
    kept = (truth.num_lidar_pts + truth.num_radar_pts > 0) & (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    boxes = torch.as_tensor(truth.boxes[kept], dtype=torch.float32, device=frame.boxes.device)
    near = np.digitize(np.hypot(x, y)[kept], DISTANCES[1:-1])
    groups = np.stack([truth.labels[kept].astype(np.int64), near])  # (2, n) class and distance bin
    queries, counts = len(frame.boxes), {}
    if areas[0] is not None and cells[0] is not None:
        height, width = cells[0].shape
        inside = union(bev_footprints(boxes, pc_range, (height, width)))
        row = ((boxes[:, 1] - y0) / (y1 - y0) * height).long().clamp(max=height - 1)
        column = ((boxes[:, 0] - x0) / (x1 - x0) * width).long().clamp(max=width - 1)
        counts["bev"] = _count(areas[0], cells[0], inside, (row, column), groups, queries)
    if not areas[1]:
        return counts
    image_hw = padded_size(frame)
    rectangles, valid = project_boxes(boxes, lidar2img, image_hw)  # (n, V, 4), (n, V)
    box, camera = valid.nonzero().unbind(1)
    centres = (rectangles[box, camera, :2] + rectangles[box, camera, 2:]) / 2
    for i, (area, stored) in enumerate(zip(areas[1], cells[1], strict=True)):
        height, width = stored.shape[-2:]
        stride = image_hw[0] / height
        inside = union(pv_rectangles_to_cells(rectangles, valid, (height, width), stride))
        column, row = (centres / stride).long().unbind(1)
        at = (camera, row.clamp(max=height - 1), column.clamp(max=width - 1))
        counts[f"pv/{i}"] = _count(area, stored, inside, at, groups[:, box.cpu().numpy()], queries)
    return counts


def _count(
    areas: Tensor, cells: Tensor, inside: Tensor, at: tuple[Tensor, ...], groups: np.ndarray, queries: int
) -> dict[str, np.ndarray]:
    """Counts of one map.

    Args:
        areas: (K', ...) of the queries with an area; cells, inside: (...) focal cells and those of annotated boxes.
        at: cell numbers (n,) of the boxes' centres, one per dimension of ``cells``.
        groups: (2, n) class and distance bin of the boxes.
        queries: K.
    """
    hit = areas[(slice(None), *at)].T  # (n, K')
    none = torch.full_like(hit[:, :1], True)  # past the last query with an area
    first = torch.cat([hit, none], 1).int().argmax(1)
    first = torch.where(first == hit.shape[1], queries, first)
    covered = cells[at].cpu().numpy()
    tables = np.zeros((2, len(CLASSES), len(DISTANCES) - 1), np.int64)
    np.add.at(tables[0], tuple(groups), 1)
    np.add.at(tables[1], tuple(groups), covered)
    sums = torch.stack([cells.sum(), inside.sum(), (inside & cells).sum()]).tolist()
    return {
        "cells": np.array([cells.numel(), sums[0]]),
        "box_cells": np.array(sums[1:]),
        "boxes": tables[0],
        "covered": tables[1],
        "rank": np.bincount(first.cpu().numpy(), minlength=queries + 1),
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
    """As JSON takes them."""
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
    """CSV of the share of annotated boxes whose centre's cell the best ``queries`` queries hold, by map.

    ``covered`` is the mean over the maps.
    """
    curves = {name: np.cumsum(entry["rank"])[:-1] / max(entry["rank"].sum(), 1) for name, entry in counts.items()}

    def write(file: Any) -> None:
        writer = csv.writer(file)
        writer.writerow(["queries", "covered", *curves])
        for k, shares in enumerate(zip(*curves.values(), strict=True), 1):
            writer.writerow([k, round(float(np.mean(shares)), 5), *(round(float(share), 5) for share in shares)])

    write_atomically(path, write)
