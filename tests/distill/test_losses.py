import pytest
import torch

from pipeline.distill.generators import FeatureGenerator, RestoreBEV
from pipeline.distill.losses import agreement, block_mask, fine_grained_loss, masked_generation_loss, query_trust
from pipeline.distill.sampling import bev_reading, project_values


def test_masked_generation_weighs_cells_by_trust():
    generated = torch.tensor([[1.0, 2.0], [3.0, 0.0]], requires_grad=True)  # two cells, C 2
    # (0.2 * (1 + 4) + 0.6 * 9) / (2 channels * 0.8) = 4
    loss = masked_generation_loss(generated, torch.zeros(2, 2), torch.tensor([0.2, 0.6]))
    assert loss.item() == pytest.approx(4.0)
    loss.backward()
    torch.testing.assert_close(generated.grad, torch.tensor([[0.25, 0.5], [2.25, 0.0]]))  # 2 w (G - T) / 1.6


def test_no_area_gives_zero_with_a_gradient_path():
    generated = torch.ones(0, 2, requires_grad=True)
    loss = masked_generation_loss(generated, torch.zeros(0, 2), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0 and generated.grad is not None


def test_fine_grained_loss_by_hand():
    target = torch.tensor([[[[0.0], [2.0]]]])  # L 1, B 1, K 2, C 1
    student = torch.tensor([[[[1.0], [2.0]]]])
    # trust 1 and 1: mean 1, variance ((0-1)^2 + (2-1)^2) / 2 = 1, error (1 + 0) / 2
    assert fine_grained_loss(student, target, torch.ones(1, 2)).item() == pytest.approx(0.5)
    # trust 1 and 3: mean 1.5, variance (1*2.25 + 3*0.25) / 4 = 0.75, error 1/4
    assert fine_grained_loss(student, target, torch.tensor([[1.0, 3.0]])).item() == pytest.approx(0.25 / 0.75)


def test_fine_grained_loss_is_free_of_scale_and_ignores_untrusted_queries():
    torch.manual_seed(0)
    target, student = torch.randn(2, 1, 5, 4), torch.randn(2, 1, 5, 4)
    trust = torch.tensor([[1.0, 0.5, 0.0, 0.2, 0.9]])
    loss = fine_grained_loss(student, target, trust)
    assert fine_grained_loss(student * 7, target * 7, trust).item() == pytest.approx(loss.item(), rel=1e-5)
    student[:, :, 2] = 1e3
    assert fine_grained_loss(student, target, trust).item() == pytest.approx(loss.item(), rel=1e-5)


def test_one_trusted_query_is_measured_by_its_own_size():
    target = torch.tensor([[[[3.0, 1.0], [0.0, 5.0]]]])  # L 1, B 1, K 2, C 2
    student = target + torch.tensor([1.0, 2.0])
    # query 0 alone: error (1 + 4) / 2, mean square (9 + 1) / 2, of which a twentieth
    assert fine_grained_loss(student, target, torch.tensor([[0.3, 0.0]])).item() == pytest.approx(2.5 / (0.05 * 5))
    # and two queries that read the same
    same = target[:, :, :1].expand(-1, -1, 2, -1)
    loss = fine_grained_loss(same + torch.tensor([1.0, 2.0]), same, torch.tensor([[0.3, 0.8]]))
    assert loss.item() == pytest.approx(2.5 / (0.05 * 5))


def test_the_fine_grained_loss_falls_with_the_share_as_queries_lose_their_trust():
    torch.manual_seed(0)
    target, student = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)
    losses = []
    for left in (1.0, 1e-2, 1e-4, 1e-6, 0.0):  # of queries 1 and 2, which annotations take
        trust = torch.tensor([[0.02, 0.9 * left, 0.8 * left]])
        losses.append((trust.sum() / 1.72 * fine_grained_loss(student, target, trust)).item())
    assert losses[-1] < losses[0]  # not the millionfold error of the one query left
    assert losses[3] == pytest.approx(losses[4], rel=1e-3)


def test_trust_is_zero_below_the_threshold():
    trust = query_trust(torch.tensor([0.05, 0.2, 0.9]), threshold=0.1, power=2.0)
    assert trust.tolist() == pytest.approx([0.0, 0.04, 0.81])
    for power in (0.0, 1.0):  # fill-ups of score 0 are no detections, whatever the threshold
        assert query_trust(torch.tensor([0.0, 1.0]), threshold=0.0, power=power).tolist() == [0.0, 1.0]


def test_agreement_is_the_share_of_matching_distances_passed():
    boxes = torch.zeros(5, 9)
    boxes[:, 0] = torch.tensor([0.3, 0.7, 1.5, 3.0, 5.0])
    labels = torch.zeros(5, dtype=torch.long)
    truth = torch.zeros(2, 9)
    truth[1, 0] = 5.0  # of another class
    assert agreement(boxes, labels, truth, torch.tensor([0, 1])).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert agreement(boxes, labels, truth[:0], labels[:0]).tolist() == [0.0] * 5


def test_blocks_are_hidden_inside_the_area_only():
    area = torch.zeros(1, 8, 8, dtype=torch.bool)
    area[:, 2:7, 2:7] = True
    keep = block_mask(area, 0.5, 2, torch.Generator().manual_seed(0))
    assert (keep[~area] == 1).all() and 0 < (keep[area] == 0).float().mean() < 1
    assert (block_mask(area, 1.0, 2)[area] == 0).all() and (block_mask(area, 0.0, 2) == 1).all()
    assert torch.equal(keep, block_mask(area, 0.5, 2, torch.Generator().manual_seed(0)))


def test_sampling_equals_deformable_attention():
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    torch.manual_seed(0)
    batch, layers, queries, heads, points, dims, h, w = 2, 3, 5, 4, 2, 8, 6, 7
    bev = torch.randn(batch, dims, h, w)
    weight, bias = torch.randn(layers, dims, dims), torch.randn(layers, dims)
    locations = torch.rand(batch, layers, queries, heads, points, 2) * 1.4 - 0.2  # some outside of the map
    attention = torch.rand(batch, layers, queries, heads, points)
    reading = bev_reading(locations, attention, (h, w))
    sums = reading.of(bev.permute(0, 2, 3, 1).flatten(0, 2), torch.arange(batch * h * w))
    read = project_values(sums, reading.share.sum(-1), weight, bias)
    for i in range(layers):
        value = torch.nn.functional.linear(bev.flatten(2).transpose(1, 2), weight[i], bias[i])
        want = multi_scale_deformable_attn_pytorch(
            value.unflatten(-1, (heads, -1)),
            torch.tensor([[h, w]]),
            locations[:, i, :, :, None],
            attention[:, i, :, :, None],
        )
        torch.testing.assert_close(read[i], want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "target"),
    [((4, 4), (4, 4)), ((4, 4), (8, 8)), ((4, 4), (16, 16)), ((4, 4), (12, 12)), ((5, 4), (7, 9))],
)
def test_bev_is_restored_at_any_ratio(size, target):
    assert RestoreBEV(6, size, target)(torch.randn(2, 6, *size)).shape == (2, 6, *target)


def test_generator_aligns_channels():
    assert FeatureGenerator(3, 5)(torch.randn(1, 3, 4, 4)).shape == (1, 5, 4, 4)
    assert len(FeatureGenerator(5, 5)) == 3


@pytest.mark.parametrize("target", [(4, 4), (8, 8), (7, 9)])
def test_residual_restoring_starts_as_interpolation(target):
    bev = torch.randn(2, 6, 4, 4)
    want = torch.nn.functional.interpolate(bev, target, mode="bilinear", align_corners=False)
    torch.testing.assert_close(RestoreBEV(6, (4, 4), target, residual=True)(bev), want)
