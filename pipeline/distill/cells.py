"""Chosen cells of maps: what is computed at such cells costs by their number, whatever the size of the maps.

Features at n cells are rows (n, C), in the order of the cells' numbers. Every gradient is gathered as the values are, which is faster
than adding up in place, and the same on every run.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_MAX_SHARE = 0.7
"""Share of the cells above which a convolution of the whole map is faster (python -m benchmarks.generators)."""


class Cells:
    """Chosen cells of N maps of one size.

    Args:
        mask: bool (N, H, W), True at the chosen cells.

    Attributes:
        index: (n,) numbers of the chosen cells in the flattened (N, H, W), ascending.
        padded: (n,) numbers of the chosen cells in the flattened (N, H + 2, W + 2), maps with a border of one cell.
        row: (N * (H + 2) * (W + 2),) place of a cell among the chosen ones, n for the others and for the border.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        maps, height, width = mask.shape
        self.index = mask.flatten().nonzero()[:, 0]
        line = self.index // width  # rows of all maps
        self.padded = self.index + 2 * line + 2 * (line // height) * (width + 2) + width + 3
        self.row = mask.new_full((maps * (height + 2) * (width + 2),), len(self.index), dtype=torch.int64)
        self.row[self.padded] = torch.arange(len(self.index), device=mask.device)

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def grown(self) -> "Cells":
        """The cells with their eight neighbours: the cells that a 3x3 convolution reads."""
        return Cells(nn.functional.max_pool2d(self.mask[:, None].float(), 3, 1, 1)[:, 0] > 0)

    @property
    def row_of_all(self) -> Tensor:
        """:attr:`row` without borders, (N * H * W,)."""
        maps, height, width = self.mask.shape
        return self.row.view(maps, height + 2, width + 2)[:, 1:-1, 1:-1].flatten()


class _Take(torch.autograd.Function):
    """Rows ``source`` (n,) of rows (m, C), 0 for number m; ``back`` (m,) says where each row has gone, n for nowhere."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return with_zero(rows).index_select(0, source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return with_zero(grad).index_select(0, back), None, None


class _Convolution(torch.autograd.Function):
    """3x3 convolution of rows (m, C) to rows (n, C'): one matrix product over neighbourhoods, and one for each gradient.

    Args:
        weight: (9 * C, C').
        source: (n, 9) rows that each result reads, m for none.
        back: (m, 9) results that read each row, n for none.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, source: Tensor, back: Tensor) -> Tensor:
        around = with_zero(rows).index_select(0, source.flatten()).view(len(source), len(weight))
        ctx.save_for_backward(around, weight, back)
        return torch.addmm(bias, around, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        around, weight, back = ctx.saved_tensors
        channels = grad.shape[1]
        gathered = with_zero(grad).index_select(0, back.flatten()).view(len(back), 9 * channels)
        turned = weight.view(9, -1, channels).transpose(1, 2).reshape(9 * channels, -1)
        return gathered @ turned, around.T @ grad, grad.sum(0), None, None


def with_zero(rows: Tensor) -> Tensor:
    """Rows (m, C) with a row of zeros at the end, (m + 1, C)."""
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def rows_of(features: Tensor, cells: Cells) -> Tensor:
    """Rows (n, C) of maps (N, C, H, W) at ``cells``."""
    rows: Tensor = _Take.apply(features.permute(0, 2, 3, 1).flatten(0, 2), cells.index, cells.row_of_all)
    return rows


def map_of(rows: Tensor, cells: Cells) -> Tensor:
    """Maps (N, C, H, W) with rows (n, C) at ``cells``, 0 elsewhere."""
    maps: Tensor = _Take.apply(rows, cells.row_of_all, cells.index)
    return maps.view(*cells.mask.shape, -1).permute(0, 3, 1, 2)


def select(rows: Tensor, given: Cells, cells: Cells) -> Tensor:
    """Rows of ``cells`` out of the rows of ``given``, cells of the same maps; 0 where a cell is not given."""
    selected: Tensor = _Take.apply(rows, given.row[cells.padded], cells.row[given.padded])
    return selected


def neighbours(cells: Cells, given: Cells) -> tuple[Tensor, Tensor]:
    """Index tables of a 3x3 convolution at n ``cells`` of maps whose values are known at m cells ``given``.

    Returns:
        rows of ``given`` around each of the cells (n, 9), m for none; for each given row the cells that read it at each of the nine
        places (m, 9), n for none.
    """
    width = cells.mask.shape[2] + 2
    steps = torch.arange(-1, 2, device=cells.index.device)
    offsets = (steps[:, None] * width + steps).flatten()
    return given.row[cells.padded[:, None] + offsets], cells.row[given.padded[:, None] - offsets]


def conv_at(conv: nn.Conv2d, rows: Tensor, cells: Cells, given: Cells) -> Tensor:
    """A 3x3 convolution with padding 1 at chosen cells.

    Args:
        rows: (m, C) values of the cells ``given``; a cell that is not given counts as zero.

    Returns:
        (n, C') values of ``cells``.
    """
    if len(cells) > _MAX_SHARE * cells.mask.numel():
        return rows_of(conv(map_of(rows, given)), cells)
    weight, bias = conv.weight.permute(2, 3, 1, 0).flatten(0, 2), conv.bias
    if torch.is_autocast_enabled(rows.device.type):
        dtype = torch.get_autocast_dtype(rows.device.type)
        rows, weight, bias = rows.to(dtype), weight.to(dtype), bias.to(dtype)
    out: Tensor = _Convolution.apply(rows, weight, bias, *neighbours(cells, given))
    return out
