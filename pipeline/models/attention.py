"""Deformable sampling shared by every attention layer, and the projection helpers around it."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
from torch import Tensor, nn

Shapes = Sequence[tuple[int, int]]
"""Rows and columns of each level. Plain numbers, so that no GPU is waited for to learn them."""

# Samples that are turned into bags at a time: indices and weights of a block stay in a core's cache.
_BLOCK = 1 << 15


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
    """Columns and rows of each level, (levels, 1, 2): offsets in cells are divided by it."""
    return shapes_tensor(tuple(shapes), device).flip(-1)[:, None]


def bilinear_corners(x: Tensor, y: Tensor, width: Tensor | int, height: Tensor | int) -> tuple[Tensor, Tensor]:
    """The four cells that bilinear interpolation reads, and their shares.

    Args:
        x, y: (...) float32 in cells; 0 is the centre of the first.
        width, height: of the map, broadcast against x.

    Returns:
        int32 row-major cell numbers and float32 shares, each (..., 4); a corner outside the map is cell 0 with share 0.
    """
    left, top = x.floor(), y.floor()
    right_share, low_share = x - left, y - top
    col, row = left.int(), top.int()
    # shares of both columns and both rows, zero where outside
    shares_x = [(1 - right_share) * ((col >= 0) & (col < width)), right_share * ((col >= -1) & (col < width - 1))]
    shares_y = [(1 - low_share) * ((row >= 0) & (row < height)), low_share * ((row >= -1) & (row < height - 1))]
    cell = row * width + col
    cells = torch.stack([cell, cell + 1, cell + width, cell + width + 1], -1)
    shares = torch.stack([shares_y[i] * shares_x[j] for i in (0, 1) for j in (0, 1)], -1)
    return cells.masked_fill_(shares == 0, 0), shares


def weighted_rows(table: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    """Sums of table rows: table (R, D), rows and shares (N, S) -> (N, D). No intermediate (N, S, D) is made."""
    return nn.functional.embedding_bag(rows, table, per_sample_weights=shares, mode="sum")


def sample_by_bags(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, lengths: Sequence[int]) -> Tensor:
    """Deformable sampling as one weighted sum of value rows per query and head; for inference on a CPU.

    Several times faster there than one ``grid_sample`` a level, which gathers channel by channel and keeps all samples.

    Args:
        value, locations, weights: as :meth:`DeformableSampler.forward`, float32.
        lengths: queries of each batch row that count; the others give zeros.
    """
    batch, tokens, heads, dims = value.shape
    num, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    sizes = shapes_tensor(tuple(shapes), value.device)
    height, width = (sizes[:, i, None].int() for i in (0, 1))  # (levels, 1)
    start = level_starts(tuple(shapes), value.device)[:, None, None].int()
    head = torch.arange(heads, dtype=torch.int32, device=value.device).view(heads, 1, 1, 1)
    scale = sizes.flip(-1)[:, None].float()  # (levels, 1, 2)
    out = value.new_zeros(batch, num, heads * dims)
    block = max(1, _BLOCK // (heads * levels * points))
    for b, length in enumerate(lengths):
        table = value[b].reshape(tokens * heads, dims)
        for first in range(0, length, block):
            chosen = slice(first, min(first + block, length))
            x, y = (locations[b, chosen] * scale - 0.5).unbind(-1)  # (n, heads, levels, points)
            cells, shares = bilinear_corners(x, y, width, height)
            rows = (cells + start).mul_(heads).add_(head)
            shares = shares.mul_(weights[b, chosen, ..., None])
            read = weighted_rows(table, rows.view(-1, levels * points * 4), shares.view(-1, levels * points * 4))
            out[b, chosen] = read.view(-1, heads * dims)
    return out


class DeformableSampler(nn.Module):
    """Weighted bilinear sampling of multi-level values; no parameters.

    A module of its own so that a forward hook on its path sees values, locations and weights: this is how stage 1
    records where the expert's queries look.
    """

    def forward(
        self, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """Sample.

        Args:
            value: (B, sum H*W, M, C/M) projected features, levels concatenated.
            shapes: rows and columns of each level.
            locations: (B, N, M, levels, P, 2) x and y in 0..1 of each level's extent.
            weights: (B, N, M, levels, P).
            lengths: per batch row the number of queries that count, where later ones are padding: what they give is
                not defined. All count by default.

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
                    64,
                )
            if torch.is_grad_enabled() and any(t.requires_grad for t in (value, locations, weights)):
                # the backward pass of embedding_bag is slower than grid_sample's
                return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
            return sample_by_bags(value, shapes, locations, weights, lengths or [locations.shape[1]] * len(value))


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
