"""Reading of BEV maps and camera pyramids by object queries, with the expert's positions and attention weights.

Projecting values is linear and pointwise, so that projecting commutes with sampling: queries sum unprojected features of a few cells, and the
few sums are projected.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.precision import in_float32

from .cells import add_up


@dataclass(frozen=True)
class Reading:
    """Sums of a map's cells that queries read.

    Attributes:
        cells: (..., E) numbers of cells in the flattened (N, H, W); any number where the share is 0.
        share: (..., E) weight of every cell in its sum, 0 outside the maps.
    """

    cells: Tensor
    share: Tensor

    @in_float32
    def of(self, rows: Tensor, row: Tensor) -> Tensor:
        """The sums (..., C).

        Args:
            rows: (n, C) features of some cells.
            row: (N * H * W,) place of a cell among the rows, n for a cell that counts as zero.
        """
        cells, share = (t.flatten(0, -2) for t in (self.cells, self.share))
        return add_up(rows, row[cells], share).view(*self.cells.shape[:-1], rows.shape[1])

    def mask(self, trust: Tensor, size: tuple[int, ...]) -> Tensor:
        """Cells that sums with trust read, bool (N, H, W).

        Args:
            trust: (B, K) trust of the queries, of sums (B, L, K, ...).
            size: maps, rows and columns.
        """
        trust = trust.view(len(trust), 1, -1, *[1] * (self.share.dim() - 3))
        count = size[0] * size[1] * size[2]
        read = self.share.new_zeros(count + 1, dtype=torch.bool)  # the last is for what is not read
        read[torch.where(self.share * trust > 0, self.cells, count).flatten()] = True
        return read[:-1].view(size)


def bilinear(positions: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Cells that bilinear sampling reads (``grid_sample``, align_corners=False, zeros outside).

    Args:
        positions: (..., 2) x, y in 0..1 of the map's extent.
        size: rows and columns.

    Returns:
        numbers of the cells (..., 4) in the flattened (H, W), and their shares (..., 4), 0 outside the map.
    """
    height, width = size
    cell = positions * positions.new_tensor([width, height]) - 0.5
    low = cell.floor()
    right, below = (cell - low).unbind(-1)
    corners = low[..., None, :] + positions.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])
    x, y = corners.unbind(-1)
    share = torch.stack([1 - right, right] * 2, -1) * torch.stack([1 - below, 1 - below, below, below], -1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    number = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return number.long(), torch.where(inside, share, 0.0)


@in_float32
def bev_reading(locations: Tensor, attention: Tensor, size: tuple[int, int]) -> Reading:
    """Deformable attention's reading of BEV maps (B, H, W), one sum of P * 4 cells per sample, layer, query and head.

    Args:
        locations: (B, L, K, M, P, 2) x, y in 0..1 of the map's extent.
        attention: (B, L, K, M, P).
        size: rows and columns.

    Returns:
        reading (B, L, K, M, P * 4).
    """
    cells, share = bilinear(locations, size)
    first = torch.arange(len(cells), device=cells.device) * (size[0] * size[1])
    return Reading((cells + first.view(-1, 1, 1, 1, 1, 1)).flatten(-2), (share * attention[..., None]).flatten(-2))


@in_float32
def project_values(sums: Tensor, inside: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Value projection of what heads have read, each head by its own part.

    Args:
        sums: (B, L, K, M, C).
        inside: (B, L, K, M) sum of the shares, by which the bias counts: zeros lie around the projected map.
        weight, bias: (L, C', C) and (L, C'), each layer's value projection.

    Returns:
        (L, B, K, C').
    """
    heads = sums.shape[3]
    weight, bias = weight.unflatten(1, (heads, -1)), bias.unflatten(1, (heads, -1))
    read = torch.einsum("blkmc,lmdc->lbkmd", sums, weight)
    return (read + inside.transpose(0, 1)[..., None] * bias[:, None, None]).flatten(-2)


@in_float32
def camera_positions(points: Tensor, lidar2img: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Positions of 3D points in the images.

    Args:
        points: (B, L, K, 3) metres, LiDAR frame.
        lidar2img: (B, V, 4, 4) to pixels of the unpadded image.
        image_hw: rows and columns of the *padded* image, which the levels divide.

    Returns:
        (B, L, K, V, 2) x, y in 0..1 of the padded image; of no meaning for points behind the camera.
    """
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], -1)
    cam = torch.einsum("bvij,blkj->blkvi", lidar2img.to(points), homogeneous)
    return cam[..., :2] / cam[..., 2:3].clamp(min=1e-5) / cam.new_tensor([image_hw[1], image_hw[0]])


@in_float32
def camera_reading(positions: Tensor, weights: Tensor, size: tuple[int, int]) -> Reading:
    """DETR3D's reading of a pyramid level (B*V, H, W), one sum of V * 4 cells per sample, layer and query.

    Args:
        positions: (B, L, K, V, 2) of :func:`camera_positions`.
        weights: (B, L, K, V), 0 where a point is not visible.
        size: rows and columns.

    Returns:
        reading (B, L, K, V * 4).
    """
    # points behind a camera have no weight there, but must not become NaN
    cells, share = bilinear(positions.clamp(-1, 2), size)
    first = torch.arange(cells.shape[0] * cells.shape[3], device=cells.device) * (size[0] * size[1])
    cells = cells + first.view(len(cells), 1, 1, -1, 1)
    return Reading(cells.flatten(-2), (share * weights[..., None]).flatten(-2))
