"""Geometry and losses in mixed precision; autocast on a CPU knows both half types."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d
from mmdet3d.registry import DATASETS
from torch import Tensor, nn

from pipeline.data.frames import collate, frame_dataset
from pipeline.distill.sampling import camera_positions
from pipeline.focal.areas import project_boxes
from pipeline.models.attention import DeformableSampler, im2col_step
from pipeline.models.bevformer.grid import grid_points, project_pillars
from pipeline.models.bevformer.queries import BEVHeatmapQueries
from pipeline.models.bevformer.transformer import rotate_bev
from pipeline.models.build import build_detector, load_config
from pipeline.models.deform_conv import DeformConv2d
from pipeline.models.detr3d.cross_attention import project_points
from pipeline.models.detr3d.queries import ImageHeatmapQueries, unproject

HALF = [torch.float16, torch.bfloat16]
PC_RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
IMAGE_HW = (928, 1600)
# a camera of the nuScenes rig's focal length looking along x, and one backwards
AHEAD = torch.tensor([[800.3, -1266.4, 0, 3.7], [450.6, 0, -1266.4, -11.2], [1, 0, 0, 0.3], [0, 0, 0, 1]])
CAMERAS = torch.stack([AHEAD, AHEAD * torch.tensor([-1.0, -1, 1, 1])])[None]


def points(num: int) -> Tensor:
    """Points (1, num, 3) all over the range, metres."""
    spread = torch.rand(1, num, 3, generator=torch.Generator().manual_seed(0))
    return spread * torch.tensor([102.4, 102.4, 8.0]) + torch.tensor(PC_RANGE[:3])


def pillars() -> Any:
    heights, volume = torch.linspace(0.1, 0.9, 4), torch.tensor(PC_RANGE)
    return project_pillars(grid_points(40, 40, heights.device), heights, volume, CAMERAS, IMAGE_HW)


def boxes() -> Tensor:
    return torch.cat([points(60)[0], torch.rand(60, 6, generator=torch.Generator().manual_seed(1)) * 4], 1)


def turned(mode: str) -> Tensor:
    bev = torch.rand(2, 3, 50, 50, generator=torch.Generator().manual_seed(0))
    return rotate_bev(bev, torch.tensor([3.3, -41.7]), (20, 30), mode)


def raised() -> Tensor:
    pixels = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 1600
    return unproject(pixels, torch.linspace(1, 60, 40), CAMERAS[0, :1].expand(40, 4, 4))


def proposed(kind: type[nn.Module], *given: Any) -> list[Tensor]:
    """Everything that a query generator makes, and its losses."""
    torch.manual_seed(0)
    generator = kind(20, PC_RANGE, 16)
    generator.init_weights()
    made = generator(*given)
    losses = generator.loss(made, [boxes()], [torch.arange(60) % 10], torch.ones(10))
    return [*(value for value in vars(made).values() if value is not None), *losses.values()]


def image_queries(view_hw: Tensor | None = None) -> list[Tensor]:
    level = torch.rand(1, 2, 16, 29, 50, generator=torch.Generator().manual_seed(0))
    return proposed(ImageHeatmapQueries, level, CAMERAS, IMAGE_HW, view_hw)


def bev_queries() -> list[Tensor]:
    return proposed(BEVHeatmapQueries, torch.rand(1, 900, 16, generator=torch.Generator().manual_seed(0)), (30, 30))


GEOMETRY: dict[str, Callable[[], Any]] = {
    "project_pillars": pillars,
    "project_points": lambda: project_points(points(200), CAMERAS, IMAGE_HW),
    "project_boxes": lambda: project_boxes(boxes(), CAMERAS[0], IMAGE_HW),
    "camera_positions": lambda: camera_positions(points(200)[:, None], CAMERAS, IMAGE_HW),
    "rotate_bev": lambda: turned("nearest"),
    "rotate_bev, bilinear": lambda: turned("bilinear"),
    "unproject": raised,
    "queries of images": image_queries,
    "queries of images of two sizes": lambda: image_queries(torch.tensor([[[464.0, 800], [400.7, 600.3]]])),
    "queries of a BEV map": bev_queries,
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_under_autocast_is_that_of_float32_bit_for_bit(name: str, dtype: torch.dtype):
    want = GEOMETRY[name]()
    with torch.autocast("cpu", dtype):
        found = GEOMETRY[name]()
    for a, b in zip(want, found, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_geometry_takes_tensors_of_half_precision():
    wide = project_points(points(50).half().float(), CAMERAS, IMAGE_HW)
    for a, b in zip(wide, project_points(points(50).half(), CAMERAS, image_hw=IMAGE_HW), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("training", [True, False])
def test_deformable_convolution_runs_under_autocast(dtype: torch.dtype, training: bool):
    torch.manual_seed(0)
    layer = DeformConv2d(6, 5, 3, padding=1)
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    x = torch.randn(2, 6, 9, 11)
    with torch.set_grad_enabled(training), torch.autocast("cpu", dtype):
        first, second, mask = layer.conv_offset(x).chunk(3, dim=1)
        found = layer(x.to(dtype))
    offset = torch.cat((first, second), 1).float().contiguous()
    want = modulated_deform_conv2d(
        x.to(dtype).float(), offset, mask.float().sigmoid(), layer.weight, layer.bias, 1, 1, 1, 1, 1
    )
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), want, atol=0.02, rtol=0.01)
    if training:
        found.float().sum().backward()
        assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in layer.parameters() if p.grad is not None)
        assert layer.weight.grad is not None and layer.conv_offset.weight.grad is not None


@pytest.mark.parametrize(
    ("batch", "step"), [(1, 1), (6, 6), (64, 64), (66, 33), (67, 1), (72, 36), (186, 62), (128, 64)]
)
def test_the_kernels_step_is_the_largest_divisor_of_the_batch(batch: int, step: int):
    assert im2col_step(batch) == step


def test_the_kernels_step_divides_every_batch_of_cameras():
    for batch in range(1, 41):
        for maps in (2, 6):  # of temporal attention, cameras
            assert (batch * maps) % im2col_step(batch * maps) == 0 and im2col_step(batch * maps) <= 64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_samples_batches_that_64_does_not_divide():
    value, locations, weights = torch.randn(66, 28, 2, 8), torch.rand(66, 5, 2, 1, 3, 2), torch.rand(66, 5, 2, 1, 3)
    given = (value, [(4, 7)], locations, weights)
    on_gpu = DeformableSampler()(*(t.cuda() if isinstance(t, Tensor) else t for t in given))
    torch.testing.assert_close(on_gpu.cpu(), DeformableSampler()(*given), atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def items(source, expert_config: Path) -> list[Any]:
    data = DATASETS.build(frame_dataset(load_config(expert_config), source, train=True))
    return [data[1], data[5]]


def detector_losses(project: Path, name: str, items: list[Any], dtype: torch.dtype | None) -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    model = build_detector(load_config(project / f"configs/world/{name}.py")).train()
    batch = model.data_preprocessor(collate(copy.deepcopy(items)))
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        losses = model.loss(**batch)
    return model, losses


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["expert", "detr3d_expert"])
def test_losses_in_mixed_precision_are_near_float32s_and_reach_every_weight(
    project: Path, items: list[Any], name: str, dtype: torch.dtype
):
    _, want = detector_losses(project, name, items, None)
    model, losses = detector_losses(project, name, items, dtype)
    assert {k: v.item() for k, v in losses.items()} == pytest.approx({k: v.item() for k, v in want.items()}, rel=0.1)
    if dtype == torch.float16:
        return  # a CPU's backward pass of convolutions in half takes half a minute
    sum(losses.values()).backward()
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), path


def test_weights_cast_for_the_history_are_forgotten_before_the_frame_with_gradients(
    project: Path, items: list[Any], monkeypatch: pytest.MonkeyPatch
):
    """Until torch 2.10 a weight that autocast keeps from a pass without gradient gets none in the next."""
    events: list[str] = []
    clear = torch.clear_autocast_cache

    def note() -> None:
        events.append("cleared")
        clear()

    model = build_detector(load_config(project / "configs/world/expert.py")).train()
    model.img_backbone.register_forward_hook(
        lambda *_: events.append("current" if torch.is_grad_enabled() else "history")
    )
    monkeypatch.setattr(torch, "clear_autocast_cache", note)
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(**model.data_preprocessor(collate(copy.deepcopy(items))))
        assert events == ["history", "cleared", "current"]
