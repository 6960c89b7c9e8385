"""Exported detectors against PyTorch, and live frames."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.data.transforms import LoadMultiViewImages
from pipeline.errors import FD3DError
from pipeline.evaluation.live import Boxes, Calibration, Detector, EgoPose
from pipeline.evaluation.predict import predict
from pipeline.export.notes import KEY, Notes
from pipeline.export.runtime import ExportedDetector
from pipeline.export.standard import deform, unproject
from pipeline.export.write import rig_of
from pipeline.models.build import load_config
from pipeline.models.deform_conv import DeformConv2d
from pipeline.models.detr3d import queries
from pipeline.models.load import load_detector
from stages.cli import app

FAMILIES = {"bevformer": "expert", "detr3d": "detr3d_expert"}


@pytest.fixture(scope="module")
def files(project: Path) -> dict[str, tuple[Path, Path]]:
    """Config and checkpoint by family."""
    return {
        family: (project / "configs" / "world" / f"{name}.py", project / "checkpoints" / f"world_{name}.pth")
        for family, name in FAMILIES.items()
    }


@pytest.fixture(scope="module")
def exported(files, world_index: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """File and what the command said, by family."""
    made = {}
    for family, (config, checkpoint) in files.items():
        out = tmp_path_factory.mktemp("onnx") / f"{family}.onnx"
        given = ["export", str(config), str(checkpoint), str(out), "--index", str(world_index)]
        done = CliRunner().invoke(app, given, catch_exceptions=False)
        assert done.exit_code == 0
        made[family] = out, done.stdout
    return made


@pytest.fixture(scope="module")
def drives(world: Path, world_index: Path) -> list[list[tuple[np.ndarray, Calibration, EgoPose]]]:
    """Arguments of ``step`` for the frames of each scene."""
    index, decode = FrameIndex.load(world_index), LoadMultiViewImages(to_rgb=True)

    def arguments(row: int) -> tuple[np.ndarray, Calibration, EgoPose]:
        frame = index[row]
        images = decode.transform({"root": world, "frames": [{"frame": frame}]})["frames"][0]["img"]
        calibration = Calibration(frame.intrinsics, frame.lidar2cam, frame.lidar2ego)
        return images, calibration, EgoPose(frame.ego2global, frame.timestamp, frame.can_bus)

    return [[arguments(row) for row in rows] for rows in index.scenes.values()]


def driven(detector: Detector, drives) -> list[Boxes]:
    found = []
    for drive in drives:
        detector.reset()
        found += [detector.step(*given) for given in drive]
    return found


def gap(ours: Boxes, theirs: Boxes) -> float:
    """Largest difference of boxes and scores, each box against its like: equal scores have no order."""

    def rows(found: Boxes) -> np.ndarray:
        yaw = found.boxes[:, 6:7]
        return np.concatenate(
            [found.boxes[:, :6], np.sin(yaw), np.cos(yaw), found.boxes[:, 7:], found.scores[:, None]], 1
        )

    assert len(ours.boxes) == len(theirs.boxes) > 0
    apart = np.abs(rows(ours)[:, None] - rows(theirs)[None]).max(-1)
    apart[ours.labels[:, None] != theirs.labels[None]] = np.inf
    return float(max(apart.min(0).max(), apart.min(1).max()))


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
        assert len(streamed.boxes) != len(alone.boxes) or np.abs(streamed.boxes - alone.boxes).max() > 0.01


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
    wanted = {"images": [1, 6, 3, 160, 288], "lidar2img": [1, 6, 4, 4], "boxes": [1, 100, 9]}
    wanted |= dict.fromkeys(("scores", "labels", "kept"), [1, 100])
    if family == "bevformer":
        wanted |= {"ego_motion": [1, 18], "history": [1, 2500, 64], "has_history": [1], "bev": [1, 2500, 64]}
    assert shapes == wanted
    assert "6 cameras of 160x288" in said and "opset 18" in said
    assert ("history 2500x64 in and out" in said) == (family == "bevformer")


def test_detect_runs_the_file(files, exported, world, world_index, tmp_path):
    config, checkpoint = files["bevformer"]
    scene = FrameIndex.load(world_index).splits["world_val"][0]
    results = []
    for name, weights in (("torch", [str(checkpoint)]), ("onnx", [])):
        more = [] if weights else ["--onnx", str(exported["bevformer"][0])]
        options = ["--scene", scene, "--index", str(world_index), "--frames", "2", "--out", str(tmp_path / name)]
        given = ["detect", str(config), *weights, str(world), *options, *more]
        done = CliRunner().invoke(app, given, catch_exceptions=False)
        assert done.exit_code == 0 and (weights or ["bevformer.onnx"])[0].rpartition("/")[2] in done.stdout
        results.append(json.loads((tmp_path / name / "submission.json").read_text())["results"])
    ours, theirs = results
    assert ours.keys() == theirs.keys() and len(ours) == 2
    for token, boxes in ours.items():
        assert [b["detection_score"] for b in boxes] == pytest.approx(
            [b["detection_score"] for b in theirs[token]], abs=1e-3
        )


def test_live_frames_are_those_of_evaluation(files, drives, world, world_index):
    """Boxes from arrays are those that ``predict`` reads from files, bit for bit."""
    cfg, checkpoint = load_config(files["bevformer"][0]), files["bevformer"][1]
    from_files = predict(cfg, load_detector(cfg, checkpoint), FrameSource(world_index, world, "all"), 0)
    live = driven(Detector.open(*files["bevformer"]), drives)
    for found, (_, *known) in zip(live, from_files, strict=True):
        for array, other in zip(found, known, strict=True):
            assert np.array_equal(array, other)


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


def test_another_rig_is_refused(files, exported, drives):
    detector = Detector.open(files["bevformer"][0], onnx=exported["bevformer"][0])
    images, calibration, pose = drives[0][0]
    five = Calibration(calibration.intrinsics[:5], calibration.lidar2cam[:5], calibration.lidar2ego)
    for given, message in (
        ((images[:5], five, pose), "a frame has 5 images, the detector 6 cameras"),
        ((images[:, ::2, ::2], calibration, pose), "images are 80x144, the file was exported for 160x288; export"),
        ((images, five, pose), r"calibration.intrinsics has shape \(5, 3, 3\)"),
        ((images.astype(np.float32), calibration, pose), "are not uint8"),
        ((images, calibration, replace(pose, ego2global=np.full((4, 4), np.nan))), "pose.ego2global has .* not finite"),
    ):
        with pytest.raises(FD3DError, match=message):
            detector.step(*given)
    detector.step(images, calibration, pose)
    with pytest.raises(FD3DError, match=r"is not after the last one, .*; call reset\(\) before another drive"):
        detector.step(images, calibration, pose)


def test_a_file_of_another_origin_or_config_is_refused(files, exported, tmp_path):
    config, checkpoint = files["bevformer"]
    foreign = onnx.load(exported["bevformer"][0])
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    for path, message in (
        (tmp_path / "foreign.onnx", "foreign.onnx is no file of 'fd3d export'"),
        (checkpoint, "world_expert.pth cannot be run by ONNX Runtime"),
        (tmp_path / "nowhere.onnx", "nowhere.onnx does not exist; make it with 'fd3d export'"),
    ):
        with pytest.raises(FD3DError, match=message):
            ExportedDetector(path)
    with pytest.raises(FD3DError, match="exported with model.type BEVFormer, the config has DETR3D"):
        Detector.open(files["detr3d"][0], onnx=exported["bevformer"][0])
    with pytest.raises(FD3DError, match="exported with image.scale 1.0, the config has 0.5"):
        Detector.open(config.with_name("apprentice.py"), onnx=exported["bevformer"][0])
    with pytest.raises(FD3DError, match="has format 9, this program reads 1; export the detector again"):
        Notes.of({KEY: '{"format": 9}'}, "old.onnx")


def test_a_missing_extra_is_named(files, exported, tmp_path, monkeypatch):
    config, checkpoint = files["bevformer"]
    for name in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(FD3DError, match=r"bevformer.onnx needs the package onnxruntime; .* 'fd3d\[onnx\]'"):
        ExportedDetector(exported["bevformer"][0])
    given = ["export", str(config), str(checkpoint), str(tmp_path / "a.onnx"), "--height", "160", "--width", "288"]
    with pytest.raises(FD3DError, match=r"export needs the package onnxscript; .* 'fd3d\[onnx\]'"):
        CliRunner().invoke(app, given, catch_exceptions=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--height", "160"], "give --height and --width together"),
        (["--index", "nowhere.npz"], "index nowhere.npz does not exist"),
        (["--params", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input_of_export_is_named(files, tmp_path, given, message):
    config, checkpoint = files["bevformer"]
    with pytest.raises(FD3DError, match=message):
        CliRunner().invoke(
            app, ["export", str(config), str(checkpoint), str(tmp_path / "a.onnx"), *given], catch_exceptions=False
        )


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


def test_images_of_several_sizes_are_refused(world_index):
    index = FrameIndex.load(world_index)
    hw, views = rig_of(index)
    assert hw == tuple(index[0].image_sizes[0]) and views == 6
    index.arrays["image_sizes"] = index.arrays["image_sizes"].copy()
    index.arrays["image_sizes"][-1, 2] = 100, 200
    with pytest.raises(FD3DError, match="images of the index differ in size"):
        rig_of(index)
