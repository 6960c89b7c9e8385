"""Chosen cells of maps: what is computed at such cells costs by their number, whatever the size of the maps.

Features at n cells are rows (n, C), in the order of the cells' numbers. Every gradient is gathered as the values are, which is faster
than adding up in place, and the same on every run.
"""

from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.models.precision import in_float32

_MAX_SHARE = 0.7
"""Share of the cells above which the whole map is convolved (python -m benchmarks.generators)."""


class Cells:
    """Chosen cells of N maps of H x W.

    Args:
        mask: bool (N, H, W), True at the chosen cells.

    Attributes:
        index: (n,) numbers of the chosen cells in the flattened (N, H, W), ascending.
        padded: (n,) numbers of the chosen cells in the flattened (N, H + 3, W + 3): maps with a border of one cell before and two behind.
        row: (N * (H + 3) * (W + 3),) place of a cell among the chosen ones, n for the others and for the border.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        maps, height, width = mask.shape
        self.index = mask.flatten().nonzero()[:, 0]
        self.padded = nn.functional.pad(mask, (1, 2, 1, 2)).flatten().nonzero()[:, 0]
        self.row = mask.new_full((maps * (height + 3) * (width + 3),), len(self.index), dtype=torch.int64)
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
        return self.row.view(maps, height + 3, width + 3)[:, 1:-2, 1:-2].flatten()

    @cached_property
    def tiles(self) -> Tensor:
        """Numbers (4, 4, T), as of :attr:`padded`, of the cells in and around T tiles of 2x2 cells, which include all chosen cells."""
        height, width = self.mask.shape[1:]
        tiled = nn.functional.max_pool2d(self.mask[:, None].float(), 2, ceil_mode=True)[:, 0] > 0
        maps, y, x = tiled.nonzero().unbind(1)
        steps = torch.arange(4, device=self.mask.device)
        first = (maps * (height + 3) + 2 * y) * (width + 3) + 2 * x
        return first + steps[:, None, None] * (width + 3) + steps[:, None]


def add_up(rows: Tensor, places: Tensor, share: Tensor | None = None) -> Tensor:
    """Sums (r, C) of rows (m, C).

    Args:
        places: (r, q) numbers of the rows in each sum; m for none.
        share: (r, q) weights of the rows, 1 by default.
    """
    present = places < len(rows)
    share = present.to(rows.dtype) if share is None else torch.where(present, share, 0.0).to(rows.dtype)
    if len(rows) == 0:
        rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])  # the sums keep their path to the rows
    return nn.functional.embedding_bag(places * present, rows, mode="sum", per_sample_weights=share)


class _Gather(torch.autograd.Function):
    """Rows ``source`` (s,) of rows (m, C), 0 for number m; ``back`` (m, q) says where each row has gone, s for nowhere."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, source: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return add_up(rows, source[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return add_up(grad, back), None, None


def rows_of(features: Tensor, cells: Cells) -> Tensor:
    """Rows (n, C) of maps (N, C, H, W) at ``cells``."""
    rows: Tensor = _Gather.apply(features.permute(0, 2, 3, 1).flatten(0, 2), cells.index, cells.row_of_all[:, None])
    return rows


def map_of(rows: Tensor, cells: Cells) -> Tensor:
    """Maps (N, C, H, W) with rows (n, C) at ``cells``, 0 elsewhere."""
    maps: Tensor = _Gather.apply(rows, cells.row_of_all, cells.index[:, None])
    return maps.view(*cells.mask.shape, -1).permute(0, 3, 1, 2)


def select(rows: Tensor, given: Cells, cells: Cells) -> Tensor:
    """Rows of ``cells`` out of the rows of ``given``, cells of the same maps; 0 where a cell is not given."""
    selected: Tensor = _Gather.apply(rows, given.row[cells.padded], cells.row[given.padded][:, None])
    return selected


@in_float32
def conv_at(conv: nn.Conv2d, rows: Tensor, cells: Cells, given: Cells) -> Tensor:
    """A 3x3 convolution with padding 1 at chosen cells.

    By minimal filtering (Winograd's F(2x2, 3x3); Lavin and Gray, CVPR 2016): of every tile of 2x2 results, 16 sums of the 4x4 cells around
    are multiplied by as many matrices, in place of 4 times 9 products.

    Args:
        rows: (m, C) values of the cells ``given``; a cell that is not given counts as zero.

    Returns:
        (n, C') values of ``cells``.
    """
    if len(cells) > _MAX_SHARE * cells.mask.numel():
        return rows_of(conv(map_of(rows, given)), cells)
    inputs, kernel, results = _transforms(rows.device, rows.dtype)
    weight = (kernel @ conv.weight.permute(2, 3, 1, 0).flatten(0, 1).flatten(1)).unflatten(1, (rows.shape[1], -1))
    sums = inputs @ _around_tiles(rows, cells, given).view(16, -1)
    products = sums.view(16, -1, rows.shape[1]) @ weight
    tiles = (results @ products.flatten(1)).view(-1, weight.shape[2])  # (4 * T, C')
    return _of_tiles(tiles, cells) + conv.bias


def _around_tiles(rows: Tensor, cells: Cells, given: Cells) -> Tensor:
    """Values (16 * T, C) of the 4x4 cells around the tiles of ``cells``, from the rows of ``given``."""
    source = given.row[cells.tiles]  # (4, 4, T)
    # a cell lies in at most four tiles' surroundings, in another quarter of each
    half = torch.arange(4, device=source.device) // 2
    quarter = (2 * half[:, None] + half)[..., None]
    back = source.new_full(((len(given) + 1) * 4,), source.numel())
    back[source * 4 + quarter] = torch.arange(source.numel(), device=source.device).view_as(source)
    around: Tensor = _Gather.apply(rows, source.flatten(), back.view(-1, 4)[:-1])
    return around


def _of_tiles(tiles: Tensor, cells: Cells) -> Tensor:
    """Rows (n, C) of ``cells`` out of the rows (4 * T, C) of all cells of the tiles, which are ordered by place in the tile."""
    back = cells.row[cells.tiles[1:3, 1:3]].flatten()
    source = back.new_empty(len(cells) + 1)  # the last is for cells that are not chosen
    source[back] = torch.arange(len(back), device=back.device)
    of_cells: Tensor = _Gather.apply(tiles, source[:-1], back[:, None])
    return of_cells


@cache
def _transforms(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices of F(2x2, 3x3): of inputs (16, 16), of the kernel (16, 9) and of results (4, 16)."""
    inputs = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
    kernel = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    results = [[1, 1, 1, 0], [0, 1, -1, -1]]
    one, two, three = (torch.tensor(m, dtype=dtype, device=device) for m in (inputs, kernel, results))
    return torch.kron(one, one), torch.kron(two, two), torch.kron(three, three)
