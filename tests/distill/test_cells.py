"""What is computed at chosen cells is what computing the whole map gives."""

from functools import partial

import pytest
import torch

from pipeline.distill.cells import Cells, conv_at, map_of, rows_of, select
from pipeline.distill.generators import FeatureGenerator, RestoreBEV

SHARES = [0.0, 0.05, 0.4, 1.0]


def some(share: float, maps: int = 4, rows: int = 7, columns: int = 9) -> torch.Tensor:
    """Random cells; both sizes are odd, so that tiles reach over the border."""
    return torch.rand(maps, rows, columns, generator=torch.Generator().manual_seed(1)) < share


def values(out: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Rows of a whole map."""
    return out.permute(0, 2, 3, 1)[cells]


@pytest.mark.parametrize("channels", [(3, 3), (3, 5)])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("block", [7, 128])
def test_chosen_cells_equal_the_whole_map(channels, share, block, monkeypatch):
    monkeypatch.setattr("pipeline.distill.cells._BLOCK", block)
    torch.manual_seed(0)
    generator = FeatureGenerator(*channels).double()
    features = torch.randn(4, channels[0], 7, 9, dtype=torch.double, requires_grad=True)
    cells, visible = some(share), torch.rand(4, 7, 9) < 0.6
    found = []
    for rows in (
        values(generator(features * visible[:, None]), cells),
        generator.at(partial(rows_of, features), visible, Cells(cells)),
    ):
        weight = torch.linspace(0.5, 2, rows.numel()).view_as(rows)
        found.append((rows, *torch.autograd.grad((rows**2 * weight).sum(), [features, *generator.parameters()])))
    for want, have in zip(*found, strict=True):
        torch.testing.assert_close(have, want)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("target", [(4, 5), (8, 10), (7, 9)])
def test_restoring_at_cells_equals_the_whole_map(target, residual):
    torch.manual_seed(0)
    restore = RestoreBEV(3, (4, 5), target, residual).double()
    torch.nn.init.normal_(restore.conv.weight)
    bev, cells = torch.randn(2, 3, 4, 5, dtype=torch.double, requires_grad=True), some(0.3, 2, *target)
    found = []
    for rows in (values(restore(bev), cells), restore.reader(bev)(Cells(cells))):
        found.append((rows, *torch.autograd.grad(rows.sin().sum(), [bev, *restore.parameters()])))
    for want, have in zip(*found, strict=True):
        torch.testing.assert_close(have, want)


def test_a_cell_that_is_not_given_counts_as_zero():
    conv = torch.nn.Conv2d(2, 3, 3, padding=1).double()
    features, given, cells = torch.randn(4, 2, 7, 9).double(), Cells(some(0.5)), Cells(some(0.1))
    found = conv_at(conv, rows_of(features, given), cells, given)
    torch.testing.assert_close(found, values(conv(features * given.mask[:, None]), cells.mask))


def test_few_cells_in_float32_are_as_exact_as_the_whole_map():
    torch.manual_seed(0)
    conv, features, cells = torch.nn.Conv2d(64, 64, 3, padding=1), torch.randn(4, 64, 7, 9), Cells(some(0.3))
    want = values(conv.double()(features.double()), cells.mask)
    conv.float()
    errors = []
    for rows in (values(conv(features), cells.mask), conv_at(conv, rows_of(features, cells.grown), cells, cells.grown)):
        errors.append((rows - want).abs().max().item())
    assert errors[1] < max(4 * errors[0], 1e-6)


def test_rows_are_in_the_order_of_the_cells_numbers():
    mask = torch.zeros(2, 2, 3, dtype=torch.bool)
    mask[0, 1, 2] = mask[1, 0, 0] = True  # neighbours in memory, in different maps
    cells, features = Cells(mask), torch.arange(24.0).view(2, 2, 2, 3)
    assert cells.index.tolist() == [5, 6] and rows_of(features, cells).tolist() == [[5.0, 11.0], [12.0, 18.0]]
    assert cells.grown.mask.sum() == 8 and cells.tiles.shape == (1, 4, 4, 2)
    kept = map_of(rows_of(features, cells), cells)
    torch.testing.assert_close(kept, features * mask[:, None])
    other = Cells(~mask)
    assert (
        select(rows_of(features, cells), cells, cells.grown).sum() == 46
        and not select(rows_of(features, cells), cells, other).any()
    )
