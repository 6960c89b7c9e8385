"""A checkpoint with the cameras of the training in another order, or with boxes in another frame, is refused."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data import CAMERAS
from pipeline.data.index import FrameIndex
from pipeline.data.rig import turn_of
from pipeline.data.source import FrameSource
from pipeline.distill.apprentice import train_apprentice
from pipeline.distill.settings import DistillSettings
from pipeline.dumping.dump import dump
from pipeline.dumping.recompute import recompute
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError
from pipeline.evaluation.live import Detector
from pipeline.evaluation.run import evaluate_detector
from pipeline.evaluation.scene import detect_scene
from pipeline.export.rig import rig_of
from pipeline.export.write import export_detector
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config
from pipeline.models.pairs import StudentPlan, check_data, check_rig, check_trained_rig
from pipeline.training.expert import take_or_train
from pipeline.training.plain import train_plain
from pipeline.training.settings import RunSettings
from store_schema import StoreReader

TURNED = CAMERAS[::-1]


def trained_with(cameras: tuple[str, ...], reference: str, expert: Path, out: Path, **more: Any) -> Path:
    state = torch.load(expert, weights_only=True)["state_dict"]
    notes = {"seed": 0, "cameras": list(cameras), "reference": reference} | more
    torch.save({"state_dict": state, "training": notes}, out)
    return out


def mount(degrees: float) -> np.ndarray:
    """Mount (4, 4) of a LiDAR whose x axis looks this far to the left of the car's."""
    out, angle = np.eye(4), np.radians(degrees)
    out[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return out


@pytest.mark.parametrize(
    ("headings", "turn"),
    [
        ([-90.0], 0.0),  # nuScenes': x to the right
        ([-90.3, -89.9, -89.8], 0.1),  # the median
        ([0.0], 90.0),  # x ahead, and the ego frame
        ([90.0], -180.0),
        ([89.9, 90.1, 90.2], -179.9),  # about half a turn, where degrees jump
        ([-90.0, -90.0, 0.0], 0.0),  # one car of three
    ],
)
def test_the_turn_of_a_frame_is_the_median_of_its_mounts(headings: list[float], turn: float) -> None:
    assert turn_of(np.stack([mount(heading) for heading in headings])) == pytest.approx(turn)


def test_turns_are_compared_by_ten_degrees(expert_checkpoint: Path, tmp_path: Path) -> None:
    own = trained_with(CAMERAS, "LIDAR_TOP", expert_checkpoint, tmp_path / "own.pth", lidar_turn=-175.0)
    for turn in (-175.0, 180.0, 176.0, -166.0, None):
        check_trained_rig(own, CAMERAS, "LIDAR_TOP", None, turn)
    for turn in (90.0, -164.0, 174.0, 0.0):
        with pytest.raises(
            FD3DError,
            match=f"with LIDAR_TOP turned by -175 degrees .*, the index's top is turned by {turn:.0f}; set data",
        ):
            check_trained_rig(own, CAMERAS, "top", None, turn)
    check_trained_rig(expert_checkpoint, CAMERAS, "LIDAR_TOP", None, 90.0)  # tells none


def test_nothing_runs_with_a_lidar_that_is_mounted_otherwise(
    project: Path,
    expert_config: Path,
    expert_checkpoint: Path,
    world: Path,
    world_index: Path,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turned = trained_with(CAMERAS, "LIDAR_TOP", expert_checkpoint, tmp_path / "turned.pth", lidar_turn=90.0)
    told = "turned.pth was trained with LIDAR_TOP turned by 90 degrees .*, the index's LIDAR_TOP is turned by 0;"
    source = FrameSource(world_index, world, "world_val")
    with pytest.raises(FD3DError, match=told):
        evaluate_detector(expert_config, turned, source, "v1.0-world", tmp_path, tmp_path / "metrics.json", 0)
    with pytest.raises(FD3DError, match=told):
        dump(expert_config, turned, source, tmp_path / "store", DumpSettings(FocalRule(), frames_per_shard=3), 0)
    with pytest.raises(FD3DError, match=told):
        next(detect_scene(expert_config, turned, world, "scene-2000", tmp_path / "drawn", index=world_index))
    plan, taken = StudentPlan(project / "configs/world/apprentice.py"), tmp_path / "expert/detector.pth"
    with pytest.raises(FD3DError, match=told):
        take_or_train(expert_config, turned, RunSettings(max_iters=4), source, taken, plan)
    out, inherit = tmp_path / "run/detector.pth", ("pts_bbox_head",)
    with pytest.raises(FD3DError, match=told):
        train_plain(plan.config, source, out, RunSettings(max_iters=4), expert=turned, inherit=inherit)
    monkeypatch.setattr("pipeline.dumping.recompute.check_identity", lambda *given: None)
    with pytest.raises(FD3DError, match=told):
        recompute(StoreReader(store), expert_config, turned, world_index, world, 1)
    rig = rig_of(FrameIndex.load(world_index), world)
    with pytest.raises(FD3DError, match=told):
        export_detector(expert_config, turned, tmp_path / "turned.onnx", rig)
    assert not taken.exists() and not out.exists() and not (tmp_path / "store").exists()


def test_images_of_other_sizes_than_the_trainings_are_warned_of(
    project: Path,
    expert_config: Path,
    expert_checkpoint: Path,
    world: Path,
    world_index: Path,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By all that compare an index's rig with a checkpoint's: evaluate, dump, verify --recompute and the stage expert."""
    index = FrameIndex.load(world_index)
    small = trained_with(CAMERAS, "LIDAR_TOP", expert_checkpoint, tmp_path / "small.pth", image_sizes=[[80, 144]] * 6)

    class Reached(Exception):
        """What comes after the comparison."""

    def reached(*given: object) -> None:
        raise Reached

    for place in ("evaluation.run.check_images", "dumping.dump.check_images", "dumping.recompute.check_images"):
        monkeypatch.setattr(f"pipeline.{place}", reached)
    monkeypatch.setattr("pipeline.dumping.recompute.check_identity", lambda *given: None)
    monkeypatch.setattr("pipeline.training.expert.check_views", reached)
    source, told = (
        FrameSource(world_index, world, "world_val"),
        "small.pth was trained with images of 80x144 of CAM_FRONT; ",
    )
    out, plan = tmp_path / "out", StudentPlan(project / "configs/world/apprentice.py")
    for run in (
        lambda: evaluate_detector(expert_config, small, source, "v1.0-world", out, out / "metrics.json", 0),
        lambda: dump(expert_config, small, source, out, DumpSettings(FocalRule(), frames_per_shard=3), 0),
        lambda: take_or_train(expert_config, small, RunSettings(max_iters=4), source, out / "detector.pth", plan),
        lambda: recompute(StoreReader(store), expert_config, small, world_index, world, 1),
    ):
        with pytest.raises(Reached), pytest.warns(UserWarning, match=f"{told}the data have 160x288; the detector runs"):
            run()
    index, cfg = FrameIndex.load(world_index), load_config(expert_config)
    same = trained_with(CAMERAS, "LIDAR_TOP", expert_checkpoint, tmp_path / "same.pth", image_sizes=[[160, 288]] * 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for checkpoint in (same, expert_checkpoint, None):
            check_data(cfg, checkpoint, index, world)


def test_order_and_frame_are_compared(expert_checkpoint: Path, tmp_path: Path) -> None:
    own = trained_with(CAMERAS, "LIDAR_TOP", expert_checkpoint, tmp_path / "own.pth")
    check_trained_rig(own, CAMERAS, "LIDAR_TOP")
    check_trained_rig(own, [f"ring_{i}" for i in range(6)], "top")  # another fleet
    with pytest.raises(
        FD3DError, match="world_expert.pth was trained with the cameras CAM_FRONT, .*, the data have CAM_BACK_R"
    ):
        check_trained_rig(expert_checkpoint, TURNED, "LIDAR_TOP")
    odd = tmp_path / "odd.pth"
    torch.save(torch.load(own, weights_only=True) | {"training": {"cameras": None, "reference": None}}, odd)
    check_trained_rig(odd, TURNED, "LIDAR_TOP")
    with pytest.raises(
        FD3DError, match="with the cameras CAM_FRONT, .*, the data have CAM_BACK.*; list them in that order"
    ):
        check_trained_rig(own, TURNED, "LIDAR_TOP")
    with pytest.raises(
        FD3DError,
        match="boxes in the frame of LIDAR_TOP, the data have ego; set data.reference to the sensor that stands for LIDAR_TOP and make",
    ):
        check_trained_rig(own, CAMERAS, "ego")


def test_nothing_runs_with_cameras_in_another_order(
    project: Path, expert_config: Path, expert_checkpoint: Path, world: Path, world_index: Path, tmp_path: Path
) -> None:
    turned = trained_with(TURNED, "LIDAR_TOP", expert_checkpoint, tmp_path / "turned.pth")
    source = FrameSource(world_index, world, "world_val")
    with pytest.raises(FD3DError, match="turned.pth was trained with the cameras"):
        evaluate_detector(expert_config, turned, source, "v1.0-world", tmp_path, tmp_path / "metrics.json", 0)
    with pytest.raises(FD3DError, match="turned.pth was trained with the cameras"):
        dump(expert_config, turned, source, tmp_path / "store", DumpSettings(FocalRule(), frames_per_shard=3), 0)
    with pytest.raises(FD3DError, match="turned.pth was trained with the cameras"):
        Detector.open(expert_config, turned).check_rig(CAMERAS, "LIDAR_TOP")
    with pytest.raises(FD3DError, match="turned.pth was trained with the cameras"):
        export_detector(expert_config, turned, tmp_path / "out.onnx", rig_of(FrameIndex.load(world_index, world)))
    plan, taken = StudentPlan(project / "configs/world/apprentice.py"), tmp_path / "expert/detector.pth"
    with pytest.raises(FD3DError, match="turned.pth was trained with the cameras"):
        take_or_train(expert_config, turned, RunSettings(max_iters=4), source, taken, plan)
    with pytest.raises(FD3DError, match="turned.pth was trained with the cameras"):
        take_or_train(expert_config, turned, RunSettings(max_iters=4), source, taken, plan, boxes="new")
    assert not taken.exists() and not (tmp_path / "out.onnx").exists()
    assert not (tmp_path / "store").exists() and not (tmp_path / "metrics.json").exists()


def test_a_cameras_name_may_be_spelled_otherwise_where_the_order_stays(
    project: Path, expert_config: Path, expert_checkpoint: Path, tmp_path: Path
) -> None:
    cfg, small = load_config(expert_config), [name.lower().replace("_", "-") for name in CAMERAS]
    own = trained_with(CAMERAS, "LIDAR_TOP", expert_checkpoint, tmp_path / "own.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_rig(cfg, own, small, "LIDAR_TOP")
        # DETR3D has no embeddings of cameras
        check_rig(load_config(project / "configs/world/detr3d_expert.py"), own, sorted(small), "LIDAR_TOP")
    with pytest.raises(
        FD3DError, match="the cameras CAM_FRONT, .*, the data have cam-back, .*; list them in that order"
    ):
        check_rig(cfg, own, sorted(small), "LIDAR_TOP")


def test_cameras_of_other_names_are_warned_of_once_where_a_detector_tells_them_apart(
    project: Path, expert_config: Path, expert_checkpoint: Path, tmp_path: Path
) -> None:
    own, ring = trained_with(CAMERAS, "LIDAR_TOP", expert_checkpoint, tmp_path / "own.pth"), list("abcdef")
    with pytest.warns(UserWarning) as told:
        for cameras in (ring, ring, ["cam_front", *ring[1:]]):
            check_rig(load_config(expert_config), own, cameras, "top")
    first, second = (str(one.message) for one in told)
    assert (
        f"own.pth was trained with the cameras {', '.join(CAMERAS)}, the data have a, b, c, d, e, f: camera 1, a, takes "
        in first
    )
    assert "the embedding of CAM_FRONT, and so do the others in order; if another order fits, list" in first
    assert "camera 2, b, takes the embedding of CAM_FRONT_RIGHT, " in second
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_rig(load_config(project / "configs/world/detr3d_expert.py"), own, list("ghijkl"), "top")


def test_nothing_runs_in_silence_with_renamed_cameras(
    project: Path, expert_config: Path, expert_checkpoint: Path, world: Path, world_index: Path, tmp_path: Path
) -> None:
    """By what reads the rig of an index: evaluate, dump, detect, the stage expert and the training from an expert."""
    small = tuple(sorted(name.lower() for name in CAMERAS))
    renamed = trained_with(small, "LIDAR_TOP", expert_checkpoint, tmp_path / "renamed.pth")
    source, out = FrameSource(world_index, world, "world_val"), tmp_path / "run/detector.pth"
    plan, run = StudentPlan(project / "configs/world/apprentice.py"), RunSettings(max_iters=4)
    scene = FrameIndex.load(world_index).splits["world_val"][0]
    for start in (
        lambda: evaluate_detector(expert_config, renamed, source, "v1.0-world", tmp_path, tmp_path / "metrics.json", 0),
        lambda: dump(
            expert_config, renamed, source, tmp_path / "store", DumpSettings(FocalRule(), frames_per_shard=3), 0
        ),
        lambda: next(detect_scene(expert_config, renamed, world, scene, tmp_path / "detect", index=world_index)),
        lambda: take_or_train(expert_config, renamed, run, source, out, plan),
        lambda: train_plain(plan.config, source, out, run, expert=renamed, inherit=("pts_bbox_head",)),
    ):
        with pytest.raises(
            FD3DError, match="renamed.pth was trained with the cameras cam_back, .*, the data have CAM_FRO"
        ):
            start()
    assert not out.exists()


@pytest.mark.parametrize("method", ["plain", "fd3d"])
def test_no_student_starts_from_an_expert_of_another_rig(
    project: Path, expert_checkpoint: Path, source: FrameSource, store: Path, tmp_path: Path, method: str
) -> None:
    config, out, run = project / "configs/world/apprentice.py", tmp_path / "run/detector.pth", RunSettings(max_iters=4)
    for cameras, reference, told in (
        (TURNED, "LIDAR_TOP", "was trained with the cameras CAM_BACK"),
        (
            CAMERAS,
            "ego",
            "was trained with boxes in the frame of ego, the data have LIDAR_TOP; set data.reference: ego",
        ),
    ):
        expert = trained_with(cameras, reference, expert_checkpoint, tmp_path / "expert.pth")
        with pytest.raises(FD3DError, match=told), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a store of another expert
            if method == "plain":
                train_plain(config, source, out, run, expert=expert, inherit=("pts_bbox_head",))
            else:
                settings = DistillSettings(inherit=("pts_bbox_head",))
                shared: dict[str, Any] = dict(source=source, store=store, expert=expert, out=out, run=run)
                train_apprentice(config, method, settings, **shared)
    assert not out.exists()


def test_a_store_that_the_wrong_expert_made_is_not_recomputed(
    expert_config: Path, expert_checkpoint: Path, source: FrameSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As made before the dump looked at the cameras."""
    turned = trained_with(TURNED, "LIDAR_TOP", expert_checkpoint, tmp_path / "turned.pth")
    monkeypatch.setattr("pipeline.dumping.dump.check_data", lambda *given: None)
    settings, scene = (
        DumpSettings(FocalRule(), frames_per_shard=3),
        FrameIndex.load(source.index).splits["world_train"][0],
    )
    dump(expert_config, turned, source, tmp_path / "store", settings, 0, [scene])
    with pytest.raises(FD3DError, match="turned.pth was trained with the cameras"):
        recompute(StoreReader(tmp_path / "store"), expert_config, turned, source.index, source.root, 1)


def test_a_frame_of_reference_is_advised_that_the_data_have(expert_checkpoint: Path, tmp_path: Path) -> None:
    own = trained_with(CAMERAS, "LIDAR_TOP", expert_checkpoint, tmp_path / "own.pth")
    camera, radar = {"channel": "CAM_FRONT", "modality": "camera"}, {"channel": "RADAR_FRONT", "modality": "radar"}
    for sensors, told in (
        ([camera, radar], "the data set has no sensor but cameras to set data.reference to; give a checkpoint in the"),
        (
            [camera, {"channel": "top", "modality": "lidar"}],
            "set data.reference to the sensor that stands for LIDAR_TOP .top. and",
        ),
        (
            [camera, {"channel": "LIDAR_TOP", "modality": "lidar"}],
            "set data.reference: LIDAR_TOP and make the index again",
        ),
    ):
        rows = [row | {"token": row["channel"]} for row in sensors]
        (tmp_path / "sensor.json").write_text(json.dumps(rows))
        with pytest.raises(FD3DError, match=told):
            check_trained_rig(own, CAMERAS, "ego", tmp_path)
    frame = trained_with(CAMERAS, "ego", expert_checkpoint, tmp_path / "ego.pth")
    with pytest.raises(FD3DError, match="set data.reference: ego and make the index again"):
        check_trained_rig(frame, CAMERAS, "LIDAR_TOP", tmp_path)


def test_another_number_of_cameras_is_named_with_both_numbers(
    project: Path, expert_config: Path, expert_checkpoint: Path, world: Path, world_index: Path, tmp_path: Path
) -> None:
    """The weights, which would not fit either, are not looked at before."""
    config, source = project / "configs/world/five_expert.py", FrameSource(world_index, world, "world_val")
    index = FrameIndex.load(world_index, world)
    told = "config .*five_expert.py has weights for 5 cameras, the data 6; set num_cams=6"
    with pytest.raises(FD3DError, match=told):
        evaluate_detector(config, expert_checkpoint, source, "v1.0-world", tmp_path, tmp_path / "metrics.json", 0)
    with pytest.raises(FD3DError, match=told):
        dump(config, None, source, tmp_path / "store", DumpSettings(FocalRule(), frames_per_shard=3), 0)
    with pytest.raises(FD3DError, match=told):
        export_detector(config, expert_checkpoint, tmp_path / "out.onnx", rig_of(index))
    with pytest.raises(FD3DError, match=told):
        Detector.open(config, random_weights=True).check_rig(index.cameras, index.reference)
    with pytest.raises(FD3DError, match=told):
        train_plain(config, source, tmp_path / "run/detector.pth", RunSettings(max_iters=4))
    check_rig(load_config(expert_config), expert_checkpoint, index.cameras, index.reference)


def test_an_export_advises_a_sensor_that_the_car_has(
    expert_config: Path, expert_checkpoint: Path, world: Path, world_index: Path, tmp_path: Path
) -> None:
    own = trained_with(CAMERAS, "top", expert_checkpoint, tmp_path / "own.pth")
    rig = replace(rig_of(FrameIndex.load(world_index, world), world), reference="ego")
    assert rig.folder == world / "v1.0-world" and rig_of(FrameIndex.load(world_index), tmp_path).folder is None
    with pytest.raises(FD3DError, match="to the sensor that stands for top .LIDAR_TOP. and make the index again"):
        export_detector(expert_config, own, tmp_path / "out.onnx", rig)
    with pytest.raises(
        FD3DError, match="to the sensor that stands for top and make the index again, or give a checkpoint"
    ):
        export_detector(expert_config, own, tmp_path / "out.onnx", replace(rig, folder=None))


def test_a_config_without_a_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("data: {}")
    with pytest.raises(FD3DError, match="params.yaml has no model, so it is no detector's config; see configs/"):
        load_config(tmp_path / "params.yaml")
