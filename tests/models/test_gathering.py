"""The CPU's own ways of deformable sampling and convolution, and folding, against what they stand in for."""

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


def test_sampling_without_gradients_equals_the_one_with_and_leaves_the_threads_alone():
    shapes = [(4, 7), (1, 3)]
    value, locations = torch.randn(2, 31, 4, 8), torch.rand(2, 9, 4, 2, 3, 2) * 1.4 - 0.2
    weights, threads = torch.rand(2, 9, 4, 2, 3), torch.get_num_threads()
    got = DeformableSampler()(value, shapes, locations, weights)
    torch.testing.assert_close(got, multi_scale_deformable_attn_pytorch(value, shapes, locations, weights))
    assert torch.get_num_threads() == threads


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
