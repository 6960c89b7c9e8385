"""Depth errors per object, on maps and boxes small enough to check by hand."""

import pytest
import torch
from torch import Tensor

from pipeline.models.corruption import Corruption
from pipeline.models.depth_error import (
    FADE,
    Displaced,
    between,
    draw_errors,
    find_objects,
    footprint_distance,
    log_factors_of,
    move_objects,
)

RANGE = torch.tensor([-32.0, -32.0, -5.0, 32.0, 32.0, 3.0])  # 64x64 cells of 1 m


def box(x: float, y: float, dx: float = 4.0, dy: float = 2.0, yaw: float = 0.0) -> list[float]:
    return [x, y, -1.0, dx, dy, 1.5, yaw, 0.0, 0.0]


def two(first: float = 1.25, second: float = 0.8) -> Displaced:
    """A car ahead on the right, and one behind that has turned by 90 degrees."""
    boxes = torch.tensor([box(16.0, -8.0), box(-20.0, 5.0, yaw=torch.pi / 2)])
    return Displaced(boxes, torch.tensor([first, second]).log())


def centres() -> Tensor:
    """Cell centres (64, 64, 2), metres."""
    at = torch.arange(64) - 31.5
    return torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)


def moved_places(objects: Displaced) -> Tensor:
    """For each cell (64, 64, 2) the place that its content comes from: bilinear sampling keeps a linear map exact."""
    return move_objects(centres().permute(2, 0, 1), objects, RANGE).permute(1, 2, 0)


def in_footprint(objects: Displaced, i: int) -> Tensor:
    """Cells (64, 64) whose content belongs into the moved box of object i, strictly."""
    x, y = (centres() / objects.log_factor[i].exp() - objects.boxes[i, :2]).unbind(-1)
    half = objects.boxes[i, 3:5] / 2 if i == 0 else objects.boxes[i, [4, 3]] / 2
    return (x.abs() < half[0]) & (y.abs() < half[1])


def test_all_cells_of_an_object_move_by_its_factor():
    objects = two()
    places = moved_places(objects)
    for i, factor in enumerate((1.25, 0.8)):
        cells = in_footprint(objects, i)
        assert cells.sum() >= 4
        torch.testing.assert_close(places[cells] * factor, centres()[cells], atol=1e-4, rtol=0)


def test_an_object_is_seen_at_its_new_place_only():
    objects = two(1.5, 0.7)
    lit = (footprint_distance(centres().flatten(0, 1), objects.boxes) == 0).any(0).view(1, 64, 64).float()
    moved = move_objects(lit, objects, RANGE)[0]
    assert moved[in_footprint(objects, 0)].mean() > 0.7 and moved[in_footprint(objects, 1)].mean() > 0.7
    new = torch.stack([torch.tensor([24.0, -12.0]), torch.tensor([-14.0, 3.5])])
    away = torch.cdist(centres().flatten(0, 1), new).amin(1).view(64, 64) > 6
    assert moved[away].abs().max() < 1e-6
    assert lit[0][away].sum() > 10  # where the objects were


def test_background_moves_smoothly_and_stays_far_from_objects():
    objects = two()
    places = moved_places(objects)
    far = torch.cdist(centres().flatten(0, 1), torch.tensor([[20.0, -10.0], [-16.0, 4.0]])).amin(1).view(64, 64) > 30
    far &= centres().abs().amax(-1) < 28  # with what they show on the map
    assert far.any()
    torch.testing.assert_close(places[far], centres()[far], atol=0.3, rtol=0)
    # at FADE metres from the only object half of its displacement, at its footprint all
    half, all_of_it = between(torch.tensor([[FADE, 0.0]]), torch.tensor([0.2]))
    torch.testing.assert_close(torch.stack([half, all_of_it]), torch.tensor([0.1, 0.2]))
    steps = between(torch.stack([torch.linspace(0, 8, 801), torch.linspace(8, 0, 801)]), torch.tensor([0.2, -0.2]))
    assert steps.diff().abs().max() < 0.01 and steps[0] > 0.199 and steps[-1] < -0.199


def test_where_two_objects_meet_the_better_scored_is_seen():
    boxes = torch.tensor([box(10.0, 0.0), box(20.0, 0.0)])
    for order in ([0, 1], [1, 0]):
        objects = Displaced(boxes[order], torch.tensor([1.5, 0.75]).log()[order])  # both to x = 15
        at = moved_places(objects)[32, 46]  # the cell at (14.5, 0.5)
        factor = (1.5, 0.75)[order[0]]
        torch.testing.assert_close(at, torch.tensor([14.5, 0.5]) / factor)


def test_a_neighbour_is_no_part_of_an_object():
    objects = Displaced(torch.tensor([box(16.0, 0.0), box(16.0, 2.5)]), torch.tensor([1.0, 1.5]).log())
    lit = (footprint_distance(centres().flatten(0, 1), objects.boxes[1:]) == 0).view(1, 64, 64).float()
    moved = move_objects(lit, objects, RANGE)[0]
    # the cells at (15.5, 1.5) and (15.5, 2.5), the first nearer than a cell to the object that stays
    assert lit[0, 33:35, 47].min() == 1 and moved[33:35, 47].max() < 1e-6
    assert moved[35:37, 55].min() > 0.5  # (23.5, 3.5) and (23.5, 4.5)


def test_distance_from_a_turned_footprint():
    turned = torch.tensor([box(1.0, 2.0, yaw=torch.pi / 6)])
    along, across = torch.tensor([3**0.5 / 2, 0.5]), torch.tensor([-0.5, 3**0.5 / 2])
    points = turned[0, :2] + torch.stack(
        [1.9 * along, 0.9 * across, 2.5 * along, -3.0 * across, 5 * along + 5 * across]
    )
    torch.testing.assert_close(footprint_distance(points, turned), torch.tensor([[0.0, 0.0, 0.5, 2.0, 5.0]]))


def test_without_objects_nothing_moves():
    bev, none = torch.randn(2, 64, 64), Displaced(torch.zeros(0, 9), torch.zeros(0))
    assert move_objects(bev, none, RANGE) is bev
    assert torch.equal(log_factors_of(torch.zeros(3, 2), none), torch.zeros(3))
    assert len(find_objects(torch.tensor([box(1, 1)]), torch.tensor([0.05]))) == 0
    assert draw_errors(torch.zeros(0, 2), 0.1, torch.Generator(), RANGE).shape == (0,)


def test_boxes_of_one_object_are_merged():
    boxes = torch.tensor([
        box(0, 0, 12.0, 3.0),  # a bus
        box(5.5, 1.0),  # in its footprint
        box(5.5, 3.0),  # a car beside the bus
        box(5.5, 4.9),  # the car again, 1.9 m from its better box
        box(5.5, 5.1),  # 2.1 m: another
        box(20, 0),  # scored too low
    ])  # fmt: skip
    found = find_objects(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.1]))
    assert torch.equal(found, boxes[[0, 2, 4]])


def test_queries_have_the_factor_of_their_object():
    objects = two()
    points = torch.tensor([[16.0, -8.0], [17.9, -7.1], [16.0, -6.1], [-20.0, 5.0], [16.0, 20.0], [-20.0, 8.5]])
    first, second = objects.log_factor.tolist()
    found = log_factors_of(points, objects).tolist()
    assert found[:4] == pytest.approx([first, first, first, second], abs=1e-6)
    assert abs(found[4]) < 0.1 * abs(first) and second < found[5] < 0.9 * second  # far, and 1.5 m from the footprint


def test_errors_have_the_level_as_deviation_and_are_independent():
    places = torch.tensor([[2.0, 5.0], [4.0, 5.0], [-1.7, -3.6], [-1.7, -5.6], [-99.0, 99.0]])
    small = torch.tensor([-6.0, -6.0, -5.0, 6.0, 6.0, 3.0])
    drawn = torch.stack([
        draw_errors(places, 0.2, Corruption(depth=0.2).generator(f"token {i}", "depth/object"), small)
        for i in range(2000)
    ])  # fmt: skip
    torch.testing.assert_close(drawn.std(0), torch.full((5,), 0.2), atol=4 * 0.2 / 4000**0.5, rtol=0)
    assert drawn.mean(0).abs().max() < 4 * 0.2 / 2000**0.5
    assert (drawn.T.corrcoef() - torch.eye(5)).abs().max() < 4 / 2000**0.5


def test_errors_follow_from_token_and_seed_and_hardly_from_last_bits():
    boxes, scores = two().boxes, torch.tensor([0.9, 0.8])

    def drawn(token: str, seed: int = 0, shift: float = 0.0) -> Tensor:
        moved = boxes + shift * torch.eye(9)[0]
        return Corruption(depth=0.1, depth_per="object", seed=seed).displaced(token, moved, scores, RANGE).log_factor

    assert torch.equal(drawn("a"), drawn("a")) and drawn("a")[0] != drawn("a")[1]
    assert not torch.isclose(drawn("a"), drawn("b")).any() and not torch.isclose(drawn("a"), drawn("a", 1)).any()
    # the first object lies on a node
    for shift in (-1e-4, 1e-4):
        torch.testing.assert_close(drawn("a", shift=shift), drawn("a"), atol=1e-4, rtol=0)
