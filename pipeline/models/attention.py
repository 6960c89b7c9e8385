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
    """The four cells that bilinear interpolation reads, and their shares; zeros lie around the map.

    Near a border the cells are moved inside, and tent functions of the distance to them give the shares, so that nothing
    is masked: a cell that interpolation would not read gets share 0.

    Args:
        x, y: (...) float32 in cells; 0 is the centre of the first.
        width, height: of the map, at least 2, broadcast against x.

    Returns:
        int32 row-major numbers of the upper left cells (...), and float32 shares (..., 4) of it, its right neighbour,
        the cell below and that one's right neighbour.
    """
    col, row = x.floor().clamp_(min=0), y.floor().clamp_(min=0)
    col, row = (_at_most(cells, size - 2) for cells, size in ((col, width), (row, height)))
    near = [(x - col, y - row), (x - col - 1, y - row - 1)]
    (left, top), (right, low) = ([d.abs_().neg_().add_(1).clamp_(min=0) for d in pair] for pair in near)
    shares = torch.empty(*x.shape, 4, dtype=x.dtype, device=x.device)
    for i, (a, b) in enumerate(((top, left), (top, right), (low, left), (low, right))):
        torch.mul(a, b, out=shares[..., i])
    return row.mul_(width).add_(col).int(), shares


def _at_most(cells: Tensor, limit: Tensor | int) -> Tensor:
    return torch.minimum(cells, limit, out=cells) if isinstance(limit, Tensor) else cells.clamp_(max=limit)


def corner_rows(first: Tensor, width: Tensor | int, step: int = 1) -> Tensor:
    """Table rows (..., 4) of the four cells whose upper left one is row ``first``; neighbours are ``step`` rows apart."""
    rows = torch.empty(*first.shape, 4, dtype=first.dtype, device=first.device)
    for i, offset in enumerate((0, step, width * step, width * step + step)):
        torch.add(first, offset, out=rows[..., i])
    return rows


def weighted_rows(table: Tensor, rows: Tensor, shares: Tensor) -> Tensor:
    """Sums of table rows: table (R, D), rows and shares (N, S) -> (N, D). No intermediate (N, S, D) is made."""
    return nn.functional.embedding_bag(rows, table, per_sample_weights=shares, mode="sum")


def infers_on_cpu(*tensors: Tensor) -> bool:
    """Whether these are on a CPU and no gradient will be asked of them."""
    return tensors[0].device.type == "cpu" and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def row_blocks(length: int, size: int = 512) -> list[slice]:
    """Slices of ``size`` rows: queries worked on at a time, so that what is made of them stays in a core's cache."""
    return [slice(begin, min(begin + size, length)) for begin in range(0, length, size)]


def sample_by_bags(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Deformable sampling as one weighted sum of value rows per query and head; for inference on a CPU.

    Several times faster there than one ``grid_sample`` a level, which gathers channel by channel and keeps all samples.
    Arguments and result as of :meth:`DeformableSampler.forward`, float32.
    """
    batch, tokens, heads, dims = value.shape
    num, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    sizes = shapes_tensor(tuple(shapes), value.device)
    height, width = (sizes[:, i, None].float() for i in (0, 1))  # (levels, 1)
    start = level_starts(tuple(shapes), value.device)[:, None].int() * heads
    head = torch.arange(heads, dtype=torch.int32, device=value.device).view(heads, 1, 1)
    scale = sizes.flip(-1)[:, None].float()  # (levels, 1, 2)
    out = value.new_empty(batch, num, heads * dims)
    block = max(1, _BLOCK // (heads * levels * points))
    for b in range(batch):
        table = value[b].reshape(tokens * heads, dims)
        for chosen in row_blocks(num, block):
            x, y = (locations[b, chosen] * scale).sub_(0.5).unbind(-1)  # (n, heads, levels, points)
            first, shares = bilinear_corners(x, y, width, height)
            rows = corner_rows(first.mul_(heads).add_(start + head), width.int(), heads)
            shares.mul_(weights[b, chosen, ..., None])
            read = weighted_rows(table, rows.view(-1, levels * points * 4), shares.view(-1, levels * points * 4))
            out[b, chosen] = read.view(-1, heads * dims)
    return out


class DeformableSampler(nn.Module):
    """Weighted bilinear sampling of multi-level values; no parameters.

    A module of its own so that a forward hook on its path sees values, locations and weights: this is how stage 1
    records where the expert's queries look.
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
                    64,
                )
            if infers_on_cpu(value, locations, weights) and min(map(min, shapes)) > 1:
                return sample_by_bags(value, shapes, locations, weights)
            # the backward pass of embedding_bag is slower than grid_sample's
            return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


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
