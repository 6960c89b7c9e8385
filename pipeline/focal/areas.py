"""Areas of boxes on the BEV grid and on feature pyramids, and the cells that sampling positions read."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_NEAR = 0.1  # metres: box parts nearer to the image plane are cut off before projection

# corner signs of a box, and its twelve edges as pairs of corners
_CORNERS = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_EDGES = torch.tensor([(a, b) for a in range(8) for b in range(a + 1, 8) if (_CORNERS[a] != _CORNERS[b]).sum() == 1])


def _rotation(yaw: Tensor) -> tuple[Tensor, Tensor]:
    return yaw.cos(), yaw.sin()


def bev_footprints(
    boxes: Tensor, pc_range: Sequence[float], size: tuple[int, int], margin: float | Tensor = 0.0
) -> Tensor:
    """Cells whose centre lies in a box's rotated footprint; a box always has the cell of its own centre.

    Args:
        boxes: (K, 9) in the LiDAR frame.
        pc_range: (x0, y0, z0, x1, y1, z1) metres that the grid spans.
        size: rows (y) and columns (x).
        margin: margin on every side, metres; one number, or (K, 1, 1).

    Returns:
        bool (K, H, W).
    """
    height, width = size
    x0, y0, x1, y1 = (float(pc_range[i]) for i in (0, 1, 3, 4))
    step_x, step_y = (x1 - x0) / width, (y1 - y0) / height
    xs = x0 + (torch.arange(width, device=boxes.device) + 0.5) * step_x
    ys = y0 + (torch.arange(height, device=boxes.device) + 0.5) * step_y
    dx = xs[None, None, :] - boxes[:, 0, None, None]
    dy = ys[None, :, None] - boxes[:, 1, None, None]
    cos, sin = (t[:, None, None] for t in _rotation(boxes[:, 6]))
    half_l, half_w = (boxes[:, i, None, None] / 2 + margin for i in (3, 4))
    along, across = (cos * dx + sin * dy).abs_().sub_(half_l), (cos * dy - sin * dx).abs_().sub_(half_w)
    # one comparison, in place and then converted: on a CPU torch is three times slower with a bool result
    inside = torch.maximum(along, across, out=along).le_(0).bool()
    # a pedestrian may lie between the centres of coarse cells
    own = _outer((dy >= -step_y / 2) & (dy < step_y / 2), (dx >= -step_x / 2) & (dx < step_x / 2))
    return inside | own


def project_boxes(boxes: Tensor, lidar2img: Tensor, image_hw: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
    """Rectangles around the projected boxes, the parts behind a camera cut off at its near plane.

    Args:
        boxes: (K, 9) in the LiDAR frame.
        lidar2img: (V, 4, 4) to pixels.
        image_hw: rows and columns that rectangles are clipped to; of all cameras (2,) or of each (V, 2).

    Returns:
        (K, V, 4) x0, y0, x1, y1 in pixels, and bool (K, V) where some of the box is in the image.
    """
    # coordinates and corners come first: on a CPU torch works through the last dimensions at once
    cos, sin = _rotation(boxes[:, 6])
    local_x, local_y, local_z = (_CORNERS.to(boxes)[:, None] * boxes[:, 3:6]).unbind(-1)  # (8, K)
    turned = torch.stack([cos * local_x - sin * local_y, sin * local_x + cos * local_y, local_z])
    corners = turned + boxes[:, :3].T[:, None]  # (3, 8, K)
    corners = torch.cat([corners, torch.ones_like(corners[:1])])
    with torch.autocast(boxes.device.type, enabled=False):  # half precision is too coarse for pixels
        cam = torch.einsum("vij,jck->icvk", lidar2img.to(boxes)[:, :3], corners)  # (3, 8, V, K)
    a, b = cam.index_select(1, _EDGES.T.flatten().to(boxes.device)).chunk(2, 1)
    depth, gap = a[2], b[2] - a[2]
    crosses = (depth < _NEAR) != (b[2] < _NEAR)
    # where an edge does not cross the plane the quotient means nothing, and may be infinite
    share = torch.where(crosses, (_NEAR - depth) / gap, 0.0)
    points = torch.cat([cam, a + share * (b - a)], 1)
    usable = torch.cat([cam[2] >= _NEAR, crosses])
    uv = points[:2] / points[2].clamp(min=_NEAR / 2)
    low = torch.where(usable, uv, float("inf")).amin(1)
    high = torch.where(usable, uv, float("-inf")).amax(1)
    limit = torch.as_tensor(image_hw).to(uv).view(-1, 2).T.flip(0)[:, :, None]  # x and y, (2, V or 1, 1)
    valid = usable.any(0) & ((high > 0) & (low < limit)).all(0)
    rectangles = torch.cat([low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)])
    return torch.where(valid, rectangles, 0.0).permute(2, 1, 0).contiguous(), valid.T.contiguous()


def cell_size(size: Sequence[int], image_hw: Sequence[int]) -> tuple[float, float]:
    """Rows and columns of pixels of a pyramid level's cell: 464x800 pixels over 15x25 cells make 30.93 and 32.

    Args:
        size: rows and columns of the level.
        image_hw: rows and columns of the padded image that the level divides.
    """
    return image_hw[0] / size[0], image_hw[1] / size[1]


def pv_rectangles_to_cells(
    rectangles: Tensor,
    valid: Tensor,
    size: tuple[int, int],
    image_hw: tuple[int, int],
    margin: float = 0.0,
    view_hw: np.ndarray | None = None,
) -> Tensor:
    """Cells of a pyramid level that a rectangle touches, bool (K, V, Hl, Wl); arguments as of :func:`pv_spans`."""
    rows, columns = pv_spans(rectangles, valid, size, image_hw, margin, view_hw)
    return _outer(rows[..., :, None], columns[..., None, :])


def pv_spans(
    rectangles: Tensor,
    valid: Tensor,
    size: tuple[int, int],
    image_hw: tuple[int, int],
    margin: float | Tensor = 0.0,
    view_hw: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows and columns of a pyramid level that a rectangle touches; a cell is touched when its row and column are.

    Args:
        rectangles: (K, V, 4) x0, y0, x1, y1 pixels.
        valid: (K, V).
        size: rows and columns of the level.
        image_hw: rows and columns of the padded image that the level divides.
        margin: margin on every side, as a share of the rectangle's width and height; one number, or (K, 1, 1).
        view_hw: (V, 2) rows and columns of each camera's own image, beyond which there are no cells; None where all images have one size.

    Returns:
        bool (K, V, Hl), none where not ``valid``, and bool (K, V, Wl).
    """
    extra = (rectangles[..., 2:] - rectangles[..., :2]) * margin
    step = rectangles.new_tensor(cell_size(size, image_hw)[::-1])  # x, y
    low, high = (rectangles[..., :2] - extra) / step, (rectangles[..., 2:] + extra) / step
    rows = torch.arange(size[0], device=rectangles.device)
    cols = torch.arange(size[1], device=rectangles.device)
    row = (rows + 1 > low[..., 1, None]) & (rows < high[..., 1, None])
    col = (cols + 1 > low[..., 0, None]) & (cols < high[..., 0, None])
    if view_hw is not None:
        own = torch.as_tensor(view_hw).to(rectangles) / step.flip(0)  # rows and columns of cells
        row, col = row & (rows < own[:, :1]), col & (cols < own[:, 1:])
    return row & valid[..., None], col


def spans_union(rows: Tensor, columns: Tensor) -> Tensor:
    """Cells that any of the rectangles touches, bool (V, Hl, Wl), from :func:`pv_spans`."""
    # a matrix product counts the rectangles over each cell, without a mask of every one of them
    return (rows.permute(1, 2, 0).float() @ columns.transpose(0, 1).float()) > 0.5


def union(masks: Tensor) -> Tensor:
    """Union of masks: bool (K, ...) -> (...)."""
    if len(masks) == 0:
        return masks.new_zeros(masks.shape[1:])
    return masks.view(torch.uint8).amax(0).view(torch.bool)  # ten times faster than any() on a CPU


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    """(..., H, 1) and (..., 1, W) bool -> (..., H, W); torch does not vectorise a broadcast ``&`` of bools on a CPU."""
    return (rows.view(torch.uint8) & columns.view(torch.uint8)).view(torch.bool)


def trust_map(masks: Tensor, trust: Tensor, size_power: float = 0.0) -> Tensor:
    """Largest weight of the queries whose area includes a cell, zero outside all areas; arguments as of :func:`query_weights`."""
    if len(masks) == 0:
        return trust.new_zeros(masks.shape[1:])
    return query_weights(masks, trust, size_power).amax(0)


def query_weights(masks: Tensor, trust: Tensor, size_power: float = 0.0) -> Tensor:
    """Weight of every query in every cell, zero outside the query's area.

    Args:
        masks: (K, ..., H, W).
        trust: (K,).
        size_power: a query's weight in a cell is the query's trust divided by the number of the query's cells on this map
            to this power: 0 counts cells alike, 1 counts objects of any size alike.

    Returns:
        (K, ..., H, W).
    """
    weight = trust.view(-1, *[1] * (masks.dim() - 1))
    if size_power:
        weight = weight / masks.sum((-2, -1), keepdim=True).clamp(min=1) ** size_power
    return masks * weight


def sampling_neighbours(locations: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells that bilinear sampling reads (``grid_sample``, align_corners=False, zeros outside).

    Args:
        locations: (..., P, 2) x, y in 0..1 of the extent of each map.
        size: rows and columns of a map.

    Returns:
        bool (..., H, W).
    """
    height, width = size
    maps, points = locations.shape[:-2], locations.flatten(0, -3) if locations.dim() > 2 else locations[None]
    cell = points.double() * locations.new_tensor([width, height]).double() - 0.5
    # a position reads the cell below it, from -1 on, and the next in each direction; what is farther out goes to a border
    x, y = (cell[..., i].floor().long().clamp(-2, n) + 2 for i, n in enumerate((width, height)))
    below = torch.zeros(len(points), height + 3, width + 3, dtype=torch.bool, device=locations.device)
    below.flatten(1).scatter_(1, y * (width + 3) + x, True)
    rows = below[:, 1:-2] | below[:, 2:-1]
    return (rows[..., 1:-2] | rows[..., 2:-1]).view(*maps, height, width)
