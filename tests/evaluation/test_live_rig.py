"""Live frames of another rig than the detector's are refused alike, whether a checkpoint or an ONNX file tells the rig."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data import CAMERAS
from pipeline.data.geometry import transform
from pipeline.data.index import FrameIndex, build_index
from pipeline.data.rig import Rig
from pipeline.data.world.config import WorldConfig
from pipeline.data.world.generate import generate_world
from pipeline.errors import FD3DError
from pipeline.evaluation.early import check_detection
from pipeline.evaluation.live import Calibration, Detector
from pipeline.evaluation.live_rig import DetectorRig, ExportedRig, TrainedRig
from pipeline.evaluation.scene import detect_scene, live_frame
from pipeline.export.notes import Notes
from pipeline.models.build import load_config
from pipeline.profile import read_profile

SIZES = ((160, 288),) * 5 + ((80, 144),)


@pytest.fixture
def checkpoint(expert_checkpoint: Path, tmp_path: Path) -> Path:
    """The shipped expert's, as if it had been trained with a smaller sixth camera."""
    content = torch.load(expert_checkpoint, weights_only=True)
    content["training"]["image_sizes"] = [list(size) for size in SIZES]
    content["training"]["lidar_turn"] = 0.0
    torch.save(content, tmp_path / "detector.pth")
    return tmp_path / "detector.pth"


@pytest.fixture
def rigs(checkpoint: Path, expert_config: Path, world_index: Path) -> dict[str, DetectorRig]:
    cfg, index = load_config(expert_config), FrameIndex.load(world_index)
    pc_range = tuple(cfg.pc_range)
    notes = Notes("BEVFormer", SIZES, index.cameras, index.reference, 1.0, True, pc_range, (2500, 64), "0" * 64, 0.0)
    return {"trained": TrainedRig(cfg, checkpoint, 6), "exported": ExportedRig(notes, "student.onnx")}


def test_a_detector_runs_random_weights_only_when_asked_to(
    expert_config: Path, expert_checkpoint: Path, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        FD3DError, match=r"given to the detector: no weights; give a checkpoint .*, or random_weights=True"
    ):
        Detector.open(expert_config)
    for both in (dict(onnx="student.onnx"), dict(random_weights=True)):
        with pytest.raises(
            FD3DError, match="given to the detector: .*world_expert.pth and (student.onnx|random weights)"
        ):
            Detector.open(expert_config, expert_checkpoint, **both)
    with pytest.raises(FD3DError, match="given to the detector: no weights"):
        next(detect_scene(expert_config, None, world, "scene-2000", tmp_path))
    assert isinstance(Detector.open(expert_config, random_weights=True), Detector)


def test_images_of_other_sizes_are_refused_alike(rigs, expert_config: Path, world: Path, world_index: Path) -> None:
    index = FrameIndex.load(world_index)
    images, calibration, pose = live_frame(world, index[0])
    small = [*images[:5], images[5][::2, ::2].copy()]
    intrinsics = calibration.intrinsics * np.where(np.arange(6) == 5, 0.5, 1)[:, None, None]
    intrinsics[:, 2, 2] = 1
    given = replace(calibration, intrinsics=intrinsics)
    turned = Calibration(intrinsics[::-1].copy(), calibration.lidar2cam[::-1].copy(), calibration.lidar2ego)
    said: dict[str, list[str]] = {}
    for name, rig in rigs.items():
        detector = Detector(load_config(expert_config), lambda batch: ([], [], []), rig)
        said[name] = []
        wrong: Any
        for wrong in ((small[::-1], given), (small[::-1], turned), (images, given)):
            with pytest.raises(
                FD3DError, match="image [05] is .*, the detector was made for .*; give the images in"
            ) as caught:
                detector.step(wrong[0], wrong[1], pose)
            said[name].append(str(caught.value))
        detector.step(small, given, pose)
    assert said["trained"] == said["exported"]


def test_an_index_with_other_images_is_refused_and_another_rig_is_taken(rigs, world_index: Path) -> None:
    index = FrameIndex.load(world_index)
    same = ((160, 288),) * 6
    for rig, told in ((rigs["trained"], "detector.pth was trained with"), (rigs["exported"], "onnx was exported for")):
        rig.check(index.cameras, index.reference, SIZES, None)
        with pytest.raises(FD3DError, match=f"{told} images of 80x144 of CAM_BACK_RIGHT; the data have 160x288"):
            rig.check(index.cameras, index.reference, same, None)
    rigs["trained"].check([f"ring_{i}" for i in range(6)], index.reference, same, None)
    assert rigs["trained"].sizes == same


@pytest.mark.parametrize("name", ["trained", "exported"])
@pytest.mark.parametrize("reference", [None, ""])
def test_no_frame_of_reference_is_refused_alike(
    rigs, expert_config: Path, world_index: Path, name: str, reference: Any
) -> None:
    detector = Detector(load_config(expert_config), lambda batch: ([], [], []), rigs[name])
    cameras = FrameIndex.load(world_index).cameras
    with pytest.raises(
        FD3DError, match=f"^the frame of reference is {reference!r}; give 'ego', or the name of the sensor"
    ):
        detector.check_rig(cameras, reference)
    detector.check_rig(cameras, "LIDAR_TOP")
    with pytest.raises(FD3DError, match="boxes in the frame of LIDAR_TOP[,;] the data have ego; "):
        detector.check_rig(cameras, "ego")


def test_a_frame_of_reference_with_other_axes_is_refused_alike(
    rigs, expert_config: Path, world: Path, world_index: Path
) -> None:
    """A LiDAR that looks along x in place of y: matrices that fit each other, and boxes of a world turned by a quarter."""
    index = FrameIndex.load(world_index)
    images, calibration, pose = live_frame(world, index[0])
    small, intrinsics = [*images[:5], images[5][::2, ::2].copy()], calibration.intrinsics.copy()
    intrinsics[5, :2] /= 2
    quarter = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # x ahead, y left, to LIDAR_TOP's
    nearly = np.eye(4)
    nearly[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    pose = replace(pose, state=None)
    for rig in rigs.values():
        detector = Detector(load_config(expert_config), lambda batch: ([], [], []), rig)
        with pytest.raises(FD3DError, match="LIDAR_TOP turned by 0 degrees .*, the index's LIDAR_TOP is turned by 90;"):
            detector.check_rig(index.cameras, index.reference, SIZES, None, 90.0)
        detector.check_rig(index.cameras, index.reference, SIZES, None, 9.0)
        for turned, told in ((quarter, 90), (nearly, None)):
            given = Calibration(intrinsics, calibration.lidar2cam @ turned, calibration.lidar2ego @ turned)
            if told is None:
                detector.step(small, given, pose)
                continue
            with pytest.raises(
                FD3DError,
                match=f"^calibration.lidar2ego is of a frame turned by {told} degrees .* was trained in one turned by 0; give lidar2cam",
            ):
                detector.step(small, given, pose)
            rig.turn, known = None, rig.turn  # an older checkpoint or file
            detector.step(small, given, pose)
            detector.reset()
            rig.turn = known


def tables_of(root: Path, cameras: Sequence[str]) -> Path:
    """Tables with a scene and cameras, of which no index can be made."""
    sensors = [{"token": name, "channel": name, "modality": "camera"} for name in cameras]
    (root / "v1").mkdir(parents=True)
    for name, table in (("scene", [{"name": "one"}]), ("sensor", sensors), ("sample_data", [])):
        (root / f"v1/{name}.json").write_text(json.dumps(table))
    return root


def test_tables_of_another_number_of_cameras_are_refused_before_anything_is_loaded(
    expert_config: Path, tmp_path: Path
) -> None:
    root = tables_of(tmp_path / "five", [f"ring_{i}" for i in range(5)])
    told = (
        "has weights for 6 cameras, the data 5; .*; or name an index of .*five by --index, or its profile by --params$"
    )
    with pytest.raises(FD3DError, match=told):
        check_detection(expert_config, root, "one", tmp_path / "out", None, None, 4)
    check_detection(expert_config, tables_of(tmp_path / "six", CAMERAS), "one", tmp_path / "out", None, None, 4)


def test_tables_of_other_cameras_are_refused_before_an_index_is_made(
    rigs, expert_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tables_of(tmp_path / "ring", [f"ring_{i}" for i in range(6)])
    detector = Detector(load_config(expert_config), lambda batch: ([], [], []), rigs["exported"])
    monkeypatch.setattr(Detector, "open", lambda *given: detector)
    told = "student.onnx was exported for cameras CAM_FRONT, .*; the data have ring_0, .*; or name an index of"
    with pytest.raises(FD3DError, match=told):
        next(detect_scene(expert_config, None, root, "one", tmp_path / "out", onnx=Path("student.onnx")))


@pytest.mark.parametrize("odd", [5, [[1, 2]], ["ab"] * 6, [[1, 2, 3]] * 6])
def test_sizes_that_are_none_are_refused(odd: Any, checkpoint: Path, expert_config: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["training"]["image_sizes"] = odd
    torch.save(content, checkpoint)
    with pytest.raises(FD3DError, match="detector.pth has training.image_sizes .*; correct the note"):
        TrainedRig(load_config(expert_config), checkpoint, 6)
    content["training"]["image_sizes"] = None
    torch.save(content, checkpoint)
    assert TrainedRig(load_config(expert_config), checkpoint, 6).sizes is None


def test_a_car_without_a_lidar_gives_its_cameras_mounts(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The matrices that docs/export.md says, those of the camera that frames have the time of."""
    monkeypatch.chdir(project)
    data = read_profile(project / "configs/profiles/five.yaml").data
    generate_world(tmp_path, WorldConfig(train_scenes=1, val_scenes=1, frames_per_scene=2, rig="five"), workers=0)
    rig = Rig(data.cameras, data.reference)
    index = build_index(tmp_path, data.version, tmp_path / "index.npz", data.classes, rig=rig)
    assert index.cameras == data.cameras and index.reference == data.reference == "ego"
    tables = {
        name: json.loads((tmp_path / data.version / f"{name}.json").read_text())
        for name in ("sensor", "calibrated_sensor")
    }
    (sensor,) = (row["token"] for row in tables["sensor"] if row["channel"] == index.cameras[0])
    row = next(row for row in tables["calibrated_sensor"] if row["sensor_token"] == sensor)
    mount = transform(row["translation"], row["rotation"])
    _, calibration, _ = live_frame(tmp_path, index[0])
    np.testing.assert_array_equal(calibration.lidar2ego, np.eye(4))
    np.testing.assert_allclose(calibration.lidar2cam[0], np.linalg.inv(mount), atol=1e-6)
    ahead = calibration.lidar2cam[0] @ np.array([10.0, 0, 1, 1])  # ten metres ahead of the car
    assert ahead[2] > 5 and abs(ahead[0]) < 1
