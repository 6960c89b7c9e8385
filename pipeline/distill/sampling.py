"""What object queries read on a BEV map, with the expert's positions and attention weights."""

import torch
from torch import Tensor


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
