"""Deformable sampling shared by every attention layer, and the projection helpers around it."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from torch import Tensor, nn

from .gathering import BatchGather

Shapes = Sequence[tuple[int, int]]
"""Rows and columns of each level. Plain numbers, so that reading them does not wait for a GPU."""


@lru_cache(maxsize=32)
def shapes_tensor(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Rows and columns of each level, (levels, 2) int64."""
    return torch.tensor(shapes, device=device)


@lru_cache(maxsize=32)
def level_starts(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """First token of each level in their concatenation, (levels,) int64."""
    cells = [rows * cols for rows, cols in shapes]
    return torch.tensor([sum(cells[:i]) for i in range(len(cells))], device=device)


def per_cell(shapes: Shapes, device: torch.device) -> Tensor:
    """Columns and rows of each level, (levels, 1, 2): offsets in cells are divided by these numbers."""
    return shapes_tensor(tuple(shapes), device).flip(-1)[:, None]


def infers_on_cpu(*tensors: Tensor) -> bool:
    """Whether the tensors are on a CPU, in float32 and need no gradient: what the fast paths there are for."""
    if tensors[0].device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def row_blocks(length: int, size: int = 2048) -> list[slice]:
    """Slices of ``size`` rows: few enough queries at a time that their intermediate results stay in a core's cache."""
    return [slice(begin, min(begin + size, length)) for begin in range(0, length, size)]


def softmax_of_few(logits: Tensor) -> Tensor:
    """Softmax over a short last dimension; on a CPU in inference by columns, where torch's kernel is four times faster."""
    if not infers_on_cpu(logits):
        return logits.softmax(-1)
    columns = logits.reshape(-1, logits.shape[-1]).T.contiguous()
    return columns.softmax(0).T.reshape(logits.shape)


def im2col_step(batch: int, most: int = 64) -> int:
    """Samples that mmcv's kernel takes at a time: the largest divisor of ``batch`` up to ``most``, since it refuses others."""
    return max(step for step in range(1, min(batch, most) + 1) if batch % step == 0)


class DeformableSampler(nn.Module):
    """Weighted bilinear sampling of multi-level values; no parameters.

    The sampler is a module of its own so that a forward hook on its path sees values, locations and weights: this is how
    stage 1 records where the expert's queries look.
    """

    def forward(self, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
        """Sample.

        Args:
            value: (B, sum H*W, M, C/M) projected features, levels concatenated.
            shapes: rows and columns of each level.
            locations: (B, N, M, levels, P, 2) x and y in 0..1 of each level's extent.
            weights: (B, N, M, levels, P).

        Returns:
            (B, N, C).
        """
        # Positions in half precision lose up to a tenth of a cell on a 200-cell map, so sampling stays in float32.
        with torch.autocast(value.device.type, enabled=False):
            value, locations, weights = value.float(), locations.float(), weights.float()
            if value.is_cuda:
                key = tuple(shapes)
                return MultiScaleDeformableAttnFunction.apply(
                    value.contiguous(),
                    shapes_tensor(key, value.device),
                    level_starts(key, value.device),
                    locations.contiguous(),
                    weights.contiguous(),
                    im2col_step(len(value)),
                )
            sizes = shapes_tensor(tuple(shapes), value.device)
            return BatchGather.apply(value, sizes, locations, weights).flatten(2)  # type: ignore[no-untyped-call]


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
