"""Reading of BEV maps and camera pyramids by object queries, with the expert's positions and attention weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.models.precision import in_float32


def sample_values(bev: Tensor, weight: Tensor, bias: Tensor, locations: Tensor, attention: Tensor) -> Tensor:
    """Deformable-attention reading after the value projection and before the output projection, for every layer.

    Args:
        bev: (B, C, H, W).
        weight, bias: (L, C, C) and (L, C), each layer's value projection.
        locations: (B, L, K, M, P, 2) x, y in 0..1 of the map's extent.
        attention: (B, L, K, M, P).

    Returns:
        (L, B, K, C).
    """
    batch, layers, queries, heads, points = attention.shape
    # Projecting is linear and pointwise, so it commutes with sampling; the whole map is projected once per layer.
    values = torch.einsum("bchw,ldc->lbdhw", bev, weight) + bias[:, None, :, None, None]
    per_head = values.reshape(layers * batch * heads, -1, *bev.shape[-2:])
    grid = locations.permute(1, 0, 3, 2, 4, 5).reshape(layers * batch * heads, queries, points, 2) * 2 - 1
    read = torch.nn.functional.grid_sample(per_head, grid, padding_mode="zeros", align_corners=False)
    share = attention.permute(1, 0, 3, 2, 4).reshape(layers * batch * heads, 1, queries, points)
    summed = (read * share).sum(-1).view(layers, batch, -1, queries)
    return summed.transpose(2, 3)


@in_float32
def camera_positions(points: Tensor, lidar2img: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Positions of 3D points in the images.

    Args:
        points: (B, L, K, 3) metres, LiDAR frame.
        lidar2img: (B, V, 4, 4) to pixels of the unpadded image.
        image_hw: rows and columns of the *padded* image, which the levels divide.

    Returns:
        (B, V, L*K, 2) x, y in 0..1 of the padded image; of no meaning for points behind the camera.
    """
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], -1).flatten(1, 2)  # (B, L*K, 4)
    cam = torch.einsum("bvij,bnj->bvni", lidar2img.to(points), homogeneous)
    return cam[..., :2] / cam[..., 2:3].clamp(min=1e-5) / cam.new_tensor([image_hw[1], image_hw[0]])


def sample_cameras(
    levels: Sequence[Tensor], points: Tensor, weights: Tensor, lidar2img: Tensor, image_hw: tuple[int, int]
) -> Tensor:
    """DETR3D's reading of camera pyramids at projected points, before the output projection, for every layer.

    Args:
        levels: (B, V, C, Hl, Wl) each.
        points: (B, L, K, 3) metres, LiDAR frame.
        weights: (B, L, K, V, levels), 0 where a point is not visible.
        lidar2img: (B, V, 4, 4) to pixels of the unpadded image.
        image_hw: rows and columns of the *padded* image, which the levels divide.

    Returns:
        (L, B, K, C).
    """
    batch, layers, queries, views, _ = weights.shape
    uv = camera_positions(points, lidar2img, image_hw)
    # points behind a camera have no weight there, but must not become NaN
    grid = uv.clamp(-1, 2).flatten(0, 1)[:, :, None] * 2 - 1  # (B*V, L*K, 1, 2)
    total = points.new_zeros(())
    for i, level in enumerate(levels):
        read = torch.nn.functional.grid_sample(level.flatten(0, 1), grid, padding_mode="zeros", align_corners=False)
        read = read[..., 0].view(batch, views, -1, layers, queries)  # (B, V, C, L, K)
        total = total + torch.einsum("bvclk,blkv->lbkc", read, weights[..., i])
    return total
