"""3x3 convolutions at chosen cells of a map only: their cost follows the cells, not the map."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Neighbourhoods(torch.autograd.Function):
    """3x3 neighbourhoods of cells (n, 9 * C), from rows (m, C); 0 where there is no row.

    The gradient is gathered as well, which is faster than adding it up in place and the same on every run.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return _with_zero(rows).index_select(0, source.flatten()).view(len(source), 9 * rows.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        read = _with_zero(grad.reshape(9 * len(grad), grad.shape[1] // 9)).index_select(0, back.flatten())
        return read.view(len(back), 9, grad.shape[1] // 9).sum(1), None, None


def _with_zero(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def grow(cells: Tensor) -> Tensor:
    """The cells and their eight neighbours, bool (N, H, W)."""
    return nn.functional.max_pool2d(cells[:, None].float(), 3, 1, 1)[:, 0] > 0


def neighbours(cells: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """Index tables of a 3x3 convolution at ``cells`` of a map whose values are known at ``given``.

    Args:
        cells, given: bool (N, H, W), with n and m cells True.

    Returns:
        numbers of given rows (n, 9), m where there is none; for every given row the numbers of the (cell, place) pairs that read
        it (m, 9), 9 * n where there is none.
    """
    width = cells.shape[-1] + 2
    # with a border no neighbour is another row's or map's
    out, known = (nn.functional.pad(mask, (1, 1, 1, 1)).flatten() for mask in (cells, given))
    at, of = out.nonzero()[:, 0], known.nonzero()[:, 0]
    steps = torch.arange(-1, 2, device=cells.device)
    offsets = (steps[:, None] * width + steps).flatten()
    row = torch.full(known.shape, len(of), device=cells.device)
    row[of] = torch.arange(len(of), device=cells.device)
    reader = torch.full(out.shape, len(at), device=cells.device)
    reader[at] = torch.arange(len(at), device=cells.device)
    back = reader[of[:, None] - offsets] * 9 + torch.arange(9, device=cells.device)
    return row[at[:, None] + offsets], back.clamp(max=9 * len(at))


def conv_at(conv: nn.Conv2d, rows: Tensor, cells: Tensor, given: Tensor) -> Tensor:
    """A 3x3 convolution with padding 1 at chosen cells.

    Args:
        rows: (m, C) values of the cells ``given`` in their order; a cell that is not given counts as zero.
        cells, given: bool (N, H, W); n of ``cells`` are True.

    Returns:
        (n, C') values of ``cells`` in their order.
    """
    patches = _Neighbourhoods.apply(rows, *neighbours(cells, given))
    return nn.functional.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
