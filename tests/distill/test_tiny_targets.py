"""Targets of FD3D that corrects geometry, on maps of a few cells: frames and boxes of any kind."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.distill.geometry import Anchors
from pipeline.distill.settings import DistillSettings
from pipeline.distill.targets import ChannelScale, make_targets
from pipeline.focal.areas import bev_footprints
from store_schema import StoreSchema, quantise

QUERIES, CHANNELS, VIEWS = 8, 5, 2
GEOMETRY = {"match": True, "reanchor": True, "pyramid": True, "ray_along": 0.2}
SQUARE = (-30.0, -30.0, -2.0, 30.0, 30.0, 2.0)


def tiny_schema(reading, size=(12, 12)):
    heads = 2 if reading == "bev" else 0
    return StoreSchema(
        bev=(*size, CHANNELS), pv=[(4, 6, CHANNELS, (8.0, 8.0)), (2, 3, CHANNELS, (16.0, 16.0))], cameras=("A", "B"), queries=QUERIES,
        bev_kmax=size[0] * size[1], pv_kmax=[VIEWS * 24, VIEWS * 6], layout="dense", values="float32", reading=reading,
        layers=2, heads=heads, points=3 if heads else 0, query_channels=CHANNELS,
    )  # fmt: skip


def frame(rng, schema, boxes, score, label):
    """A dense frame of random features, whose queries read random places."""
    boxes = boxes.astype(np.float32)
    found = {"query/boxes": boxes, "query/score": score.astype(np.float32), "query/label": label}
    shapes = {"bev": schema.bev} | {f"pv/{i}": (VIEWS, *level[:3]) for i, level in enumerate(schema.pv)}
    found |= {f"{name}/dense": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    if schema.reading == "bev":
        found["query/sampling"] = rng.uniform(-0.1, 1.1, (2, QUERIES, 2, 3, 2)).astype(np.float32)
        found["query/attention"] = rng.uniform(0, 1, (2, QUERIES, 2, 3)).astype(np.float32)
    else:
        found["query/points"] = boxes[None, :, :3] + rng.standard_normal((2, QUERIES, 3)).astype(np.float32)
        found["query/camera_weights"] = rng.uniform(0, 1, (2, QUERIES, VIEWS, 2)).astype(np.float32)
        found["query/sampled"] = rng.standard_normal((2, QUERIES, CHANNELS)).astype(np.float32)
    return found


def tiny_targets(schema, frames, metas, truth, pc_range=SQUARE, geometry=GEOMETRY, **settings):
    rule = {"num_queries": QUERIES, "bev_margin": 0.5, "pv_margin": 0.1}
    scale = ChannelScale(torch.zeros(CHANNELS), torch.ones(CHANNELS))
    return make_targets(
        frames, metas, schema, {"bev": scale, "pv/0": scale, "pv/1": scale}, pc_range,
        DistillSettings.from_dict({"rule": rule, "geometry": geometry} | settings), [0, 1], torch.device("cpu"), None, truth,
    )  # fmt: skip


def metas_of(rng, count=2):
    return [{"lidar2img": rng.standard_normal((VIEWS, 4, 4)).astype(np.float32), "pad_hw": (32, 48)}] * count


def apart(rng, count, pc_range, smallest):
    """Objects of random sizes on different rays, some of them partly outside the map."""
    angle = 2 * np.pi * (np.arange(count) + rng.uniform(0.2, 0.8, count)) / count
    edge = min(pc_range[3:5])
    radius = edge * rng.uniform(0.5, 1.1, count)
    boxes = np.zeros((count, 9))
    boxes[:, 0], boxes[:, 1] = radius * np.cos(angle), radius * np.sin(angle)
    boxes[:, 3:6] = np.exp(rng.uniform(np.log(smallest), 1.5, (count, 3)))
    boxes[:, 6] = rng.uniform(-7, 7, count)
    return boxes


@pytest.mark.parametrize("size_power", [0.0, 1.0])
@pytest.mark.parametrize("smallest", [0.001, 0.5])  # smaller than a cell, which is 2.5 m or more
@pytest.mark.parametrize(
    ("size", "pc_range"),
    [
        ((12, 12), SQUARE),
        ((6, 12), SQUARE),  # cells that are not square
        ((12, 6), (-30.0, -60.0, -2.0, 30.0, 60.0, 2.0)),  # a map that is not
        ((12, 24), (-51.2, -25.6, -5.0, 51.2, 25.6, 3.0)),
    ],
)
@pytest.mark.parametrize("reading", ["bev", "cameras"])
def test_an_expert_on_its_annotations_has_its_own_targets(reading, size, pc_range, smallest, size_power):
    """Of 3 and 5 objects with several queries each, and headings that differ by half turns."""
    rng, schema = np.random.default_rng(0), tiny_schema(reading, size)
    frames: list[dict[str, Any]] = []
    truth: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for count in (3, 5):
        true, label = apart(rng, count, pc_range, smallest), rng.integers(0, 3, count)
        owner = rng.integers(0, count, QUERIES)
        boxes = true[owner]
        boxes[:, 6] += np.pi * rng.integers(-1, 2, QUERIES)
        frames.append(frame(rng, schema, boxes, np.linspace(0.9, 0.05, QUERIES), label[owner]))
        truth[0].append(torch.from_numpy(true).float())
        truth[1].append(torch.from_numpy(label))
    metas = metas_of(rng)
    want = tiny_targets(schema, frames, metas, None, pc_range, {}, size_power=size_power)
    have = tiny_targets(schema, frames, metas, truth, pc_range, size_power=size_power)
    assert have.share == 1 and torch.equal(have.placed, want.trust) and len(want.bev.cells) >= 3
    assert torch.equal(have.bev.cells.mask, want.bev.cells.mask) and torch.equal(have.bev.weight, want.bev.weight)
    torch.testing.assert_close(have.bev.values, want.bev.values, rtol=0, atol=2e-5)
    (name,) = have.student
    trusted = want.trust[:, None] > 0
    off = (have.student[name] - want.queries[name]).flatten(3).abs().amax(-1)
    assert off[trusted.expand_as(off)].max() < 1e-5
    for ours, theirs in zip(have.pv, want.pv, strict=True):
        assert torch.equal(ours.weight_map(), theirs.weight_map())


@pytest.mark.parametrize("reading", ["bev", "cameras"])
@pytest.mark.parametrize(
    ("counts", "score", "offset", "left"),
    [
        ((0, 0), 0.9, 0.0, False),  # no frame has annotations
        ((0, 8), 0.9, 0.0, True),  # one has
        ((8, 8), 0.01, 0.0, False),  # no query has trust
        ((8, 8), np.nan, 0.0, False),  # nor scores
        ((8, 8), 0.9, 200.0, False),  # annotations beyond all gates and the map
    ],
)
def test_frames_without_pairs_have_no_targets_and_no_nan(reading, counts, score, offset, left):
    rng, schema = np.random.default_rng(1), tiny_schema(reading)
    frames: list[dict[str, Any]] = []
    truth: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for count in counts:
        boxes = apart(rng, QUERIES, SQUARE, 0.5)
        frames.append(frame(rng, schema, boxes, np.full(QUERIES, score), np.zeros(QUERIES, dtype=np.int64)))
        truth[0].append(torch.from_numpy(boxes[:count]).float() + torch.eye(9)[0] * offset)
        truth[1].append(torch.zeros(count, dtype=torch.long))
    found = tiny_targets(schema, frames, metas_of(rng), truth, geometry=GEOMETRY | {"w_relation": 1.0})
    assert (found.share > 0) == left and (len(found.bev.cells) > 0) == left
    assert found.placed[0].sum() == 0 or counts[0]
    tensors = [found.bev.values, found.bev.weight, found.trust, found.placed, *found.student.values()]
    assert all(torch.isfinite(tensor).all() and not tensor.requires_grad for tensor in tensors)


def test_a_box_without_a_side_stays_on_itself():
    box = torch.tensor([[3.0, 4.0, 0.0, 0.0, 2e-4, 0.0, 0.3, 0.0, 0.0]])
    points = torch.randn(1, 5, 3)
    same = Anchors(box, box, torch.zeros(1, dtype=torch.bool))
    torch.testing.assert_close(same.to_target(points), points, rtol=0, atol=1e-5)
    torch.testing.assert_close(same.to_source(points), points, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_moves_no_target(dtype):
    rng, schema = np.random.default_rng(2), tiny_schema("bev")
    true = apart(rng, QUERIES, SQUARE, 0.5)
    boxes = true * np.array([1.1, 1.1, *[1.0] * 7])
    frames = [frame(rng, schema, boxes, np.full(QUERIES, 0.5), np.zeros(QUERIES, dtype=np.int64))]
    truth = [torch.from_numpy(true).float()], [torch.zeros(QUERIES, dtype=torch.long)]
    metas = metas_of(rng, 1)
    want = tiny_targets(schema, frames, metas, truth)
    with torch.autocast("cpu", dtype=dtype):
        have = tiny_targets(schema, frames, metas, truth)
    assert len(want.bev.cells) > 5 and torch.equal(have.bev.values, want.bev.values)
    assert torch.equal(have.placed, want.placed) and torch.equal(have.student["sampling"], want.student["sampling"])


def focal(dense, schema, stored, values):
    """The frame of a focal store with the BEV cells ``stored`` (H, W) of a dense one, and all cells of the pyramid."""
    found = {name: array for name, array in dense.items() if not name.endswith("/dense")}
    masks = {"bev": stored} | {f"pv/{i}": np.ones((VIEWS, *level[:2]), dtype=bool) for i, level in enumerate(schema.pv)}
    for name, mask in masks.items():
        cells = dense[f"{name}/dense"][mask]
        found[f"{name}/index"] = mask.ravel().nonzero()[0].astype(np.uint16)
        found[f"{name}/values"] = cells
        if values == "uint8":
            found[f"{name}/values"], found[f"{name}/affine"] = quantise(cells)
    return found


@pytest.mark.parametrize(("values", "error"), [("float32", 0.0), ("uint8", 0.02)])
@pytest.mark.parametrize(("beyond", "least"), [(2.5, 0.9), (1.0, 0.4)])
def test_a_focal_store_gives_the_dense_ones_targets(values, error, beyond, least):
    """Its areas reach a cell farther than the rule's, or less: cells whose value lacks a neighbour are left out."""
    rng, schema = np.random.default_rng(3), tiny_schema("bev", (24, 24))  # cells of 2.5 m
    true = apart(rng, QUERIES, SQUARE, 2.0)
    boxes = true + np.array([1.5, -1.0, 0, 0.2, 0.1, 0, 0.1, 0, 0])
    dense = frame(rng, schema, boxes, np.full(QUERIES, 0.5), np.zeros(QUERIES, dtype=np.int64))
    stored = bev_footprints(torch.from_numpy(boxes).float(), SQUARE, (24, 24), 0.5 + beyond).any(0).numpy()
    truth, metas = ([torch.from_numpy(true).float()], [torch.zeros(QUERIES, dtype=torch.long)]), metas_of(rng, 1)
    want = tiny_targets(schema, [dense], metas, truth)
    narrow = replace(schema, layout="focal", values=values)
    have = tiny_targets(narrow, [focal(dense, schema, stored, values)], metas, truth)
    assert have.anchors[0].matched.all() and have.share == want.share and not stored.all()
    inside = have.bev.cells.mask
    assert not (inside & ~want.bev.cells.mask).any() and inside.sum() > least * want.bev.cells.mask.sum()
    assert beyond > 2 or inside.sum() < want.bev.cells.mask.sum()
    same = want.bev.values[inside.flatten()[want.bev.cells.index]]
    torch.testing.assert_close(have.bev.values, same, rtol=0, atol=error)
    assert torch.equal(have.student["sampling"], want.student["sampling"])
