"""mmdet3d's own detectors as experts: their checkpoints, boxes and classes, from the expert stage to the report."""

import json
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mmdet3d.structures import Box3DMode, CameraInstance3DBoxes, Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from typer.testing import CliRunner

from pipeline.data import CLASSES
from pipeline.data.frames import frame_batches
from pipeline.data.index import FrameIndex, build_index
from pipeline.data.source import FrameSource
from pipeline.dumping.dump import dump
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError
from pipeline.evaluation.predict import predict
from pipeline.expert import DetectorAdapter, MonocularAdapter, MultiViewAdapter
from pipeline.expert.detections import Detections, class_numbers, detections, joined, lidar_boxes
from pipeline.expert.maps import Maps, check_channels
from pipeline.focal.rule import FocalRule
from pipeline.models.build import build_detector, load_config
from pipeline.models.checkpoints import convert_checkpoint, load_checkpoint
from pipeline.models.load import load_detector
from pipeline.models.pairs import StudentPlan
from pipeline.models.views import own_cells
from pipeline.training.expert import take_or_train
from pipeline.training.settings import RunSettings
from stages.cli import app
from store_schema import StoreReader
from tests import foreign
from tests.data.test_rigs import LANDSCAPE, PORTRAIT, another_rig, painted
from tests.forking import forked_fd3d

NAMES = tuple(sorted(foreign.CONFIGS))  # as DVC and the report sort them, the first one the profile's first
INDEX = Path("runs/index.npz")
WORLD, SIZES = "v1.0-world", [PORTRAIT, *[LANDSCAPE] * 4]


def fd3d(*arguments: object) -> str:
    """Output of a command that succeeds."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configs and checkpoints of the foreign detectors, of an epoch that mmengine or mmcv saved."""
    folder = tmp_path_factory.mktemp("foreign")
    for name in NAMES:
        torch.manual_seed(0)
        model = build_detector(load_config(foreign.write_foreign(folder, name)))
        if name == "fcos3d":
            foreign.mmcv_file(model, folder / f"{name}.pth")
        else:
            foreign.mmengine_file(model, folder / f"{name}.pth", averaged=name == "multiview")
    return folder


@pytest.fixture(scope="module")
def repo(files: Path, project: Path, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the pipeline in which ``dvc repro`` has run with each foreign detector as the expert of a family."""
    repo = tmp_path_factory.mktemp("repo")
    shutil.copy(project / "dvc.yaml", repo)
    for stage in yaml.safe_load((repo / "dvc.yaml").read_text())["stages"].values():
        for path in stage.get("do", stage)["deps"]:
            if path.startswith(("pipeline", "store_schema")):  # the code that runs is the project's; here files to hash
                (repo / path).mkdir(parents=True, exist_ok=True)
    shutil.copytree(project / "configs", repo / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(world, repo / "data/world")
    for empty in ("checkpoints", "pretrained", "configs/foreign"):
        (repo / empty).mkdir()
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["data"] |= {"generate": []}
    params["families"] = {
        name: {
            "expert": {"config": f"configs/foreign/{name}.py", "checkpoint": f"checkpoints/{name}.pth"},
            "apprentice": {"config": "configs/world/apprentice.py", "train": {"max_iters": 4, "workers": 0}},
            "distill": {},
        }
        for name in NAMES
    }
    params["focal"] |= {"num_queries": 20, "min_score": 0.0}
    params["distill"] |= {"inherit": [], "trust_threshold": 0.0}
    params["distill"]["rule"] |= {"num_queries": 20, "min_score": 0.0}
    (repo / "params.yaml").write_text(yaml.safe_dump(params))
    for name in NAMES:
        shutil.copy(files / f"{name}.py", repo / "configs/foreign")
        shutil.copy(files / f"{name}.pth", repo / "checkpoints")
    with pytest.MonkeyPatch.context() as patch, forked_fd3d(tmp_path_factory.mktemp("bin"), project) as bin:
        patch.setenv("PATH", str(bin), prepend=":")
        for command in (["init", "--no-scm", "-q"], ["repro"]):
            done = subprocess.run(["dvc", *command], cwd=repo, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return repo


def test_dvc_repro_has_run_to_the_report(repo: Path) -> None:
    summary = json.loads((repo / "metrics/summary.json").read_text())
    assert (repo / "report/index.html").stat().st_size > 10_000
    for name in NAMES:
        for role in ("expert", "plain", "fd3d"):
            assert np.isfinite((summary if name == NAMES[0] else summary[name])[role]["NDS"])
        with open(repo / f"runs/{name}/fd3d/losses.csv") as file:
            header = file.readline()
        assert ("loss_pv" in header) is (name == "fcos3d") and ("loss_bev" in header) is (name != "fcos3d")
    status = subprocess.run(["dvc", "status", "--json"], cwd=repo, capture_output=True, text=True, check=True)
    assert json.loads(status.stdout) == {}


@pytest.mark.parametrize("name", NAMES)
def test_the_store_has_the_experts_boxes_in_our_classes_and_recomputes(
    name: str, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repo)
    assert "cells that differ" in fd3d("verify", f"runs/{name}/store", "--family", name, "--recompute", 2)
    cfg, source = (
        load_config(repo / f"configs/foreign/{name}.py"),
        FrameSource(INDEX, Path("data/world"), "world_train"),
    )
    model = load_detector(cfg, repo / f"checkpoints/{name}.pth")
    reader = StoreReader(f"runs/{name}/store")
    for token, boxes, scores, labels in predict(cfg, model, source, 0, [0, 3]):
        row = reader.read(token)
        best = np.argsort(-scores, kind="stable")[:20]
        kept = row["query/score"] > 0
        np.testing.assert_allclose(row["query/score"][kept], scores[best], rtol=1e-4)
        np.testing.assert_allclose(row["query/boxes"][0], boxes[best[0]], rtol=1e-3, atol=1e-3)
        assert row["query/label"][0] == labels[best[0]]


@pytest.mark.parametrize("name", NAMES)
def test_a_scene_is_detected_and_drawn(name: str, files: Path, world: Path, world_index: Path, tmp_path: Path) -> None:
    index = FrameIndex.load(world_index)
    scene = index.splits["world_val"][0]
    options = ("--scene", scene, "--index", world_index, "--frames", 1, "--out", tmp_path, "--min-score", 0)
    fd3d("detect", files / f"{name}.py", files / f"{name}.pth", world, *options)
    (records,) = json.loads((tmp_path / "submission.json").read_text())["results"].values()
    assert len(records) > 0 and len(list(tmp_path.glob("*.jpg"))) == 1


def test_labels_are_turned_from_mmdet3ds_order(files: Path, world: Path, world_index: Path) -> None:
    cfg = load_config(files / "multiview.py")
    model, source = load_detector(cfg, files / "multiview.pth"), FrameSource(world_index, world, "world_val")
    with torch.no_grad():  # the detector's third class is the trailer, our fifth
        bias = model.bbox_head_3d.conv_cls.bias
        bias.fill_(-10).view(-1, 10)[:, 2] = 2.0
    assert CLASSES[4] == foreign.CLASSES[2] == "trailer"
    for _, _, scores, labels in predict(cfg, model, source, 0):
        assert len(scores) and set(labels[scores > 0.5].tolist()) == {4}


def test_detections_of_an_own_adapter_that_cannot_be_are_named(
    files: Path, world: Path, world_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load_config(files / "multiview.py")
    model, source = load_detector(cfg, files / "multiview.pth"), FrameSource(world_index, world, "world_val")
    monkeypatch.setattr(model, "predict", lambda inputs, samples: samples)
    boxes, scores, labels = torch.zeros(2, 9), torch.tensor([0.5, 0.4]), torch.tensor([0, 9])
    for given, told in (
        (
            Detections(boxes, scores, torch.tensor([0, -1])),
            "gave the label -1; give whole numbers of pipeline.data.CLASSES",
        ),
        (
            Detections(boxes, scores, torch.tensor([10, 0])),
            "gave the label 10; give whole numbers of .*CLASSES, 0 to 9",
        ),
        (Detections(boxes, scores, labels.float()), "gave the label of type float"),
        (Detections(boxes[:, :7], scores, labels), r"gave boxes \(2, 7\) for 2 scores; give a tensor \(2, 9\)"),
        (Detections(boxes, scores, labels[:1]), r"gave labels \(1,\) for 2 scores"),
    ):
        monkeypatch.setattr(MultiViewAdapter, "detections", lambda self, samples, given=given: [given])
        with pytest.raises(FD3DError, match=f"MultiViewAdapter.detections {told}"):
            next(predict(cfg, model, source, 0))
    monkeypatch.setattr(MultiViewAdapter, "detections", lambda self, samples: [Detections(boxes, scores, labels)])
    assert next(predict(cfg, model, source, 0))[3].tolist() == [0, 9]


# Checkpoints


def test_a_checkpoint_of_another_class_order_must_be_declared(files: Path, tmp_path: Path) -> None:
    ours = load_config(foreign.write_foreign(tmp_path, "imvoxelnet", CLASSES))
    message = (
        r"imvoxelnet.pth has the classes car, truck, trailer, bus, .*; declare them in the config's adapter: classes="
    )
    with pytest.raises(FD3DError, match=message) as caught:
        load_detector(ours, files / "imvoxelnet.pth")
    assert "convert" not in str(caught.value) and "\n" not in str(caught.value)
    del ours.adapter["classes"]
    with pytest.raises(FD3DError, match=message):
        load_detector(ours, files / "imvoxelnet.pth")


@pytest.mark.parametrize(
    ("told", "declared", "fits"),
    [
        (("Pedestrian", "Cyclist", "Car"), ("pedestrian", "bicycle", "car"), True),  # KITTI's
        (("Pedestrian", "Cyclist", "Car"), ("pedestrian", None, "car"), True),
        (("Pedestrian", "Cyclist", "Car"), ("car", "pedestrian", "bicycle"), False),
        (("Traffic Cone", "Truck"), ("traffic_cone", "truck"), True),
        (("Traffic Cone", "Truck"), ("truck", "traffic_cone"), False),
        (("vehicle.car", "human.pedestrian.adult"), ("car", "pedestrian"), True),  # nuScenes' categories
        (("vehicle.construction", "vehicle.car"), ("car", "construction_vehicle"), False),
        (("car", "other_vehicle"), ("car", "trailer"), True),  # the declaration says what a name means
    ],
)
@pytest.mark.parametrize("notes", [{}, {"training": {"seed": 0}}], ids=["foreign", "trained here"])
def test_class_names_are_compared_by_their_letters(
    tmp_path: Path, told: tuple, declared: tuple, fits: bool, notes: dict
) -> None:
    model = torch.nn.Linear(1, 1)
    content = {
        "state_dict": model.state_dict(),
        "meta": {"mmengine_version": "0.10", "dataset_meta": {"classes": told}},
    }
    torch.save(content | notes, tmp_path / "own.pth")
    adapter = {"type": "DetectorAdapter", "classes": list(declared)}
    if fits:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load_checkpoint(model, tmp_path / "own.pth", adapter)
        return
    with pytest.raises(
        FD3DError, match=f"own.pth has the classes {', '.join(told)}; declare them in the config's adapter"
    ):
        load_checkpoint(model, tmp_path / "own.pth", adapter)


def test_classes_that_have_no_name_in_common_are_warned_of(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    meta = {"mmengine_version": "0.10", "dataset_meta": {"classes": ["Auto", "Fahrrad", "Tier"]}}
    torch.save({"state_dict": model.state_dict(), "meta": meta}, tmp_path / "own.pth")
    with pytest.warns(
        UserWarning,
        match="own.pth has no class by a name of this project, .*: Auto = car, Fahrrad = bicycle, Tier = None",
    ):
        load_checkpoint(model, tmp_path / "own.pth", {"type": "DetectorAdapter", "classes": ["car", "bicycle", None]})


def test_a_foreign_checkpoint_is_not_converted(files: Path, project: Path, source: FrameSource, tmp_path: Path) -> None:
    for name in NAMES:
        config, checkpoint = files / f"{name}.py", files / f"{name}.pth"
        with pytest.raises(
            FD3DError, match=f"{name}.py is none of this project's detectors, so nothing is converted; use"
        ):
            convert_checkpoint(checkpoint, tmp_path / "out.pth", config, "new", foreign.CLASSES)
    with pytest.raises(FD3DError, match="declare classes and boxes in the adapter of"):  # stated in the profile
        plan = StudentPlan(project / "configs/world/apprentice.py")
        take_or_train(config, checkpoint, RunSettings(), source, tmp_path / "out.pth", plan, boxes="new")
    assert not list(tmp_path.iterdir())


def test_averages_of_mmengine_and_buffers_of_mmcv_are_left_out(files: Path) -> None:
    for name in NAMES:
        file = torch.load(files / f"{name}.pth", map_location="cpu", weights_only=False)
        found = load_detector(load_config(files / f"{name}.py"), files / f"{name}.pth").state_dict()
        want = {key.removeprefix("module."): tensor for key, tensor in file["state_dict"].items()}
        assert all(torch.equal(tensor.cpu(), want[key].cpu()) for key, tensor in found.items())
        if name == "multiview":  # the two differ
            other = file["ema_state_dict"]["module.backbone.conv1.weight"]
            assert not torch.equal(found["backbone.conv1.weight"].cpu(), other)


def test_a_checkpoint_from_before_the_boxes_changed_needs_a_word(files: Path, tmp_path: Path) -> None:
    cfg = load_config(files / "fcos3d.py")
    path = foreign.mmcv_file(build_detector(cfg), tmp_path / "old.pth", version="0.17.1")
    with pytest.raises(
        FD3DError, match=r"was made by mmdet3d before 1.0 \(mmdet3d_version 0.17.1\).* adapter = dict\(boxes="
    ):
        load_detector(cfg, path)
    cfg.adapter["boxes"] = "new"
    load_detector(cfg, path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"classes": ["car", "van"]}, "adapter.classes has 'van', unknown; use each of car"),
        ({"classes": ["car", "bus", "car"]}, "adapter.classes has 'car', twice"),
        ({"boxes": "old"}, "adapter.boxes is 'old'; leave it out, or say 'new'"),
    ],
)
def test_a_wrong_declaration_is_named(settings: dict, told: str) -> None:
    with pytest.raises(FD3DError, match=told):
        DetectorAdapter(pv="neck", **settings)


def test_a_detector_without_an_adapter_is_refused_before_it_runs(files: Path, world: Path, world_index: Path) -> None:
    cfg = load_config(files / "imvoxelnet.py")
    model = load_detector(cfg, files / "imvoxelnet.pth")
    cfg.pop("adapter")
    with pytest.raises(FD3DError, match="imvoxelnet.py has no 'adapter'"):
        next(predict(cfg, model, FrameSource(world_index, world, "world_val"), 0))


# Adapters that do not fit: told in the expert stage, before the hours of the dump


VIEWS = "MultiViewAdapter"
MISFITS = [
    ("imvoxelnet", 'adapter["views"] = 7', "adapter.views is 7, but the data have 6 cameras; lower it"),
    ("imvoxelnet", 'adapter["views"] = 0', "adapter.views is 0; give a number of cameras"),
    ("imvoxelnet", 'adapter["views"] = "all"', "adapter.views is 'all'; give a number of cameras"),
    ("imvoxelnet", 'del adapter["views"]', "ImVoxelNet fails on what MultiViewAdapter gives and takes: .*; check the config"),
    ("multiview", 'adapter["views"] = 1', "MultiViewDfM fails on what MultiViewAdapter gives and takes"),
    ("fcos3d", f'adapter["type"] = "{VIEWS}"', "FCOSMono3D fails on what MultiViewAdapter gives and takes"),
    ("fcos3d", 'adapter["radius"] = -1', "adapter.radius is -1; give metres"),
    ("multiview", 'adapter["type"] = "MonocularAdapter"', "MultiViewDfM fails on what MonocularAdapter gives and takes"),
    ("imvoxelnet", 'adapter = dict(type="MonocularAdapter", bev="neck_3d", classes=classes)', "coord_type is LIDAR, but Mono.* CAMERA"),
    ("imvoxelnet", 'model["coord_type"] = "DEPTH"', "coord_type is DEPTH, but MultiViewAdapter takes boxes in frame LIDAR"),
    ("multiview", 'adapter["classes"] = classes[:8]', "the detector has 10 classes, the adapter of .* declares 8; list all"),
    ("multiview", 'adapter["values"] = 8', "adapter.values is 8"),
    ("imvoxelnet", 'adapter["pv"] = "neck"', "has 1 camera, the data 6 .CAM_FRONT, .*leave out adapter.pv"),
    ("multiview", 'adapter["pv"] = "neck"', r"pyramid level 0 of the student .* is \(20, 36\), of the expert \(40, 72\)"),
    ("multiview", 'adapter["pv"] = "neck_3d"', r"has 1 camera, the data 6"),
    ("multiview", 'adapter["bev"] = "neck"', r"adapter.bev taps 'neck', which gave \(6, 16, 40, 72\); tap a module that gives maps \(1, C"),
    ("multiview", 'adapter["bev"] = "neck_3d.model.0"', r"adapter.bev taps 'neck_3d.model.0', which gave \(1, 16, 40, 20, 12\)"),
    ("fcos3d", 'adapter["pv"] = "bbox_head"', "adapter.pv taps 'bbox_head', which gave list, .*; tap a module that gives levels"),
    ("multiview", 'adapter["bev"] = "neck_4d"', "has no module 'neck_4d'"),
    ("multiview", 'adapter["bev"] = "bbox_head_3d.loss_cls"', "tap 'bev' saw nothing"),
    ("multiview", "pc_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]", "spans x and y .*51.2.* but the detector's voxels span .*40.0"),
    ("multiview", "pc_range[0] = voxels['ranges'][0][0] = -50.0", "the expert's BEV map spans pc_range .*-50.0.*; give both configs one"),
]  # fmt: skip


@pytest.fixture(scope="module")
def bare(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints without the notes that tell their classes."""
    folder = tmp_path_factory.mktemp("bare")
    for name in NAMES:
        read = torch.load(files / f"{name}.pth", map_location="cpu", weights_only=False)
        torch.save({"state_dict": read["state_dict"]}, folder / f"{name}.pth")
    return folder


def refused(expert: Path, checkpoint: Path, student: Path, source: FrameSource, message: str, **plan: Any) -> None:
    """The expert stage ends with a line, and has written nothing."""
    out = expert.parent / "out/detector.pth"
    with pytest.raises(FD3DError, match=message) as caught:
        take_or_train(expert, checkpoint, RunSettings(workers=0), source, out, StudentPlan(student, **plan))
    assert "\n" not in str(caught.value) and not out.parent.exists()


@pytest.mark.parametrize(("name", "change", "message"), MISFITS)
def test_an_adapter_that_does_not_fit_is_named_by_the_expert_stage(
    name: str, change: str, message: str, bare: Path, project: Path, source: FrameSource, tmp_path: Path
) -> None:
    path = foreign.write_foreign(tmp_path, name)
    with open(path, "a") as file:
        file.write(f"\n{change}\n")
    refused(path, bare / f"{name}.pth", project / "configs/world/apprentice.py", source, message)


def test_a_student_that_has_nothing_in_common_is_named_by_the_expert_stage(
    bare: Path, project: Path, source: FrameSource, tmp_path: Path
) -> None:
    expert = foreign.write_foreign(tmp_path, "multiview")
    taps = "the expert's adapter taps bev, and .*detr3d_apprentice.py has neither such a pyramid nor such a BEV map"
    refused(expert, bare / "multiview.pth", project / "configs/world/detr3d_apprentice.py", source, taps)
    student = tmp_path / "student.py"
    student.write_text(foreign.write_student(tmp_path, project).read_text().replace("schedule =", "other ="))
    refused(expert, bare / "multiview.pth", student, source, "student.py has no schedule")
    foreign.write_student(tmp_path, project)
    with open(student, "a") as file:
        file.write('\ntrain_cfg["assigner"] = None\n')
    refused(
        expert, bare / "multiview.pth", student, source, "MultiViewDfM fails on what MultiViewAdapter gives and takes"
    )
    foreign.write_student(tmp_path, project)
    told = "w_mixed is for students of this project, and .*student.py is another project's"
    refused(expert, bare / "multiview.pth", student, source, told, own_only=("w_mixed",))
    with open(student, "a") as file:
        file.write('\nadapter["classes"] = [*classes[:9], None]\n')
    ours = project / "configs/world/expert.py"
    checkpoint = project / "checkpoints/world_expert.pth"
    refused(ours, checkpoint, student, source, r"pyramid has 3 levels, that of .* 2, .* set distill.levels to \[0, 1\]")
    take_or_train(ours, checkpoint, RunSettings(), source, tmp_path / "o/d.pth", StudentPlan(student, levels=(0, 1)))


@pytest.mark.parametrize(("name", "levels"), [("w_mixed", None), ("residual", (0,))])
def test_a_setting_that_needs_equal_channels_is_refused_by_the_expert_stage(
    name: str, levels: tuple[int, ...] | None, bare: Path, project: Path, source: FrameSource, tmp_path: Path
) -> None:
    expert, plan = foreign.write_foreign(tmp_path, "fcos3d"), {"levels": levels, "equal_channels": (name,)}
    told = f"distill.{name} is set, but the pyramid level 0 of .*detr3d_apprentice.py has 64 channels and the expert's 16; leave it out"
    refused(expert, bare / "fcos3d.pth", project / "configs/world/detr3d_apprentice.py", source, told, **plan)


def test_channels_of_bev_maps_are_the_residuals_alone() -> None:
    ours, theirs = (Maps((), (channels, 8, 8), (), {}) for channels in (64, 32))
    check_channels(theirs, ours, StudentPlan(Path("student.py"), equal_channels=("w_mixed",)))
    with pytest.raises(FD3DError, match="distill.residual is set, but the BEV map of student.py has 64 channels"):
        check_channels(theirs, ours, StudentPlan(Path("student.py"), equal_channels=("w_mixed", "residual")))


# Boxes


def test_boxes_of_a_camera_are_those_of_the_lidar(world: Path, world_index: Path) -> None:
    """Annotations put into each camera's frame as mmdet3d does, and turned back, are what they were."""
    frame = FrameIndex.load(world_index)[4]
    want = torch.from_numpy(np.nan_to_num(frame.boxes))
    for lidar2cam in frame.lidar2cam:
        turn = lidar2cam[:3, :3]
        centre = frame.boxes[:, :3] @ turn.T + lidar2cam[:3, 3]
        heading = np.stack([np.cos(frame.boxes[:, 6]), np.sin(frame.boxes[:, 6]), 0 * frame.boxes[:, 6]], -1) @ turn.T
        motion = np.concatenate([want[:, 7:], 0 * want[:, :1]], -1) @ turn.T
        yaw = np.arctan2(-heading[:, 2], heading[:, 0])  # mmdet3d's: along x at 0, towards -z at pi / 2
        length, width, height = frame.boxes[:, 3:6].T
        tensor = np.column_stack([centre, length, height, width, yaw, motion[:, 0], motion[:, 2]])
        boxes = CameraInstance3DBoxes(torch.from_numpy(tensor), box_dim=9, origin=(0.5, 0.5, 0.5))
        found = lidar_boxes(boxes, torch.from_numpy(np.linalg.inv(lidar2cam)))
        torch.testing.assert_close(found[:, :6], want[:, :6], atol=1e-3, rtol=0)
        # cameras lean by up to two degrees, which upright boxes forget
        torch.testing.assert_close(torch.cos(found[:, 6] - want[:, 6]), torch.ones(len(want)), atol=2e-3, rtol=0)
        torch.testing.assert_close(found[:, 7:], want[:, 7:], atol=0.3, rtol=0.05)
    # the same heading by mmdet3d's own conversion between its default camera and LiDAR axes
    boxes = CameraInstance3DBoxes(torch.tensor([[1.0, 2.0, 8.0, 4.0, 1.5, 2.0, 0.7]]))
    to_lidar = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    theirs = boxes.convert_to(Box3DMode.LIDAR)
    ours = lidar_boxes(boxes, torch.block_diag(to_lidar, torch.ones(1, 1)))
    torch.testing.assert_close(ours[:, :3], theirs.gravity_center)
    torch.testing.assert_close(ours[:, 3:7], theirs.tensor[:, 3:7])


def test_boxes_of_seven_values_stand_still_and_unknown_classes_are_left_out() -> None:
    tensor = torch.tensor([[1.0, 2.0, 3.0, 4.0, 2.0, 1.0, 0.5], [5.0, 6.0, 7.0, 1.0, 1.0, 2.0, -0.5]])
    found = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(tensor), scores_3d=torch.tensor([0.2, 0.7]), labels_3d=torch.tensor([0, 1])
    )
    one = detections(found, class_numbers([None, "pedestrian"]))
    assert one.boxes.tolist() == [[5, 6, 8, 1, 1, 2, -0.5, 0, 0]] and one.labels.tolist() == [8]
    with pytest.raises(FD3DError, match=r"gave class 1, of 1 class declared; list all in the config's adapter"):
        detections(found, class_numbers(["pedestrian"]))
    below = InstanceData(bboxes_3d=found.bboxes_3d, scores_3d=found.scores_3d, labels_3d=torch.tensor([0, -1]))
    with pytest.raises(FD3DError, match="the detector gave class -1, and classes count from 0; leave such boxes out"):
        detections(below, class_numbers(None))
    camera = InstanceData(bboxes_3d=CameraInstance3DBoxes(tensor), scores_3d=found.scores_3d, labels_3d=found.labels_3d)
    with pytest.raises(FD3DError, match="boxes are in a camera's frame; use an adapter .*: MonocularAdapter"):
        detections(camera, class_numbers(None))


def test_an_object_that_two_cameras_see_is_one_box() -> None:
    def part(x: float, score: float, label: int) -> Any:
        boxes = torch.zeros(1, 9)
        boxes[:, 0] = x
        return detections(
            InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
                scores_3d=torch.tensor([score]),
                labels_3d=torch.tensor([label]),
            ),
            class_numbers(None),
        )

    found = joined([part(0, 0.3, 0), part(0.5, 0.8, 0), part(0.6, 0.5, 8), part(3, 0.4, 0)], 1.0)
    assert found.scores.tolist() == pytest.approx([0.8, 0.5, 0.4]) and found.labels.tolist() == [0, 8, 0]


def test_cameras_are_given_as_mmdet3d_names_them(files: Path, world: Path, world_index: Path) -> None:
    cfg = load_config(files / "fcos3d.py")
    frame = FrameIndex.load(world_index)[0]
    source = FrameSource(world_index, world, "all")
    (batch,) = frame_batches(cfg, source, [0], 0)
    single = MonocularAdapter(pv="neck").prepare(batch)["data_samples"]
    (all_views,) = MultiViewAdapter(bev="neck_3d").prepare(batch)["data_samples"]
    (front,) = MultiViewAdapter(bev="neck_3d", views=1).prepare(batch)["data_samples"]
    assert len(single) == all_views.num_views == 6 and front.img_shape == (160, 288)
    for view, sample in enumerate(single):
        np.testing.assert_allclose(sample.cam2img[:3, :3], frame.intrinsics[view], atol=1e-3)
        np.testing.assert_allclose(sample.cam2img[3], [0, 0, 0, 1], atol=1e-6)
        for meta in (sample.metainfo, {name: all_views.metainfo[name][view] for name in ("cam2img", "lidar2cam")}):
            np.testing.assert_allclose(meta["cam2img"] @ meta["lidar2cam"], sample.lidar2img, atol=1e-3)
    np.testing.assert_allclose(front.lidar2img, single[0].lidar2img)
    assert isinstance(batch["data_samples"][0], Det3DDataSample) and "cam2img" not in batch["data_samples"][0].metainfo


@pytest.mark.parametrize("layout", ["focal", "dense"])
def test_areas_and_statistics_of_a_foreign_pyramid_end_with_the_cameras_own_images(
    layout: str, world: Path, tmp_path: Path
) -> None:
    root = painted(another_rig(world, tmp_path / "own", SIZES, None))
    with warnings.catch_warnings(action="ignore"):
        index = build_index(root, WORLD, root / "index.npz")
    source = FrameSource(root / "index.npz", root, "world_val")
    settings = DumpSettings(FocalRule(num_queries=20, min_score=0.0), layout=layout, frames_per_shard=3)
    dump(foreign.write_foreign(tmp_path, "fcos3d"), None, source, tmp_path / "store", settings, workers=0)
    reader, own = StoreReader(tmp_path / "store"), index[0].image_sizes
    for level, (rows, columns, _, stride) in enumerate(reader.schema.pv):
        inside = own_cells(torch.from_numpy(own)[None], (rows, columns), (96, 96))[0].numpy()
        if layout == "focal":
            # a cell whose centre is in the padding may still have some of the camera's own image
            cells = [np.unravel_index(reader.read(t)[f"pv/{level}/index"], inside.shape) for t in reader.tokens]
            camera, row, column = np.concatenate(cells, 1)
            assert (row * stride[0] < own[camera, 0]).all() and (column * stride[1] < own[camera, 1]).all()
            assert set(camera) == set(range(5))
        else:
            values = np.concatenate([reader.read(token)[f"pv/{level}/dense"][inside] for token in reader.tokens])
            stats = reader.manifest["statistics"][f"pv/{level}"]
            np.testing.assert_allclose(stats["mean"], values.astype(np.float64).mean(0), rtol=1e-3, atol=1e-5)


def test_a_pyramid_of_some_cameras_has_the_sizes_of_these() -> None:
    sizes = np.array([[96.0, 64], [64, 96], [64, 96]])
    sample = Det3DDataSample(metainfo={"frames": [{"pad_hw": (96, 96), "view_hw": sizes}]})
    sample.pred_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(torch.ones(1, 7)), scores_3d=torch.ones(1), labels_3d=torch.zeros(1).long()
    )
    seen: Any = {"bev": ((), torch.ones(1, 3, 4, 4)), "pv": ((), torch.ones(2, 3, 12, 12))}
    (frame,) = DetectorAdapter(bev="a", pv="b").read(torch.nn.Identity(), seen, [sample], 1)
    assert frame.image_hw == (96, 96) and frame.view_hw is not None and frame.view_hw.tolist() == sizes[:2].tolist()
    (frame,) = DetectorAdapter(bev="a").read(torch.nn.Identity(), {"bev": seen["bev"]}, [sample], 1)
    assert frame.view_hw is None  # no areas in images
