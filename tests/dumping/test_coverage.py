"""Coverage counted by hand on tiny maps."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from pipeline.data import CLASSES
from pipeline.data.index import Frame
from pipeline.dumping.coverage import Annotated, frame_coverage, join_counts, summary, to_plain
from pipeline.expert import ExpertFrame
from pipeline.expert.rows import areas_beside, joined_cells, query_areas
from pipeline.focal.areas import bev_footprints
from pipeline.focal.rule import FocalRule

RANGE = (-50.0, -50.0, -5.0, 50.0, 50.0, 3.0)
# one camera at the origin that looks along +y: 10 pixels per unit of x/y and z/y, principal point (20, 20)
LOOKING = torch.tensor([[[10.0, 20.0, 0.0, 0.0], [0.0, 20.0, -10.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]])


def box(x: float, y: float, length: float = 4.0, width: float = 4.0) -> list[float]:
    return [x, y, 0.0, length, width, 2.0, 0.0, 0.0, 0.0]


def counted(queries: list, truth: list, labels: list[int], points: list[int]):
    """Counts of a frame with a BEV map of 50 x 50 cells of 2 m and a level of 5 x 5 cells of 8 pixels."""
    frame = ExpertFrame(
        boxes=torch.tensor(queries),
        score=torch.linspace(0.9, 0.5, len(queries)),
        label=torch.zeros(len(queries), dtype=torch.long),
        bev=torch.zeros(1, 50, 50),
        pv=[torch.zeros(1, 1, 5, 5)],
        image_hw=(40, 40),
    )
    boxes = np.array(truth, np.float32).reshape(-1, 9)
    annotated = SimpleNamespace(
        boxes=boxes, labels=np.array(labels), num_lidar_pts=np.array(points), num_radar_pts=np.zeros(len(points), int)
    )
    rule = FocalRule(bev_margin=0.0, pv_margin=0.0)
    chosen = Annotated.of(cast(Frame, annotated), RANGE)
    areas, around = areas_beside(frame, rule, torch.from_numpy(chosen.boxes), RANGE, LOOKING)
    return frame_coverage(frame, areas, around, joined_cells(frame, areas, rule, 0), chosen, RANGE)


def test_fill_ups_of_score_0_span_no_area():
    """Detectors of other projects give fewer boxes than queries are stored."""
    frame = ExpertFrame(
        boxes=torch.tensor([box(0, 10), [0.0] * 9]),
        score=torch.tensor([1e-6, 0.0]),
        label=torch.zeros(2, dtype=torch.long),
        bev=torch.zeros(1, 50, 50),
        pv=[torch.zeros(1, 1, 5, 5)],
        image_hw=(40, 40),
    )
    rule = FocalRule(min_score=0.0)
    bev, _ = joined_cells(frame, query_areas(frame, rule, RANGE, LOOKING), rule, 0)
    assert bev is not None and bev.any() and not bev[24:26, 24:26].any()
    frame.score[0] = 0.0
    bev, levels = joined_cells(frame, query_areas(frame, rule, RANGE, LOOKING), rule, 0)
    assert bev is not None and not bev.any() and not levels[0].any()


def test_found_missed_and_ignored_boxes():
    car, bus = CLASSES.index("car"), CLASSES.index("bus")
    counts = counted(
        queries=[box(-30, -30), box(0, 10), box(0, 10)],
        truth=[box(0, 10), box(30, 30), box(-30, -30), box(70, 0)],
        labels=[car, car, bus, car],
        points=[5, 5, 0, 5],  # nobody can see the bus; the last car is out of range
    )
    bev = summary(counts)["bev"]
    # queries take two areas of 2 x 2 cells of 2500; of the two counted boxes, 2 x 2 cells each, one is held
    assert counts["bev"]["cells"].tolist() == [2500, 8]
    assert counts["bev"]["box_cells"].tolist() == [8, 4]
    assert bev["cells"] == 0.0032 and bev["box_cells"] == 0.5 and bev["boxes"] == 0.5 and bev["annotated"] == 2
    assert bev["by_class"] == {"car": 0.5}
    assert bev["by_distance"] == {"0-20 m": 1.0, "over 40 m": 0.0}
    assert counts["bev"]["rank"].tolist() == [0, 1, 0, 1]  # by the second query, and by none


def test_cameras_count_the_boxes_they_see():
    counts = counted(queries=[box(0, 10)], truth=[box(0, 10), box(0, -10)], labels=[0, 0], points=[1, 1])["pv/0"]
    # nearest face at 8 m: x in 20 +- 2.5, z in 20 +- 1.25 pixels: columns and rows 2 of 8 pixels
    assert counts["cells"].tolist() == [25, 1] and counts["box_cells"].tolist() == [1, 1]
    assert counts["boxes"].sum() == 1 and counts["covered"].sum() == 1  # the other is behind the camera
    assert counts["rank"].tolist() == [1, 0]


@pytest.mark.parametrize("queries", [[box(0, 10)], [box(0, 10), box(0, 12)]])
def test_a_frame_without_boxes(queries):
    counts = counted(queries=queries, truth=[], labels=[], points=[])
    assert summary(counts)["bev"]["boxes"] == 0.0 and counts["bev"]["rank"].sum() == 0


def test_what_is_stored_does_not_depend_on_the_annotated_boxes_beside_it():
    generator = torch.Generator().manual_seed(0)
    boxes, others = (torch.randn(n, 9, generator=generator) * 20 for n in (30, 17))
    maps: dict[str, Any] = dict(bev=torch.zeros(1, 50, 50), pv=[torch.zeros(1, 1, 5, 5)], image_hw=(40, 40))
    frame = ExpertFrame(boxes, torch.linspace(0.9, 0.01, 30), torch.zeros(30, dtype=torch.long), **maps)
    rule = FocalRule()
    alone = query_areas(frame, rule, RANGE, LOOKING)
    beside, around = areas_beside(frame, rule, others, RANGE, LOOKING)
    assert around.bev is not None and alone.bev is not None and beside.bev is not None
    assert len(around.bev) == 17 and len(alone.bev) < 30
    for one, two in zip(joined_cells(frame, alone, rule, 0)[1], joined_cells(frame, beside, rule, 0)[1], strict=True):
        assert torch.equal(one, two) and one.any()
    assert alone.rectangles is not None and beside.rectangles is not None
    assert torch.equal(alone.bev, beside.bev) and torch.equal(alone.rectangles, beside.rectangles)
    # the others have no margin
    assert torch.equal(around.bev, bev_footprints(others, RANGE, (50, 50)))


def test_counts_add_up():
    one = counted([box(0, 10)], [box(0, 10)], [0], [1])
    two = join_counts([one, to_plain(one)])
    assert (two["bev"]["boxes"] == 2 * one["bev"]["boxes"]).all() and two["pv/0"]["cells"].tolist() == [50, 2]
    assert summary(two)["bev"]["boxes"] == summary(one)["bev"]["boxes"] == 1.0
