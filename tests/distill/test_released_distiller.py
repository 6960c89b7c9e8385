"""The heatmap method against the distiller that FD3D's authors released, run around fixed maps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pipeline.distill import whole_map
from pipeline.distill.base import StudentOutputs
from pipeline.distill.generators import RestoreBEV
from pipeline.distill.methods.heatmap import HeatmapDistiller, object_gaussians
from pipeline.distill.settings import HeatmapSettings
from tests.models.parity import fill

LEVELS = [(16, 26), (8, 13), (4, 7), (2, 4)]
RANGE = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]


@pytest.fixture(scope="module")
def official(parity_root: Path) -> np.lib.npyio.NpzFile:
    return np.load(parity_root / "heatmap_distiller.npz")


def fixed(official: np.lib.npyio.NpzFile, offset: int, shape: tuple[int, ...]) -> Tensor:
    base, gain = official["one_seeds_gain"]
    return torch.from_numpy(
        np.float32(np.random.RandomState(int(base) + offset).standard_normal(shape) * gain)
    ).requires_grad_(20 <= offset < 30 or offset == 40)


def distiller(official: np.lib.npyio.NpzFile, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The method's losses without a student and a store."""
    model: Any = HeatmapDistiller.__new__(HeatmapDistiller)
    nn.Module.__init__(model)
    model.settings, model.manifest, model.schema = HeatmapSettings(), {"coordinates": {"pc_range": RANGE}}, None
    model.levels = tuple(range(len(LEVELS)))
    model.align = nn.ModuleDict({name: nn.Identity() for name in ("pv_0", "pv_1", "pv_2", "pv_3", "bev")})
    model.restore = RestoreBEV(256, (100, 100), (200, 200))
    named = nn.Module()  # as the release names the layers, since their values follow from the names
    named.bev_restore_layers = nn.Sequential(*model.restore.upsample, model.restore.conv)
    assert list(named.state_dict()) == official["restore_keys"].tolist()
    fill(named, 1.0)
    expert = [fixed(official, 10 + level, (6, 256, *hw)) for level, hw in enumerate(LEVELS)]
    bev = fixed(official, 30, (1, 40000, 256)).transpose(1, 2).unflatten(-1, (200, 200))
    monkeypatch.setattr(whole_map, "dense_pv", lambda frame, schema, level, device: (expert[level], None))
    monkeypatch.setattr(whole_map, "dense_bev", lambda frame, schema, device: (bev[0], None))
    return model


def test_losses_and_gradients_are_the_released_ones(official, monkeypatch):
    model = distiller(official, monkeypatch)
    pv = [fixed(official, 20 + level, (6, 256, *hw)) for level, hw in enumerate(LEVELS)]
    bev = fixed(official, 40, (1, 10000, 256))
    maps = bev.transpose(1, 2).unflatten(-1, (100, 100))
    boxes = LiDARInstance3DBoxes(torch.from_numpy(official["one_gt_gravity_old"]), 9, origin=(0.5, 0.5, 0.5))
    truth = InstanceData(bboxes_3d=boxes, labels_3d=torch.zeros(len(boxes)))
    sample = Det3DDataSample(metainfo={"frames": [{}]}, gt_instances_3d=truth)
    seen: dict[str, Tensor] = {}
    model.restore.register_forward_hook(lambda _, args, output: seen.update(restored=output))
    # the sum of the levels' terms is logged; each level alone here
    wanted = dict(zip(official["one_loss_names"].tolist(), official["one_loss_values"], strict=True))
    total = torch.zeros(())
    for level in range(len(LEVELS)):
        model.levels = (level,)
        loss = model.distillation_losses(StudentOutputs(pv, None, None), [{}], [sample])["loss_pv"]
        assert loss.item() == pytest.approx(wanted[f"loss_cw_fpn_{level}"], rel=1e-5)
        total = total + loss
    model.levels = (0, 1, 2, 3)
    losses = model.distillation_losses(StudentOutputs(pv, maps, None), [{}], [sample])
    assert losses["loss_pv"].item() == pytest.approx(total.item(), rel=1e-6)
    assert losses["loss_bev"].item() == pytest.approx(wanted["loss_l2_bev"], rel=1e-5)
    sum(losses.values()).backward()
    for level, features in enumerate(pv):
        close(features.grad.double().norm(), official[f"one_grad_pv{level}_l2"])
        close(features.grad[:, ::64, ::2, ::2], official[f"one_grad_pv{level}_slice"])
    close(bev.grad.double().norm(), official["one_grad_bev_l2"])
    close(bev.grad.unflatten(1, (100, 100))[:, ::5, ::5, ::64], official["one_grad_bev_slice"])
    close(seen["restored"].detach()[:, ::32, ::10, ::10], official["one_restored_slice"])
    layers = [*model.restore.upsample, model.restore.conv]
    for name, norm in zip(official["one_restore_grad_names"], official["one_restore_grad_l2"], strict=True):
        _, number, leaf = str(name).split(".")
        close(layers[int(number)].get_parameter(leaf).grad.double().norm(), norm)
    close(torch.stack([layers[1].running_mean, layers[1].running_var]), official["one_bn_after"])


def close(got: Tensor, want: np.ndarray) -> None:
    """Equal within 1e-4 of the largest value."""
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_gaussians_are_the_released_ones(official):
    drawn = object_gaussians(torch.from_numpy(official["one_gt_gravity_old"]), RANGE, HeatmapSettings())
    np.testing.assert_allclose(drawn.numpy(), official["one_heatmap_128"][0, 0], atol=1e-6)
