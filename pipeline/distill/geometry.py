"""Where an expert's objects really are: its queries matched to annotations along the rays, and its targets moved onto them.

Cameras see an object's direction, class and size, and misjudge its distance. So a misplaced box lies on the ray of its
object, and what the expert knows of the object lies around the misplaced box.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .geometry_settings import GeometrySettings
from .sampling import Reading, bilinear

_REFUSED = 1e6
"""Cost of a pair that lies beyond a gate."""
_SHARED = 1.0
"""What a query may pay more than for its cheapest annotation before it shares that one with another query: as much as for
another class, or for no overlap in place of a full one."""
_WHOLE = 0.999
"""Share of an interpolated value that must come from stored cells, short of rounding."""


@dataclass
class Anchors:
    """Where each of a frame's queries belongs.

    Attributes:
        source: (K, 9) the query's own boxes, LiDAR frame.
        target: (K, 9) boxes of the matched annotations; of an unmatched query its own box.
        matched: bool (K,).
    """

    source: Tensor
    target: Tensor
    matched: Tensor

    @classmethod
    def found(cls, boxes: Tensor, true_boxes: Tensor, match: Tensor) -> Self:
        """Anchors from :func:`match_along_rays`."""
        matched = match >= 0
        if not len(true_boxes):
            return cls(boxes, boxes, matched)
        return cls(boxes, torch.where(matched[:, None], true_boxes[match.clamp(min=0)], boxes), matched)

    @property
    def turn(self) -> Tensor:
        """(K,) angle from a source's axes to the axes of the target, radians in -pi/2..pi/2.

        Front and back are not told apart: a heading that is wrong by half a turn must not swap the cells of an object's
        front and rear, which lie where the images show them.
        """
        return (self.target[:, 6] - self.source[:, 6] + math.pi / 2) % math.pi - math.pi / 2

    def to_target(self, points: Tensor) -> Tensor:
        """Points (K, ..., 2 or 3) around the sources, metres, moved to the same place around the targets, in box coordinates."""
        return _moved(points, self.source, self.target, self.turn)

    def to_source(self, points: Tensor) -> Tensor:
        """Inverse of :meth:`to_target`."""
        return _moved(points, self.target, self.source, -self.turn)

    def of(self, rows: Tensor) -> "Anchors":
        """Anchors of some queries, by a mask or by numbers (n,)."""
        return Anchors(self.source[rows], self.target[rows], self.matched[rows])


def _moved(points: Tensor, source: Tensor, target: Tensor, turn: Tensor) -> Tensor:
    """``c_t + R(yaw_t) diag(size_t / size_s) R(-yaw_s) (p - c_s)``, with ``yaw_t = yaw_s + turn``; z is only shifted and scaled."""
    dims = points.shape[-1]

    def spread(values: Tensor) -> Tensor:
        return values.view(len(values), *[1] * (points.dim() - 2), *values.shape[1:])

    offset = points - spread(source[:, :dims])
    # both sides alike, so that a box without a side is left as it is
    ours, theirs = (side[:, 3 : 3 + dims].clamp(min=1e-3) for side in (source, target))
    scale = spread(theirs / ours)
    before, after = spread(source[:, 6]), spread(source[:, 6] + turn)
    along = (before.cos() * offset[..., 0] + before.sin() * offset[..., 1]) * scale[..., 0]
    across = (before.cos() * offset[..., 1] - before.sin() * offset[..., 0]) * scale[..., 1]
    parts = [after.cos() * along - after.sin() * across, after.sin() * along + after.cos() * across]
    if dims == 3:
        parts.append(offset[..., 2] * scale[..., 2])
    return torch.stack(parts, -1) + spread(target[:, :dims])


def match_along_rays(
    boxes: Tensor,
    labels: Tensor,
    weight: Tensor,
    true_boxes: Tensor,
    true_labels: Tensor,
    overlap: Tensor,
    settings: GeometrySettings,
) -> Tensor:
    """Annotation of each query's object, found without trusting the query's range.

    The cost of a pair is its distance across the ray, as a share of the gate, plus one minus the overlap of the projected
    boxes, plus one where the classes differ. It has no range term: wrong boxes lie along the ray (RayDN, Liu et al., ECCV
    2024). The queries that have weight are assigned one to one, so that two objects on one ray have a query each, whichever
    of them overlaps more. A duplicate shares the cheapest annotation of its own where any other would cost 1 more: the
    annotations beside an object are not for the object's second query.

    Args:
        boxes: (K, 9) of the queries, LiDAR frame.
        labels: (K,) class numbers.
        weight: (K,); a query without weight is not matched.
        true_boxes, true_labels: (n, 9) and (n,).
        overlap: (K, n) intersection over union of the projected boxes, the largest over cameras.
        settings: whose ``across``, ``log_range`` and ``log_size`` are the gates.

    Returns:
        (K,) numbers of annotations, -1 for a query without one.
    """
    match = torch.full((len(boxes),), -1, dtype=torch.long)
    if len(true_boxes) == 0:
        return match.to(boxes.device)
    (azimuth, reach), (true_azimuth, true_reach) = (_polar(b) for b in (boxes, true_boxes))
    turn = (azimuth[:, None] - true_azimuth + math.pi) % (2 * math.pi) - math.pi
    across = turn.abs() * true_reach / settings.across
    cost = across + (1 - overlap) + (labels[:, None] != true_labels)
    sides, true_sides = (box[:, 3:6].clamp(min=1e-3).log() for box in (boxes, true_boxes))
    other_size = torch.cdist(sides, true_sides, p=math.inf) > settings.log_size
    too_far = (across > 1) | ((reach[:, None] / true_reach).log().abs() > settings.log_range)
    cost = cost.masked_fill(too_far | other_size | (weight[:, None] <= 0), _REFUSED).cpu()
    cheapest, nearest = cost.min(1)
    # one column more for each query, in which the query shares its cheapest annotation
    sharing = torch.full((len(cost), len(cost)), _REFUSED)
    sharing.diagonal().copy_(cheapest + _SHARED)
    columns = torch.from_numpy(linear_sum_assignment(torch.cat([cost, sharing], 1).numpy())[1])
    match = torch.where(columns < len(true_boxes), columns, nearest)
    match = torch.where(cheapest < _REFUSED, match, -1)
    return match.to(boxes.device)


def _polar(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Azimuth, radians, and range, metres, of box centres as the LiDAR sees them."""
    return torch.atan2(boxes[:, 1], boxes[:, 0]), boxes[:, :2].norm(dim=-1).clamp(min=0.1)


def ray_trust(boxes: Tensor, true_boxes: Tensor, along: float, across: float) -> Tensor:
    """Trust in boxes by how far they lie from their annotations: long along the ray and short across.

    ``exp(-(d_along^2 / (2 s_along^2) + d_across^2 / (2 s_across^2)))`` of the displacement d between the centres on the ground, in
    the axes of the ray from the LiDAR through the annotation. Cameras misjudge ranges in proportion to the range, so
    ``s_along`` is a share of it. Unlike :func:`~pipeline.distill.losses.agreement` this trust has no distance at which it ends. The
    idea is RCTDistill's (Bang et al., 2025: range and azimuth apart) and FSD-BEV's (Jiang et al., ECCV 2024: elliptical
    Gaussians); the form, one weight for all of a box, is ours.

    Args:
        boxes, true_boxes: (K, 9) each, a box and its annotation, LiDAR frame.
        along: ``s_along`` as a share of the annotation's range.
        across: ``s_across``, metres.

    Returns:
        (K,) in 0..1; exactly 1 for a box on its annotation.
    """
    azimuth, reach = _polar(true_boxes)
    x, y = (boxes[:, :2] - true_boxes[:, :2]).unbind(-1)
    cos, sin = azimuth.cos(), azimuth.sin()
    off_along, off_across = (cos * x + sin * y) / (along * reach), (cos * y - sin * x) / across
    return torch.exp(-(off_along**2 + off_across**2) / 2)


def projected_overlap(rectangles: Tensor, valid: Tensor, true_rectangles: Tensor, true_valid: Tensor) -> Tensor:
    """Intersection over union of projected boxes, the largest over cameras; arguments as ``project_boxes`` gives them.

    Args:
        rectangles, valid: (K, V, 4) x0, y0, x1, y1 pixels and bool (K, V).
        true_rectangles, true_valid: (n, V, 4) and (n, V).

    Returns:
        (K, n) in 0..1.
    """
    a, b = rectangles[:, None], true_rectangles[None]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    inside = sides.prod(-1)
    sizes = [(r[..., 2:] - r[..., :2]).prod(-1) for r in (a, b)]
    share = inside / (sizes[0] + sizes[1] - inside).clamp(min=1e-6)
    return torch.where(valid[:, None] & true_valid[None], share, 0.0).amax(-1)


def reanchored(
    values: Tensor, row: Tensor, weights: Tensor, owners: Tensor, anchors: Sequence[Anchors], pc_range: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The expert's BEV features as they would be with every object at its annotation.

    ``T~(x) = T(c_q + R(turn)^-1 diag(s_q / s_g) (x - c_g))`` for the cells x of the footprint of g, interpolated bilinearly
    (the alignment of single objects in VCD, Huang et al., NeurIPS 2023, for a whole footprint).

    Args:
        values: (m, C) features of the stored cells.
        row: (B * H * W,) place of a cell among the values, m for a cell that is not stored.
        weights: (B, H, W) weight of the query that a cell belongs to, 0 outside the annotations' footprints.
        owners: (B, H, W) number of this query.
        anchors: of the queries of every map.
        pc_range: (x0, y0, z0, x1, y1, z1) metres that the maps span; row = y, column = x.

    Returns:
        bool (B, H, W) of the n cells that have a value, namely those whose four neighbours at the source are stored, and
        the values (n, C), in the order of the cells.
    """
    size, low = weights.shape[-2:], weights.new_tensor(pc_range[:2])
    extent = weights.new_tensor(pc_range[3:5]) - low
    batch, rows, columns = (weights > 0).nonzero(as_tuple=True)
    owner = owners[batch, rows, columns]
    source, target = (torch.stack([getattr(a, side) for a in anchors])[batch, owner] for side in ("source", "target"))
    places = (torch.stack([columns, rows], -1) + 0.5) / weights.new_tensor([size[1], size[0]]) * extent + low
    there = Anchors(source, target, owner >= 0).to_source(places)
    cells, share = bilinear((there - low) / extent, (size[0], size[1]))
    reading = Reading(cells + batch[:, None] * (size[0] * size[1]), share)
    whole = (share * (row[reading.cells] < len(values))).sum(-1) > _WHOLE
    mask = torch.zeros_like(weights, dtype=torch.bool)
    mask[batch, rows, columns] = whole
    return mask, Reading(reading.cells[whole], share[whole]).of(values, row)


def object_grid(boxes: Tensor) -> Tensor:
    """Three by three places (K, 9, 2) on the ground of boxes (K, 9), metres: centre, middles of the sides and corners."""
    steps = boxes.new_tensor([-0.5, 0.0, 0.5])
    unit = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).flatten(0, 1)  # (9, 2) along, across
    along, across = (boxes[:, None, 3:5] * unit).unbind(-1)
    cos, sin = boxes[:, 6:7].cos(), boxes[:, 6:7].sin()
    return torch.stack([cos * along - sin * across, sin * along + cos * across], -1) + boxes[:, None, :2]
