"""Generating at the cells that losses read gives what generating the whole map gives."""

from unittest.mock import Mock

import pytest
import torch

from pipeline.distill.cells import grow, neighbours
from pipeline.distill.generators import FeatureGenerator


@pytest.mark.parametrize("channels", [(3, 3), (3, 5)])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.4, 1.0])
def test_chosen_cells_equal_the_whole_map(channels, share):
    torch.manual_seed(0)
    generator = FeatureGenerator(*channels).double()
    features = torch.randn(4, channels[0], 7, 9, dtype=torch.double, requires_grad=True)
    cells = torch.rand(4, 7, 9) < share
    weight = torch.randn(4, channels[1], 7, 9, dtype=torch.double) * cells[:, None]
    found = []
    for out in (generator(features), generator.forward_at(features, cells)):
        grads = torch.autograd.grad((out**2 * weight).sum(), [features, *generator.parameters()])
        found.append((out * cells[:, None], *grads))
    for want, have in zip(*found, strict=True):
        torch.testing.assert_close(have, want)


def test_gradients_of_chosen_cells():
    generator = FeatureGenerator(2, 3).double()
    features = torch.randn(1, 2, 4, 4, dtype=torch.double, requires_grad=True)
    cells = torch.zeros(1, 4, 4, dtype=torch.bool)
    cells[0, 0, 0] = cells[0, 2, 1:3] = True
    torch.autograd.gradcheck(lambda x: generator.forward_at(x, cells), features)


def test_neighbours_stay_inside_their_map():
    cells = torch.zeros(2, 2, 2, dtype=torch.bool)
    cells[0, 1, 1] = cells[1, 0, 0] = True  # neighbours in memory, in different maps
    source, back = neighbours(cells, grow(cells))
    assert source[0].tolist() == [0, 1, 8, 2, 3, 8, 8, 8, 8]
    assert source[1].tolist() == [8, 8, 8, 8, 4, 5, 8, 6, 7]
    assert (back < 18).sum() == (source < 8).sum() == 8


def test_wide_maps_are_generated_where_they_are_read(monkeypatch):
    generator = FeatureGenerator(128, 128)
    at = Mock()
    monkeypatch.setattr(generator, "forward_at", at)
    features, cells = torch.randn(1, 128, 6, 6), torch.zeros(1, 6, 6, dtype=torch.bool)
    generator(features)
    generator(features, ~cells)
    at.assert_not_called()
    generator(features, cells)
    assert at.called and not FeatureGenerator(64, 64).gathers
