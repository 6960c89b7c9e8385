"""Exported detectors against PyTorch, and live frames."""

import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from pipeline.data.index import FrameIndex
from pipeline.data.npz import write_arrays
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.evaluation.differences import difference
from pipeline.evaluation.live import Boxes, Calibration, Detector, EgoPose
from pipeline.evaluation.predict import predict
from pipeline.evaluation.scene import detect_scene, live_frame
from pipeline.export import write
from pipeline.export.early import calibration_frames
from pipeline.export.graph import DetectorGraph
from pipeline.export.notes import KEY, Notes
from pipeline.export.rig import ImageRig, rig_of
from pipeline.export.runtime import ExportedDetector
from pipeline.export.standard import deform, unproject
from pipeline.models.build import build_detector, load_config
from pipeline.models.deform_conv import DeformConv2d
from pipeline.models.detr3d import queries
from pipeline.models.load import load_detector
from stages.cli import app
from tests.readme import section, with_paths

FAMILIES = {"bevformer": "expert", "detr3d": "detr3d_expert"}
SCALES = {"bevformer": 0.5, "detr3d": 1.0}
"""At half size the DETR3D's heatmap is flat, and rounding decides which of equal peaks become queries."""
EXPORT, DETECT = (words[1:] for words in section("Your own data, in four steps") if words[1] in ("export", "detect"))
"""The README's two lines."""
CONFIG, CHECKPOINT, FILE = EXPORT[1:4]
SHORT = """
_base_ = "{project}/configs/world/{name}.py"
image = dict(scale={scale})
model = dict(pts_bbox_head=dict(transformer=dict(decoder=dict(num_layers=2))))
"""
"""Two layers of the decoder, since an export takes seconds a layer."""


@pytest.fixture(scope="module")
def files(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Short config, and checkpoint of the shipped expert, by family."""
    folder, made = tmp_path_factory.mktemp("detectors"), {}
    for family, name in FAMILIES.items():
        config, checkpoint = folder / f"{name}.py", folder / f"{name}.pth"
        config.write_text(SHORT.format(project=project, name=name, scale=SCALES[family]))
        whole = torch.load(project / f"checkpoints/world_{name}.pth", weights_only=False)
        known = build_detector(load_config(config)).state_dict().keys()
        torch.save(whole | {"state_dict": {key: whole["state_dict"][key] for key in known}}, checkpoint)
        made[family] = config, checkpoint
    return made


class Exported(dict[str, tuple[Path, str]]):
    """File and what the README's line said, by family; a family is exported when a test first asks for its file."""

    def __init__(self, files: dict[str, tuple[Path, Path]], index: Path, folder: Path) -> None:
        self.files, self.index, self.folder = files, index, folder

    def __missing__(self, family: str) -> tuple[Path, str]:
        config, checkpoint = self.files[family]
        out = self.folder / f"{family}.onnx"
        line = with_paths(EXPORT, {CONFIG: config, CHECKPOINT: checkpoint, FILE: out})
        self[family] = out, fd3d(*line, "--index", self.index)
        return self[family]


@pytest.fixture(scope="module")
def exported(files, world_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(files, world_index, tmp_path_factory.mktemp("onnx"))


def fd3d(*arguments: object) -> str:
    """Output of a command that succeeds."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def rows(world_index: Path) -> list[list[int]]:
    """Three frames of a scene, and one of another."""
    first, second, *_ = FrameIndex.load(world_index).scenes.values()
    return [list(first), list(second)[:1]]


@pytest.fixture(scope="module")
def drives(world: Path, world_index: Path, rows) -> list[list[tuple[list[np.ndarray], Calibration, EgoPose]]]:
    """Arguments of ``step`` for these frames."""
    index = FrameIndex.load(world_index)
    return [[live_frame(world, index[row]) for row in scene] for scene in rows]


def driven(detector: Detector, drives) -> list[Boxes]:
    found = []
    for drive in drives:
        detector.reset()
        found += [detector.step(*given) for given in drive]
    return found


def gap(ours: Boxes, theirs: Boxes) -> float:
    """Largest difference of boxes and scores."""
    assert len(ours.boxes) > 20 and ours.scores[0] > ours.scores[-1] + 0.1
    return max(difference(ours, theirs))


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_of_onnx_runtime_are_pytorch_s(family, files, exported, drives):
    config, checkpoint = files[family]
    ours = driven(Detector.open(config, checkpoint), drives)
    theirs = driven(Detector.open(config, onnx=exported[family][0]), drives)
    gaps = [gap(one, other) for one, other in zip(ours, theirs, strict=True)]
    print(f"{family}: largest gap of {len(gaps)} frames {max(gaps):.1e}")
    assert max(gaps) < 1e-3


def test_history_goes_through_the_file(files, exported, drives):
    """Without it the second frame's boxes are others, in the file as in PyTorch."""
    config, checkpoint = files["bevformer"]
    for detector in (Detector.open(config, checkpoint), Detector.open(config, onnx=exported["bevformer"][0])):
        streamed = driven(detector, drives[:1])[1]
        alone = driven(detector, [drives[0][1:2]])[0]
        assert max(difference(streamed, alone)) > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_has_standard_operators_fixed_shapes_and_notes(family, files, exported):
    path, said = exported[family]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 18)} and not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    shapes = {
        value.name: [d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    wanted = {
        "images": [1, 6, 3, *((80, 144) if family == "bevformer" else (160, 288))],
        "lidar2img": [1, 6, 4, 4],
        "boxes": [1, 100, 9],
    }
    wanted |= dict.fromkeys(("scores", "labels", "kept"), [1, 100])
    if family == "bevformer":
        wanted |= {"ego_motion": [1, 18], "history": [1, 2500, 64], "has_history": [1], "bev": [1, 2500, 64]}
    assert shapes == wanted
    assert "6 cameras of 160x288" in said and "opset 18" in said
    assert ("history 2500x64 in and out" in said) == (family == "bevformer")


def test_detect_runs_the_file(files, exported, world, world_index, tmp_path):
    """The README's second line, and the same with the checkpoint."""
    assert DETECT[1] == CONFIG and FILE in DETECT
    config, checkpoint = files["bevformer"]
    scene = FrameIndex.load(world_index).splits["world_val"][0]
    paths = {CONFIG: config, DETECT[2]: world, FILE: exported["bevformer"][0], "SCENE": scene}
    options = ("--index", world_index, "--frames", 2, "--out")
    assert "bevformer.onnx" in fd3d(*with_paths(DETECT, paths), *options, tmp_path / "onnx")
    assert checkpoint.name in fd3d("detect", config, checkpoint, world, "--scene", scene, *options, tmp_path / "torch")
    ours, theirs = (
        json.loads((tmp_path / name / "submission.json").read_text())["results"] for name in ("torch", "onnx")
    )
    assert ours.keys() == theirs.keys() and len(ours) == 2
    for token, boxes in ours.items():
        assert [b["detection_score"] for b in boxes] == pytest.approx(
            [b["detection_score"] for b in theirs[token]], abs=1e-3
        )


def test_centres_that_are_no_numbers_reach_the_caller(exported, monkeypatch):
    detector = ExportedDetector(exported["bevformer"][0])
    boxes = np.zeros((1, 2, 9), np.float32)
    boxes[0, 1, 0] = np.nan
    outputs = [boxes, np.ones((1, 2), np.float32), np.zeros((1, 2), np.int64), np.zeros((1, 2), bool), np.zeros((1, 1))]
    monkeypatch.setattr(detector, "inputs", lambda *given: {})
    monkeypatch.setattr(detector, "_session", SimpleNamespace(run=lambda names, inputs: outputs))
    nothing = np.zeros(0)
    found, *_ = detector(nothing, nothing, nothing, False)
    assert len(found) == 1 and np.isnan(found[0, 0])


def test_a_file_is_for_the_cameras_that_it_was_exported_for(files, exported, world_index):
    detector = Detector.open(files["bevformer"][0], onnx=exported["bevformer"][0])
    index = FrameIndex.load(world_index)
    detector.check_rig(index.cameras, index.reference)
    sizes = index.arrays["image_sizes"][0].tolist()
    detector.check_rig(index.cameras, index.reference, sizes)
    other, narrow = ["left", *index.cameras[1:]], [*sizes[:4], [160, 200], sizes[5]]
    for given, told in (
        ((index.cameras[::-1], index.reference), "an order of cameras CAM_FRONT, .*; the data have CAM_BACK"),
        ((other, index.reference), "cameras CAM_FRONT, .*; the data have left, "),
        ((index.cameras[:2], index.reference), "cameras CAM_FRONT, .*; the data have CAM_FRONT, CAM_FRONT_RIGHT"),
        ((index.cameras, "ego"), "boxes in the frame of LIDAR_TOP; the data have ego"),
        ((index.cameras, index.reference, narrow), "images of 160x288 of CAM_BACK_LEFT; the data have 160x200"),
    ):
        with pytest.raises(
            FD3DError,
            match=f"onnx was exported for {told}.*trained for these with 'fd3d export --index'",
        ):
            detector.check_rig(*given)
    notes = ExportedDetector(exported["bevformer"][0]).notes
    assert notes.lidar_turn == rig_of(index).turn == 0.0  # the shipped checkpoint tells none
    with pytest.raises(FD3DError, match="onnx was exported for LIDAR_TOP turned by 0 degrees .* is turned by 90;"):
        detector.check_rig(index.cameras, index.reference, sizes, None, 90.0)
    nameless = replace(notes, cameras=(), reference=None)
    nameless.check_rig([f"ring_{i}" for i in range(6)], "ego", "x.onnx", sizes)
    with pytest.raises(FD3DError, match="x.onnx was exported for 6 cameras; the data have 1 .front.; give data"):
        nameless.check_rig(["front"], "ego", "x.onnx")
    older = json.loads(notes.dumped())
    del older["lidar_turn"]
    assert Notes.of({KEY: json.dumps(older | {"format": 2})}, "x.onnx") == replace(notes, lidar_turn=None)


def test_a_scene_of_other_images_is_refused_before_any_is_decoded(files, exported, world, world_index, tmp_path):
    index = FrameIndex.load(world_index)
    arrays = dict(index.arrays)
    arrays["image_sizes"] = arrays["image_sizes"] // 2
    with open(tmp_path / "half.npz", "wb") as file:
        write_arrays(file, arrays)
    place = dict(index=tmp_path / "half.npz", onnx=exported["bevformer"][0])
    scene = next(iter(index.scenes))
    with pytest.raises(FD3DError, match="images of 160x288 of CAM_FRONT; the data have 80x144; give data"):
        next(detect_scene(files["bevformer"][0], None, world, scene, tmp_path / "out", **place))


def test_live_frames_are_those_of_evaluation(files, drives, rows, world, world_index):
    """Boxes from arrays are those that ``predict`` reads from files, bit for bit."""
    cfg, checkpoint = load_config(files["bevformer"][0]), files["bevformer"][1]
    places = [row for scene in rows for row in scene]
    from_files = predict(cfg, load_detector(cfg, checkpoint), FrameSource(world_index, world, "all"), 0, places)
    live = driven(Detector.open(*files["bevformer"]), drives)
    for found, (_, *known) in zip(live, from_files, strict=True):
        for array, other in zip(found, known, strict=True):
            assert np.array_equal(array, other)


def test_images_keep_their_sizes_in_a_drive(files, drives):
    detector, (first, second) = Detector.open(*files["bevformer"]), drives[0][:2]
    detector.step(*first)
    half = [image[::2, ::2].copy() for image in second[0]]
    matrices = second[1].intrinsics * np.array([[0.5], [0.5], [1.0]])
    given = half, replace(second[1], intrinsics=matrices), second[2]
    with pytest.raises(
        FD3DError, match=r"image 0 is 80x144, in the last frame 160x288; call reset\(\) before another rig"
    ):
        detector.step(*given)
    detector.reset()
    detector.step(*given)


def test_a_camera_of_another_resolution_is_warned_of(files, drives):
    detector, (images, calibration, pose) = Detector.open(*files["bevformer"]), drives[0][0]
    other = swapped(calibration.intrinsics, 3, np.diag([2.0, 2, 1]) @ calibration.intrinsics[3])
    with pytest.warns(UserWarning, match="of camera 3 is at 1.00 of the columns .*; is the calibration of another"):
        detector.step(images, replace(calibration, intrinsics=other), pose)


def test_the_ego_state_follows_from_poses(drives, files, monkeypatch):
    """Position and yaw, which move the history, are those of the index; a speed is the way since the last frame."""
    detector, seen = Detector.open(*files["bevformer"]), []

    def record(batch):
        seen.append(batch["data_samples"][0].frames[-1])
        return [0, 0, 0]

    monkeypatch.setattr(detector, "_detect", record)
    for images, calibration, pose in drives[0]:
        detector.step(images, calibration, replace(pose, state=None))
    for (_, _, last), (_, _, pose), meta in zip(drives[0], drives[0][1:], seen[1:], strict=False):
        moved, motion = pose.state[:3] - last.state[:3], meta["can_bus"]
        assert meta["has_history"] and motion[:3] == pytest.approx(moved, abs=1e-5)
        assert motion[-2] == pytest.approx(pose.state[-2], abs=1e-5)
        assert motion[-1] == pytest.approx(pose.state[-1] - last.state[-1], abs=1e-4)
        assert np.abs(motion[3:7]) == pytest.approx(np.abs(pose.state[3:7]), abs=1e-5)
        seconds = (pose.timestamp - last.timestamp) / 1e6
        assert np.linalg.norm(motion[13:16]) == pytest.approx(np.linalg.norm(moved) / seconds, rel=1e-4)


def swapped(array: np.ndarray, number: int, matrix: np.ndarray) -> np.ndarray:
    """Matrices with another one in place of the n-th."""
    return np.stack([matrix if i == number else own for i, own in enumerate(array)])


def wrong_frames(
    images: list[np.ndarray], calibration: Calibration, pose: EgoPose
) -> Iterator[tuple[Any, Any, Any, str]]:
    """Arguments of ``step`` that cannot be, and the message."""
    cal, move = partial(replace, calibration), partial(replace, pose)
    nan = images[0].astype(np.float32) * np.nan
    wrong: Any
    for wrong, message in (
        (images[:5], "a frame has 5 images, the detector takes 6"),
        ([], "a frame has 0 images"),
        (None, "images are of type NoneType; give V arrays"),
        ([*images[:5], None], "image 5 is missing; give a frame only when every camera has an image"),
        ([nan, *images[1:]], r"image 0 is float32 \(160, 288, 3\); give \(H, W, 3\) uint8, RGB"),
        ([*images[:5], images[5][..., 0]], r"image 5 is uint8 \(160, 288\); give"),
        ([images[0].transpose(2, 0, 1), *images[1:]], r"image 0 is uint8 \(3, 160, 288\); give"),
        ([images[0].tolist(), *images[1:]], "image 0 is list; give"),
        (
            [image[::2, ::2] for image in images],
            "image 0 is 80x144, the detector was made for 160x288; give the images in",
        ),
        ([*images[:5], images[5][:100]], "image 5 is 100x288, the detector was made for 160x288"),
    ):
        yield wrong, calibration, pose, message
    k, cam = calibration.intrinsics, calibration.lidar2cam
    mirror = np.diag([1.0, 1, -1, 1])
    thousand = np.array([[1, 1, 1, 1000.0]] * 3 + [[1, 1, 1, 1]])
    for wrong, message in (
        (cal(intrinsics=k[:5]), r"calibration.intrinsics has shape \(5, 3, 3\)"),
        (cal(intrinsics=swapped(k, 2, k[2].T)), r"calibration.intrinsics\[2\] is no camera matrix; give \(\(fx"),
        (cal(intrinsics=k + 50 * np.eye(3)[[2, 0, 1]]), r"calibration.intrinsics\[0\] is no camera matrix"),
        (cal(intrinsics=np.diag([1 / 288, 1 / 160, 1]) @ k), r"calibration.intrinsics\[0\] is no camera matrix"),
        (
            cal(intrinsics=np.diag([4.0, 4, 1]) @ k),
            "principal point of camera 0 is at 2.00 of the columns .*these images",
        ),
        (
            cal(lidar2cam=np.linalg.inv(cam)),
            "of 6 cameras lie on their side.* by the calibration: camera [0-5] is .*; rotations",
        ),
        (
            cal(lidar2cam=cam * thousand),
            "camera 0 is .* m from the car's origin in the calibration; give translations in",
        ),
        (cal(lidar2ego=calibration.lidar2ego * thousand), "m from the car's origin in the calibration; give"),
        (cal(lidar2ego=np.diag([1.0, -1, -1, 1])), "reference frame's z axis in the calibration is 180 degrees off"),
        (cal(intrinsics=k * 0), r"calibration.intrinsics\[0\] is no camera matrix"),
        (cal(intrinsics=np.full_like(k, np.inf)), "calibration.intrinsics has .* not finite"),
        (cal(lidar2cam=None), r"calibration.lidar2cam has shape \(\) or"),
        (cal(lidar2cam=[[1, 2], [3]]), "calibration.lidar2cam is no array of numbers"),
        (cal(lidar2cam=cam[..., :3, :]), r"calibration.lidar2cam has shape \(6, 3, 4\)"),
        (cal(lidar2cam=swapped(cam, 3, cam[3].T)), r"calibration.lidar2cam\[3\] is no rigid motion; give a rotation"),
        (cal(lidar2cam=swapped(cam, 1, mirror @ cam[1])), r"calibration.lidar2cam\[1\] is no rigid motion"),
        (cal(lidar2ego=calibration.lidar2ego * 2), "calibration.lidar2ego is no rigid motion"),
    ):
        yield images, wrong, pose, message
    for wrong, message in (
        (move(ego2global=np.full((4, 4), np.nan)), "pose.ego2global has .* not finite"),
        (move(ego2global=pose.ego2global[:3]), r"pose.ego2global has shape \(3, 4\)"),
        (move(ego2global=pose.ego2global.T), "pose.ego2global is no rigid motion"),
        (move(timestamp=pose.timestamp / 1e6), "pose.timestamp is 1.* give microseconds as an integer"),
        (move(state=np.zeros(17)), r"pose.state has shape \(17,\)"),
        (move(timestamp=True), "pose.timestamp is True; give microseconds"),
        (move(ego2global=np.diag([1.0, -1, -1, 1])), "pose.ego2global tilts the car by 180 degrees; give a frame"),
        (move(state=pose.state + np.eye(18)[1] * 3), "pose.state is 3.0 m and 0 degrees from pose.ego2global; give"),
        (move(state=pose.state + np.eye(18)[16] * 0.5), "pose.state is 0.0 m and 29 degrees from pose.ego2global"),
        (move(state=pose.state + np.eye(18)[17] * 350), "pose.state is 0.0 m and 10 degrees from pose.ego2global"),
    ):
        yield images, calibration, wrong, message


def test_wrong_live_frames_are_refused_and_change_nothing(files, exported, drives):
    detector = Detector.open(files["bevformer"][0], onnx=exported["bevformer"][0])
    first, (images, calibration, pose) = drives[0][:2]
    want = driven(detector, [drives[0][:2]])[1]
    detector.reset()
    detector.step(*first)
    far = pose.ego2global.copy()
    far[:3, 3] += 500
    half_turn = pose.ego2global @ np.diag([-1.0, -1, 1, 1])
    later = (
        (
            images,
            calibration,
            replace(pose, timestamp=pose.timestamp + 10**8),
            "is 10[01] s after the last one, .*; give",
        ),
        (images, calibration, first[2], r"is not after the last one, .*; call reset\(\) before another drive"),
        (
            images,
            calibration,
            replace(pose, ego2global=far, state=None),
            "the car moved .* m in the 0.5 s since the last frame; give metres",
        ),
        (
            images,
            calibration,
            replace(pose, ego2global=half_turn, state=None),
            "the car turned by 1[78]. degrees in the 0.5 s since the last frame; give ego2global",
        ),
        (
            images,
            calibration,
            replace(pose, timestamp=first[2].timestamp + 500),
            "in the 0.0005 s since the last frame",
        ),
    )
    for *given, message in (*wrong_frames(images, calibration, pose), *later):
        with pytest.raises(FD3DError, match=message) as caught:
            detector.step(*given)
        assert "\n" not in str(caught.value)
    of_rig: Any
    for of_rig, of_car in ((None, pose), (calibration, pose.ego2global)):
        with pytest.raises(FD3DError, match="give a Calibration and an EgoPose"):
            detector.step(images, of_rig, of_car)
    # nested lists are as good as arrays, with the first frame as history
    calibration = replace(
        calibration, lidar2ego=calibration.lidar2ego.tolist(), intrinsics=list(calibration.intrinsics)
    )
    pose = pose if pose.state is None else replace(pose, state=pose.state.tolist())
    assert np.array_equal(detector.step(images, calibration, pose).boxes, want.boxes)


def test_a_file_of_another_origin_or_config_is_refused(project, files, exported, tmp_path):
    checkpoint = files["bevformer"][1]
    foreign = onnx.load(exported["bevformer"][0])
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    for path, message in (
        (tmp_path / "foreign.onnx", "foreign.onnx is no file of 'fd3d export'"),
        (checkpoint, "expert.pth cannot be run by ONNX Runtime"),
        (tmp_path / "nowhere.onnx", "nowhere.onnx does not exist; make it with 'fd3d export'"),
    ):
        with pytest.raises(FD3DError, match=message):
            ExportedDetector(path)
    with pytest.raises(FD3DError, match="exported with model.type BEVFormer, the config has DETR3D"):
        Detector.open(files["detr3d"][0], onnx=exported["bevformer"][0])
    with pytest.raises(FD3DError, match="exported with image.scale 0.5, the config has 1.0"):
        Detector.open(project / "configs/world/expert.py", onnx=exported["bevformer"][0])
    with pytest.raises(FD3DError, match="has format 9, this program reads 3; export the detector again"):
        Notes.of({KEY: '{"format": 9}'}, "old.onnx")


NOTES = {
    "format": 3,
    "detector": "DETR3D",
    "sizes": [[160, 288]] * 6,
    "cameras": list("abcdef"),
    "reference": "top",
    "scale": 1.0,
    "to_rgb": True,
    "pc_range": [-40.0, -40.0, -5.0, 40.0, 40.0, 3.0],
    "bev_shape": None,
    "checkpoint_sha256": "0" * 64,
    "lidar_turn": 0.0,
}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("lidar_turn", "-90", "'-90'; expected degrees"),
        ("lidar_turn", math.nan, "nan; expected degrees"),
        ("lidar_turn", True, "True; expected degrees"),
        ("sizes", [[160, 288.5]] * 6, r"\(.*288.5.*; expected rows and columns for each camera"),
        ("sizes", [[0, 0]] * 6, r".*; expected rows and columns for each camera"),
        ("sizes", [], r"\(\); expected rows and columns for each camera"),
        ("cameras", list("abcde"), r"\('a', .*; expected 6 names or none"),
        ("cameras", [1] * 6, r"\(1, .*; expected 6 names or none"),
        ("bev_shape", [2500], r"\(2500,\); expected cells and channels, or none"),
        ("bev_shape", "ab", r"\('a', 'b'\); expected cells and channels, or none"),
        ("scale", "1.0", "'1.0'; expected a number above 0"),
        ("scale", 0, "0; expected a number above 0"),
        ("pc_range", [], r"\(\); expected six numbers, metres"),
        ("pc_range", [math.inf] * 6, r"\(inf, .*; expected six numbers, metres"),
    ],
)
def test_a_note_that_no_export_writes_is_named(name: str, value: Any, told: str) -> None:
    assert json.loads(Notes.of({KEY: json.dumps(NOTES)}, "x.onnx").dumped()) == NOTES
    with pytest.raises(FD3DError, match=f"^x.onnx has the note {name} {told}; export the detector again$"):
        Notes.of({KEY: json.dumps(NOTES | {name: value})}, "x.onnx")


def test_a_note_on_the_bev_map_is_compared_with_the_graph(exported, tmp_path):
    model = onnx.load(exported["bevformer"][0])
    (given,) = (json.loads(one.value) for one in model.metadata_props if one.key == KEY)
    inputs = list(model.graph.input)
    for bev_shape, told in (([2500, 32], r"\(2500, 32\)"), (None, "None")):
        onnx.helper.set_model_props(model, {KEY: json.dumps(given | {"bev_shape": bev_shape})})
        onnx.save(model, tmp_path / "odd.onnx")
        with pytest.raises(FD3DError, match=rf"bev_shape {told}, but its graph takes one of \(1, 2500, 64\); export"):
            ExportedDetector(tmp_path / "odd.onnx")
    names = [one.name for one in inputs][:2]
    body = [onnx.helper.make_node("Identity", [one], [f"{one}_out"]) for one in names]
    outputs = [onnx.helper.make_tensor_value_info(f"{one}_out", onnx.TensorProto.FLOAT, None) for one in names]
    graph = onnx.helper.make_graph(body, "views", inputs[:2], outputs)  # as of a DETR3D
    bare = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    for bev_shape in ([2500, 64], None):
        onnx.helper.set_model_props(bare, {KEY: json.dumps(NOTES | {"bev_shape": bev_shape})})
        onnx.save(bare, tmp_path / "bare.onnx")
        if bev_shape is None:
            ExportedDetector(tmp_path / "bare.onnx")
            continue
        with pytest.raises(
            FD3DError, match=r"bare.onnx has the note bev_shape \(2500, 64\), but its graph takes no BEV map"
        ):
            ExportedDetector(tmp_path / "bare.onnx")


@pytest.fixture
def converted(exported, monkeypatch) -> list[str]:
    """``fd3d export`` with the BEVFormer's graph that is there already, in place of half a minute; what was converted."""
    done: list[str] = []

    def convert(graph: DetectorGraph, example: object) -> onnx.ModelProto:
        done.append(type(graph.model).__name__)
        return onnx.load(exported["bevformer"][0])

    monkeypatch.setattr(write, "_exported", convert)
    return done


def test_int8_convolutions_find_the_same_objects(files, exported, converted, drives, world, world_index, tmp_path):
    config, checkpoint = files["bevformer"]
    whole, path = exported["bevformer"][0], tmp_path / "int8.onnx"
    where = ("--index", world_index, "--root", world, "--split", "world_train")
    said = fd3d("export", config, checkpoint, path, "--int8", 4, *where)
    assert "int8.onnx: BEVFormer, 6 cameras of 160x288" in said and converted == ["BEVFormer"]
    nodes, before = (Counter(node.op_type for node in onnx.load(file).graph.node) for file in (path, whole))
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    assert nodes["Conv"] == before["Conv"] > 20 and nodes["QuantizeLinear"] > 20 and before["QuantizeLinear"] == 0
    assert path.stat().st_size < 0.8 * whole.stat().st_size
    ours, theirs = (driven(Detector.open(config, onnx=file), drives) for file in (whole, path))
    for one, other in zip(ours, theirs, strict=True):
        assert max(difference(one, other)) > 1e-3  # the convolutions did change
        best = one.scores > 0.3
        assert best.sum() > 3
        apart = np.linalg.norm(one.boxes[best, None, :3] - other.boxes[None, :, :3], axis=-1)
        apart[one.labels[best, None] != other.labels[None]] = np.inf
        assert np.median(apart.min(1)) < 0.1 and np.abs(one.scores[:10] - other.scores[:10]).max() < 0.1
    scene = FrameIndex.load(world_index).splits["world_val"][0]
    said = fd3d(
        "detect",
        config,
        world,
        "--onnx",
        path,
        "--scene",
        scene,
        "--index",
        world_index,
        "--frames",
        2,
        "--out",
        tmp_path,
    )
    assert "int8.onnx" in said and len(list(tmp_path.glob("*.jpg"))) == 2


def test_a_missing_extra_is_named(files, exported, world, world_index, tmp_path, monkeypatch):
    for name, options in (
        ("onnxscript", ("--height", "160", "--width", "288")),
        ("onnx", ("--height", "160", "--width", "288")),
        ("onnxruntime", ("--int8", 2, "--index", world_index, "--root", world, "--split", "world_train")),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(
                FD3DError, match=rf"need the package {name}; install it with: pip install 'fd3d\[onnx\]'"
            ):
                fd3d("export", *files["bevformer"], tmp_path / "a.onnx", *options)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FD3DError, match=r"need the package onnxruntime; .* 'fd3d\[onnx\]'"):
        ExportedDetector(exported["bevformer"][0])


INT8 = ["--index", "INDEX", "--root", "WORLD", "--split", "world_train", "--int8"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--height", "160"], "give --height and --width together"),
        (["--index", "nowhere.npz"], "index nowhere.npz does not exist"),
        (["--params", "nowhere.yaml"], "nowhere.yaml"),
        ([*INT8, "0"], "--int8 0: split 'world_train' has 4 frames to calibrate on, two a scene; give 1 to 4"),
        ([*INT8, "-3"], "--int8 -3: .* give 1 to 4"),
        ([*INT8, "5"], "--int8 5: .* give 1 to 4"),
        ([*INT8, "2", "--split", "nowhere"], "split 'nowhere' has no scene in this index; it has world_train"),
        ([*INT8, "2", "--root", "nowhere"], "data root nowhere does not exist; give the folder of a data set"),
        (
            [*INT8, "2", "--root", "EMPTY"],
            "image .*EMPTY/samples/.*jpg cannot be read: No such file .*is the data root complete",
        ),
        ([*INT8, "2", "--root", "BROKEN"], "image .*BROKEN/samples/.*jpg"),
        (["--int8", "2", "--height", "160", "--width", "288"], "--int8 calibrates on frames of an index; leave out"),
    ],
)
def test_bad_input_of_export_is_named_before_work(
    files, world, world_index, tmp_path, monkeypatch, converted, given, message
):
    for name in ("EMPTY", "BROKEN"):
        (tmp_path / name / "v1.0-world").mkdir(parents=True)
    if "BROKEN" in given:
        for path in [path for frame in FrameIndex.load(world_index) for path in frame.image_paths]:
            (tmp_path / "BROKEN" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "BROKEN" / path).write_bytes((world / path).read_bytes()[:200])
    folders = {name: tmp_path / name for name in ("EMPTY", "BROKEN")}
    given = with_paths(given, {"INDEX": world_index, "WORLD": world} | folders)
    with pytest.raises(FD3DError, match=message) as caught:
        fd3d("export", *files["bevformer"], tmp_path / "a.onnx", *given)
    assert "\n" not in str(caught.value) and not converted and not (tmp_path / "a.onnx").exists()


def test_a_checkpoint_is_not_overwritten_by_the_file(files, world_index, tmp_path):
    config, checkpoint = files["bevformer"]
    before = checkpoint.read_bytes()
    with pytest.raises(FD3DError, match="give a name that ends in .onnx"):
        fd3d("export", config, checkpoint, checkpoint, "--index", world_index)
    assert checkpoint.read_bytes() == before


def test_a_split_of_single_frames_calibrates_nothing(world, world_index, monkeypatch):
    index = FrameIndex.load(world_index)
    monkeypatch.setattr(FrameIndex, "select", lambda self, split: [rows[0] for rows in index.scenes.values()])
    with pytest.raises(FD3DError, match="split 'val' has no scene of two frames to calibrate int8 on; name another by"):
        calibration_frames(FrameSource(world_index, world, "val"), 2)


def test_a_place_that_cannot_be_written_is_named_before_work(files, tmp_path, converted):
    (tmp_path / "file").touch()
    (tmp_path / "folder.onnx").mkdir()
    for out in (tmp_path / "folder.onnx", tmp_path / "file/a.onnx"):
        with pytest.raises(FD3DError, match=f"{out} cannot be written: "):
            fd3d("export", *files["bevformer"], out, "--height", 160, "--width", 288)
    assert not converted


def test_unprojection_inverts_projection():
    torch.manual_seed(0)
    matrices = torch.randn(5, 4, 4)
    pixels, depth = torch.randn(5, 2), torch.rand(5) + 1
    assert torch.allclose(
        unproject(pixels, depth, matrices), queries.unproject(pixels, depth, matrices), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_a_deformable_convolution_in_standard_operators(stride, dilation):
    torch.manual_seed(0)
    layer = DeformConv2d(4, 6, 3, stride=stride, padding=dilation, dilation=dilation, bias=True)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.3)
    x = torch.randn(2, 4, 9, 11)
    with torch.no_grad():
        assert torch.allclose(deform(layer, x), layer(x), atol=1e-5)


def test_images_of_several_sizes_in_one_camera_are_refused(world_index):
    index = FrameIndex.load(world_index)
    rig = rig_of(index)
    assert (
        set(rig.sizes) == {tuple(index[0].image_sizes[0])}
        and rig.cameras == tuple(index.cameras)
        and len(rig.sizes) == 6
    )
    index.arrays["image_sizes"] = index.arrays["image_sizes"].copy()
    index.arrays["image_sizes"][-1, 2] = 100, 200
    with pytest.raises(FD3DError, match=f"images of camera {index.cameras[2]} differ in size, .*; give --height"):
        rig_of(index)


def test_a_file_tells_the_turn_of_the_training_and_else_of_the_index(files, world_index, tmp_path, monkeypatch):
    config, checkpoint = files["detr3d"]
    rig, one_size = rig_of(FrameIndex.load(world_index)), ImageRig(((160, 288),))
    whole, path = torch.load(checkpoint, weights_only=False), tmp_path / "student.pth"
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    monkeypatch.setattr(write, "_exported", lambda *given: empty)
    for told, given, turn in ((None, rig, 0.0), (-5.0, rig, -5.0), (-5.0, one_size, -5.0), (None, one_size, None)):
        torch.save(whole | {"training": whole["training"] | {"lidar_turn": told}}, path)
        notes, _ = write.export_detector(config, path, tmp_path / "student.onnx", given)
        assert notes.lidar_turn == turn


def test_an_export_for_other_images_than_the_training_s_is_warned_of(files, world_index, tmp_path, monkeypatch):
    config, checkpoint = files["detr3d"]
    rig = rig_of(FrameIndex.load(world_index))
    whole = torch.load(checkpoint, weights_only=False)

    def told_by_export(sizes: list[list[int]]) -> None:
        notes = whole["training"] | {"cameras": list(rig.cameras), "image_sizes": sizes}
        torch.save(whole | {"training": notes}, tmp_path / "student.pth")
        with pytest.raises(InterruptedError):
            write.export_detector(config, tmp_path / "student.pth", tmp_path / "student.onnx", rig)

    def stop(*given: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(write, "load_detector", stop)
    sizes = [list(size) for size in rig.sizes]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told_by_export(sizes)
    rows, columns = sizes[1]
    told = rf"student.pth was trained with images of {2 * rows}x{columns} of {rig.cameras[1]}; the data have {rows}x{columns}; the detector runs on these"
    with pytest.warns(UserWarning, match=told):
        told_by_export([sizes[0], [2 * rows, columns], *sizes[2:]])


def test_a_file_for_a_size_alone_is_for_the_rig_of_the_training(files, world_index, tmp_path, monkeypatch):
    config, checkpoint = files["detr3d"]
    index = FrameIndex.load(world_index)
    cameras, whole = list(index.cameras), torch.load(checkpoint, weights_only=False)
    training = {"cameras": cameras, "reference": "LIDAR_TOP", "lidar_turn": 0.0, "image_sizes": [[160, 288]] * 6}
    path, out = tmp_path / "student.pth", tmp_path / "student.onnx"
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "empty", [], []))
    monkeypatch.setattr(write, "_exported", lambda *given: empty)

    def notes_of(told: dict[str, Any], *size: int) -> Notes:
        torch.save(whole | {"training": told}, path)
        options = ("--height", str(size[0]), "--width", str(size[1]))
        ran = CliRunner().invoke(app, ["export", str(config), str(path), str(out), *options], catch_exceptions=False)
        assert ran.exit_code == 0
        return Notes.of({one.key: one.value for one in onnx.load(out).metadata_props}, out)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes = notes_of(training, 160, 288)
    notes.check_rig(cameras, "LIDAR_TOP", out, [[160, 288]] * 6, 0.0)
    exchanged = [cameras[1], cameras[0], *cameras[2:]]
    with pytest.raises(
        FD3DError, match="student.onnx was exported for an order of cameras CAM_FRONT, .*; the data have"
    ):
        notes.check_rig(exchanged, "LIDAR_TOP", out)
    with pytest.raises(FD3DError, match="was exported for boxes in the frame of LIDAR_TOP; the data have ego"):
        notes.check_rig(cameras, "ego", out)
    with pytest.warns(UserWarning, match="student.pth was trained with images of 160x288 of CAM_FRONT.*have 320x288"):
        assert notes_of(training, 320, 288).sizes == ((320, 288),) * 6
    # a checkpoint that tells nothing of its rig takes any
    notes_of({"seed": 0}, 160, 288).check_rig([f"ring_{n}" for n in range(6)], "ego", out)
