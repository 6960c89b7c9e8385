"""Experts made worse on purpose: what is tapped, what is predicted, and what stays."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from pipeline.data.frames import frame_batches
from pipeline.errors import FD3DError
from pipeline.expert import TappedExpert, build_adapter
from pipeline.expert.load import hash_config
from pipeline.models.build import load_config
from pipeline.models.corruption import Corruption, corrupt
from pipeline.models.depth_error import log_factors_of, move_objects, move_radially
from pipeline.models.load import load_detector

RANGE = torch.tensor([-8.0, -8.0, -5.0, 8.0, 8.0, 3.0])
WORLD = torch.tensor([-40.0, -40.0, -5.0, 40.0, 40.0, 3.0])
CONFIGS = sorted((Path(__file__).parents[2] / "configs/benchmark").glob("*_expert_*_*.py"))


@pytest.fixture(scope="module")
def run(source, project):
    """The expert over the training scenes, made worse as the settings say: (frame, sample) of every frame."""
    found = {}

    def runs(name: str = "expert", **settings):
        key = (name, *settings.items())
        if key not in found:
            cfg = load_config(project / f"configs/world/{name}.py")
            cfg.corruption = settings
            model = load_detector(cfg, project / f"checkpoints/world_{name}.pth")
            expert = TappedExpert(model, build_adapter(cfg), 40)
            steps = [expert.run(batch) for batch in frame_batches(cfg, source, None, 0)]
            found[key] = [(frame, sample) for (frame,), (sample,) in steps]
        return found[key]

    return runs


def test_content_moves_away_from_the_lidar():
    bev = torch.zeros(1, 16, 16)  # cells of 1 m; the lit one's centre is at x = 2.5, y = -1.5
    bev[0, 6, 10] = 1
    assert torch.allclose(move_radially(bev, 1.0, RANGE), bev, atol=1e-5)
    moved = move_radially(bev, 2.0, RANGE)[0]  # now at 5, -3, as wide as two cells
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    centre = [((at - 7.5) * moved).sum() / moved.sum() for at in (column, row)]
    torch.testing.assert_close(torch.stack(centre), torch.tensor([5.0, -3.0]), atol=1e-4, rtol=0)
    assert move_radially(torch.ones(1, 16, 16), 0.5, RANGE)[0, 0, 0] == 0  # from beyond the map


def test_noise_is_of_each_channels_size_and_follows_from_the_token():
    maps = torch.randn(2, 3, 30, 30) * torch.tensor([0.1, 1.0, 10.0])[:, None, None] + 5
    corruption = Corruption(noise=0.5)
    noisy = corruption.noisy(maps, "a", "pv/0")
    ratio = (noisy - maps).std((0, 2, 3)) / maps.std((0, 2, 3))
    torch.testing.assert_close(ratio, torch.full((3,), 0.5), atol=0.05, rtol=0)
    assert torch.equal(noisy, corruption.noisy(maps, "a", "pv/0"))
    for other in (("b", "pv/0"), ("a", "pv/1")):
        assert not torch.equal(noisy, corruption.noisy(maps, *other))
    assert not torch.equal(noisy, Corruption(noise=0.5, seed=1).noisy(maps, "a", "pv/0"))


def test_a_wrong_depth_moves_map_and_boxes_and_does_not_add_up_over_a_scene(run):
    corruption, seen = Corruption(depth=0.2), 0
    for (clean, sample), (worse, _) in zip(run(), run(depth=0.2), strict=True):
        factor = corruption.factor(sample.token)
        # the later frames' history, too, is as it was
        torch.testing.assert_close(worse.bev, move_radially(clean.bev, factor, WORLD))
        assert all(torch.equal(a, b) for a, b in zip(worse.pv, clean.pv, strict=True))
        good = clean.boxes[clean.score > 0.3, :2]
        good = good[(good * factor).abs().amax(-1) < 38]
        moved_by = (good * (factor - 1)).norm(dim=-1).mean()
        if moved_by > 2:  # more than a cell: boxes go with the map
            seen += 1
            assert torch.cdist(good * factor, worse.boxes[:, :2]).amin(1).median() < moved_by / 2
    assert seen


def objects_of(sample, corruption: Corruption):
    """Objects of an unmoved frame, with the errors that the settings draw."""
    found = sample.pred_instances_3d
    boxes = torch.cat([found.bboxes_3d.gravity_center, found.bboxes_3d.tensor[:, 3:]], -1)
    return corruption.displaced(sample.token, boxes, found.scores_3d, WORLD)


def test_every_object_has_its_own_depth_error(run):
    settings: dict[str, Any] = dict(depth=0.2, depth_per="object")
    shifts, misses = [], []
    for (clean, sample), (worse, _) in zip(run(), run(**settings), strict=True):
        objects = objects_of(sample, Corruption(**settings))
        # the later frames' history, too, is as it was
        torch.testing.assert_close(worse.bev, move_objects(clean.bev, objects, WORLD))
        assert all(torch.equal(a, b) for a, b in zip(worse.pv, clean.pv, strict=True))
        assert len(set(objects.log_factor.tolist())) == len(objects.boxes) > 1
        centres = objects.boxes[:, :2]
        moved = centres * objects.log_factor.exp()[:, None]
        shift, inside = (moved - centres).norm(dim=-1), moved.abs().amax(-1) < 36
        sure = torch.cdist(centres, clean.boxes[clean.score > 0.3, :2]).amin(1) < 0.1
        kept = inside & sure & (shift > 2)  # more than a cell
        shifts.append(shift[kept])
        misses.append(torch.cdist(moved, worse.boxes[:, :2]).amin(1)[kept])
    assert len(torch.cat(shifts)) > 5
    assert torch.cat(misses).median() < torch.cat(shifts).median() / 3  # boxes go with the cells


def test_one_factor_per_frame_is_the_default_and_draws_as_before(run):
    assert Corruption(depth=0.1).factor("a") == pytest.approx(1.1807275, abs=1e-6)
    for (a, _), (b, _) in zip(run(depth=0.2), run(depth=0.2, depth_per="frame"), strict=True):
        assert torch.equal(a.bev, b.bev) and torch.equal(a.boxes, b.boxes) and torch.equal(a.score, b.score)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("expert", dict(noise=0.5, depth=0.1)),
        ("expert", dict(depth=0.2, depth_per="object")),
        ("detr3d_expert", dict(depth=0.1)),
        ("detr3d_expert", dict(depth=0.1, depth_per="object")),
    ],
)
def test_what_is_tapped_is_what_is_predicted(run, name, settings):
    for frame, sample in run(name, **settings):
        found = sample.pred_instances_3d
        centres = found.bboxes_3d.gravity_center
        assert (frame.boxes[:5, None, :3] - centres).norm(dim=-1).amin(1).max() < 1e-4
    assert any(
        not torch.equal(a.boxes, b.boxes) for (a, _), (b, _) in zip(run(name), run(name, **settings), strict=True)
    )


def test_without_a_map_boxes_and_points_are_moved(run):
    corruption = Corruption(depth=0.1)
    for (clean, sample), (worse, _) in zip(run("detr3d_expert"), run("detr3d_expert", depth=0.1), strict=True):
        scale = torch.tensor([corruption.factor(sample.token)] * 2 + [1.0])
        torch.testing.assert_close(worse.boxes[:, :3], clean.boxes[:, :3] * scale, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(worse.reading.points, clean.reading.points * scale, atol=1e-3, rtol=1e-4)
        assert torch.equal(worse.score, clean.score) and torch.equal(worse.boxes[:, 3:], clean.boxes[:, 3:])


def test_without_a_map_the_queries_of_an_object_are_moved_alike(run):
    settings: dict[str, Any] = dict(depth=0.1, depth_per="object")
    frames = zip(run("detr3d_expert"), run("detr3d_expert", **settings), strict=True)
    for (clean, sample), (worse, _) in frames:
        objects = objects_of(sample, Corruption(**settings))
        factor = log_factors_of(clean.boxes[:, :2], objects).exp()
        assert len(set(factor.tolist()) & set(objects.log_factor.exp().tolist())) > 1
        scale = torch.stack([factor, factor, torch.ones_like(factor)], -1)
        torch.testing.assert_close(worse.boxes[:, :3], clean.boxes[:, :3] * scale, atol=1e-4, rtol=1e-4)
        moved = clean.reading.points * scale.view(1, -1, *[1] * (clean.reading.points.dim() - 3), 3)
        torch.testing.assert_close(worse.reading.points, moved, atol=1e-3, rtol=1e-4)
        assert torch.equal(worse.score, clean.score) and torch.equal(worse.boxes[:, 3:], clean.boxes[:, 3:])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configs_expert_is_another_expert(path):
    cfg = load_config(path)
    corruption = Corruption.from_config(cfg.corruption)
    family, _, kind, level = path.stem.split("_")
    values = {"noise": corruption.noise, "depth": corruption.depth}
    wanted = {"noise": 0.0, "depth": 0.0, kind.replace("object", "depth"): float(level) / 10 ** (len(level) - 1)}
    assert values == wanted and corruption.depth_per == ("object" if kind == "object" else "frame")
    trained = load_config(path.with_name("detr3d_expert.py" if family == "detr3d" else "expert.py"))
    assert hash_config(cfg) != hash_config(trained) and cfg.model == trained.model


def test_the_hash_of_a_config_does_not_tell_spellings_of_a_number():
    def made(side, flag):
        return Config(dict(model=dict(dropout=0.1, sizes=(side, 2), flag=flag), image={}, pc_range=[-side, side]))

    assert hash_config(made(1, True)) == hash_config(made(1.0, True)) != hash_config(made(1.5, True))
    assert hash_config(made(1, True)) != hash_config(made(1, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(noise=-1), "corruption.noise is -1"),
        (dict(blur=1), "blur.*it has noise, depth, depth_per and seed"),
        (dict(depth=0.1, depth_per="scene"), "corruption.depth_per is 'scene'; use frame or object"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(FD3DError, match=message):
        Corruption.from_config(settings)


def test_other_detectors_are_refused():
    with pytest.raises(FD3DError, match="not for Linear"):
        corrupt(torch.nn.Linear(1, 1), Corruption(noise=1.0))
