import math

import pytest
import torch

from pipeline.errors import FD3DError
from pipeline.focal.areas import bev_footprints, project_boxes, pv_rectangles_to_cells, sampling_neighbours, trust_map
from pipeline.focal.rule import FocalRule

RANGE = (-4.0, -4.0, -2.0, 4.0, 4.0, 2.0)


def box(x=0.0, y=0.0, z=0.0, length=2.0, width=1.0, height=1.0, yaw=0.0) -> torch.Tensor:
    return torch.tensor([[x, y, z, length, width, height, yaw, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("what", "cells"),
    [
        (box(0, 0, length=2.0, width=2.0), {(3, 3), (3, 4), (4, 3), (4, 4)}),  # four cells of 1 m around the middle
        (box(0.5, 0.5, length=3.0, width=0.5), {(4, 3), (4, 4), (4, 5)}),  # along x: one row
        (box(0.5, 0.5, length=3.0, width=0.5, yaw=math.pi / 2), {(3, 4), (4, 4), (5, 4)}),  # along y: one column
        (box(1.9, -2.9, length=0.1, width=0.1), {(1, 5)}),  # smaller than a cell
        (box(9.0, 0.0), set()),  # outside the grid
    ],
)
def test_footprint_cells(what, cells):
    mask = bev_footprints(what, RANGE, (8, 8))[0]
    assert {tuple(c) for c in mask.nonzero().tolist()} == cells


def test_footprint_margin_is_metres_on_every_side():
    narrow = bev_footprints(box(0, 0, length=2.0, width=2.0), RANGE, (8, 8), margin=0.0)[0]
    wide = bev_footprints(box(0, 0, length=2.0, width=2.0), RANGE, (8, 8), margin=1.0)[0]
    assert (int(narrow.sum()), int(wide.sum())) == (4, 16)


def camera(focal: float = 10.0, size: float = 20.0) -> torch.Tensor:
    """Looks along +y of the LiDAR frame; column = x / y, row = -z / y."""
    view = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    k = torch.tensor([[focal, 0, size / 2, 0], [0, focal, size / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return (k @ view)[None]


def test_projected_box_spans_its_nearest_face():
    # faces at y = 4 and 6; the near one is 2 x 1 m: columns 10 +- 10*1/4, rows 10 +- 10*0.5/4
    rectangle, valid = project_boxes(box(0, 5, 0, length=2.0, width=2.0, height=1.0), camera(), (20, 20))
    assert valid.item()
    torch.testing.assert_close(rectangle[0, 0], torch.tensor([7.5, 8.75, 12.5, 11.25]))


def test_box_behind_the_camera_is_not_seen_and_one_around_it_is_clipped():
    _, behind = project_boxes(box(0, -5), camera(), (20, 20))
    rectangle, around = project_boxes(box(0, 0, length=4.0, width=4.0, height=1.0), camera(), (20, 20))
    assert not behind.item() and around.item()
    torch.testing.assert_close(rectangle[0, 0], torch.tensor([0.0, 0.0, 20.0, 20.0]))


@pytest.mark.parametrize("yaw", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("y", [1.0, 3.0, 9.0])
def test_rectangle_holds_every_visible_point_of_the_box(y, yaw):
    what = box(1.0, y, 0.3, length=3.0, width=1.5, height=1.0, yaw=yaw)
    rectangle, valid = project_boxes(what, camera(), (20, 20))
    torch.manual_seed(0)
    local = (torch.rand(4000, 3) - 0.5) * what[0, 3:6]
    c, s = math.cos(yaw), math.sin(yaw)
    points = (
        torch.stack([c * local[:, 0] - s * local[:, 1], s * local[:, 0] + c * local[:, 1], local[:, 2]], -1)
        + what[0, :3]
    )
    cam = torch.cat([points, torch.ones(4000, 1)], -1) @ camera()[0].T
    uv = cam[:, :2] / cam[:, 2:3]
    seen = (cam[:, 2] > 0.11) & (uv > 0).all(-1) & (uv < 20).all(-1)
    assert bool(valid) == bool(seen.any())
    if seen.any():
        assert (uv[seen] >= rectangle[0, 0, :2] - 1e-3).all() and (uv[seen] <= rectangle[0, 0, 2:] + 1e-3).all()


def test_rectangles_take_the_cells_they_touch():
    rectangle, valid = torch.tensor([[[4.0, 0.0, 9.0, 4.0]]]), torch.tensor([[True]])
    cells = pv_rectangles_to_cells(rectangle, valid, (3, 4), (12, 16))[0, 0]
    assert cells.nonzero().tolist() == [[0, 1], [0, 2]]
    assert not pv_rectangles_to_cells(rectangle, ~valid, (3, 4), (12, 16)).any()


def test_overlapping_areas_take_the_larger_trust():
    masks = torch.tensor([[True, True, False], [False, True, False]])
    assert trust_map(masks, torch.tensor([0.2, 0.5])).tolist() == pytest.approx([0.2, 0.5, 0.0])


def test_size_power_makes_objects_of_all_sizes_weigh_alike():
    masks = torch.zeros(2, 3, 4, 4, dtype=torch.bool)  # two objects in three cameras
    masks[0, 0, :2], masks[1, 0, 3, 3], masks[1, 2, 0, :2] = True, True, True
    trust = torch.tensor([0.4, 0.8])
    cells = trust_map(masks, trust, size_power=1.0)
    assert cells.sum((-2, -1)).tolist() == pytest.approx([0.4 + 0.8, 0.0, 0.8])
    assert cells[0, 0, 0] == pytest.approx(0.4 / 8)
    assert trust_map(masks, trust, size_power=0.5)[2, 0, 0] == pytest.approx(0.8 / 2**0.5)


def test_neighbours_are_the_cells_with_a_sampling_gradient():
    torch.manual_seed(1)
    locations = torch.rand(40, 2) * 1.4 - 0.2
    values = torch.zeros(1, 1, 6, 9, requires_grad=True)
    grid = (locations * 2 - 1).view(1, 1, -1, 2)
    torch.nn.functional.grid_sample(values, grid, align_corners=False).sum().backward()
    assert torch.equal(sampling_neighbours(locations, (6, 9)), values.grad[0, 0] != 0)


def test_stage_two_may_only_tighten_the_rule():
    stored = FocalRule(num_queries=50, min_score=0.1, bev_margin=1.0)
    stored.check_covers(FocalRule(num_queries=20, min_score=0.3, bev_margin=0.0, pv_margin=0.0))
    with pytest.raises(FD3DError, match="distill.rule.bev_margin is 2.0, but the store covers at most 1.0"):
        stored.check_covers(FocalRule(num_queries=50, min_score=0.1, bev_margin=2.0))
    with pytest.raises(FD3DError, match="min_score is 0.05, but the store covers at least 0.1"):
        stored.check_covers(FocalRule(num_queries=50, min_score=0.05))
