"""FD3D that corrects geometry, in whole training steps on stored frames of the shipped experts."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from pipeline.data.frames import collate, frame_dataset
from pipeline.distill.build import distiller_config
from pipeline.distill.geometry_settings import GeometrySettings
from pipeline.distill.loading import cached_targets
from pipeline.distill.settings import DistillSettings
from pipeline.distill.targets import make_targets
from pipeline.errors import FD3DError
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config
from pipeline.models.pairs import StudentPlan, planned_student

APPRENTICES = {"bevformer": "apprentice", "detr3d": "detr3d_apprentice"}
CELL = 1.6  # metres: 80 m over 50 cells
FULL = {"match": True, "reanchor": True, "pyramid": True, "log_range": 0.3}


def distiller(project, store, family, **geometry):
    cfg = load_config(project / f"configs/world/{APPRENTICES[family]}.py")
    torch.manual_seed(0)
    settings = DistillSettings.from_dict({"geometry": geometry})
    model = MODELS.build(distiller_config(cfg, store, "fd3d", settings))
    model.init_weights()
    return cfg, model.train()


APART = 4.0  # metres between the centres of two objects, more than twice as far as they are moved


def batch_of(model, cfg, source, store):
    """Two frames whose annotations are the expert's own trusted boxes, of which only the best of each object has a score."""
    data = DATASETS.build(frame_dataset(cfg, source, True, targets=cached_targets(store)))
    batch = model.data_preprocessor(collate([data[1], data[5]]), True)
    for sample in batch["data_samples"]:
        boxes = torch.from_numpy(sample.expert["query/boxes"])
        near = torch.cdist(boxes[:, :2], boxes[:, :2]) < APART
        kept = sample.expert["query/score"] >= 0.1
        for query in range(len(boxes)):
            kept[query] &= not (near[query, :query].numpy() & kept[:query]).any()
        scores = np.where(kept, sample.expert["query/score"], 0).astype(np.float32)
        sample.set_metainfo({"expert": {**sample.expert, "query/score": scores}})
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes[kept], box_dim=9, origin=(0.5, 0.5, 0.5)),
            labels_3d=torch.from_numpy(sample.expert["query/label"][kept]).long(),
        )
        assert kept.sum() >= 10
    return batch


def moved(expert):
    """The expert's frame with everything one BEV cell too far along x; its pyramid stays, since no pixel moves."""
    frame = {name: array.copy() for name, array in expert.items()}
    frame["query/boxes"][:, 0] += CELL
    if "query/points" in frame:
        frame["query/points"][..., 0] += CELL
    else:
        frame["query/sampling"][..., 0] += 1 / 50
        frame["bev/dense"] = np.roll(frame["bev/dense"], 1, axis=1)
        frame["bev/dense"][:, 0] = 0
    return frame


def losses_of(model, batch):
    torch.manual_seed(1)  # the blocks that are hidden
    return {name: loss for name, loss in model(**batch, mode="loss").items() if name.startswith("loss_")}


def distilled(losses):
    return {name: loss.item() for name, loss in losses.items() if name in ("loss_pv", "loss_bev", "loss_fine")}


@pytest.mark.parametrize("ray_along", [0.0, 0.2])
@pytest.mark.parametrize("family", APPRENTICES)
def test_an_expert_on_its_annotations_gives_the_published_losses(project, dense_stores, source, family, ray_along):
    cfg, published = distiller(project, dense_stores[family], family)
    _, corrected = distiller(project, dense_stores[family], family, **FULL, ray_along=ray_along)
    batch = batch_of(published, cfg, source, dense_stores[family])
    want, have = (distilled(losses_of(model, batch)) for model in (published, corrected))
    assert len(want) == (3 if family == "bevformer" else 2)
    assert have == pytest.approx(want, rel=2e-4)


@pytest.fixture
def seen_targets(monkeypatch):
    """Targets of the steps, in order."""
    kept = []

    def keep(*args):
        kept.append(make_targets(*args))
        return kept[-1]

    monkeypatch.setattr("pipeline.distill.methods.fd3d.make_targets", keep)
    return kept


@pytest.mark.parametrize("family", APPRENTICES)
def test_a_displaced_expert_gives_the_targets_of_one_in_its_place(project, dense_stores, source, seen_targets, family):
    cfg, published = distiller(project, dense_stores[family], family)
    _, corrected = distiller(project, dense_stores[family], family, **FULL)
    batch = batch_of(published, cfg, source, dense_stores[family])
    want_losses = distilled(losses_of(published, batch))
    for sample in batch["data_samples"]:
        sample.set_metainfo({"expert": moved(sample.expert)})
    have_losses = distilled(losses_of(corrected, batch))
    want, have = seen_targets
    assert have.share == 1 and torch.equal(have.placed, want.trust)
    for ours, theirs in zip(have.pv, want.pv, strict=True):  # rounding moves a border over a cell's edge
        assert (ours.cells.mask != theirs.cells.mask).sum() <= 3 and len(ours.cells) > 100
    positions = "sampling" if family == "bevformer" else "points"
    assert (have.queries[positions] != want.queries[positions]).any()
    away = (have.student[positions] - want.queries[positions]).transpose(1, 2).flatten(2).abs().amax(-1)
    home = away[want.trust > 0] < 2e-5
    assert home.float().mean() > 0.85  # two boxes of one object may change places
    assert have_losses["loss_fine"] == pytest.approx(want_losses["loss_fine"], rel=1e-3)
    if family == "bevformer":
        weights, same = have.bev.weight_map(), want.bev.weight_map()
        # what the shift by one column pushes over the map's edge is lost
        assert ((weights > 0) != (same > 0))[..., :-2].sum() < 0.05 * (same > 0).sum()
        both = (weights > 0) & (same > 0)
        ours, theirs = (t.values[both.flatten()[t.cells.index]] for t in (have.bev, want.bev))
        assert ((ours - theirs).abs().amax(-1) < 2e-4).float().mean() > 0.85


@pytest.mark.parametrize("family", APPRENTICES)
def test_a_displaced_expert_is_trusted_by_its_rays_except_on_the_pyramid(
    project, dense_stores, source, seen_targets, family
):
    cfg, hard = distiller(project, dense_stores[family], family, match=True, log_range=3.0)
    _, soft = distiller(project, dense_stores[family], family, match=True, log_range=3.0, ray_along=0.2)
    batch = batch_of(hard, cfg, source, dense_stores[family])
    for sample in batch["data_samples"]:
        sample.set_metainfo({"expert": moved(sample.expert)})
    want, have = (distilled(losses_of(model, batch)) for model in (hard, soft))
    before, after = seen_targets
    for b, anchors in enumerate(after.anchors):
        at, true = (
            np.array([complex(*xy) for xy in side[:, :2].tolist()]) for side in (anchors.source, anchors.target)
        )
        off = (at - true) * true.conj() / abs(true)  # along the ray, across it
        weight = np.exp(-((off.real / (0.2 * abs(true))) ** 2 + off.imag**2) / 2)
        by_hand = before.placed[b].numpy() * weight
        np.testing.assert_allclose(after.placed[b].numpy(), by_hand, rtol=1e-3, atol=1e-6)
        moved_far = anchors.matched.numpy() & (abs(at - true) > CELL / 2)
        assert moved_far.any() and (weight[moved_far] < 1).all()
    assert after.share < before.share
    assert torch.equal(after.trust, before.trust) and have["loss_pv"] == want["loss_pv"]
    assert 0 < have["loss_fine"] < want["loss_fine"]
    if family == "bevformer":
        assert torch.equal(after.bev.cells.mask, before.bev.cells.mask)
        assert (after.bev.weight <= before.bev.weight).all() and torch.isin(after.bev.weight, after.placed).all()
        assert have["loss_bev"] != want["loss_bev"]


@pytest.mark.parametrize("family", APPRENTICES)
def test_false_positives_reach_the_pyramid_alone(project, dense_stores, source, family):
    cfg, model = distiller(project, dense_stores[family], family, match=True)
    batch = batch_of(model, cfg, source, dense_stores[family])
    for sample in batch["data_samples"]:
        sample.gt_instances_3d = sample.gt_instances_3d[:0]
    losses = losses_of(model, batch)
    assert losses["loss_pv"] > 0 and losses["loss_fine"] == 0 and losses.get("loss_bev", 0) == 0
    _, half = distiller(project, dense_stores[family], family, match=True, unmatched=0.5)
    _, whole = distiller(project, dense_stores[family], family)
    halved, full = distilled(losses_of(half, batch)), distilled(losses_of(whole, batch))
    assert halved["loss_fine"] == pytest.approx(full["loss_fine"] / 2, rel=1e-4)
    assert halved["loss_pv"] == pytest.approx(full["loss_pv"], rel=1e-5)


def test_relations_train_the_student(project, dense_stores, source):
    store = dense_stores["bevformer"]
    cfg, model = distiller(project, store, "bevformer", match=True, w_relation=1.0)
    losses = losses_of(model, batch_of(model, cfg, source, store))
    assert 0 < losses["loss_relation"].item() < 2
    losses["loss_relation"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.student.img_backbone.parameters())


def test_a_store_with_narrow_areas_is_refused(project, store):
    with pytest.raises(FD3DError, match=r"dump with focal.bev_margin: 2.6, or tighten distill.rule.bev_margin"):
        distiller(project, store, "bevformer", **FULL)


def test_relations_from_a_store_with_narrow_areas_are_refused(project, store):
    with pytest.raises(FD3DError, match=r"w_relation reads .* focal.bev_margin: 1.6, or set w_relation to 0"):
        distiller(project, store, "bevformer", match=True, w_relation=1.0)


def test_narrow_areas_are_refused_before_the_dump(project):
    """By the expert's config and the profile's rule; an expert without a map needs no margin."""
    wanted, configs = FocalRule(bev_margin=0.5), project / "configs/world"
    for family, expert, settings, margin, told in (
        ("bevformer", "expert", {"reanchor": True}, 1.0, "reanchor reads .* focal.bev_margin: 2.1, or tighten"),
        ("bevformer", "expert", {"w_relation": 1.0}, 1.0, "w_relation reads .* focal.bev_margin: 1.6, or set"),
        ("bevformer", "expert", {"reanchor": True, "w_relation": 1.0}, 2.1, None),
        ("bevformer", "expert", {"w_relation": 1.0}, 1.6, None),
        ("bevformer", "expert", {}, 0.5, None),
        ("detr3d", "detr3d_expert", {"reanchor": True}, 0.5, None),
    ):
        distill = replace(DistillSettings(rule=wanted), geometry=GeometrySettings(match=True, **settings))
        plan = StudentPlan.of(configs / f"{APPRENTICES[family]}.py", distill, FocalRule(bev_margin=margin))
        with nullcontext() if told is None else pytest.raises(FD3DError, match=told):
            planned_student(plan, configs / f"{expert}.py")


def test_the_margin_that_a_refusal_names_is_enough():
    geometry, cell = GeometrySettings(match=True, reanchor=True), 80 / 150  # 0.533333..., told with fewer digits
    with pytest.raises(FD3DError, match="dump with focal.bev_margin: 1.034,"):
        geometry.check_reach(FocalRule(bev_margin=0.5), FocalRule(), cell)
    geometry.check_reach(FocalRule(bev_margin=0.5), FocalRule(bev_margin=1.034), cell)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reanchor": True}, "distill.geometry.reanchor is True, but match is false"),
        ({"unmatched": 1.5}, "distill.geometry.unmatched is 1.5"),
        ({"across": 0.0}, "distill.geometry.across is 0"),
        ({"w_relation": -1.0}, "distill.geometry.w_relation is -1"),
        ({"ray_along": -0.1}, "distill.geometry.ray_along is -0.1"),
        ({"ray_across": 0.0}, "distill.geometry.ray_across is 0"),
        ({"ray_along": 0.2}, "distill.geometry.ray_along is 0.2, but match is false"),
        ({"match": True, "ray_along": 0.2, "agreement_power": 1.0}, "ray_along is 0.2 and agreement_power is 1.0"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(FD3DError, match=message):
        DistillSettings.from_dict({"geometry": values})
