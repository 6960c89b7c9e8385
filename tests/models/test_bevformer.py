import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS

from pipeline.data.frames import collate, frame_dataset
from pipeline.errors import FD3DError
from pipeline.models.bevformer.grid import camera_hits
from pipeline.models.bevformer.transformer import rotate_bev
from pipeline.models.build import build_detector, load_config


def test_rotation_is_torchvisions(parity_root: Path):
    cases = json.loads((parity_root / "rotate_cases.json").read_text())
    arrays = np.load(parity_root / "rotate_cases.npz")
    listed = cases["cases"] if isinstance(cases, dict) else cases
    for number, case in enumerate(listed):
        height, width = case["H"], case["W"]
        index = torch.arange(1, height * width + 1, dtype=torch.float32).view(1, 1, height, width)
        center = tuple(case["center_xy"]) if case["center_xy"] else None
        turned = rotate_bev(index, torch.tensor([float(case["angle_deg"])]), center)[0, 0].numpy()
        assert (turned == arrays[f"case{number:02d}_source_index"]).mean() > 0.999


@pytest.fixture(scope="module")
def items(source, expert_config):
    data = DATASETS.build(frame_dataset(load_config(expert_config), source, train=True))
    return [data[1], data[5]]


@pytest.fixture(scope="module")
def expert(expert_config):
    torch.manual_seed(0)
    return build_detector(load_config(expert_config)).eval()


def test_a_batch_gives_what_its_samples_give_alone(items, expert):
    def encode(chosen):
        batch = expert.data_preprocessor(collate(chosen))
        with torch.no_grad():
            bev = expert.encode_queue(batch["inputs"]["img"], batch["data_samples"])
            return bev, expert.pts_bbox_head(bev).logits

    # one sample of the batch has no history and sees other cells
    items[0]["data_samples"].frames[-1]["has_history"] = False
    together = encode(items)
    alone = [encode([item]) for item in items]
    for i in range(2):
        torch.testing.assert_close(together[0][i], alone[i][0][0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together[1][:, i], alone[i][1][:, 0], atol=1e-3, rtol=1e-3)


def test_camera_hits_differ_by_sample():
    mask = torch.zeros(2, 1, 5, 1, dtype=torch.bool)
    mask[0, 0, [1, 3]] = True
    mask[1, 0, 4] = True
    hits = camera_hits(torch.zeros(2, 1, 5, 1, 2), mask)
    assert hits.index[0].tolist() == [1, 3] and hits.valid[1].tolist() == [True, False] and hits.index[1, 0] == 4


def test_losses_reach_every_part_that_trains(items, expert):
    expert.train()
    losses = expert.loss(**expert.data_preprocessor(collate(items)))
    assert {"loss_cls", "loss_bbox", "d0.loss_cls", "loss_heatmap", "loss_dense_bbox"} <= losses.keys()
    sum(losses.values()).backward()
    without = {n for n, p in expert.named_parameters() if p.requires_grad and p.grad is None}
    assert not without
    expert.zero_grad()
    expert.eval()


def test_history_features_are_gone_when_the_current_frame_is_encoded(items, expert, monkeypatch):
    batch = expert.data_preprocessor(collate(items))
    seen: list[weakref.ref] = []
    alive: list[list[bool]] = []

    def extract(img):
        alive.append([level() is not None for level in seen])
        levels = type(expert).extract_feat(expert, img)
        seen.extend(weakref.ref(level.untyped_storage()) for level in levels)
        return levels

    monkeypatch.setattr(expert, "extract_feat", extract)
    with torch.no_grad():
        expert.encode_queue(batch["inputs"]["img"], batch["data_samples"])
    assert [len(flags) for flags in alive] == [0, len(seen) // 2] and not any(alive[1])


def test_streaming_needs_scene_order(items, expert):
    batch = expert.data_preprocessor(collate([items[1]]))
    batch["data_samples"][0].frames[-1]["has_history"] = True
    expert._stream = {}
    with pytest.raises(FD3DError, match="previous frame first"):
        expert.predict(**batch)


@pytest.mark.parametrize("name", ["world/expert", "world/apprentice", "bevformer/base_r101", "detr3d/r50"])
def test_shipped_configs_build(project, name):
    assert build_detector(load_config(project / "configs" / f"{name}.py")).pts_bbox_head.max_num > 0
