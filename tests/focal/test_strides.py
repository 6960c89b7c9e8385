"""Areas on the pyramids of all shipped configs against a computation by hand: a stride per axis."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from pipeline.cost.complexity import stand_ins
from pipeline.data import CAMERAS
from pipeline.data.geometry import lidar2img
from pipeline.data.index import build_index
from pipeline.distill.foreground import object_cells
from pipeline.distill.settings import DistillSettings
from pipeline.distill.targets import ChannelScale, Spans, make_targets
from pipeline.dumping.recipe import schema_of
from pipeline.dumping.settings import DumpSettings
from pipeline.expert import ExpertFrame
from pipeline.expert.rows import areas_beside, joined_cells, store_row
from pipeline.focal.areas import project_boxes, pv_rectangles_to_cells
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config
from store_schema import StoreSchema

PC_RANGE = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
RULE = FocalRule(num_queries=900, min_score=0.0, pv_margin=0.15)


def image_size(name: str) -> tuple[int, int]:
    """Rows and columns of a config's data before resizing."""
    return (160, 288) if name.startswith(("world/", "benchmark/")) else (900, 1600)


@pytest.fixture(scope="module")
def pyramids(project: Path) -> dict[tuple[float, tuple[int, int], tuple[tuple[int, int], ...]], list[str]]:
    """Shipped configs by scale of their images, size of the padded image, and rows and columns of each level."""
    init_default_scope("mmdet3d")
    grids: dict[str, tuple[tuple[int, int], ...]] = {}
    found: dict = {}
    for path in sorted((project / "configs").rglob("*.py")):
        if path.parent.name == "_base_":  # parts of configs
            continue
        cfg = load_config(path)
        if "image" not in cfg or "img_backbone" not in cfg.get("model", {}):
            continue
        name = path.relative_to(project / "configs").as_posix()
        divisor = cfg.model.data_preprocessor.pad_divisor
        rows, columns = (math.ceil(round(n * cfg.image.scale) / divisor) * divisor for n in image_size(name))
        stages = {key: cfg.model.img_backbone.get(key) for key in ("out_indices", "num_stages", "strides")}
        key = str((rows, columns, stages, cfg.model.img_neck))  # the depth does not matter
        if key not in grids:
            with torch.device("meta"), torch.no_grad(), stand_ins():
                backbone, neck = (MODELS.build(cfg.model[part]) for part in ("img_backbone", "img_neck"))
                levels = neck(backbone(torch.zeros(1, 3, rows, columns)))
            grids[key] = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        found.setdefault((cfg.image.scale, (rows, columns), grids[key]), []).append(name)
    return found


def by_hand(rectangles: torch.Tensor, valid: torch.Tensor, size, image_hw, margin: float) -> np.ndarray:
    """Cells (K, V, Hl, Wl) whose pixels a rectangle overlaps: a cell's borders lie at whole shares of the image, per axis."""
    extra = (rectangles[..., 2:] - rectangles[..., :2]) * margin
    low, high = (
        (rectangles[..., part] + sign * extra).double().numpy() for part, sign in ((slice(2), -1), (slice(2, 4), 1))
    )
    rows, columns = (
        [(i * pixels / n, (i + 1) * pixels / n) for i in range(n)] for n, pixels in zip(size, image_hw, strict=True)
    )
    cells = np.zeros((*valid.shape, *size), bool)
    for k, v in np.argwhere(valid.numpy()):
        down = [end > low[k, v, 1] and start < high[k, v, 1] for start, end in rows]
        across = [end > low[k, v, 0] and start < high[k, v, 0] for start, end in columns]
        cells[k, v] = np.outer(down, across)
    return cells


def check(boxes: torch.Tensor, projection: torch.Tensor, image_hw: tuple[int, int], grids) -> int:
    """Compare what stage 1 stores and what stage 2 reads with :func:`by_hand`; the number of projected boxes."""
    pv = [torch.zeros(len(projection), 1, *size) for size in grids]
    frame = ExpertFrame(boxes, torch.ones(len(boxes)), torch.zeros(len(boxes)).long(), pv=pv, image_hw=image_hw)
    queries, others = areas_beside(frame, RULE, boxes, PC_RANGE, projection)
    rectangles, valid = project_boxes(boxes, projection, image_hw)
    wide = [by_hand(rectangles, valid, size, image_hw, RULE.pv_margin) for size in grids]
    tight = [by_hand(rectangles, valid, size, image_hw, 0.0) for size in grids]
    for areas, want in ((queries, wide), (others, tight)):
        for (rows, columns), cells in zip(areas.pv, want, strict=True):
            np.testing.assert_array_equal((rows[..., :, None] & columns[..., None, :]).numpy(), cells)
    stored = joined_cells(frame, queries, RULE, 0)
    for mask, cells in zip(stored[1], wide, strict=True):
        np.testing.assert_array_equal(mask.numpy(), cells.any(0))

    schema = schema_of(frame, DumpSettings(RULE, layout="dense"))
    meta = {"lidar2img": projection.numpy(), "pad_hw": image_hw}
    levels = range(len(grids))
    scales = {f"pv/{i}": ChannelScale(torch.zeros(1), torch.ones(1)) for i in levels}
    row = store_row(frame, stored, schema)
    settings, spans = DistillSettings(rule=RULE, trust_threshold=0.0), [Spans(boxes, torch.ones(len(boxes)))]
    device = torch.device("cpu")
    targets = make_targets([row], [meta], schema, scales, PC_RANGE, settings, levels, device, spans)
    instances = InstanceData(bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9, origin=(0.5, 0.5, 0.5)))
    instances.labels_3d = torch.zeros(len(boxes)).long()
    sample = Det3DDataSample(metainfo={"frames": [meta]}, gt_instances_3d=instances)
    for i in levels:
        np.testing.assert_array_equal(targets.pv[i].cells.mask.numpy(), wide[i].any(0))
        (objects,) = object_cells([sample], schema, PC_RANGE, i, device)
        np.testing.assert_array_equal(objects.numpy(), tight[i])
    return int(valid.sum())


def test_the_configs_have_a_level_of_unequal_strides(pyramids):
    names = {name for found in pyramids.values() for name in found}
    assert {"bevformer/small.py", "detr3d/r101.py", "world/expert.py"} <= names and len(names) >= 18
    assert any(rows / grids[-1][0] != columns / grids[-1][1] for _, (rows, columns), grids in pyramids)


def test_areas_of_random_boxes_are_those_by_hand_in_both_stages(pyramids):
    rng = np.random.default_rng(0)
    low, high = [-45, -45, -2, 0.4, 0.4, 0.8, -3, 0, 0], [45, 45, 1, 9, 3, 3, 3, 0, 0]
    boxes = torch.from_numpy(rng.uniform(low, high, (30, 9))).float()
    looks = torch.tensor([0.0, 55.0, -55.0, 180.0, 110.0, -110.0]).deg2rad()
    for _, (rows, columns), grids in pyramids:
        lens = torch.tensor(
            [[0.8 * columns, 0, columns / 2, 0], [0, 0.8 * columns, rows / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
        )
        views = torch.zeros(6, 4, 4)
        views[:, 0, 0], views[:, 0, 1] = looks.sin(), -looks.cos()  # to the right
        views[:, 1, 2], views[:, 3, 3] = -1, 1
        views[:, 2, 0], views[:, 2, 1] = looks.cos(), looks.sin()  # ahead
        assert check(boxes, lens @ views, (rows, columns), grids) > 20


def test_areas_of_real_boxes_are_those_by_hand_in_both_stages(pyramids, excerpt_root: Path, tmp_path: Path):
    index = build_index(excerpt_root, "v1.0-mini", tmp_path / "index.npz")
    for (scale, image_hw, grids), names in pyramids.items():
        if image_size(names[0]) != (900, 1600):
            continue
        projected = 0
        for frame in (index[row] for row in range(len(index))):
            projection = torch.from_numpy(lidar2img(frame.intrinsics, frame.lidar2cam, scale)).float()
            projected += check(torch.from_numpy(np.nan_to_num(frame.boxes)).float(), projection, image_hw, grids)
        assert projected >= 227


def test_a_row_and_a_column_have_their_own_number_of_pixels():
    # a level of 2x4 cells over 30x100 pixels: 15 rows and 25 columns a cell
    rectangle, valid = torch.tensor([[[24.0, 16.0, 26.0, 29.0]]]), torch.tensor([[True]])
    cells = pv_rectangles_to_cells(rectangle, valid, (2, 4), (30, 100))[0, 0]
    assert cells.nonzero().tolist() == [[1, 0], [1, 1]]


def test_a_stores_schema_has_the_stride_of_each_axis():
    pv = [torch.zeros(len(CAMERAS), 1, *size) for size in ((29, 50), (15, 25))]
    boxes = torch.zeros(1, 9)
    frame = ExpertFrame(boxes, boxes[:, 0], boxes[:, 0].long(), pv=pv, image_hw=(464, 800))
    schema = schema_of(frame, DumpSettings(RULE))
    assert [level[3] for level in schema.pv] == [(16, 16), (464 / 15, 32)]
    assert StoreSchema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    assert schema.arrays()["pv/1/index"].attributes["stride"] == [464 / 15, 32]
