"""Queries of cached frames in their places: by the annotations, as ``distill.geometry`` says."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.focal.areas import project_boxes

from .geometry import Anchors, match_along_rays, projected_overlap, ray_trust
from .geometry_settings import GeometrySettings
from .losses import agreement


def place_queries(
    boxes: Tensor,
    labels: Tensor,
    trust: Tensor,
    true_boxes: Tensor,
    true_labels: Tensor,
    meta: Mapping[str, Any],
    geometry: GeometrySettings,
) -> tuple[Anchors, Tensor]:
    """Where a frame's queries belong, and the trust (K,) that annotations leave to the queries.

    Args:
        boxes, labels, trust: (K, 9) LiDAR frame, (K,) and (K,) of the queries.
        true_boxes, true_labels: (n, 9) and (n,) of the annotations.
        meta: metainfo of the student's frame, for the projection.
    """
    weight, match = trust, torch.full(labels.shape, -1, dtype=torch.long, device=labels.device)
    if geometry.agreement_power:
        weight = weight * agreement(boxes, labels, true_boxes, true_labels) ** geometry.agreement_power
    if geometry.match:
        lidar2img = torch.as_tensor(meta["lidar2img"], device=boxes.device)
        projected = [project_boxes(b, lidar2img, meta.get("view_hw", meta["pad_hw"])) for b in (boxes, true_boxes)]
        overlap = projected_overlap(*projected[0], *projected[1])
        match = match_along_rays(boxes, labels, trust, true_boxes, true_labels, overlap, geometry)
        weight = torch.where(match >= 0, weight, weight * geometry.unmatched)
    anchors = Anchors.found(boxes, true_boxes, match)
    if geometry.ray_along:  # 1 for unmatched queries, whose targets are their own boxes
        weight = weight * ray_trust(anchors.source, anchors.target, geometry.ray_along, geometry.ray_across)
    return anchors, weight


def student_positions(
    queries: Mapping[str, Tensor], anchors: Sequence[Anchors], pc_range: Sequence[float]
) -> dict[str, Tensor]:
    """What the queries read, moved with their boxes: ``sampling`` (B, L, K, M, P, 2) or ``points`` (B, L, K, 3)."""
    moved = {}
    for name in {"sampling", "points"} & queries.keys():
        positions = queries[name].transpose(1, 2)  # (B, K, L, ...)
        if name == "sampling":  # on the map, 0..1
            low = positions.new_tensor(pc_range[:2])
            extent = positions.new_tensor(pc_range[3:5]) - low
            there = [(a.to_target(p * extent + low) - low) / extent for a, p in zip(anchors, positions, strict=True)]
        else:
            there = [a.to_target(p) for a, p in zip(anchors, positions, strict=True)]
        moved[name] = torch.stack(there).transpose(1, 2)
    return moved
