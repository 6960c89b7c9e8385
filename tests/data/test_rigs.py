"""Other rigs than nuScenes': numbers, names and sizes of cameras, and frames of reference."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmdet3d.registry import DATASETS
from pyquaternion import Quaternion

from pipeline.data.dataset import FrameDataset
from pipeline.data.frames import collate, frame_dataset
from pipeline.data.geometry import can_bus_delta, lidar2img
from pipeline.data.index import build_index
from pipeline.data.rig import Rig
from pipeline.data.source import FrameSource
from pipeline.data.transforms import LoadMultiViewImages, PackFrames
from pipeline.errors import FD3DError
from pipeline.focal.areas import project_boxes, pv_rectangles_to_cells
from pipeline.models.bevformer.grid import project_pillars
from pipeline.models.bevformer.transformer import ego_shift, rotate_bev
from pipeline.models.build import build_detector, load_config, write_config
from pipeline.models.detr3d.cross_attention import project_points
from pipeline.models.detr3d.queries import ImageHeatmapQueries
from pipeline.models.views import own_cells, view_sizes

VERSION = "v1.0-world"
LANDSCAPE, PORTRAIT = (64, 96), (96, 64)
ODD = [(65, 97)] * 5  # whose halves are no whole numbers
MIXED = [(99, 65), (65, 97), (63, 97)]
pytestmark = pytest.mark.filterwarnings("ignore:.*image files of")


AHEAD = {"x": 0.0, "y": -90.0}


def another_rig(world: Path, root: Path, sizes: list[tuple[int, int]], lidar: str | float | None) -> Path:
    """The tiny world's tables with cameras ring_0, ring_1, ... of sizes (rows, columns), and a LiDAR whose axis ``x`` or ``y`` looks
    ahead, or whose x axis looks that many degrees to the left of ahead, or none."""
    shutil.copytree(world / VERSION, root / VERSION)
    (root / "can_bus").symlink_to(world / "can_bus")
    tables: dict[str, Any] = {
        n: json.loads((root / VERSION / f"{n}.json").read_text())
        for n in ("sensor", "calibrated_sensor", "sample_data", "ego_pose")
    }
    sensors = {row["token"]: row["channel"] for row in tables["sensor"]}
    channel = {row["token"]: sensors[row["sensor_token"]] for row in tables["calibrated_sensor"]}
    kept = [row for row in tables["sensor"] if row["channel"] == "LIDAR_TOP" and lidar]
    mounts = [row for row in tables["calibrated_sensor"] if channel[row["token"]] == "LIDAR_TOP" and lidar]
    for row in mounts:
        heading = AHEAD[lidar] if isinstance(lidar, str) else lidar
        row["rotation"] = Quaternion(axis=(0, 0, 1), degrees=heading).elements.tolist()
    data = [row for row in tables["sample_data"] if channel[row["calibrated_sensor_token"]] == "LIDAR_TOP" and lidar]
    fronts = [row for row in tables["sample_data"] if channel[row["calibrated_sensor_token"]] == "CAM_FRONT"]
    poses = {row["token"]: row for row in tables["ego_pose"]}
    for i, (height, width) in enumerate(sizes):
        name, around = f"ring_{i}", Quaternion(axis=(0, 0, 1), degrees=360 * i / len(sizes))
        turn = around * Quaternion(0.5, -0.5, 0.5, -0.5) * Quaternion(axis=(1, 0, 0), degrees=3 * i)
        kept.append({"token": name, "channel": name, "modality": "camera"})
        mounts.append(
            {
                "token": f"mount {i}",
                "sensor_token": name,
                "translation": [1.0 - 0.2 * i, 0.1 * i, 1.5],
                "rotation": turn.elements.tolist(),
                "camera_intrinsic": [[50 + i, 0, width / 2], [0, 51 + i, height / 2], [0, 0, 1]],
            }
        )
        for n, row in enumerate(fronts):
            # the car drives on between the cameras' times
            x, y, z = poses[row["ego_pose_token"]]["translation"]
            driven = {"token": f"pose {i} {n}", "translation": [x + 0.2 * i, y - 0.1 * i, z]}
            tables["ego_pose"].append(poses[row["ego_pose_token"]] | driven)
            place: dict[str, Any] = {
                "token": f"{name} {n}",
                "calibrated_sensor_token": f"mount {i}",
                "filename": f"{name}_{n}.png",
            }
            place["ego_pose_token"] = driven["token"]
            data.append(row | place | {"height": height, "width": width})
    written = {"sensor": kept, "calibrated_sensor": mounts, "sample_data": data, "ego_pose": tables["ego_pose"]}
    for table, rows in written.items():
        (root / VERSION / f"{table}.json").write_text(json.dumps(rows))
    return root


def painted(root: Path, value: int = 200) -> Path:
    """The same root with a grey image for every row of a camera."""
    (root / "samples").mkdir(exist_ok=True)
    for row in json.loads((root / VERSION / "sample_data.json").read_text()):
        if row["filename"].endswith(".png"):
            cv2.imwrite(str(root / row["filename"]), np.full((row["height"], row["width"], 3), value, np.uint8))
    return root


def brute_force(root: Path, token: str, camera: str, reference: str, point: np.ndarray) -> tuple[np.ndarray, float]:
    """Pixel and depth of a point in the reference's frame, quaternion by quaternion from the tables."""
    tables: dict[str, dict[str, Any]] = {
        name: {row["token"]: row for row in json.loads((root / VERSION / f"{name}.json").read_text())}
        for name in ("sensor", "calibrated_sensor", "sample_data", "ego_pose")
    }

    def row_of(channel: str) -> tuple[dict, dict]:
        for row in tables["sample_data"].values():
            mount = tables["calibrated_sensor"][row["calibrated_sensor_token"]]
            if row["sample_token"] == token and tables["sensor"][mount["sensor_token"]]["channel"] == channel:
                return mount, tables["ego_pose"][row["ego_pose_token"]]
        raise KeyError(channel)

    if reference == "ego":
        _, pose = row_of("ring_0")
    else:
        mount, pose = row_of(reference)
        point = Quaternion(mount["rotation"]).rotate(point) + mount["translation"]
    point = Quaternion(pose["rotation"]).rotate(point) + pose["translation"]
    mount, pose = row_of(camera)
    for frame in (pose, mount):
        point = Quaternion(frame["rotation"]).inverse.rotate(point - frame["translation"])
    pixel = np.array(mount["camera_intrinsic"]) @ point
    return pixel[:2] / pixel[2], point[2]


@pytest.mark.parametrize("lidar", ["x", "y", None])
@pytest.mark.parametrize(
    "sizes", [[LANDSCAPE] * v for v in (1, 5, 6, 7, 8)] + [[PORTRAIT, *[LANDSCAPE] * 4], ODD, MIXED], ids=str
)
def test_projections_are_those_of_brute_force(world: Path, tmp_path: Path, sizes: list, lidar: str | None) -> None:
    root = painted(another_rig(world, tmp_path / "own", sizes, lidar))
    index = build_index(root, VERSION, root / "index.npz")
    assert index.cameras == tuple(f"ring_{i}" for i in range(len(sizes)))
    frame = index[1]
    assert frame.image_sizes.tolist() == [list(size) for size in sizes]
    # what a detector gets: images of half the size, padded
    steps: list[Any] = [LoadMultiViewImages(scale=0.5), PackFrames()]
    item = FrameDataset(root / "index.npz", root, "all", steps, test_mode=True)[1]
    (meta,) = item["data_samples"].frames
    padded = item["inputs"]["img"].shape[-2:]
    in_model = torch.from_numpy(meta["lidar2img"])[None]
    own = view_sizes([meta], torch.device("cpu"))
    # the same in float64, for areas
    half = np.array([round(side / 2) / side for side in np.max(sizes, axis=0).tolist()])[::-1]
    exact = torch.from_numpy(lidar2img(frame.intrinsics, frame.lidar2cam, half))
    torch.testing.assert_close(in_model[0], exact.float())
    points = np.random.default_rng(0).uniform((-20, -20, -2), (20, 20, 2), (20, 3))
    extent = torch.tensor([-20.0, -20, -2, 20, 20, 2])
    uv, visible = project_points(torch.from_numpy(points)[None].float(), in_model, padded, own)
    seen = 0
    for n, point in enumerate(points):
        unit = (torch.from_numpy(point).float() - extent[:3]) / (extent[3:] - extent[:3])
        pillar, hit = project_pillars(unit[None, :2], unit[2:], extent, in_model, padded, own)
        box = torch.tensor([[*point, 1e-7, 1e-7, 1e-7, 0, 0, 0]], dtype=torch.float64)
        rectangles, valid = project_boxes(box, exact, padded if own is None else own[0].numpy())
        for v, (camera, (rows, columns)) in enumerate(zip(index.cameras, sizes, strict=True)):
            pixel, depth = brute_force(root, frame.token, camera, "LIDAR_TOP" if lidar else "ego", point)
            inside = bool(depth > 0.1 and (pixel > 0).all() and (pixel < (columns, rows)).all())
            assert visible[0, v, n] == hit[0, v, 0, 0] == valid[0, v] == inside
            if inside:
                u, w, z = exact[v, :3, :3].numpy() @ point + exact[v, :3, 3].numpy()
                for found in (
                    (u / z, w / z),
                    uv[0, v, n].numpy() * padded[::-1],  # DETR3D's references
                    pillar[0, v, 0, 0].numpy() * padded[::-1],  # BEVFormer's
                    rectangles[0, v, :2].numpy(),
                    rectangles[0, v, 2:].numpy(),
                ):
                    np.testing.assert_allclose(found, half * pixel, atol=1e-4)
                seen += 1
    assert seen > 3


@pytest.mark.parametrize("lidar", ["x", "y", None, -80.5, -85.0, -93.0])
def test_history_lies_where_the_landmark_is(world: Path, tmp_path: Path, lidar: str | float | None) -> None:
    """A landmark in the BEV map of the frame before, turned and shifted as BEVFormer does, against its place by the tables."""
    root = another_rig(world, tmp_path / "own", [LANDSCAPE], lidar)
    read = lambda name: json.loads((root / VERSION / f"{name}.json").read_text())  # noqa: E731
    times = {row["token"]: row["timestamp"] for row in read("sample")}
    of = {row["ego_pose_token"]: times[row["sample_token"]] for row in read("sample_data")}
    poses, start = read("ego_pose"), min(times.values())
    for row in poses:  # a car in a bend, 7 m and 15 degrees a frame, which looks elsewhere than along the global axes
        step = 2e-6 * (of.get(row["token"], start) - start)
        row["translation"], row["rotation"] = (
            [6 * step, -4 * step, 0],
            Quaternion(axis=(0, 0, 1), degrees=70 + 15 * step).elements.tolist(),
        )
    (root / VERSION / "ego_pose.json").write_text(json.dumps(poses))
    (root / VERSION / "sample_annotation.json").write_text("[]")  # whose boxes would be far from this car
    (root / "can_bus").unlink()
    with pytest.warns(UserWarning, match="no CAN bus"):
        index = build_index(root, VERSION, root / "index.npz")
    before, after = (index[row] for row in next(iter(index.scenes.values()))[:2])
    state = torch.from_numpy(can_bus_delta(after.can_bus, before.can_bus))[None].float()
    grid, extent = 160, torch.tensor([-40.0, -40, -3, 40, 40, 5])
    to_now = np.linalg.inv(after.ego2global @ after.lidar2ego) @ before.ego2global @ before.lidar2ego
    for place in ((6.0, 3.0), (-8.0, 12.0), (15.0, -9.0)):
        cells = (torch.arange(grid) + 0.5) / 2 - 40
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        peak = torch.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2))[None, None]
        turned = rotate_bev(peak, state[:, -1], None, "bilinear")[0, 0]
        found = torch.stack([(turned * x).sum(), (turned * y).sum()]) / turned.sum() - ego_shift(state, extent)[0] * 80
        want = (to_now @ [*place, 0, 1])[:2]
        assert np.linalg.norm(want - place) > 2
        np.testing.assert_allclose(
            found, want, atol=0.35
        )  # the lever arm of the LiDAR in a bend is BEVFormer's own error


def test_a_rectangle_ends_where_the_cameras_own_image_ends(world: Path, tmp_path: Path) -> None:
    root = another_rig(world, tmp_path / "own", [LANDSCAPE, PORTRAIT], None)
    frame = build_index(root, VERSION, root / "index.npz")[0]
    matrices = torch.from_numpy(lidar2img(frame.intrinsics, frame.lidar2cam)).float()
    wall = torch.tensor([[5.0, 0, 0, 0.1, 60, 60, 0, 0, 0], [-5.0, 0, 0, 0.1, 60, 60, 0, 0, 0]])
    rectangles, valid = project_boxes(wall, matrices, frame.image_sizes)
    assert valid.tolist() == [[True, False], [False, True]]
    assert rectangles[0, 0].tolist() == [0, 0, 96, 64] and rectangles[1, 1].tolist() == [0, 0, 64, 96]


def test_sensors_that_are_not_there_are_named(world: Path, tmp_path: Path) -> None:
    root = another_rig(world, tmp_path / "own", [LANDSCAPE] * 2, "y")
    for rig, message in (
        (Rig(cameras=("ring_1", "CAM_FRONT")), "data.cameras names CAM_FRONT, which .* it has ring_0, ring_1"),
        (Rig(cameras=("ring_1", "ring_1")), "name 1 to 12, each once"),
        (Rig(reference="top"), "data.reference is top, which .* name one of LIDAR_TOP, ego"),
        (
            Rig(reference="ring_0"),
            "data.reference is ring_0, a camera of .*, whose z axis looks ahead; .* one of LIDAR_TOP, ego",
        ),
    ):
        with pytest.raises(FD3DError, match=message):
            build_index(root, VERSION, root / "index.npz", rig=rig)
    index = build_index(root, VERSION, root / "index.npz", rig=Rig(("ring_1",), "ego"))
    assert index.cameras == ("ring_1",) and (index.arrays["lidar2ego"] == np.eye(4)).all()


def test_smaller_images_are_padded_and_the_padding_is_blank(world: Path, tmp_path: Path, project: Path) -> None:
    root = another_rig(world, tmp_path / "own", [PORTRAIT, *[LANDSCAPE] * 4], None)
    build_index(painted(root), VERSION, root / "index.npz")
    source = FrameSource(root / "index.npz", root, "world_train")
    cfg = load_config(project / "configs/world/five_apprentice.py")  # half the images' size
    item = DATASETS.build(frame_dataset(cfg, source, train=False))[0]
    batch = build_detector(cfg).data_preprocessor(collate([item]))
    img, (meta,) = batch["inputs"]["img"][0, 0], batch["data_samples"][0].frames
    assert img.shape[-2:] == meta["pad_hw"] == (48, 48)
    assert meta["view_hw"].tolist() == [[48, 32], *[[32, 48]] * 4]
    assert (img[0, :, :, :32] != 0).all() and (img[0, :, :, 32:] == 0).all()
    assert (img[1:, :, :32] != 0).all() and (img[1:, :, 32:] == 0).all()


IMAGE = (64, 64)  # padded
VIEWS = torch.tensor([[[64.0, 32.0], [32.0, 64.0]]])


def looking_ahead() -> torch.Tensor:
    """Two cameras (1, 2, 4, 4) along x with the optical centre at pixel (16, 16)."""
    matrix = torch.tensor([[16.0, -32, 0, 0], [16, 0, -32, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    return matrix.expand(1, 2, 4, 4)


@pytest.mark.parametrize(
    ("point", "seen"),
    [
        ([4.0, 1.0, 0.0], [True, True]),  # pixel (8, 16)
        ([4.0, -4.0, 0.0], [False, True]),  # pixel (48, 16), right of the portrait image
        ([4.0, 0.0, -4.0], [True, False]),  # pixel (16, 48), below the landscape image
        ([4.0, -4.0, -4.0], [False, False]),  # pixel (48, 48), in no image
        ([4.0, 3.0, 0.0], [False, False]),  # pixel (-8, 16)
    ],
)
def test_no_point_is_projected_into_padding(point: list[float], seen: list[bool]) -> None:
    uv, mask = project_points(torch.tensor([[point]]), looking_ahead(), IMAGE, VIEWS)
    assert mask[0, :, 0].tolist() == seen
    torch.testing.assert_close(uv[0, 0, 0], torch.tensor([16 - 8 * point[1], 16 - 8 * point[2]]) / 64)
    # BEVFormer's pillars: one cell, the point as its only height
    low, high = torch.tensor(point) - 1, torch.tensor(point) + 1
    half = torch.tensor([[0.5, 0.5]])
    _, pillar = project_pillars(half, half[0, :1], torch.cat([low, high]), looking_ahead(), IMAGE, VIEWS)
    assert pillar[0, :, 0, 0].tolist() == seen


def test_areas_and_proposals_end_with_the_cameras_own_image() -> None:
    rectangles = torch.tensor([[[20.0, 0, 32, 64], [0, 20.0, 64, 32]]])  # up to the border of each image
    valid = torch.ones(1, 2, dtype=torch.bool)
    (cells,) = pv_rectangles_to_cells(rectangles, valid, (8, 8), IMAGE, 0.5, VIEWS[0].numpy())
    assert cells[0, :, :4].any() and not cells[0, :, 4:].any()  # the margin would reach into the padding
    assert cells[1, :4].any() and not cells[1, 4:].any()
    own = own_cells(VIEWS, (8, 8), IMAGE)[0]
    assert own.sum((1, 2)).tolist() == [32, 32] and own[0, :, :4].all() and own[1, :4].all()
    torch.manual_seed(0)
    heatmap = ImageHeatmapQueries(48, [-40.0, -40, -5, 40, 40, 3], embed_dims=8)
    heatmap.init_weights()
    found = heatmap(torch.randn(1, 2, 8, 8, 8), looking_ahead() + torch.eye(4), IMAGE, VIEWS)
    inside = found.heatmap.amax(2)[0] > -10
    assert torch.equal(inside, own)


@pytest.mark.parametrize("config", ["expert", "detr3d_expert"])
def test_a_detector_refuses_another_number_of_cameras(config: str, project: Path) -> None:
    head = build_detector(load_config(project / f"configs/world/{config}.py")).pts_bbox_head
    levels, cameras = [torch.zeros(1, 5, 64, 2, 2)] * 3, torch.eye(4).expand(1, 5, 4, 4)
    given = (torch.zeros(1, 18), None, torch.zeros(1, dtype=torch.bool))
    with pytest.raises(
        FD3DError, match="weights for 6 cameras, the data 5; set num_cams=5 .* or name the detector's 6"
    ):
        head.encode(levels, cameras, IMAGE, *given) if config == "expert" else head(levels, cameras, IMAGE)


@pytest.mark.parametrize("place", ["pts_bbox_head", "pts_bbox_head.transformer.encoder"])
def test_a_config_of_two_ranges_is_refused(place: str, project: Path, tmp_path: Path) -> None:
    cfg = load_config(project / "configs/world/expert.py")
    part = cfg.model
    for name in place.split("."):
        part = part[name]
    cfg.model.pts_bbox_head.bbox_coder = {"pc_range": cfg.pc_range[:2]}  # as of mmdet3d's centre heads
    write_config(cfg, tmp_path / "one.py")
    load_config(tmp_path / "one.py")
    part.pc_range = [-30.0, -30.0, -5.0, 30.0, 30.0, 3.0]
    write_config(cfg, tmp_path / "two.py")
    with pytest.raises(FD3DError, match=rf"has pc_range .*-40.*, but .*-30.* in model.{place}; give the same range"):
        load_config(tmp_path / "two.py")
