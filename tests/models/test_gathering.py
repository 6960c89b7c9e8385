"""The CPU's own ways of deformable sampling and convolution, and folding, against what they stand in for."""

from collections.abc import Iterator

import pytest
import torch
from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from torch import nn

from pipeline.models.attention import DeformableSampler
from pipeline.models.deform_conv import DeformConv2d
from pipeline.models.fold import fold_batchnorm
from pipeline.models.gathering import gather

# one map of two rows and three columns, one head, one channel: 0 1 2 / 3 4 5
TABLE, SIZES = torch.arange(6.0).view(6, 1, 1), torch.tensor([[2, 3]])


@pytest.mark.parametrize(
    ("x", "y", "value"),
    [
        (1.0, 1.0, 4.0),  # a cell's centre
        (0.5, 0.5, 2.0),  # between four cells: (0 + 1 + 3 + 4) / 4
        (2.5, 0.0, 1.0),  # half over the right border: 2 / 2
        (-0.25, 1.0, 2.25),  # a quarter over the left border: 3 * 0.75
        (2.5, 1.5, 1.25),  # over the lower right corner: 5 / 4
        (-1.0, 0.0, 0.0),  # a whole cell outside
        (7.0, 0.0, 0.0),  # far outside
        (float("nan"), 0.0, 0.0),  # nowhere
    ],
)
def test_readings_are_bilinear_with_zeros_around(x: float, y: float, value: float):
    point = torch.tensor([x, y]).view(1, 1, 1, 1, 2)
    assert gather(TABLE, SIZES, point, torch.ones(1, 1, 1, 1), in_cells=True).item() == pytest.approx(value)
    unit = torch.tensor([(x + 0.5) / 3, (y + 0.5) / 2]).view(1, 1, 1, 1, 2)
    assert gather(TABLE, SIZES, unit, torch.full((1, 1, 1, 1), 2.0)).item() == pytest.approx(2 * value, abs=1e-6)


def sampling(dims: int, seed: int = 0) -> tuple[list[tuple[int, int]], list[torch.Tensor]]:
    """Levels, and values, locations (a sixth of them off the maps) and weights that take gradients."""
    torch.manual_seed(seed)
    shapes = [(4, 7), (1, 3), (2, 1)]
    inputs = [torch.randn(2, 33, 4, dims), torch.rand(2, 9, 4, 3, 5, 2) * 1.4 - 0.2, torch.rand(2, 9, 4, 3, 5)]
    return shapes, [t.requires_grad_() for t in inputs]


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads that torch has."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("dims", [1, 7, 16, 35])
def test_sampling_and_its_gradients_equal_grid_samples_and_leave_the_threads_alone(dims: int, threads: int):
    shapes, inputs = sampling(dims)
    got = DeformableSampler()(inputs[0], shapes, *inputs[1:])
    want = multi_scale_deformable_attn_pytorch(inputs[0], shapes, *inputs[1:])
    torch.testing.assert_close(got, want)
    onto = torch.randn_like(got)
    for mine, theirs in zip(
        torch.autograd.grad(got, inputs, onto), torch.autograd.grad(want, inputs, onto), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert torch.get_num_threads() == threads


def test_gradients_are_the_same_bits_on_every_run_and_number_of_threads():
    shapes, inputs = sampling(35)
    before, runs = torch.get_num_threads(), []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        runs.append(torch.autograd.grad(DeformableSampler()(inputs[0], shapes, *inputs[1:]).square().sum(), inputs))
    torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], run, strict=True))


def test_a_point_that_reads_nothing_has_no_gradient_and_one_over_the_border_has_that_of_the_cells_inside():
    # the second point lies a quarter of a cell over the left border, between 0 and 3: it reads 3/4 of 1/4 * 0 + 3/4 * 3
    points = torch.tensor([[9.0, 0.5], [-0.25 / 3 + 0.5 / 3, (0.75 + 0.5) / 2]]).view(1, 1, 1, 1, 2, 2).requires_grad_()
    weights = torch.full((1, 1, 1, 1, 2), 2.0, requires_grad=True)
    DeformableSampler()(TABLE[None], [(2, 3)], points, weights).sum().backward()
    assert points.grad is not None and weights.grad is not None
    # with weight 2, per cell 3/4 * 3 to the right and 3/4 * (3 - 0) downwards; the map is 3 cells wide and 2 high
    torch.testing.assert_close(points.grad.view(2, 2), torch.tensor([[0.0, 0.0], [2 * 2.25 * 3, 2 * 2.25 * 2]]))
    torch.testing.assert_close(weights.grad.view(2), torch.tensor([0.0, 27 / 16]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_deformable_convolution_in_inference_equals_mmcvs(layout: torch.memory_format, stride: int, dilation: int):
    torch.manual_seed(0)
    layer = DeformConv2d(6, 5, 3, stride=stride, padding=dilation, dilation=dilation, bias=False).eval()
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    x = torch.randn(2, 6, 9, 11).to(memory_format=layout)
    with torch.no_grad():
        first, second, mask = layer.conv_offset(x).chunk(3, dim=1)
        offset = torch.cat((first, second), dim=1).contiguous()
        sizes = (layer.stride, layer.padding, layer.dilation, 1, 1)
        want = modulated_deform_conv2d(x.contiguous(), offset, mask.sigmoid().contiguous(), layer.weight, None, *sizes)
        torch.testing.assert_close(layer(x), want, atol=1e-5, rtol=1e-5)


def test_folding_keeps_outputs_and_leaves_no_norm_after_a_convolution():
    torch.manual_seed(0)
    plain, deformable = nn.Conv2d(3, 4, 3, bias=False), DeformConv2d(4, 4, 3, padding=1)
    model = nn.Sequential(plain, nn.BatchNorm2d(4), nn.ReLU(), deformable, nn.BatchNorm2d(4))
    for norm in (model[1], model[4]):
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
    with pytest.raises(ValueError, match="training mode"):
        fold_batchnorm(model)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        want = model.eval()(x)
        torch.testing.assert_close(fold_batchnorm(model)(x), want, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
