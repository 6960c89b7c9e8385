import math

import pytest
import torch

from pipeline.distill.geometry import Anchors, match_along_rays, object_grid, projected_overlap, ray_trust, reanchored
from pipeline.distill.geometry_settings import GeometrySettings
from pipeline.distill.placing import place_queries
from pipeline.focal.areas import bev_footprints, query_weights

RANGE = torch.tensor([-3.0, -3.0, -2.0, 3.0, 3.0, 2.0])  # 6 x 6 cells of 1 m: column j has its centre at x = j - 2.5
GATES = GeometrySettings(across=2.0, log_range=0.5)


def reanchored_bev(bev, stored, anchors, weight, margin):
    """A map (C, H, W) with the cells ``stored``, re-anchored: the map with 0 where there is no value, and the weights."""
    values = bev.permute(1, 2, 0)[stored]
    row = torch.full((36,), len(values))
    row[stored.flatten()] = torch.arange(len(values))
    most, owner = query_weights(bev_footprints(anchors.target, RANGE.tolist(), (6, 6), margin), weight).max(0)
    mask, moved = reanchored(values, row, most[None], owner[None], [anchors], RANGE.tolist())
    out = torch.zeros(6, 6, bev.shape[0])
    out[mask[0]] = moved
    return out.permute(2, 0, 1), most * mask[0]


def box(x, y, length=2.0, width=1.0, yaw=0.0, z=0.0, height=1.5):
    return [x, y, z, length, width, height, yaw, 0.0, 0.0]


def anchors(source, target):
    source, target = torch.tensor([source]), torch.tensor([target])
    return Anchors(source, target, torch.ones(1, dtype=torch.bool))


def numbered():
    """A map whose value at row i, column j is 10 i + j, and a second channel of its negative."""
    one = 10.0 * torch.arange(6)[:, None] + torch.arange(6)
    return torch.stack([one, -one])


def moved(source, target, stored=None, margin=0.0, weight=1.0):
    stored = torch.ones(6, 6, dtype=torch.bool) if stored is None else stored
    return reanchored_bev(numbered(), stored, anchors(source, target), torch.tensor([weight]), margin)


def test_boxes_on_their_annotations_change_nothing():
    torch.manual_seed(0)
    bev = torch.randn(3, 6, 6)
    boxes = torch.tensor([box(-1.3, 0.4, yaw=0.3), box(1.2, -1.1, 1.5, 1.5, yaw=-2.0)])
    same = Anchors(boxes, boxes.clone(), torch.ones(2, dtype=torch.bool))
    out, weight = reanchored_bev(bev, torch.ones(6, 6, dtype=torch.bool), same, torch.tensor([0.5, 0.9]), 0.5)
    inside = weight > 0
    assert inside.sum() > 8
    torch.testing.assert_close(out[:, inside], bev[:, inside], rtol=0, atol=1e-5)
    assert (out[:, ~inside] == 0).all()


def test_a_shift_by_whole_cells_reads_the_cells_at_the_box():
    # the expert's box is at x = 0.5 .. 2.5, y = 0.5 (columns 3 and 4 of row 3); the annotation is two cells left, one up
    out, weight = moved(box(1.0, 0.5), box(-1.0, -0.5))
    assert weight.nonzero().tolist() == [[2, 1], [2, 2]]
    assert out[0, 2, 1].item() == pytest.approx(33, abs=1e-4) and out[0, 2, 2].item() == pytest.approx(34, abs=1e-4)
    assert out[1, 2, 1].item() == pytest.approx(-33, abs=1e-4)


def test_half_a_cell_is_interpolated():
    # source positions lie at x = 0 and 1, between columns 2|3 and 3|4 of row 3: (32 + 33) / 2 and (33 + 34) / 2
    out, _ = moved(box(0.5, 0.5), box(-1.0, 0.5))
    assert out[0, 3, 1].item() == pytest.approx(32.5, abs=1e-4) and out[0, 3, 2].item() == pytest.approx(33.5, abs=1e-4)


def test_a_quarter_turn_reads_rows_for_columns():
    # the annotation lies along y, the expert's box along x: cell (row 2, 3 at x = 0.5) reads columns (3, 4) of row 1
    out, weight = moved(box(1.0, -1.5), box(0.5, 0.0, yaw=math.pi / 2 - 1e-6))
    assert weight.nonzero().tolist() == [[2, 3], [3, 3]]
    # along the annotation's axis y = -0.5 is the rear, which is the expert's x = 0.5, column 3
    assert out[0, 2, 3].item() == pytest.approx(13, abs=1e-3) and out[0, 3, 3].item() == pytest.approx(14, abs=1e-3)


def test_front_and_rear_are_not_swapped_by_a_heading_that_is_off_by_half_a_turn():
    out, _ = moved(box(1.0, 0.5, yaw=math.pi), box(-1.0, 0.5))
    assert out[0, 3, 1].item() == pytest.approx(33, abs=1e-3) and out[0, 3, 2].item() == pytest.approx(34, abs=1e-3)


def test_a_smaller_source_is_stretched():
    # lengths 1 and 2: positions 0.5 m from the centre read 0.25 m from it: x = 0.75 and 1.25 in row 3, columns 3.25 and 3.75
    out, _ = moved(box(1.0, 0.5, length=1.0), box(-1.0, 0.5, length=2.0))
    assert out[0, 3, 1].item() == pytest.approx(33.25, abs=1e-4) and out[0, 3, 2].item() == pytest.approx(
        33.75, abs=1e-4
    )


def test_values_that_an_unstored_cell_would_enter_have_no_weight():
    stored = torch.ones(6, 6, dtype=torch.bool)
    stored[3, 4] = False
    out, weight = moved(box(1.0, 0.5), box(-1.0, 0.5), stored)
    assert weight[3, 1] == 1 and weight[3, 2] == 0 and out[0, 3, 2] == 0
    # half a cell on, both values need column 3 or 4 of row 3; only what needs column 4 is lost
    out, weight = moved(box(0.5, 0.5), box(-1.0, 0.5), stored)
    assert weight[3, 1] == 1 and weight[3, 2] == 0
    # beyond the map nothing is stored
    _, weight = moved(box(3.0, 0.5), box(-1.0, 0.5))
    assert weight[3, 1] == 1 and weight[3, 2] == 0


def test_unstored_cells_may_hold_anything():
    stored = torch.ones(6, 6, dtype=torch.bool)
    stored[0] = False
    bev = numbered()
    bev[:, 0] = float("nan")
    out, weight = reanchored_bev(bev, stored, anchors(box(1.0, 0.5), box(-1.0, 0.5)), torch.ones(1), 0.0)
    assert torch.isfinite(out).all() and (weight > 0).sum() == 2


def test_the_query_of_larger_weight_gives_the_value():
    source = torch.tensor([box(-1.5, -1.5, 1.0), box(1.5, 1.5, 1.0), box(0.5, 0.5, 1.0)])
    target = torch.tensor([box(0.5, 0.5, 1.0)] * 3)
    three = Anchors(source, target, torch.ones(3, dtype=torch.bool))
    everywhere = torch.ones(6, 6, dtype=torch.bool)
    out, weight = reanchored_bev(numbered(), everywhere, three, torch.tensor([0.3, 0.8, 0.0]), 0.0)
    assert out[0, 3, 3].item() == pytest.approx(44, abs=1e-4) and weight[3, 3].item() == pytest.approx(0.8)
    assert (weight > 0).sum() == 1


def test_no_weight_moves_nothing():
    out, weight = moved(box(1.0, 0.5), box(-1.0, 0.5), weight=0.0)
    assert (out == 0).all() and (weight == 0).all()


def test_points_move_with_their_box_and_back():
    torch.manual_seed(1)
    source = torch.tensor([box(1.0, 2.0, 4.0, 2.0, 0.4, z=-1.0, height=2.0), box(-9.0, 3.0, 1.0, 1.0, 3.0)])
    target = torch.tensor([box(3.0, 6.0, 5.0, 1.8, -0.2, z=0.5, height=1.0), box(-8.0, 2.0, 1.2, 0.8, 0.1)])
    both = Anchors(source, target, torch.ones(2, dtype=torch.bool))
    points = torch.randn(2, 5, 4, 3) + source[:, None, None, :3]
    torch.testing.assert_close(both.to_source(both.to_target(points)), points, rtol=0, atol=1e-4)
    # the front edge's middle stays the front edge's middle
    front = source[:1, :3] + torch.tensor([[math.cos(0.4), math.sin(0.4), 0.0]]) * 2.0
    by_hand = target[:1, :3] + torch.tensor([[math.cos(-0.2), math.sin(-0.2), 0.0]]) * 2.5
    torch.testing.assert_close(both.to_target(front.expand(2, 3))[:1], by_hand, rtol=0, atol=1e-5)
    # height is scaled about the centre: 1 m above the centre of a 2 m box is the top
    top = source[:1, :3] + torch.tensor([[0.0, 0.0, 1.0]])
    assert both.to_target(top.expand(2, 3))[0, 2].item() == pytest.approx(0.5 + 0.5)


def test_unmatched_queries_stay_where_they_are():
    boxes, true = torch.tensor([box(1.0, 2.0), box(5.0, 5.0)]), torch.tensor([box(2.0, 4.0)])
    found = Anchors.found(boxes, true, torch.tensor([0, -1]))
    assert found.matched.tolist() == [True, False]
    assert torch.equal(found.target, torch.stack([true[0], boxes[1]]))
    assert torch.equal(Anchors.found(boxes, true[:0], torch.tensor([-1, -1])).target, boxes)


def match(boxes, true_boxes, labels=None, true_labels=None, weight=None, overlap=None):
    boxes, true_boxes = torch.tensor(boxes), torch.tensor(true_boxes).reshape(-1, 9)
    labels = torch.zeros(len(boxes), dtype=torch.long) if labels is None else torch.tensor(labels)
    true_labels = torch.zeros(len(true_boxes), dtype=torch.long) if true_labels is None else torch.tensor(true_labels)
    weight = torch.ones(len(boxes)) if weight is None else torch.tensor(weight)
    overlap = torch.zeros(len(boxes), len(true_boxes)) if overlap is None else torch.tensor(overlap)
    return match_along_rays(boxes, labels, weight, true_boxes, true_labels, overlap, GATES).tolist()


def at(reach, degrees):
    angle = math.radians(degrees)
    return box(reach * math.cos(angle), reach * math.sin(angle))


def test_a_box_twenty_per_cent_too_far_finds_its_object():
    # 36 m for 30 m: 6 m off, where nuScenes' matching distances end at 4 m; a nearer annotation stands beside the ray
    assert match([at(36, 10)], [at(30, 10), at(35, 15)]) == [0]


def test_rays_are_compared_across_half_a_turn():
    assert match([at(20, 179.9)], [at(22, -179.9)]) == [0]


def test_gates_end_what_can_be_one_object():
    assert match([at(20, 0)], [at(20, 6.0)]) == [-1]  # 2.09 m across
    assert match([at(20, 0)], [at(20, 5.0)]) == [0]  # 1.75 m
    assert match([at(20, 0)], [at(34, 0)]) == [-1]  # ln 1.7 = 0.53
    assert match([at(20, 0)], [at(32, 0)]) == [0]  # ln 1.6 = 0.47
    assert match([at(34, 0)], [at(20, 0)]) == [-1] and match([at(32, 0)], [at(20, 0)]) == [0]  # and too far


def test_the_distance_across_the_ray_is_at_the_annotations_range():
    # 5 degrees are 1.75 m at 20 m, and 2.44 m at the range that the query claims
    assert match([at(28, 0)], [at(20, 5)]) == [0]


def test_another_size_is_another_object():
    def scaled(length, width, height):
        return [*at(24, 0)[:3], 2.0 * length, 1.0 * width, 1.5 * height, 0.0, 0.0, 0.0]

    for other in ((2.1, 1.0, 1.0), (1.0, 0.47, 1.0), (1.0, 1.0, 2.1)):
        assert match([scaled(*other)], [at(20, 0)]) == [-1], other
    for alike in ((1.9, 1.0, 1.0), (1.9, 0.53, 1.9)):
        assert match([scaled(*alike)], [at(20, 0)]) == [0], alike
    # the query of a pedestrian before a truck goes to the pedestrian, whatever overlaps it
    truck, person = [*at(24, 0)[:3], 8.0, 2.5, 3.0, 0.0, 0.0, 0.0], at(20, 1)
    assert match([at(21, 1)], [truck, person], overlap=[[1.0, 0.0]]) == [1]


def test_two_objects_on_one_ray_keep_their_order():
    # both queries are 20 % too far, so the nearer query lies on the farther object; what overlaps says who is who
    overlap = [[0.7, 0.5], [0.3, 0.6]]
    assert match([at(24, 0), at(30, 0)], [at(20, 0), at(25, 0)], overlap=overlap) == [0, 1]
    # the best pairs alone would give both queries the same object
    overlap = [[0.9, 0.6], [0.95, 0.1]]
    assert match([at(24, 0), at(30, 0)], [at(20, 0), at(25, 0)], overlap=overlap) == [1, 0]


def test_duplicates_share_an_annotation_and_weightless_queries_have_none():
    assert match([at(21, 0), at(22, 0), at(23, 0)], [at(20, 0)], weight=[0.9, 0.5, 0.0]) == [0, 0, -1]


def test_a_duplicate_does_not_push_a_query_off_a_distant_annotation():
    # three queries, two annotations far apart: the assignment gives the left-over query to no refused pair
    assert match([at(21, 0), at(22, 0), at(15, 90)], [at(20, 0), at(15, 90)]) == [0, 0, 1]
    assert match([at(21, 0), at(22, 0)], [at(20, 0), at(15, 90)]) == [0, 0]


def test_a_duplicate_takes_no_object_beside_its_own():
    # two queries on one car, which overlaps them fully; the pedestrian 1.7 m beside has no query
    overlap = [[1.0, 0.0], [0.9, 0.0]]
    found = match([at(20, 0), at(21, 0)], [at(20, 0), at(20, 5)], true_labels=[0, 7], overlap=overlap)
    assert found == [0, 0]
    # nor where it is of the same class: 1.7 m across is 0.87 of the gate, and no overlap costs 1
    assert match([at(20, 0), at(21, 0)], [at(20, 0), at(20, 5)], overlap=overlap) == [0, 0]
    # what is about as likely is a second object
    assert sorted(match([at(20, 0), at(21, 0)], [at(20, 0), at(20, 0.5)], overlap=[[1.0, 0.7], [0.9, 0.8]])) == [0, 1]
    # and so is what costs 0.5 to 0.6 more, which is less than another class
    assert match([at(20, 0), at(21, 0)], [at(20, 0), at(20, 0.5)], overlap=[[1.0, 0.3], [0.9, 0.4]]) == [0, 1]


def test_a_query_without_a_pair_takes_nobodys_annotation():
    # the first query has no allowed pair, whatever its place in the order; two share an annotation or have one each
    boxes = [at(20, 90), at(21, 0), at(22, 0.2)]
    overlap = [[0.0, 0.0], [0.8, 0.6], [0.8, 0.7]]
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        found = match([boxes[i] for i in order], [at(20, 0), at(20, 0.5)], overlap=[overlap[i] for i in order])
        assert [found[order.index(i)] for i in range(3)] == [-1, 0, 1]


def test_many_queries_on_their_annotations_stay_there():
    torch.manual_seed(3)
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(4.0)) * 2.2 + torch.tensor([9.0, -3.0])
    true = torch.cat([grid, torch.zeros(20, 1), torch.tensor([[2.0, 1.0, 1.5]]).expand(20, 3), torch.randn(20, 3)], 1)
    owner = torch.randint(0, 10, (60,)) * 2  # every second object has no query
    overlap = (owner[:, None] == torch.arange(20)).float()
    labels = torch.arange(20) % 3
    found = match_along_rays(true[owner], labels[owner], torch.rand(60) + 0.1, true, labels, overlap, GATES)
    assert torch.equal(found, owner)


def test_the_class_decides_between_equals():
    assert match([at(20, 0)], [at(20, 1), at(20, -1)], labels=[3], true_labels=[2, 3]) == [1]


def test_no_annotation_matches_nothing():
    assert match([at(20, 0)], []) == [-1]


def test_overlap_of_projected_boxes_is_the_largest_over_cameras():
    a = torch.tensor([[[0.0, 0.0, 4.0, 2.0], [0.0, 0.0, 1.0, 1.0]]])  # one box, two cameras
    b = torch.tensor([[[2.0, 0.0, 6.0, 2.0], [0.0, 0.0, 1.0, 1.0]], [[9.0, 9.0, 10.0, 10.0], [0.0, 0.0, 0.0, 0.0]]])
    valid = torch.tensor([[True, True]])
    # camera 0: 4 of 12, camera 1: the same rectangle
    assert projected_overlap(a, valid, b, torch.tensor([[True, True], [True, False]])).tolist() == [[1.0, 0.0]]
    seen = projected_overlap(a, valid, b, torch.tensor([[True, False], [True, False]]))
    assert seen[0].tolist() == pytest.approx([4 / 12, 0.0])


def trust_of(there, offset, along=0.2, across=1.0):
    """Trust in a box at an offset (x, y) from its annotation at ``there``."""
    boxes = torch.tensor([box(there[0] + offset[0], there[1] + offset[1])])
    return ray_trust(boxes, torch.tensor([box(*there)]), along, across).item()


@pytest.mark.parametrize(
    ("there", "offset", "exponent"),
    [
        # at 30 m the deviation along the ray is 0.2 * 30 = 6 m, across it 1 m
        ((30.0, 0.0), (6.0, 0.0), 1 / 2),  # bearing 0: one deviation along
        ((30.0, 0.0), (-6.0, 0.0), 1 / 2),  # too near is as bad as too far
        ((30.0, 0.0), (0.0, 1.0), 1 / 2),  # one deviation across
        ((30.0, 0.0), (0.0, 4.0), 8.0),  # 4 m across: four deviations
        ((30.0, 0.0), (4.0, 0.0), 2 / 9),  # 4 m along: two thirds of one
        ((30.0, 0.0), (6.0, -1.0), 1.0),  # one of each
        # bearing 45 degrees: the range is 20 sqrt(2), the deviation along 4 sqrt(2)
        ((20.0, 20.0), (4.0, 4.0), 1 / 2),
        ((20.0, 20.0), (0.5**0.5, -(0.5**0.5)), 1 / 2),
        ((20.0, 20.0), (4.0, 0.0), (0.25 + 8) / 2),  # 2 sqrt(2) along, which is half a deviation, and as much across
        ((-20.0, 20.0), (-4.0, 4.0), 1 / 2),  # behind, to the left
        # the same 3 m along the ray at another range
        ((15.0, 0.0), (3.0, 0.0), 1 / 2),
        ((30.0, 0.0), (3.0, 0.0), 1 / 8),
        ((0.0, 60.0), (0.0, 3.0), 1 / 32),
        # the same 1 m across at another range
        ((0.0, 60.0), (1.0, 0.0), 1 / 2),
    ],
)
def test_trust_is_long_along_the_ray_and_short_across(there, offset, exponent):
    assert trust_of(there, offset) == pytest.approx(math.exp(-exponent), rel=1e-4)


def test_trust_follows_both_deviations():
    assert trust_of((30.0, 0.0), (6.0, 0.0), along=0.1) == pytest.approx(math.exp(-2), rel=1e-4)
    assert trust_of((30.0, 0.0), (0.0, 1.0), across=0.5) == pytest.approx(math.exp(-2), rel=1e-4)


def test_a_box_on_its_annotation_has_the_whole_trust():
    torch.manual_seed(2)
    true = torch.randn(50, 9) * 20
    boxes = true.clone()
    boxes[:, 2:] += 1  # heights, sizes, headings and velocities do not count
    assert torch.equal(ray_trust(boxes, true, 0.2, 1.0), torch.ones(50))


@pytest.mark.parametrize(("farther", "found"), [(24.0, [1, 0]), (25.0, [0, 1])])
def test_which_of_two_objects_on_one_ray_is_whose_the_overlap_says(farther, found):
    """Two cars ahead, whose boxes are both 20 % too far: the boxes look smaller, and the nearer one like the farther car."""
    true = torch.tensor([box(there, 0.0, 4.5, 1.9, 0.3, z=-0.9, height=1.6) for there in (20.0, farther)])
    boxes = true * torch.tensor([1.2, 1.2, *[1.0] * 7])
    # x of the image is -y, y is -z, depth is x
    camera = torch.tensor(
        [[400.0, -300.0, 0.0, 0.0], [225.0, 0.0, -300.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    )
    meta, labels = {"lidar2img": camera[None], "pad_hw": (450, 800)}, torch.zeros(2, dtype=torch.long)
    where, _ = place_queries(boxes, labels, torch.ones(2), true, labels, meta, GeometrySettings(match=True))
    assert torch.equal(where.target, true[found])


def placed(boxes, true_boxes, trust, **settings):
    meta = {"lidar2img": torch.eye(4)[None], "pad_hw": (10, 10)}
    boxes, true_boxes = torch.tensor(boxes), torch.tensor(true_boxes)
    labels, true_labels = (torch.zeros(len(b), dtype=torch.long) for b in (boxes, true_boxes))
    geometry = GeometrySettings(match=True, **settings)
    return place_queries(boxes, labels, torch.tensor(trust), true_boxes, true_labels, meta, geometry)


def weights(boxes, true_boxes, trust, **settings):
    return placed(boxes, true_boxes, trust, **settings)[1]


def test_queries_that_agreement_takes_all_trust_from_are_matched_all_the_same():
    # 6 m too far: beyond 4 m agreement is 0, and re-anchoring is for just such boxes
    anchors, weight = placed([at(36, 10)], [at(30, 10)], [0.8], agreement_power=1.0)
    assert anchors.matched.tolist() == [True] and weight.tolist() == [0.0]


@pytest.mark.parametrize(("power", "weight"), [(1.0, 0.5), (2.0, 0.25)])
def test_agreement_counts_to_its_power(power, weight):
    # 1.5 m off: of nuScenes' distances 0.5, 1, 2 and 4 m two hold
    assert weights([at(31.5, 10)], [at(30, 10)], [1.0], agreement_power=power).tolist() == pytest.approx([weight])


def test_boxes_are_compared_within_the_image_and_not_the_padding():
    """The query reaches below the image. Up to there the query is annotation 0; with the padding, annotation 1."""
    # x of the image is -y / x, y is -z / x, in hundreds of pixels
    camera = torch.tensor(
        [[200.0, -100.0, 0.0, 0.0], [100.0, 0.0, -100.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    )
    boxes = torch.tensor([box(20.0, 0.0, 1.0, 10.0, z=-11.0, height=22.0)])
    true = torch.tensor(
        [box(20.0, 0.0, 1.0, 10.0, z=-3.0, height=8.0), box(20.0, 0.0, 1.0, 10.0, z=-11.0, height=14.0)]
    )
    labels, true_labels = torch.zeros(1, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    geometry = GeometrySettings(match=True, log_size=2.0)
    meta = {"lidar2img": camera[None], "pad_hw": (250, 400)}

    def found(**more):
        return place_queries(boxes, labels, torch.ones(1), true, true_labels, meta | more, geometry)[0].target

    assert torch.equal(found(), true[1:]) and torch.equal(found(view_hw=(115, 400)), true[:1])


def test_a_boxs_places_are_turned_with_it():
    places = object_grid(torch.tensor([box(1.0, 2.0, 4.0, 2.0, math.pi / 2)]))[0]
    # along the box is y: rear right, centre, front left
    for place, there in ((0, (2.0, 0.0)), (4, (1.0, 2.0)), (8, (0.0, 4.0))):
        assert places[place].tolist() == pytest.approx(there, abs=1e-5)


def test_matched_queries_are_trusted_along_the_ray_and_unmatched_ones_as_told():
    boxes = [at(36, 45), at(30, 45), box(0.0, -40.0)]  # 6 m too far, in its place, a false positive
    trust = [0.8, 0.5, 0.4]
    soft = weights(boxes, [at(30, 45)], trust, ray_along=0.2, unmatched=0.5)
    assert soft.tolist() == pytest.approx([0.8 * math.exp(-0.5), 0.5, 0.2], rel=1e-5)
    # what lies on its annotation keeps its very bits
    assert soft[1] == 0.5 and weights(boxes, [at(30, 45)], trust, ray_along=0.2)[2] == 0


def test_no_trust_along_the_ray_leaves_trust_as_it_is():
    boxes, trust = [at(36, 45), at(30, 45), at(29, 47)], [0.8, 0.5, 0.1]
    assert torch.equal(weights(boxes, [at(30, 45)], trust), torch.tensor(trust))
    assert torch.equal(weights(boxes, [at(30, 45)], trust, ray_across=0.1), torch.tensor(trust))
