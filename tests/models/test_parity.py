"""Against the stored outputs of the official BEVFormer, FD3D and DETR3D code."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper

from pipeline.models.bevformer.transformer import rotate_bev
from pipeline.models.build import build_detector, load_config
from tests.models.parity import Case, fill, without_dropout

KEYS = [
    ("bevformer/base", "bevformer_base"),
    ("bevformer/base", "bevformer_base_fd3d"),
    ("bevformer/small", "bevformer_small_fd3d"),
    ("bevformer/tiny", "bevformer_r50_4lvl_bev100"),
    ("bevformer/public_tiny", "bevformer_tiny"),
    ("bevformer/public_tiny", "bevformer_tiny_bev100"),
    ("bevformer/public_small", "bevformer_small"),
    ("detr3d/r101", "detr3d_res101_gridmask"),
    ("detr3d/r101", "detr3d_r101_gridmask"),
]
# The FD3D release shifts the current frame's reference points, today's BEVFormer does not.
PUBLIC_CODE = {"model.pts_bbox_head.transformer.encoder.shift_current": False}
BEVFORMER = [
    ("bevformer/public_tiny", {}, "bevformer_tiny", "bevformer_tiny"),
    ("bevformer/small", {}, "bevformer_small_fd3d", "bevformer_small_fd3d"),
    ("bevformer/small", PUBLIC_CODE, "bevformer_small_fd3d", "bevformer_small_fd3d_bfcode"),
]
# config, case, whether its model has the old box convention
LOSSES = [
    ("bevformer/public_tiny", "bevformer_tiny", True),
    ("bevformer/small", "bevformer_small_fd3d", True),
    ("detr3d/r101", "detr3d_r101_gridmask", False),
]


def filled(project: Path, config: str, options: dict, case: Case) -> torch.nn.Module:
    cfg = load_config(project / "configs" / f"{config}.py")
    cfg.merge_from_dict(options)
    model = build_detector(cfg)
    fill(model, case.keys["stem_gain"])
    model.eval()
    return model


@pytest.mark.parametrize(("config", "name"), KEYS)
def test_state_dicts_have_the_official_keys(project: Path, parity_root: Path, config: str, name: str):
    want = json.loads((parity_root / f"{name}.keys.json").read_text())
    cfg = load_config(project / "configs" / f"{config}.py")
    if name.endswith("tiny_bev100"):
        cfg.model.pts_bbox_head |= dict(bev_h=100, bev_w=100)
    model = build_detector(cfg)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == {k: shape for k, shape, _ in want["keys"]}
    assert sum(p.numel() for p in model.parameters()) == want["n_params_total"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == want["n_params_requires_grad"]
    model.load_state_dict({k: torch.zeros(shape) for k, shape, _ in want["keys"]}, strict=True)


@pytest.mark.parametrize(("config", "options", "keys", "arrays"), BEVFORMER)
def test_bevformer_gives_the_official_outputs(project, parity_root, config, options, keys, arrays):
    case = Case(parity_root, keys, f"{arrays}.eval")
    want, model, history = case.arrays, filled(project, config, options, case), None
    images = case.images(2)
    with torch.no_grad():
        for step in (1, 2):
            # frame 1 has no ego motion; the file of the other code base holds frame 2 only
            motion = want[f"f{step}_can_bus_used"] if f"f{step}_can_bus_used" in want else first_motion(want)
            features = model.extract_feat(images[:, step - 1])
            history = model.encode(features, [case.meta(step, motion)], history, torch.tensor([history is not None]))
            if f"f{step}_all_cls_scores" not in want:
                continue
            out = model.pts_bbox_head(history)
            every = int(want["bev_cell_stride"])
            official = history
            if step == 1:  # the official code had rotated its history in place before it was stored
                official = turned_back(model, history, want["f2_can_bus_used"])
            close(official[0, ::every], want[f"f{step}_bev_embed_slice"].reshape(-1, 256), 1e-4)
            close(out.logits, want[f"f{step}_all_cls_scores"], 2e-4)
            close(out.code, want[f"f{step}_all_bbox_preds"], 2e-4)
            check_decoded(model, out, want, f"f{step}")


def turned_back(model: Any, bev: torch.Tensor, motion: np.ndarray) -> torch.Tensor:
    """A BEV map turned to the next frame's heading."""
    transformer = model.pts_bbox_head.transformer
    maps = bev.transpose(1, 2).unflatten(-1, model.pts_bbox_head.bev_hw)
    degrees = torch.tensor([float(motion.reshape(-1)[-1])])
    return rotate_bev(maps, degrees, transformer.rotate_center).flatten(2).transpose(1, 2)


def first_motion(want: np.lib.npyio.NpzFile) -> np.ndarray:
    """Frame 1's can_bus as the network gets it: no translation, no turn."""
    motion = want["can_bus_raw"][0].copy()
    motion[[0, 1, 2, 17]] = 0
    return motion


def close(got: torch.Tensor, want: np.ndarray, limit: float) -> None:
    np.testing.assert_allclose(got.detach().numpy().reshape(want.shape), want, rtol=0, atol=limit)


def check_decoded(model: torch.nn.Module, out: object, want: np.lib.npyio.NpzFile, prefix: str) -> None:
    """First twenty decoded boxes; neighbours whose scores are closer than 1e-5 may swap."""
    boxes, scores, labels, _ = model.pts_bbox_head.decode(out)[0]
    assert len(boxes) == int(want[f"{prefix}_n_decoded"])
    close(scores[:20], want[f"{prefix}_top20_scores"], 2e-5)
    official = want[f"{prefix}_top20_boxes"].copy()
    official[:, 2] += official[:, 5] / 2  # theirs is the centre of the bottom
    for box, score, label in zip(boxes[:20], scores[:20], labels[:20], strict=True):
        near = np.abs(want[f"{prefix}_top20_scores"] - float(score)) < 2e-5
        same = near & (want[f"{prefix}_top20_labels"] == int(label))
        assert (np.abs(official[same] - box.numpy()).max(1) < 1e-3).any()


def test_detr3d_gives_the_official_outputs(project, parity_root):
    case = Case(parity_root, "detr3d_r101_gridmask", "detr3d_r101_gridmask.eval")
    model = filled(project, "detr3d/r101", {}, case)
    with torch.no_grad():
        out = model.detect(case.images(1), [case.sample([case.meta(1, np.zeros(18))])])
    close(out.logits, case.arrays["f1_all_cls_scores"], 2e-4)
    close(out.code, case.arrays["f1_all_bbox_preds"], 2e-4)
    close(out.references[-1], case.arrays["f1_dec5_reference_points"], 1e-5)
    check_decoded(model, out, case.arrays, "f1")


@pytest.mark.parametrize(("config", "keys", "old"), LOSSES)
def test_losses_matches_and_gradients_are_the_official_ones(project, parity_root, config, keys, old, monkeypatch):
    from pipeline.models import matching

    case = Case(parity_root, keys, f"{keys}.loss")
    want, model = case.arrays, filled(project, config, {}, case)
    without_dropout(model)
    model.train()
    sample = case.training_sample(old)
    matched = []
    original = matching.match

    def recorded(*args: Any) -> object:
        matched.append(original(*args))
        return matched[-1]

    monkeypatch.setattr(matching, "match", recorded)
    losses = model.loss({"img": case.images(len(sample.frames))}, [sample])
    for name, value in zip(want["loss_names"], want["loss_values"], strict=True):
        assert losses[str(name)].item() == pytest.approx(float(value), rel=1e-5), name
    for (query, gt), official in zip(matched[0], want["match_query_gt"], strict=True):
        assert sorted(zip(query.tolist(), gt.tolist(), strict=True)) == sorted(map(tuple, official.tolist()))
    sum(losses.values()).backward()
    norms = {name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None}
    largest = float(want["grad_l2"].max())
    for name, value in zip(want["grad_names"], want["grad_l2"], strict=True):
        assert norms[str(name)] == pytest.approx(float(value), rel=5e-3, abs=1e-6 * largest), name


@pytest.mark.parametrize(("config", "keys", "old"), LOSSES)
def test_training_steps_are_the_official_ones(project, parity_root, config, keys, old):
    """Optimiser, its groups and clipping, at the official learning rates."""
    if not (parity_root / f"{keys}.train.npz").exists():
        pytest.skip(f"no {keys}.train.npz in the parity data")
    case, want = Case(parity_root, keys, f"{keys}.loss"), np.load(parity_root / f"{keys}.train.npz")
    cfg, model = load_config(project / "configs" / f"{config}.py"), filled(project, config, {}, case)
    without_dropout(model)
    model.train()
    optimiser = build_optim_wrapper(model, cfg.optim_wrapper)
    multiples = [group["lr"] / cfg.optim_wrapper.optimizer.lr for group in optimiser.param_groups]
    assert set(multiples) == {1.0, 0.1}
    parameters = {str(name): model.get_parameter(str(name)) for name in want["param_names"]}
    assert parameters.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert norms(parameters.values()) == pytest.approx(want["initial_l2"], rel=1e-5)
    sample = case.training_sample(old)
    images = case.images(len(sample.frames))
    for step, official in enumerate(want["loss_values"]):
        # Adam's first steps go by the signs of gradients, so what rounding does grows from step to step
        limit, each = (1e-5, 5e-3) if step == 0 else (1e-3, 5e-2)
        for group, multiple in zip(optimiser.param_groups, multiples, strict=True):
            group["lr"] = want["lr_rest_backbone"][step, 0 if multiple == 1.0 else 1]
        losses = model.loss({"img": images.clone()}, [sample])
        losses["loss"] = sum(losses.values())
        terms = dict(zip(want["loss_names"].tolist(), official, strict=True))
        assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(terms, rel=limit)
        before = {name: p.detach().clone() for name, p in parameters.items()}
        optimiser.zero_grad()
        losses["loss"].backward()
        assert np.linalg.norm(norms(p.grad for p in parameters.values())) == pytest.approx(
            want["grad_norm"][step], rel=10 * limit
        )
        optimiser.step()
        if step == 0:  # single small gradients drift by 6 % in four steps
            clipped = norms(p.grad for p in parameters.values())
            assert clipped == pytest.approx(want["param_grad_l2_clipped"][0], rel=each, abs=1e-6)
        changes = norms(p.detach() - before[name] for name, p in parameters.items())
        assert changes == pytest.approx(want["param_change_l2"][step], rel=each)
        assert norms(parameters.values()) == pytest.approx(want["param_l2"][step], rel=each / 50)
    assert step == 3


def norms(tensors: Iterable[torch.Tensor | None]) -> np.ndarray:
    """L2 norms; None is no value."""
    return np.array([np.nan if tensor is None else tensor.detach().double().norm().item() for tensor in tensors])
