"""Every distiller on both families; the published formulas against a few lines of numpy."""

import csv
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from mmdet3d.registry import DATASETS, MODELS

from pipeline.data.frames import collate, frame_dataset
from pipeline.distill import methods
from pipeline.distill.build import distiller_config
from pipeline.distill.foreground import area_weights, object_cells
from pipeline.distill.loading import cached_targets
from pipeline.distill.methods import load_method, method_names
from pipeline.distill.methods.cwd import channel_divergence
from pipeline.distill.methods.fgd import attention_masks, focal_terms
from pipeline.distill.methods.heatmap import HeatmapSettings, channel_cross_entropy, object_gaussians
from pipeline.distill.methods.response import quality_focal_loss
from pipeline.distill.settings import METHODS
from pipeline.distill.whole_map import WholeMapDistiller
from pipeline.errors import FD3DError
from pipeline.models.boxes import encode_boxes
from pipeline.models.build import load_config
from pipeline.models.query_head import HeadOutput
from pipeline.profile import read_profile
from store_schema import StoreReader

APPRENTICES = {"bevformer": "apprentice", "detr3d": "detr3d_apprentice"}
WHOLE_MAP = [name for name in method_names() if issubclass(load_method(name), WholeMapDistiller)]


def build(project: Path, store: Path, method: str, family: str = "bevformer", **settings):
    cfg = load_config(project / f"configs/world/{APPRENTICES[family]}.py")
    torch.manual_seed(0)
    profile = read_profile(project / "params.yaml")
    kind = load_method(method).settings_type
    own = asdict(profile.method(method, profile.family(family))) if method in METHODS else {}
    model = MODELS.build(distiller_config(cfg, store, method, kind.from_dict(own | settings)))
    model.init_weights()
    return cfg, model


def batch(cfg, model, source, store, rows=(1, 5)):
    data = DATASETS.build(frame_dataset(cfg, source, train=True, targets=cached_targets(store) if store else ()))
    return model.data_preprocessor(collate([data[row] for row in rows]))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def maps(seed: int, shape=(2, 3, 4, 5)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_all_methods_are_found():
    assert method_names() == ["cwd", "fd3d", "fgd", "fitnets", "heatmap", "mgd", "response"]
    assert WHOLE_MAP == ["cwd", "fgd", "fitnets", "heatmap", "mgd"]


@pytest.mark.parametrize("family", APPRENTICES)
@pytest.mark.parametrize("method", method_names())
def test_losses_are_finite_and_reach_the_students_backbone(project, source, dense_stores, method, family):
    cfg, model = build(project, dense_stores[family], method, family)
    plain = set(model.student(**batch(cfg, model, source, None), mode="loss"))
    model.student.zero_grad()
    losses = model(**batch(cfg, model, source, dense_stores[family]), mode="loss")
    added = {name: loss for name, loss in losses.items() if name not in plain}
    expected = {"loss_pv"} | ({"loss_bev"} if family == "bevformer" else set())
    expected |= {"loss_fine", "loss_mixed"} if method == "fd3d" else set()
    assert added.keys() == ({"loss_response_cls", "loss_response_box"} if method == "response" else expected)
    for name, loss in added.items():
        model.student.zero_grad()
        loss.backward(retain_graph=True)
        gradient = model.student.img_backbone.conv1.weight.grad
        if name == "loss_mixed":  # of the head alone
            assert loss.item() > 0 and gradient is None
            continue
        assert loss.item() > 0 and gradient.isfinite().all() and gradient.abs().sum() > 0, name
    assert set(model.student_state_dict()) == set(MODELS.build(cfg.model).state_dict())


@pytest.mark.parametrize("method", ["cwd", "fgd", "fitnets", "heatmap"])
@pytest.mark.parametrize("name", ["pv_1", "bev"])
def test_a_student_like_the_expert_has_no_loss(project, source, dense_stores, method, name):
    cfg, model = build(project, dense_stores["bevformer"], method)
    samples = batch(cfg, model, source, None)["data_samples"]
    shape = (2, 64, 50, 50) if name == "bev" else (12, 64, 10, 18)
    expert, student = maps(1, shape), maps(1, shape).requires_grad_()
    loss, apart = (model.map_loss(name, s, expert, samples) for s in (student, student + maps(2, shape)))
    if (method, name) == ("heatmap", "pv_1"):  # a cross-entropy ends at the entropy of the expert
        assert 0 < loss.item() < apart.item()
        assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-6
    else:
        assert abs(loss.item()) < 1e-5 < apart.item()


def test_channel_divergence_is_the_published_one():
    s, t = maps(1), maps(2)
    p, q = (softmax(x.numpy().reshape(6, 20) / 4) for x in (t, s))
    want = 16 * (p * np.log(p / q)).sum() / 6  # tau^2 / (N C)
    assert channel_divergence(s, t, 4.0).item() == pytest.approx(want, rel=1e-5)


def test_cross_entropy_is_the_released_one():
    s, t = maps(1), maps(2)
    p, q = (softmax(x.numpy().reshape(6, 20) / 2) for x in (t, s))
    assert channel_cross_entropy(s, t, 2.0).item() == pytest.approx(-4 * (p * np.log(q)).sum() / 6, rel=1e-5)


def test_attention_masks_and_focal_terms_are_the_published_ones():
    s, t = maps(1), maps(2)
    spatial, channel = attention_masks(t, 0.5)
    want_spatial = 20 * softmax(np.abs(t.numpy()).mean(1).reshape(2, 20) / 0.5).reshape(2, 1, 4, 5)
    want_channel = 3 * softmax(np.abs(t.numpy()).mean((2, 3)) / 0.5).reshape(2, 3, 1, 1)
    np.testing.assert_allclose(spatial.numpy(), want_spatial, rtol=1e-5)
    np.testing.assert_allclose(channel.numpy(), want_channel, rtol=1e-5)
    objects = torch.zeros(2, 4, 5, dtype=torch.bool)
    objects[0, :2, :2], objects[1, 1, 1:3] = True, True  # four cells and two, one shared
    foreground, background = area_weights(objects)
    want_foreground = np.zeros((4, 5))
    want_foreground[:2, :2], want_foreground[1, 1:3] = 1 / 4, 1 / 2
    np.testing.assert_allclose(foreground.numpy(), want_foreground)
    np.testing.assert_allclose(background.numpy(), (want_foreground == 0) / 15)
    error = ((s - t).numpy() ** 2 * want_spatial * want_channel).sum(1)
    both = focal_terms(s, t, foreground.expand(2, -1, -1), background.expand(2, -1, -1), 0.5)
    assert both[0].item() == pytest.approx((error * want_foreground).sum() / 2, rel=1e-5)
    assert both[1].item() == pytest.approx((error * background.numpy()).sum() / 2, rel=1e-5)
    other = attention_masks(s, 0.5)
    want = np.abs(other[0].numpy() - want_spatial).sum() + np.abs(other[1].numpy() - want_channel).sum()
    assert both[2].item() == pytest.approx(want / 2, rel=1e-4)


def test_an_image_without_objects_is_all_background():
    foreground, background = area_weights(torch.zeros(0, 2, 4, 5, dtype=torch.bool))
    assert foreground.sum() == 0 and torch.allclose(background, torch.full((2, 4, 5), 1 / 20))


def test_foreground_lies_where_annotated_boxes_are(project, source, dense_stores):
    cfg, model = build(project, dense_stores["bevformer"], "fgd")
    (sample, _) = batch(cfg, model, source, None)["data_samples"]
    boxes = sample.gt_instances_3d.bboxes_3d.tensor
    (bev,) = object_cells([sample], model.schema, [-40, -40, -5, 40, 40, 3], None, boxes.device)
    (pv,) = object_cells([sample], model.schema, [-40, -40, -5, 40, 40, 3], 0, boxes.device)
    assert len(boxes) > 2 and bev.shape == (len(boxes), 50, 50) and pv.shape == (len(boxes), 6, 20, 36)
    cells = ((boxes[:, :2] + 40) / 1.6).long()
    assert bev[torch.arange(len(boxes)), cells[:, 1], cells[:, 0]].all()  # row = y, column = x
    assert pv.flatten(1).any(1).all()


def test_gaussians_peak_at_centres_with_the_released_radius():
    boxes = torch.zeros(3, 9)
    boxes[:, 3:5] = 0.5  # small: the smallest radius, two cells of 0.8 m
    boxes[0, :2], boxes[1, :2] = torch.tensor([10.0, -20.0]), torch.tensor([-30.2, 4.1])
    boxes[2, 0] = 90.0  # outside
    drawn = object_gaussians(boxes, [-40, -40, -5, 40, 40, 3], HeatmapSettings())
    assert drawn.shape == (100, 100) and (drawn == 1).nonzero().tolist() == [[25, 62], [55, 12]]
    offsets = np.arange(-2, 3)
    want = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * (5 / 6) ** 2))  # sigma a sixth of the diameter
    np.testing.assert_allclose(drawn[23:28, 60:65].numpy(), want, rtol=1e-5)
    assert drawn.sum().item() == pytest.approx(2 * want.sum(), rel=1e-5)


def test_the_heatmap_methods_bev_term_is_the_released_one(project, source, dense_stores):
    cfg, model = build(project, dense_stores["bevformer"], "heatmap")
    samples = batch(cfg, model, source, None)["data_samples"]
    s, t = maps(1, (2, 64, 50, 50)), maps(2, (2, 64, 50, 50))
    mask = []
    for sample in samples:
        drawn = object_gaussians(sample.gt_instances_3d.bboxes_3d.tensor, [-40, -40, -5, 40, 40, 3], model.settings)
        mask.append(drawn.numpy()[::2, ::2])  # nearest at half the size
    m = np.stack(mask)[:, None]
    want = (((s - t).numpy() * m) ** 2).sum() / m.sum()
    assert model.map_loss("bev", s, t, samples).item() == pytest.approx(want, rel=1e-4)


def test_hidden_pixels_are_a_share_of_all_and_do_not_reach_the_generator(project, dense_stores):
    _, model = build(project, dense_stores["bevformer"], "mgd")
    seen = []
    model.generators["bev"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.map_loss("bev", torch.ones(2, 64, 50, 50), maps(2, (2, 64, 50, 50)), [])
    hidden = seen[0] == 0
    assert hidden.float().mean().item() == pytest.approx(0.65, abs=0.03)
    assert (hidden.all(1) | ~hidden.any(1)).all()  # the same pixels in all channels


def test_quality_focal_loss_is_the_published_one():
    logits, target = maps(1, (4, 5)), torch.rand(4, 5, generator=torch.Generator().manual_seed(2))
    p, y = logits.sigmoid().numpy(), target.numpy()
    want = (np.abs(y - p) ** 2 * -(y * np.log(p) + (1 - y) * np.log(1 - p))).sum()
    assert quality_focal_loss(logits, target, 2.0).item() == pytest.approx(want, rel=1e-5)


def test_responses_like_the_experts_have_no_loss(project, dense_stores):
    _, model = build(project, dense_stores["detr3d"], "response", "detr3d", min_score=0.3)
    reader = StoreReader(dense_stores["detr3d"])
    frame = reader.read(reader.tokens[0], decode=False)
    boxes, score, label = (torch.from_numpy(frame[f"query/{name}"]) for name in ("boxes", "score", "label"))
    sure = score >= 0.3
    assert 2 < sure.sum() < len(score)
    logits = torch.full((1, 1, len(score), 10), -20.0)
    logits[0, 0, torch.arange(len(score))[sure], label[sure].long()] = score[sure].logit()
    code = encode_boxes(boxes)[None, None]
    code[..., ~sure, :2] += 500.0  # whatever unsure queries say
    order = torch.randperm(len(score), generator=torch.Generator().manual_seed(0))
    head = HeadOutput(logits[:, :, order], code[:, :, order], code, code)
    losses = model.distillation_losses(SimpleNamespace(head=head), [frame], [])
    assert losses["loss_response_cls"] < 1e-6 and losses["loss_response_box"] < 1e-6
    head.code = head.code + 0.5
    shifted = model.distillation_losses(SimpleNamespace(head=head), [frame], [])["loss_response_box"]
    # every value off by 0.5, weights eight times 1 and twice 0.2; the sum of scores cancels
    assert score[sure].sum() > 1 and shifted.item() == pytest.approx(0.25 * 0.5 * 8.4, rel=1e-3)


@pytest.mark.parametrize("method", WHOLE_MAP)
def test_whole_maps_are_refused_from_a_focal_store(project, store, method):
    with pytest.raises(FD3DError, match=rf"methods.{method} compares whole maps, .* dump.layout: dense"):
        build(project, store, method)


def test_responses_need_no_dense_store(project, store, source):
    cfg, model = build(project, store, "response")
    assert model(**batch(cfg, model, source, store), mode="loss")["loss_response_box"] > 0


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("cwd", {"tua": 1}, "unknown setting methods.cwd.tua; known: every, expert, history, inherit, levels, tau"),
        ("cwd", {"tau": 0}, "methods.cwd.tau is 0.0; it must be positive"),
        ("fitnets", {"w_pv": -1}, "methods.fitnets.w_pv is -1.0; it must not be negative"),
        ("mgd", {"mask_ratio": 2}, r"methods.mgd.mask_ratio is 2.0; it must be in 0..1"),
        ("fgd", {"temperature": 0}, "methods.fgd.temperature is 0.0; it must be positive"),
        ("heatmap", {"cell": 0}, "methods.heatmap.cell is 0.0; it must be positive"),
        ("response", {"min_score": 0}, r"methods.response.min_score is 0.0; it is a score in \(0, 1\)"),
        ("fgd", {"levels": [3]}, r"methods.fgd.levels is \[3\], but the store has levels 0..2"),
        ("magic", {}, "unknown method 'magic'; known: plain, cwd, fd3d"),
    ],
)
def test_wrong_settings_are_refused(project, dense_stores, method, settings, message):
    with pytest.raises(FD3DError, match=message):
        build(project, dense_stores["bevformer"], method, **settings)


def test_every_method_has_its_settings_beside_the_others():
    assert list(METHODS) == method_names()
    assert all(load_method(name).settings_type is kind for name, kind in METHODS.items())
    assert [name for name, kind in METHODS.items() if kind.compares_maps] == WHOLE_MAP


METHOD = """
from dataclasses import dataclass

from mmdet3d.registry import MODELS

from pipeline.distill.settings import MethodSettings
from pipeline.distill.whole_map import WholeMapDistiller


@dataclass(frozen=True)
class AbsoluteSettings(MethodSettings):
    section = "methods.absolute"
    w_pv: float = 1.0
    w_bev: float = 1.0


@MODELS.register_module()
class AbsoluteDistiller(WholeMapDistiller):
    settings_type = AbsoluteSettings

    def map_loss(self, name, student, expert, data_samples):
        return (student - expert).abs().mean()
"""


def test_one_file_adds_a_method(project, source, dense_stores, tmp_path, monkeypatch):
    (tmp_path / "absolute.py").write_text(METHOD)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "absolute" in method_names()
    cfg, model = build(project, dense_stores["detr3d"], "absolute", "detr3d")
    assert model(**batch(cfg, model, source, dense_stores["detr3d"]), mode="loss")["loss_pv"] > 0


def test_the_command_trains_with_a_method_and_saves_the_plain_detector(
    project, world, world_index, dense_stores, tmp_path
):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["data"] |= {"root": str(world), "index": str(world_index)}
    params["methods"] = {"cwd": {"tau": 2.0}}
    student = {
        "config": str(project / "configs/world/detr3d_apprentice.py"),
        "train": {"max_iters": 4, "workers": 0},
    }
    expert = {"config": str(project / "configs/world/detr3d_expert.py")}
    params["families"] = {"detr3d": {"expert": expert, "apprentice": student, "distill": {}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-m", "stages.cli", "train", "--family", "detr3d", "--method", "cwd", "--out", "run"]
    command += ["--store", str(dense_stores["detr3d"])]
    weights = ["--expert", str(project / "checkpoints/world_detr3d_expert.pth")]
    without, done = (
        subprocess.run(
            [*command, *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(project)},
        )
        for more in ([], weights)
    )
    assert without.returncode == 1
    assert "expert's checkpoint runs/detr3d/expert/detector.pth does not exist" in without.stderr.splitlines()[-1]
    assert done.returncode == 0, done.stderr[-2000:]
    plain = MODELS.build(load_config(tmp_path / "run/config.py").model)
    plain.load_state_dict(torch.load(tmp_path / "run/detector.pth", weights_only=True)["state_dict"], strict=True)
    with open(tmp_path / "run/losses.csv", newline="") as file:
        assert all(float(row["loss_pv"]) > 0 for row in csv.DictReader(file))
