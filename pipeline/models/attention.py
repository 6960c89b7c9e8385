"""Deformable sampling shared by every attention layer, and the projection helpers around it."""

import math

import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from torch import Tensor, nn


class DeformableSampler(nn.Module):
    """Weighted bilinear sampling of multi-level values; no parameters.

    A module of its own so that a forward hook on its path sees values, locations and weights: this is how stage 1
    records where the expert's queries look.
    """

    def forward(self, value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        """Sample.

        Args:
            value: (B, sum H*W, M, C/M) projected features, levels concatenated.
            spatial_shapes: (levels, 2) int64 rows and columns of each level.
            locations: (B, N, M, levels, P, 2) x and y in 0..1 of each level's extent.
            weights: (B, N, M, levels, P).

        Returns:
            (B, N, C).
        """
        # Positions in half precision lose up to a tenth of a cell on a 200-cell map, so sampling stays in float32.
        with torch.autocast(value.device.type, enabled=False):
            value, locations, weights = value.float(), locations.float(), weights.float()
            if value.is_cuda:
                starts = torch.cat([spatial_shapes.new_zeros(1), spatial_shapes.prod(1).cumsum(0)[:-1]])
                return MultiScaleDeformableAttnFunction.apply(
                    value.contiguous(), spatial_shapes, starts, locations.contiguous(), weights.contiguous(), 64
                )
            return multi_scale_deformable_attn_pytorch(value, spatial_shapes, locations, weights)


def init_ring_offsets(linear: nn.Linear, num_heads: int, groups: int, num_points: int) -> None:
    """Start sampling offsets on rings: head m looks in direction 2*pi*m/M, point p at distance p + 1 cells.

    The start of Deformable DETR (Zhu et al., 2021), which all BEVFormer attentions share.

    Args:
        linear: output features are ordered (M, groups, P, 2).
    """
    angle = torch.arange(num_heads, dtype=torch.float32) * (2.0 * math.pi / num_heads)
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    direction = direction / direction.abs().max(-1, keepdim=True).values
    distance = torch.arange(1, num_points + 1, dtype=torch.float32)
    offsets = direction[:, None, None, :] * distance[None, None, :, None]
    nn.init.zeros_(linear.weight)
    with torch.no_grad():
        linear.bias.copy_(offsets.expand(num_heads, groups, num_points, 2).reshape(-1))


def init_projections(*linears: nn.Linear) -> None:
    """Xavier-uniform weights and zero biases."""
    for linear in linears:
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
