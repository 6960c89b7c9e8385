"""Chosen cells of maps: what is computed at such cells costs by their number, whatever the size of the maps.

Features at n cells are rows (n, C), in the order of the cells' numbers. No gradient is added up in place, which would be slower, and on a
GPU not the same on every run.
"""

from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.models.precision import in_float32

_MAX_SHARE = 0.7
"""Share of the cells above which the whole map is convolved (python -m benchmarks.generators)."""
_BLOCK = 128
"""Tiles of a block on a CPU: with 64 channels 0.5 MB, which stay in a core's cache from step to step of a convolution."""


class Cells:
    """Chosen cells of N maps of H x W.

    Args:
        mask: bool (N, H, W), True at the chosen cells.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __len__(self) -> int:
        return len(self.padded)

    @cached_property
    def index(self) -> Tensor:
        """Numbers (n,) of the chosen cells in the flattened (N, H, W), ascending."""
        return self.mask.flatten().nonzero()[:, 0]

    @cached_property
    def padded(self) -> Tensor:
        """Numbers (n,) of the chosen cells in the flattened (N, H + 3, W + 3): maps with a border of one cell before and two behind."""
        return nn.functional.pad(self.mask, (1, 2, 1, 2)).flatten().nonzero()[:, 0]

    @cached_property
    def row(self) -> Tensor:
        """Places (N * (H + 3) * (W + 3),) of cells among the chosen ones, n for the others and for the border."""
        maps, height, width = self.mask.shape
        row = self.padded.new_full((maps * (height + 3) * (width + 3),), len(self))
        row[self.padded] = torch.arange(len(self), device=row.device)
        return row

    @property
    def row_of_all(self) -> Tensor:
        """:attr:`row` without borders, (N * H * W,)."""
        maps, height, width = self.mask.shape
        return self.row.view(maps, height + 3, width + 3)[:, 1:-2, 1:-2].flatten()

    @cached_property
    def grown(self) -> "Cells":
        """The cells with their eight neighbours: the cells that a 3x3 convolution reads."""
        high = nn.functional.pad(self.mask, (0, 0, 1, 1))
        wide = nn.functional.pad(high[:, :-2] | high[:, 1:-1] | high[:, 2:], (1, 1))
        return Cells(wide[..., :-2] | wide[..., 1:-1] | wide[..., 2:])

    @cached_property
    def tiles(self) -> Tensor:
        """Numbers (b, 4, 4, t), as of :attr:`padded`, of the cells in and around tiles of 2x2 cells, which include all chosen cells.

        Tiles are in b blocks of t; the last tiles may consist of a cell of the border only.
        """
        height, width = self.mask.shape[1:]
        even = nn.functional.pad(self.mask, (0, width % 2, 0, height % 2))
        wide = even[:, ::2] | even[:, 1::2]
        maps, y, x = (wide[..., ::2] | wide[..., 1::2]).nonzero().unbind(1)
        steps = torch.arange(4, device=self.mask.device)
        first = (maps * (height + 3) + 2 * y) * (width + 3) + 2 * x
        tiles = first + steps[:, None, None] * (width + 3) + steps[:, None]
        blocks = -(-len(first) // _BLOCK) if self.mask.device.type == "cpu" else 1
        blocks = max(blocks, 1)
        size = max(-(-len(first) // blocks), 1)
        tiles = nn.functional.pad(tiles, (0, blocks * size - len(first)), value=len(self.row) - 1)
        return tiles.view(4, 4, blocks, size).permute(2, 0, 1, 3)


def add_up(rows: Tensor, places: Tensor, share: Tensor) -> Tensor:
    """Sums (r, C) of weighted rows (m, C).

    Args:
        places: (r, q) numbers of the rows in each sum; m for none.
        share: (r, q) weights of the rows.
    """
    present = places < len(rows)
    share = torch.where(present, share, 0.0).to(rows.dtype)
    if len(rows) == 0:
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # the sums keep their path to the rows
    return nn.functional.embedding_bag(places * present, rows, mode="sum", per_sample_weights=share)


def _with_zero(rows: Tensor) -> Tensor:
    """Rows (m + 1, C), the last one zero."""
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def _take(rows: Tensor, source: Tensor) -> Tensor:
    """Rows ``source`` of rows (m, C), 0 for number m."""
    return _with_zero(rows).index_select(0, source)


def _put(rows: Tensor, places: Tensor, count: int) -> Tensor:
    """Rows (count, C) with row i of ``rows`` at place ``places[i]``, if that is below ``count``; 0 elsewhere."""
    return rows.new_zeros(count + 1, rows.shape[1]).index_copy_(0, places, rows)[:-1]


class _Take(torch.autograd.Function):
    """:func:`_take` of rows that are taken once at most."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor) -> Tensor:
        ctx.save_for_backward(source)
        ctx.count = len(rows)
        return _take(rows, source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (source,) = ctx.saved_tensors
        return _put(grad, source, ctx.count), None


class _Put(torch.autograd.Function):
    """:func:`_put`, every row at a place of its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(places)
        return _put(rows, places, count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


def rows_of(features: Tensor, cells: Cells) -> Tensor:
    """Rows (n, C) of maps (N, C, H, W) at ``cells``."""
    rows: Tensor = _Take.apply(features.permute(0, 2, 3, 1).flatten(0, 2), cells.index)
    return rows


def map_of(rows: Tensor, cells: Cells) -> Tensor:
    """Maps (N, C, H, W) with rows (n, C) at ``cells``, 0 elsewhere."""
    maps: Tensor = _Put.apply(rows, cells.index, cells.mask.numel())
    return maps.view(*cells.mask.shape, -1).permute(0, 3, 1, 2)


def select(rows: Tensor, given: Cells, cells: Cells) -> Tensor:
    """Rows of ``cells`` out of the rows of ``given``, cells of the same maps; 0 where a cell is not given."""
    selected: Tensor = _Take.apply(rows, given.row[cells.padded])
    return selected


@in_float32
def conv_at(conv: nn.Conv2d, rows: Tensor, cells: Cells, given: Cells) -> Tensor:
    """A 3x3 convolution with padding 1 at chosen cells.

    Args:
        rows: (m, C) values of the cells ``given``; a cell that is not given counts as zero.

    Returns:
        (n, C') values of ``cells``.
    """
    if len(cells) > _MAX_SHARE * cells.mask.numel():
        return rows_of(conv(map_of(rows, given)), cells)
    found: Tensor = _TiledConv.apply(rows, conv.weight, conv.bias, *_tiling(cells, given))
    return found


def _tiling(cells: Cells, given: Cells) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What goes where between the cells ``given``, the tiles of ``cells``, and ``cells``, as of :class:`_TiledConv`."""
    tiles = cells.tiles
    around = given.row.index_select(0, tiles.flatten())
    # a cell lies in at most four tiles' surroundings, in another quarter of each
    half = torch.arange(4, device=tiles.device) // 2
    quarter = (2 * half[:, None] + half)[..., None].expand_as(tiles).flatten()
    users = tiles.new_full(((len(given) + 1) * 4,), tiles.numel())  # the last four are for cells that are not given
    users.scatter_(0, around * 4 + quarter, torch.arange(tiles.numel(), device=tiles.device))
    inside = cells.row.index_select(0, tiles[:, 1:3, 1:3].flatten())
    place = inside.new_empty(len(cells) + 1)  # the last is for cells that are not chosen
    place.scatter_(0, inside, torch.arange(len(inside), device=tiles.device))
    return around.view(len(tiles), -1), users.view(-1, 4)[:-1], inside.view(len(tiles), -1), place[:-1]


class _TiledConv(torch.autograd.Function):
    """Convolution by minimal filtering (Winograd's F(2x2, 3x3); Lavin and Gray, CVPR 2016).

    Of every tile of 2x2 results, 16 sums of the 4x4 cells around are multiplied by as many matrices, in place of 4 times 9 products.
    Inputs are the rows (m, C), weight and bias, and for b blocks of t tiles, with all tiles of a block at the first place first:

    - around: (b, 16 * t) numbers of the rows around the tiles, m for none.
    - users: (m, 4) where each row is in ``around``, b * 16 * t for nowhere.
    - inside: (b, 4 * t) numbers of the results in the tiles, n for results that are not wanted.
    - place: (n,) where each result is in ``inside``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weight: Tensor,
        bias: Tensor,
        around: Tensor,
        users: Tensor,
        inside: Tensor,
        place: Tensor,
    ) -> Tensor:
        of_inputs, of_kernel, of_results = _transforms(rows.device, rows.dtype)
        kernel = (of_kernel @ weight.view(-1, 9).T).view(16, *weight.shape[:2])
        rows = _with_zero(rows)
        ctx.save_for_backward(rows, kernel, around, users, inside)
        results = rows.new_empty(*inside.shape, len(weight))
        for block, result in zip(around, results, strict=True):
            sums = of_inputs @ rows.index_select(0, block).view(16, -1)
            products = sums.view(16, -1, rows.shape[1]) @ kernel.mT
            torch.mm(of_results, products.flatten(1), out=result.view(4, -1))
        return results.flatten(0, 1).index_select(0, place).add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, kernel, around, users, inside = ctx.saved_tensors
        of_inputs, of_kernel, of_results = _transforms(grad.device, grad.dtype)
        results, channels = _with_zero(grad), rows.shape[1]
        slopes, of_around = torch.zeros_like(kernel), grad.new_empty(around.numel() + 1, channels)
        of_around[-1] = 0  # for the users that are none
        for i, block in enumerate(around):
            # sums are made again, which is faster than to keep all of them
            sums = (of_inputs @ rows.index_select(0, block).view(16, -1)).view(16, -1, channels)
            products = (of_results.T @ results.index_select(0, inside[i]).view(4, -1)).view(16, -1, grad.shape[1])
            slopes.baddbmm_(products.mT, sums)
            out = of_around[i * len(block) : (i + 1) * len(block)].view(16, -1)
            torch.mm(of_inputs.T, (products @ kernel).flatten(1), out=out)
        of_rows = nn.functional.embedding_bag(users, of_around, mode="sum")
        of_weight = (slopes.flatten(1).T @ of_kernel).view(*kernel.shape[1:], 3, 3)
        return of_rows, of_weight, grad.sum(0), None, None, None, None


@cache
def _transforms(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of F(2x2, 3x3): of inputs (16, 16), of the kernel (16, 9) and of results (4, 16)."""
    inputs = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
    kernel = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    results = [[1, 1, 1, 0], [0, 1, -1, -1]]
    one, two, three = (torch.tensor(m, dtype=dtype, device=device) for m in (inputs, kernel, results))
    return torch.kron(one, one), torch.kron(two, two), torch.kron(three, three)
