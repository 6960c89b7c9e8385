"""The BEV grid of BEVFormer (Li et al., 2022): its pillars of points, and where cameras see them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..precision import in_float32
from ..views import own_extent


@dataclass
class CameraHits:
    """BEV cells that each camera sees, and their image points; made once per frame and shared by all encoder layers.

    Attributes:
        index: (B*V, T) int64 cells seen, padded to the longest list T.
        valid: (B*V, T) False on padding.
        points: (B*V, T, D, 2) x and y of the pillar's D heights in 0..1 of the padded image.
        count: (B, N, 1) number of cameras that see a cell, at least 1.
        lengths: numbers of cells seen, one for each of B*V cameras.
    """

    index: Tensor
    valid: Tensor
    points: Tensor
    count: Tensor
    lengths: list[int]


def grid_points(height: int, width: int, device: torch.device) -> Tensor:
    """Centres of the BEV cells, (H*W, 2) x and y in 0..1, row-major."""
    ys = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    xs = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


@in_float32
def project_pillars(
    points: Tensor,
    heights: Tensor,
    pc_range: Tensor,
    lidar2img: Tensor,
    image_hw: tuple[int, int],
    view_hw: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Project every cell's pillar of 3D points into every camera.

    Args:
        points: (N, 2) cell centres in 0..1.
        heights: (D,) heights in 0..1 of pc_range.
        pc_range: (6,) metres.
        lidar2img: (B, V, 4, 4) to pixels of the unpadded image.
        image_hw: rows and columns of the *padded* image; both normalise the result (as official checkpoints expect).
        view_hw: (B, V, 2) rows and columns of each camera's own image; None where all images have one size.

    Returns:
        uv (B, V, N, D, 2) in 0..1 and the mask of points strictly inside an image and in front of it (B, V, N, D).
    """
    eps = 1e-5
    num, depth = len(points), len(heights)
    unit = torch.cat([points[:, None].expand(num, depth, 2), heights[None, :, None].expand(num, depth, 1)], -1)
    metres = unit * (pc_range[3:] - pc_range[:3]) + pc_range[:3]
    homogeneous = torch.cat([metres, torch.ones_like(metres[..., :1])], -1)
    cam = torch.einsum("bvij,ndj->bvndi", lidar2img, homogeneous)
    z = cam[..., 2]
    uv = cam[..., :2] / z.clamp(min=eps)[..., None] / cam.new_tensor([image_hw[1], image_hw[0]])
    extent = own_extent(image_hw, view_hw)
    if isinstance(extent, Tensor):
        extent = extent[..., None, :]
    mask = (z > eps) & (uv > 0).all(-1) & (uv < extent).all(-1)
    return torch.nan_to_num(uv), mask


def camera_hits(uv: Tensor, mask: Tensor) -> CameraHits:
    """Compact the cells seen per camera, each sample of the batch by its own mask.

    Args:
        uv: (B, V, N, D, 2).
        mask: (B, V, N, D).
    """
    seen = mask.any(-1).flatten(0, 1)  # (B*V, N)
    count = mask.any(-1).sum(1).clamp(min=1)[..., None]
    # The one host sync of the encoder: the lengths of the lists.
    lengths = seen.sum(-1).tolist()
    longest = max(*lengths, 1)
    # A stable sort of "not seen" lists the seen cells first, in cell order.
    index = (~seen).to(torch.uint8).argsort(dim=-1, stable=True)[:, :longest]
    valid = seen.gather(1, index)
    points = uv.flatten(0, 1).gather(1, index[..., None, None].expand(-1, -1, *uv.shape[3:]))
    return CameraHits(index, valid, points, count, lengths)
