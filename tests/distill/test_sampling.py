"""What queries read from camera pyramids, by hand and as DETR3D's attention reads it."""

import pytest
import torch

from pipeline.distill.sampling import camera_positions, camera_reading
from pipeline.models.boxes import to_metres
from pipeline.models.detr3d.cross_attention import CameraPyramid, ProjectedCrossAttention

# A camera that looks along y: depth = y, u = 10 x / y + 20, v = 10 z / y + 10 pixels of a 20x40 image.
FRONT = torch.tensor([[10.0, 20.0, 0.0, 0.0], [0.0, 10.0, 10.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
BACK = FRONT @ torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
HW = (20, 40)
# cells of 10 pixels, two rows and four columns; and one cell of 20x40
FINE = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
COARSE = torch.tensor([[100.0]])


def sample_cameras(levels, points, weights, cameras, image_hw):
    """Levels (B, V, C, H, W), points (B, L, K, 3), weights (B, L, K, V, levels), cameras (B, V, 4, 4) -> (L, B, K, C)."""
    positions, total = camera_positions(points, cameras, image_hw), torch.zeros(())
    for i, level in enumerate(levels):
        rows = level.movedim(2, -1).flatten(0, 3)
        reading = camera_reading(positions, weights[..., i], level.shape[-2:])
        total = total + reading.of(rows, torch.arange(len(rows)))
    return total.transpose(0, 1)


def read(levels, points, weights, cameras):
    """One sample, one decoder layer, one channel: levels of (V, H, W), points (K, 3), weights (K, V, levels) -> (K,)."""
    maps = [level[None, :, None] for level in levels]
    return sample_cameras(maps, points[None, None], weights[None, None], torch.stack(cameras)[None], HW)[0, 0, :, 0]


@pytest.mark.parametrize(
    ("point", "value"),
    [
        ((-0.5, 1.0, -0.5), 2.0),  # u 15, v 5: the centre of column 1, row 0
        ((-1.0, 2.0, -1.0), 2.0),  # twice as far on the same ray
        ((0.0, 1.0, -0.5), 2.5),  # u 20: between columns 1 and 2
        ((0.25, 1.0, 0.0), 4.75),  # u 22.5, v 10: (2 + 3 * 3) / 4 of row 0 and (6 + 3 * 7) / 4 of row 1
        ((-2.0, 1.0, -0.5), 0.5),  # u 0, on the edge: half of column 0, half of nothing
        ((-3.0, 1.0, -0.5), 0.0),  # u -10: outside
    ],
)
def test_a_projected_point_reads_bilinearly(point, value):
    out = read([FINE[None]], torch.tensor([point]), torch.ones(1, 1, 1), [FRONT])
    assert out.item() == pytest.approx(value)


def test_the_padded_image_is_what_levels_divide():
    level = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0], [9.0, 9.0, 9.0, 9.0]])[None, None, None]
    point = torch.tensor([[[[-0.5, 1.0, -0.5]]]])
    # 20 rows padded to 30: a row more of the level, the same cells
    read = sample_cameras([level], point, torch.ones(1, 1, 1, 1, 1), FRONT[None, None], (30, 40))
    assert read.item() == pytest.approx(2.0)


def test_cameras_and_levels_add_up_by_weight():
    points = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])  # the middle of the front and of the back image
    weights = torch.tensor([[[0.5, 0.25], [0.0, 0.0]], [[0.0, 0.0], [0.25, 0.125]]])
    out = read([torch.stack([FINE, FINE + 10]), COARSE.expand(2, 1, 1)], points, weights, [FRONT, BACK])
    # the four cells around (2 + 3 + 6 + 7) / 4: 0.5 * 4.5 + 0.25 * 100, and 0.25 * 14.5 + 0.125 * 100
    assert out.tolist() == pytest.approx([27.25, 16.125])


@pytest.mark.parametrize("point", [(0.5, -1.0, 0.0), (0.0, 0.0, 0.0), (0.0, -1.0, 0.0), (7.0, 0.0, 3.0)])
def test_a_point_that_no_camera_sees_gives_exactly_zero(point):
    level = FINE[None].clone().requires_grad_()
    out = read([level], torch.tensor([point]), torch.zeros(1, 1, 1), [FRONT])
    out.sum().backward()
    assert out.item() == 0.0 and (level.grad == 0).all()


def test_the_gradient_reaches_the_cells_that_were_read():
    level = FINE[None].clone().requires_grad_()
    read([level], torch.tensor([[0.0, 1.0, -0.5]]), torch.full((1, 1, 1), 0.5), [FRONT]).sum().backward()
    assert level.grad[0].tolist() == [[0.0, 0.25, 0.25, 0.0], [0.0] * 4]


def test_it_reads_what_detr3ds_attention_reads():
    torch.manual_seed(0)
    batch, views, queries, dims = 2, 2, 30, 8
    attention = ProjectedCrossAttention(dims, [-5.0, -5.0, -2.0, 5.0, 5.0, 2.0], views, num_levels=2).eval()
    torch.nn.init.normal_(attention.attention_weights.weight)
    seen: dict[str, torch.Tensor] = {}
    attention.sampler.register_forward_hook(lambda _, args, __: seen.update(weights=args[3]))
    attention.output_proj.register_forward_hook(lambda _, args, __: seen.update(sampled=args[0]))
    levels = [torch.randn(batch, views, dims, 4, 8), torch.randn(batch, views, dims, 2, 4)]
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    lidar2img = torch.stack([torch.stack([FRONT, BACK]), torch.stack([FRONT @ turn, BACK @ turn])])
    references = torch.rand(batch, queries, 3)
    with torch.no_grad():
        pyramid = CameraPyramid.from_levels(levels, lidar2img, HW)
        attention(torch.randn(batch, queries, dims), torch.randn(batch, queries, dims), references, pyramid)
    weights = seen["weights"][:, :, 0, :, 0].unflatten(0, (batch, views)).transpose(1, 2)  # (B, N, V, levels)
    points = to_metres(references, attention.pc_range)
    out = sample_cameras(levels, points[:, None], weights[:, None], lidar2img, HW)[0]
    assert 0 < (weights > 0).any(-1).float().mean() < 0.5
    torch.testing.assert_close(out, seen["sampled"], atol=1e-5, rtol=1e-5)
