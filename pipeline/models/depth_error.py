"""Wrong depth: features and boxes moved along their rays from the LiDAR, a whole frame alike or each object by its own factor.

The objects are those that the detector finds itself on its unmoved features. A factor is log-normal: the standard deviation
of its logarithm is the level of the error, whatever the range.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

MIN_SCORE = 0.1
"""Score above which a box is an object."""
MERGE = 2.0
"""Metres between the centres of two boxes below which both are one object."""
FADE = 10.0
"""Metres from the only object at which the displacement is half of the object's."""
_NODE = 1.0  # metres between drawn numbers, so that objects that were not merged share hardly any
_POWER = 4  # of the inverse distance: the smallest even one with which objects all over a plane have a finite weight
_FILL = 8.0  # metres around a place that an object has left, from which the place is filled


@dataclass
class Displaced:
    """Objects of a frame with their errors, the best score first.

    Attributes:
        boxes: (N, 9) unmoved, LiDAR frame.
        log_factor: (N,) logarithms of the factors on the range.
    """

    boxes: Tensor
    log_factor: Tensor


def move_radially(bev: Tensor, factor: float | Tensor, pc_range: Tensor) -> Tensor:
    """Move a BEV map's content away from the LiDAR; what was beyond the map is zero.

    Args:
        bev: (C, H, W), row = y, column = x, over ``pc_range``.
        factor: factor on the distance, one for all cells or (H, W) for the cells moved to.
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
    """
    low, extent = pc_range[:2], pc_range[3:5] - pc_range[:2]
    if isinstance(factor, Tensor):
        factor = factor[..., None]
    grid = (_cell_centres(bev, pc_range) / factor - low) / extent * 2 - 1
    moved = nn.functional.grid_sample(bev[None].float(), grid[None], padding_mode="zeros", align_corners=False)
    return moved[0].to(bev.dtype)


def _cell_centres(bev: Tensor, pc_range: Tensor) -> Tensor:
    """Centres (H, W, 2) of the cells of a map (C, H, W), metres."""
    height, width = bev.shape[-2:]
    x, y = ((torch.arange(n, device=bev.device) + 0.5) / n for n in (width, height))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1) * (pc_range[3:5] - pc_range[:2]) + pc_range[:2]


def footprint_distance(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances (N, P) in metres from each of N boxes' footprints, 0 inside.

    Args:
        points: (P, 2), or (N, P, 2) for points of each box's own, metres.
        boxes: (N, 9) LiDAR frame.
    """
    x, y = (points - boxes[:, None, :2]).unbind(-1)
    cos, sin = boxes[:, 6:7].cos(), boxes[:, 6:7].sin()
    ahead, aside = cos * x + sin * y, cos * y - sin * x
    beyond = torch.stack([ahead, aside], -1).abs() - boxes[:, None, 3:5] / 2
    return beyond.clamp(min=0).norm(dim=-1)


def _belongs(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points (P, 2) are parts of N boxes' objects, (N, P): in the footprint, or near the centre."""
    near = (points - boxes[:, None, :2]).norm(dim=-1) < MERGE
    return near | (footprint_distance(points, boxes) == 0)


def find_objects(boxes: Tensor, scores: Tensor) -> Tensor:
    """Boxes (N, 9) of different objects: of the boxes that belong together, the one of the highest score.

    Args:
        boxes: (n, 9) of one frame, LiDAR frame, in the order of their scores.
        scores: (n,), falling.
    """
    boxes = boxes[scores > MIN_SCORE]
    belongs = _belongs(boxes[:, :2], boxes).cpu()
    kept: list[int] = []
    for i in range(len(boxes)):
        if not belongs[kept, i].any():
            kept.append(i)
    return boxes[kept]


def draw_errors(centres: Tensor, depth: float, generator: torch.Generator, pc_range: Tensor) -> Tensor:
    """Logarithms (N,) of factors at places (N, 2) in metres, each from N(0, ``depth``).

    Every metre of ``pc_range`` has a drawn number. A place depends on the four around it, with bilinear weights scaled to unit
    variance. The factor thus changes with the place, but not abruptly, as a table's entry would at the last bit of a
    coordinate. Places two metres apart in x or y are independent. Places beyond ``pc_range`` have the factor of its border.
    """
    size = ((pc_range[3:5] - pc_range[:2]) / _NODE).ceil().long()  # intervals between nodes in x and y
    nodes = torch.randn(*(size.flip(0) + 1).tolist(), generator=generator).to(centres.device)
    at = ((centres.float() - pc_range[:2]) / _NODE).clamp(min=0).minimum(size)
    cell = at.floor().long().minimum(size - 1)
    x, y = (torch.stack([1 - part, part], -1) for part in (at - cell).unbind(-1))  # (N, 2) each
    weight = y[:, :, None] * x[:, None, :]
    step = torch.arange(2, device=centres.device)
    drawn = nodes[cell[:, 1, None, None] + step[:, None], cell[:, 0, None, None] + step]
    return depth * (weight * drawn).sum((1, 2)) / weight.square().sum((1, 2)).sqrt()


def between(distance: Tensor, log_factor: Tensor) -> Tensor:
    """Log factors (P,) at places with distances (N, P) in metres from N objects' footprints.

    Inverse-distance weighting (Shepard, 1968) with a constant weight for no displacement: continuous, an object's own value
    at its footprint, and falling to 0 far from all objects.
    """
    weight = distance.clamp(min=0.01) ** -_POWER
    return (weight * log_factor[:, None]).sum(0) / (weight.sum(0) + FADE**-_POWER)


def log_factors_of(points: Tensor, objects: Displaced) -> Tensor:
    """Log factors (P,) of points (P, 2) in metres: the best-scored object's that a point belongs to, else those in between."""
    if not len(objects.boxes):
        return points.new_zeros(len(points))
    belongs = _belongs(points, objects.boxes)
    own = objects.log_factor[belongs.int().argmax(0)]
    distance = footprint_distance(points, objects.boxes)
    return torch.where(belongs.any(0), own, between(distance, objects.log_factor))


def move_objects(bev: Tensor, objects: Displaced, pc_range: Tensor) -> Tensor:
    """Move the content of a BEV map, each object by its own factor.

    An object's cells are those in its footprint or at most a cell's width beside it; of several objects the nearest has the
    cell. All of an object's cells move by exactly its factor; the object thus grows by the factor, as an object at
    another range of the same angles does. Where two objects come to lie on each other, the better-scored one is seen.
    All other cells show the background, moved by a factor that is smooth in between: the map with every object's
    cells replaced by the mean of their surroundings, so that no object stays visible at the place that it has left.
    What the detector scores below ``MIN_SCORE`` is background, and moves with it.

    Args:
        bev: (C, H, W), row = y, column = x, over ``pc_range``.
        objects: boxes and errors.
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
    """
    if not len(objects.boxes):
        return bev
    height, width = bev.shape[-2:]
    cells = _cell_centres(bev, pc_range).flatten(0, 1)
    cell_size = (pc_range[3:5] - pc_range[:2]) / cells.new_tensor([width, height])
    margin = cell_size.max()

    distance = footprint_distance(cells, objects.boxes)
    owner = distance.argmin(0).where(distance.amin(0) <= margin, -1)  # (H*W,)

    factor = objects.log_factor.exp()[:, None]
    source = cells / factor[..., None]  # (N, H*W, 2): where each object's content would come from
    x, y = ((source - pc_range[:2]) / cell_size).floor().long().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    at_source = owner[(y * width + x).where(inside, 0)]
    covers = inside & (at_source == torch.arange(len(factor), device=bev.device)[:, None])  # (N, H*W)
    covered = covers.any(0)

    apart = (footprint_distance(source, objects.boxes) - margin).clamp(min=0) * factor
    own = objects.log_factor[covers.int().argmax(0)]
    log_factor = torch.where(covered, own, between(apart, objects.log_factor)).unflatten(0, (height, width))
    background = _without(bev, (owner >= 0).unflatten(0, (height, width)), _FILL / margin.item())
    moved, behind = (move_radially(maps, log_factor.exp(), pc_range) for maps in (bev, background))
    return torch.where(covered.unflatten(0, (height, width)), moved, behind)


def _without(bev: Tensor, taken: Tensor, radius: float) -> Tensor:
    """A map (C, H, W) whose cells ``taken`` (H, W) have the mean of the other cells within ``radius`` cells in x and y."""
    reach = max(round(radius), 1)

    def total(maps: Tensor) -> Tensor:
        for kernel, padding in (((1, 2 * reach + 1), (0, reach)), ((2 * reach + 1, 1), (reach, 0))):
            maps = nn.functional.avg_pool2d(maps, kernel, 1, padding)
        return maps

    free = (~taken).float()[None]
    kept = torch.where(taken, 0, bev.float())
    mean = kept.sum((1, 2), keepdim=True) / free.sum().clamp(min=1)  # where no free cell is near
    filled = (total(kept) + 1e-4 * mean) / (total(free) + 1e-4)
    return torch.where(taken, filled.to(bev.dtype), bev)
