"""mmdet3d's own detectors as students: trained plain and from a store, through their adapter."""

import copy
import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS

from pipeline.data import CLASSES
from pipeline.data.frames import collate, frame_dataset
from pipeline.data.source import FrameSource
from pipeline.distill.apprentice import train_apprentice
from pipeline.distill.build import distiller_config
from pipeline.distill.loading import cached_targets
from pipeline.distill.settings import DistillSettings
from pipeline.errors import FD3DError
from pipeline.evaluation.predict import predict
from pipeline.expert import MonocularAdapter, MultiViewAdapter
from pipeline.models.build import load_config
from pipeline.models.load import load_detector
from pipeline.models.pairs import StudentPlan, planned_student
from pipeline.models.reading import read_checkpoint
from pipeline.training.plain import train_plain
from pipeline.training.settings import RunSettings
from tests import foreign

SETTINGS = DistillSettings.from_dict({"trust_threshold": 0.0, "inherit": [], "levels": [0, 1]})
STEPS = RunSettings(max_iters=4, workers=0, curve_every=1)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    """A MultiViewDfM whose pyramid has the grids of the world's expert, and a BEV map."""
    return foreign.write_student(tmp_path_factory.mktemp("student"), project)


def batch_of(config: Path, source: FrameSource, store: Path) -> dict[str, Any]:
    data = DATASETS.build(frame_dataset(load_config(config), source, True, cached_targets(store)))
    return collate([data[0], data[3]])


def test_losses_of_the_store_reach_the_students_necks(config: Path, source: FrameSource, store: Path) -> None:
    torch.manual_seed(0)
    cfg = load_config(config)
    model = MODELS.build(distiller_config(cfg, store, "fd3d", SETTINGS, source=source))
    model.student.init_weights()
    losses = model(**model.data_preprocessor(batch_of(config, source, store), True), mode="loss")
    assert {"loss_cls", "loss_bbox", "loss_pv", "loss_bev", "loss_fine"} <= set(losses)
    necks = {"loss_pv": "neck", "loss_bev": "neck_3d", "loss_fine": "neck_3d"}
    for name, neck in necks.items():
        model.zero_grad()
        losses[name].backward(retain_graph=True)
        moved = [p.grad for p in model.student.get_submodule(neck).parameters() if p.grad is not None]
        assert losses[name] > 0 and sum(float(grad.abs().sum()) for grad in moved) > 0, name
    assert set(model.student_state_dict()) == set(load_detector(cfg, None).state_dict())


def test_a_student_trains_from_the_store_and_detects(
    config: Path, source: FrameSource, store: Path, world: Path, world_index: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "no_expert.pth"
    out = tmp_path / "fd3d" / "detector.pth"
    train_apprentice(config, "fd3d", SETTINGS, source=source, store=store, expert=missing, out=out, run=STEPS)
    with open(out.with_name("losses.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(float(row[name]) > 0 for row in rows for name in ("loss_pv", "loss_bev", "loss_fine"))
    cfg = load_config(out.with_name("config.py"))
    model = load_detector(cfg, out)
    found = list(predict(cfg, model, FrameSource(world_index, world, "world_val"), 0))
    assert len(found) == 3 and all(np.isfinite(boxes).all() for _, boxes, _, _ in found)


def test_a_plain_student_learns_its_boxes(config: Path, source: FrameSource, tmp_path: Path) -> None:
    out = tmp_path / "detector.pth"
    train_plain(config, source, out, STEPS)
    with open(out.with_name("losses.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and not any(name in rows[0] for name in ("loss_pv", "loss_bev", "loss_fine"))
    # a detector that is given no boxes has no loss of boxes
    assert all(float(row["loss_bbox"]) > 0 for row in rows)


def test_true_boxes_are_in_the_detectors_classes(config: Path, source: FrameSource, store: Path) -> None:
    batch = batch_of(config, source, store)
    names: list[str | None] = [None if name == "car" else name for name in foreign.CLASSES]
    for sample in batch["data_samples"]:
        theirs = MultiViewAdapter(bev="neck_3d", classes=names, values=7).truth(sample.gt_instances_3d)
        ours = sample.gt_instances_3d
        kept = ours.labels_3d != CLASSES.index("car")
        assert [names[label] for label in theirs.labels_3d] == [CLASSES[label] for label in ours.labels_3d[kept]]
        assert torch.equal(theirs.bboxes_3d.tensor, ours.bboxes_3d.tensor[kept, :7])
    (made, _) = MultiViewAdapter(bev="neck_3d").prepare(batch)["data_samples"]
    assert torch.equal(made.gt_instances_3d.bboxes_3d.tensor, batch["data_samples"][0].gt_instances_3d.bboxes_3d.tensor)
    with pytest.raises(FD3DError, match="MonocularAdapter gives no true boxes in pixels, so its detector cannot be"):
        MonocularAdapter(pv="neck").prepare(batch)


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ("", {"levels": None}, r"the expert's pyramid has 3 levels, that of .* 2, so level 2 .* distill.levels to \[0, 1\]"),
        ("image = dict(scale=0.5, to_rgb=True)", {}, r"pyramid level 0 of the student .* \(12, 20\), of the expert \(20, 36\)"),
        ("pc_range = [-50.0, -40.0, -5.0, 40.0, 40.0, 3.0]", {}, r"spans pc_range|pc_range of config .* spans"),
        ("queue_length = 2", {}, "queue_length of config .* is 2; a detector through an adapter takes 1"),
        ("del optim_wrapper", {}, "has no optim_wrapper, so it cannot be trained"),
        ("adapter['values'] = 8", {}, "adapter.values is 8; use 9, or 7 for a detector without velocity"),
        ("adapter['pv'] = 'backbone'", {}, r"has levels of \[8, 16\] channels"),
        ("", {"head": "trainable"}, "store .* includes no whole BEV map|distill.head is trainable"),
    ],
)  # fmt: skip
def test_a_student_that_does_not_fit_is_named_in_one_line(
    config: Path, source: FrameSource, store: Path, tmp_path: Path, change: str, settings: dict, message: str
) -> None:
    path = tmp_path / "student.py"
    path.write_text(config.read_text() + f"\n{change}\n")
    own = DistillSettings.from_dict({"trust_threshold": 0.0, "inherit": [], "levels": [0, 1]} | settings)
    shared: Any = dict(source=source, store=store, expert=tmp_path / "none.pth", out=tmp_path / "out.pth", run=STEPS)
    with pytest.raises(FD3DError, match=message) as caught:
        train_apprentice(path, "fd3d", own, **shared)
    assert "\n" not in str(caught.value)


def test_a_trained_student_tells_its_classes(config: Path, source: FrameSource, tmp_path: Path) -> None:
    """A configuration with another order, or without one, would give its boxes other names."""
    out = tmp_path / "detector.pth"
    train_plain(config, source, out, STEPS)
    cfg, names = load_config(out.with_name("config.py")), list(foreign.CLASSES)
    assert read_checkpoint(out).training["classes"] == names
    state = load_detector(cfg, out).state_dict()
    content = torch.load(out, weights_only=False)
    assert all(torch.equal(tensor.cpu(), content["state_dict"][name]) for name, tensor in state.items())
    told = rf"detector.pth was trained with the classes {', '.join(names)}, the config declares car, .*classes=\[...\]"
    for classes in (list(CLASSES), [*names[:8], "barrier", "traffic_cone"], names[:9], None):
        other = copy.deepcopy(cfg)
        del other.adapter["classes"]
        if classes is not None:
            other.adapter["classes"] = classes
        with pytest.raises(FD3DError, match=told) as caught:
            load_detector(other, out)
        assert "\n" not in str(caught.value)
    cfg.adapter["classes"] = [None, *names[1:]]  # cars are left out
    load_detector(cfg, out)
    del content["training"]["classes"]  # as of earlier revisions
    torch.save(content, out)
    cfg.adapter["classes"] = list(CLASSES)
    load_detector(cfg, out)


def test_a_head_of_other_classes_is_not_inherited(tmp_path: Path) -> None:
    for name, classes in (("expert", foreign.CLASSES), ("student", CLASSES)):
        (tmp_path / name).mkdir()
        foreign.write_foreign(tmp_path / name, "multiview", classes)
    expert, student = (tmp_path / name / "multiview.py" for name in ("expert", "student"))
    planned_student(StudentPlan(student, ("neck",)), expert)
    planned_student(StudentPlan(expert, ("bbox_head_3d",)), expert)
    told = f"distill.inherit has a head, whose classes are car, truck, trailer, .* in config {expert} and car, truck, const"
    with pytest.raises(FD3DError, match=told):
        planned_student(StudentPlan(student, ("neck", "bbox_head_3d")), expert)
