"""Areas of boxes on the BEV grid and on feature pyramids, and the cells that sampling positions read."""

from collections.abc import Sequence

import torch
from torch import Tensor

_NEAR = 0.1  # metres: box parts nearer to the image plane are cut off before projection

# corner signs of a box, and its twelve edges as pairs of corners
_CORNERS = torch.tensor([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_EDGES = torch.tensor([(a, b) for a in range(8) for b in range(a + 1, 8) if (_CORNERS[a] != _CORNERS[b]).sum() == 1])


def _rotation(yaw: Tensor) -> tuple[Tensor, Tensor]:
    return yaw.cos(), yaw.sin()


def bev_footprints(boxes: Tensor, pc_range: Sequence[float], size: tuple[int, int], margin: float = 0.0) -> Tensor:
    """Cells whose centre lies in a box's rotated footprint; a box always has the cell that holds its own centre.

    Args:
        boxes: (K, 9) in the LiDAR frame.
        pc_range: (x0, y0, z0, x1, y1, z1) metres that the grid spans.
        size: rows (y) and columns (x).
        margin: added on every side, metres.

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
    inside = torch.maximum(along, across) <= 0  # one comparison: on a CPU they cost most
    # a pedestrian may lie between the centres of coarse cells
    own = _outer((dy >= -step_y / 2) & (dy < step_y / 2), (dx >= -step_x / 2) & (dx < step_x / 2))
    return inside | own


def project_boxes(boxes: Tensor, lidar2img: Tensor, image_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rectangles around the projected boxes, the parts behind a camera cut off at its near plane.

    Args:
        boxes: (K, 9) in the LiDAR frame.
        lidar2img: (V, 4, 4) to pixels.
        image_hw: rows and columns that rectangles are clipped to.

    Returns:
        (K, V, 4) x0, y0, x1, y1 in pixels, and bool (K, V) where some of the box is in the image.
    """
    cos, sin = _rotation(boxes[:, 6])
    local = _CORNERS.to(boxes) * boxes[:, None, 3:6]
    x = cos[:, None] * local[..., 0] - sin[:, None] * local[..., 1]
    y = sin[:, None] * local[..., 0] + cos[:, None] * local[..., 1]
    corners = torch.stack([x, y, local[..., 2]], -1) + boxes[:, None, :3]
    homogeneous = torch.cat([corners, torch.ones_like(corners[..., :1])], -1)
    cam = torch.einsum("vij,kcj->kvci", lidar2img.to(boxes), homogeneous)[..., :3]  # (K, V, 8, 3)
    edges = _EDGES.to(boxes.device)
    a, b = cam[..., edges[:, 0], :], cam[..., edges[:, 1], :]
    crosses = (a[..., 2] < _NEAR) != (b[..., 2] < _NEAR)
    gap = b[..., 2] - a[..., 2]
    share = torch.where(
        crosses, (_NEAR - a[..., 2]) / torch.where(crosses, gap, torch.ones_like(gap)), torch.zeros_like(gap)
    )
    cut = a + share[..., None] * (b - a)
    points = torch.cat([cam, cut], -2)
    usable = torch.cat([cam[..., 2] >= _NEAR, crosses], -1)
    uv = points[..., :2] / points[..., 2:].clamp(min=_NEAR / 2)
    low = torch.where(usable[..., None], uv, torch.full_like(uv, float("inf"))).amin(-2)
    high = torch.where(usable[..., None], uv, torch.full_like(uv, float("-inf"))).amax(-2)
    limit = uv.new_tensor([image_hw[1], image_hw[0]])
    valid = usable.any(-1) & (high > 0).all(-1) & (low < limit).all(-1)
    rectangles = torch.cat([low.clamp(min=0).minimum(limit), high.clamp(min=0).minimum(limit)], -1)
    return torch.where(valid[..., None], rectangles, torch.zeros_like(rectangles)), valid


def pv_rectangles_to_cells(
    rectangles: Tensor, valid: Tensor, size: tuple[int, int], stride: float, margin: float = 0.0
) -> Tensor:
    """Cells of a pyramid level that a rectangle touches.

    Args:
        rectangles: (K, V, 4) x0, y0, x1, y1 pixels.
        valid: (K, V).
        size: rows and columns of the level.
        stride: pixels of a cell.
        margin: added on every side, as a share of the rectangle's width and height.

    Returns:
        bool (K, V, Hl, Wl).
    """
    extra = (rectangles[..., 2:] - rectangles[..., :2]) * margin
    low, high = (rectangles[..., :2] - extra) / stride, (rectangles[..., 2:] + extra) / stride
    rows = torch.arange(size[0], device=rectangles.device)
    cols = torch.arange(size[1], device=rectangles.device)
    row = (rows + 1 > low[..., 1, None]) & (rows < high[..., 1, None])
    col = (cols + 1 > low[..., 0, None]) & (cols < high[..., 0, None])
    return _outer((row & valid[..., None])[..., :, None], col[..., None, :])


def union(masks: Tensor) -> Tensor:
    """Where any of the masks holds: bool (K, ...) -> (...)."""
    if len(masks) == 0:
        return masks.new_zeros(masks.shape[1:])
    return masks.view(torch.uint8).amax(0).view(torch.bool)  # ten times faster than any() on a CPU


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    """(..., H, 1) and (..., 1, W) bool -> (..., H, W); torch does not vectorise a broadcast ``&`` of bools on a CPU."""
    return (rows.view(torch.uint8) & columns.view(torch.uint8)).view(torch.bool)


def trust_map(masks: Tensor, trust: Tensor) -> Tensor:
    """Largest trust of the queries whose area holds a cell, zero outside all; masks (K, ...), trust (K,) -> (...)."""
    if len(masks) == 0:
        return trust.new_zeros(masks.shape[1:])
    return (masks * trust.view(-1, *[1] * (masks.dim() - 1))).amax(0)


def sampling_neighbours(locations: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells that bilinear sampling reads (``grid_sample``, align_corners=False, zeros outside).

    Args:
        locations: (..., 2) x, y in 0..1 of the map's extent.
        size: rows and columns.

    Returns:
        bool (H, W).
    """
    height, width = size
    cell = locations.reshape(-1, 2).double() * locations.new_tensor([width, height]).double() - 0.5
    low = cell.floor().long()
    touched = torch.zeros(height * width, dtype=torch.bool, device=locations.device)
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = low[:, 0] + dx, low[:, 1] + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            touched[(y * width + x)[inside]] = True
    return touched.view(height, width)
