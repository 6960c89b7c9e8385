"""FD3D that corrects geometry, in whole training steps on stored frames of the shipped experts."""

import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS, MODELS
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from pipeline.data.frames import collate, frame_dataset
from pipeline.distill.build import distiller_config
from pipeline.distill.loading import cached_targets
from pipeline.distill.settings import DistillSettings
from pipeline.distill.targets import make_targets
from pipeline.errors import FD3DError
from pipeline.models.build import load_config

APPRENTICES = {"bevformer": "apprentice", "detr3d": "detr3d_apprentice"}
CELL = 1.6  # metres: 80 m over 50 cells
FULL = {"match": True, "reanchor": True, "pyramid": True, "log_range": 3.0}


def distiller(project, store, family, **geometry):
    cfg = load_config(project / f"configs/world/{APPRENTICES[family]}.py")
    torch.manual_seed(0)
    settings = DistillSettings.from_dict({"geometry": geometry})
    model = MODELS.build(distiller_config(cfg, store, "fd3d", settings))
    model.init_weights()
    return cfg, model.train()


def batch_of(model, cfg, source, store):
    """Two frames whose annotations are the expert's own trusted boxes."""
    data = DATASETS.build(frame_dataset(cfg, source, True, targets=cached_targets(store)))
    batch = model.data_preprocessor(collate([data[1], data[5]]), True)
    for sample in batch["data_samples"]:
        trusted = sample.expert["query/score"][:60] >= 0.1
        boxes = torch.from_numpy(sample.expert["query/boxes"][:60][trusted])
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9, origin=(0.5, 0.5, 0.5)),
            labels_3d=torch.from_numpy(sample.expert["query/label"][:60][trusted]).long(),
        )
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
