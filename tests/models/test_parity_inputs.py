"""What the parity data's cases begin with: weights, projections, ego motion, points that cameras see."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data import CAMERAS, CLASSES
from pipeline.data.geometry import can_bus_delta, lidar2img
from pipeline.models.bevformer.grid import grid_points, project_pillars
from tests.models.parity import filled_entry

SCALES = ["reduced_bev50", "reduced_bev100", "reduced_bev200", "full_bev200", "fd3d_full_bev100"]


@pytest.fixture(scope="module")
def geometry(parity_root: Path) -> dict:
    return json.loads((parity_root / "geometry.json").read_text())


def test_weights_of_every_model_are_filled_as_the_official_ones(parity_root):
    files = sorted(parity_root.glob("*.fillcheck.json"))
    assert len(files) >= 9
    for path in files:
        model = json.loads((parity_root / path.name.replace("fillcheck", "keys")).read_text())
        sums = json.loads(path.read_text())
        assert sums.keys() == {key for key, _, _ in model["keys"]}
        # large entries take long, and their values follow the same rule
        small = [(key, shape) for key, shape, kind in model["keys"] if "int" not in kind and np.prod(shape) < 20_000]
        for key, shape in small:
            if not key.endswith("code_weights"):
                value = filled_entry(key, tuple(shape), model["stem_gain"]).double()
                assert [value.sum().item(), value.square().sum().item()] == pytest.approx(
                    sums[key][1:], rel=1e-5, abs=1e-5
                )


def test_cameras_classes_projections_and_motion_are_the_official_ones(geometry):
    assert list(CAMERAS) == geometry["camera_order"] and list(CLASSES) == geometry["gt_classes"]
    intrinsics = np.array(geometry["cam_intrinsic_4x4"])[:, :3, :3]
    official = np.array(geometry["lidar2img_4x4"])
    lidar2cam = np.array(geometry["lidar2cam_4x4"])
    np.testing.assert_allclose(lidar2img(intrinsics, lidar2cam), official, rtol=1e-9, atol=1e-6)
    scaled = np.diag([0.26, 0.26, 1, 1]) @ official
    np.testing.assert_allclose(lidar2img(intrinsics, lidar2cam, 0.26), scaled, rtol=1e-9, atol=1e-6)
    first, second = (np.array(geometry[f"frame{n}_can_bus_absolute"]) for n in (1, 2))
    motion, told = can_bus_delta(second, first), geometry["frame2_minus_frame1"]
    np.testing.assert_allclose(motion[:3], told["translation_global_m"], atol=1e-6)
    assert motion[-1] == pytest.approx(told["yaw_deg"]) and motion[-2] == second[-2]


@pytest.mark.parametrize("name", SCALES)
def test_cameras_see_the_official_points(parity_root, geometry, name):
    want = json.loads((parity_root / "border_points.json").read_text())[name]
    matrices = np.diag([want["scale"], want["scale"], 1, 1]) @ np.array(geometry["lidar2img_4x4"])
    heights = torch.tensor([0.5, 0.5 + 7 / 3, 0.5 + 14 / 3, 7.5]) / 8  # four in 8 m, half a metre from the ends
    _, mask = project_pillars(
        grid_points(want["bev"], want["bev"], torch.device("cpu")),
        heights,
        torch.tensor([-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]),
        torch.from_numpy(matrices).float()[None],
        tuple(want["img_shape"]),
    )
    seen, points = mask[0].any(-1).sum(-1).numpy(), mask[0].sum((-1, -2)).numpy()
    # points within 1e-5 of an image's border may fall on either side
    near = np.bincount([point["cam"] for point in want["points_within_1e5_of_border"]], minlength=6)
    assert (np.abs(points - want["mask_count_float64"]) <= near).all()
    assert (np.abs(seen - want["cells_hit_float64"]) <= near).all()
