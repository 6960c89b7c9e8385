"""FD3D with areas of the annotations or of all cells, and with a head that learns on the expert's map."""

import pytest
import torch

from pipeline.distill.losses import agreement
from pipeline.distill.settings import DistillSettings
from pipeline.distill.targets import Spans, make_targets
from pipeline.errors import FD3DError
from pipeline.focal.areas import bev_footprints, project_boxes, pv_rectangles_to_cells, union
from pipeline.models.detector import gt_tensors
from tests.distill.steps import APPRENTICES, batch_of, distiller


@pytest.fixture
def seen_targets(monkeypatch):
    """The targets of the next step."""
    kept = []

    def keep(*args):
        kept.append(make_targets(*args))
        return kept[-1]

    monkeypatch.setattr("pipeline.distill.methods.fd3d.make_targets", keep)
    return kept


def test_areas_are_the_annotated_boxes_with_trust_1(project, dense_stores, source, seen_targets):
    store = dense_stores["bevformer"]
    cfg, model = distiller(project, store, areas="annotations", rule=dict(bev_margin=0.5, pv_margin=0.05))
    batch = batch_of(model, cfg, source, store)
    losses = model(**batch, mode="loss")
    assert all(losses[f"loss_{name}"] > 0 for name in ("pv", "bev", "fine"))
    (targets,) = seen_targets
    boxes, _ = gt_tensors(batch["data_samples"], torch.device("cpu"))
    for b, sample in enumerate(batch["data_samples"]):
        assert len(boxes[b])
        footprints = union(bev_footprints(boxes[b], cfg.pc_range, (50, 50), 0.5)).float()
        torch.testing.assert_close(targets.bev.weight_map()[b], footprints)
        meta = sample.frames[-1]
        rectangles, valid = project_boxes(boxes[b], torch.as_tensor(meta["lidar2img"]), meta["pad_hw"])
        cells = union(pv_rectangles_to_cells(rectangles, valid, (20, 36), (80, 144), 0.05)).float()
        torch.testing.assert_close(targets.pv[0].weight_map().unflatten(0, (-1, 6))[b], cells)
    assert set(targets.trust.unique().tolist()) - {0.0, 1.0}  # loss_fine keeps the queries' own trust


@pytest.mark.parametrize("family", APPRENTICES)
def test_everywhere_is_every_cell(project, dense_stores, source, seen_targets, family):
    cfg, model = distiller(project, dense_stores[family], family, areas="everywhere")
    losses = model(**batch_of(model, cfg, source, dense_stores[family]), mode="loss")
    (targets,) = seen_targets
    maps = targets.pv + ([] if targets.bev is None else [targets.bev])
    assert all((found.weight_map() == 1).all() for found in maps)
    assert losses["loss_pv"] > 0 and losses["loss_fine"] > 0


@pytest.mark.parametrize("family", APPRENTICES)
def test_trust_falls_where_annotations_disagree(project, dense_stores, source, seen_targets, family):
    cfg, model = distiller(
        project, dense_stores[family], family, geometry=dict(agreement_power=1.0), rule=dict(num_queries=20)
    )
    batch = batch_of(model, cfg, source, dense_stores[family])
    model(**batch, mode="loss")
    (targets,) = seen_targets
    frames = [sample.expert for sample in batch["data_samples"]]
    for b, (boxes, labels) in enumerate(zip(*gt_tensors(batch["data_samples"], torch.device("cpu")), strict=True)):
        score = torch.from_numpy(frames[b]["query/score"][:20])
        trust = torch.where(score >= 0.1, score, 0.0)
        own, kind = torch.from_numpy(frames[b]["query/boxes"][:20]), torch.from_numpy(frames[b]["query/label"][:20])
        torch.testing.assert_close(targets.trust[b], trust)  # no pixel is moved by a wrong depth
        torch.testing.assert_close(targets.placed[b], trust * agreement(own, kind, boxes, labels))
    assert 0 < targets.share < 1


def test_nothing_is_distilled_where_no_query_agrees(project, dense_stores, source):
    store = dense_stores["bevformer"]
    cfg, model = distiller(project, store, geometry=dict(agreement_power=1.0))
    batch = batch_of(model, cfg, source, store)
    for sample in batch["data_samples"]:
        sample.gt_instances_3d.labels_3d.fill_(9)
        sample.set_metainfo({"expert": sample.expert | {"query/label": sample.expert["query/label"] * 0}})
    losses = model(**batch, mode="loss")
    assert all(losses[f"loss_{name}"] == 0 for name in ("bev", "fine")) and losses["loss_pv"] > 0


@pytest.mark.parametrize(("setting", "value"), [("head", "trainable"), ("areas", "annotations")])
def test_geometry_is_of_the_experts_own_queries(setting, value):
    with pytest.raises(FD3DError, match=f"distill.{setting} is {value}"):
        DistillSettings.from_dict({"geometry": {"match": True}, setting: value})


def test_a_frame_without_boxes_has_no_areas(project, dense_stores, source):
    store = dense_stores["bevformer"]
    cfg, model = distiller(project, store)
    samples = batch_of(model, cfg, source, store)["data_samples"]
    frames, metas = [sample.expert for sample in samples], [sample.frames[-1] for sample in samples]
    none = Spans(torch.zeros(0, 9), torch.zeros(0))
    targets = model.targets(frames, metas, torch.device("cpu"), [none, none])
    assert not any(len(found.cells) for found in (targets.bev, *targets.pv))


def test_the_head_learns_from_annotations_alone_and_drives_the_losses(project, dense_stores, source, seen_targets):
    store = dense_stores["bevformer"]
    # an untrained head's scores are near 0.01
    settings = dict(head="trainable", trust_threshold=0.0, trust_power=0.0, rule=dict(min_score=0.0))
    cfg, model = distiller(project, store, **settings)
    batch = batch_of(model, cfg, source, store)
    own = [p for p in model.head.parameters() if p.requires_grad]
    optimiser, errors = torch.optim.AdamW(own, 1e-3), []
    for _ in range(12):
        losses = model(**batch, mode="loss")
        errors.append(losses["loss_head"].item())
        focal = sum(losses[f"loss_{name}"] for name in ("pv", "bev", "fine"))
        assert focal > 0 and all(
            g is None for g in torch.autograd.grad(focal, own, retain_graph=True, allow_unused=True)
        )
        gradients = torch.autograd.grad(losses["loss_head"], own, retain_graph=True, allow_unused=True)
        named = [name for name, p in model.head.named_parameters() if p.requires_grad]
        unused = [name for name, g in zip(named, gradients, strict=True) if g is None]
        assert not unused, unused
        optimiser.zero_grad()
        losses["loss_head"].backward()
        optimiser.step()
    assert errors[-1] < 0.8 * errors[0], errors
    first, last = (seen.bev.cells.mask for seen in (seen_targets[0], seen_targets[-1]))
    assert (first != last).any()  # areas follow the head's boxes
    assert not any(name.startswith("head.") for name in model.student_state_dict())


def test_what_needs_whole_maps_is_refused_on_a_focal_store(project, store, dense_stores):
    for settings, message in (
        (dict(areas="annotations"), "distill.areas is annotations, but store .* dump.layout: dense"),
        (dict(areas="everywhere"), "distill.areas is everywhere, but store"),
        (dict(head="trainable"), "distill.head is trainable, but store .* includes no whole BEV map"),
    ):
        with pytest.raises(FD3DError, match=message):
            distiller(project, store, **settings)
    with pytest.raises(FD3DError, match="distill.head is trainable, but store .* includes no whole BEV map"):
        distiller(project, dense_stores["detr3d"], "detr3d", head="trainable")
    with pytest.raises(FD3DError, match="the student has a DETR3DHead; only BEVFormerHead"):
        distiller(project, dense_stores["bevformer"], "detr3d", head="trainable")
    with pytest.raises(FD3DError, match="but the trainable head has layers 0..1"):
        distiller(project, dense_stores["bevformer"], head="trainable", layers=[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(areas="boxes"), "distill.areas is 'boxes'; use queries or annotations or everywhere"),
        (dict(head="learned"), "distill.head is 'learned'; use frozen or trainable"),
        (dict(w_head=-1.0), "distill.w_head is -1.0; it must not be negative"),
        (dict(size_power=-1.0), "distill.size_power is -1.0; it must not be negative"),
    ],
)
def test_unknown_values_are_refused(settings, message):
    with pytest.raises(FD3DError, match=message):
        DistillSettings(**settings)
