import hashlib
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot

matplotlib.use("Agg")

from nuscenes.can_bus.can_bus_api import NuScenesCanBus  # noqa: E402
from nuscenes.eval.common.config import config_factory  # noqa: E402
from nuscenes.eval.common.loaders import load_gt_of_sample_tokens  # noqa: E402
from nuscenes.eval.detection.data_classes import DetectionBox  # noqa: E402
from nuscenes.eval.detection.evaluate import DetectionEval  # noqa: E402
from nuscenes.eval.detection.utils import category_to_detection_name, detection_name_to_rel_attributes  # noqa: E402
from nuscenes.nuscenes import NuScenes  # noqa: E402

from pipeline.data import CAMERAS, CLASSES  # noqa: E402
from pipeline.data.index import build_index  # noqa: E402
from pipeline.data.world import generate as generate_module  # noqa: E402
from pipeline.data.world.appearance import Quads, agent_quads  # noqa: E402
from pipeline.data.world.config import WorldConfig  # noqa: E402
from pipeline.data.world.generate import (
    _place,  # noqa: E402
    generate_world,  # noqa: E402
)
from pipeline.data.world.render import Light, draw  # noqa: E402
from pipeline.data.world.rig import rig  # noqa: E402
from pipeline.data.world.scene import SIZES, Agent, make_scene  # noqa: E402
from pipeline.data.world.tables import visibility_level  # noqa: E402
from pipeline.errors import FD3DError  # noqa: E402

CONFIG = WorldConfig(train_scenes=2, val_scenes=1, frames_per_scene=3)
SMALL = WorldConfig(train_scenes=1, val_scenes=1, frames_per_scene=2, height=32, width=64)


def contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    generate_world(root, CONFIG, workers=0)
    return root


@pytest.fixture(scope="module")
def nusc(root: Path) -> NuScenes:
    return NuScenes(CONFIG.version, str(root), verbose=False)


def test_the_same_settings_give_the_same_bytes_however_many_workers(tmp_path: Path) -> None:
    for name, workers in (("a", 0), ("b", 2)):
        generate_world(tmp_path / name, SMALL, workers)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_seed_gives_another_world_and_more_scenes_keep_the_first(tmp_path: Path) -> None:
    variants = {"base": {}, "seed": {"seed": 1}, "more": {"train_scenes": 2}}
    for name, change in variants.items():
        generate_world(tmp_path / name, WorldConfig(**{**SMALL.__dict__, **change}), 0)
    base, seed, more = (contents(tmp_path / name / "samples") for name in variants)
    assert base.keys() == seed.keys() and all(base[file] != seed[file] for file in base)
    assert base.items() < more.items()
    assert not np.allclose(
        make_scene(SMALL, 2000).ego, make_scene(WorldConfig(**{**SMALL.__dict__, "seed": 1}), 2000).ego
    )


def test_splits_are_disjoint_and_cover_all_scenes(root: Path, nusc: NuScenes) -> None:
    splits = json.loads((root / CONFIG.version / "splits.json").read_text())
    assert {name: len(scenes) for name, scenes in splits.items()} == {"world_train": 2, "world_val": 1}
    assert not set(splits["world_train"]) & set(splits["world_val"])
    assert {scene["name"] for scene in nusc.scene} == set(splits["world_train"]) | set(splits["world_val"])


def test_dev_scenes_are_the_first_held_out_ones_and_val_follows(tmp_path: Path) -> None:
    for name, change in {"two": {"val_scenes": 2}, "dev": {"dev_scenes": 1}}.items():
        generate_world(tmp_path / name, WorldConfig(**{**SMALL.__dict__, **change}), 0)
    assert json.loads((tmp_path / "dev" / SMALL.version / "splits.json").read_text()) == {
        "world_train": ["scene-2000"],
        "world_dev": ["scene-8000"],
        "world_val": ["scene-8001"],
    }
    # a scene's images, points and CAN bus do not depend on its split: an earlier val scene can become a dev scene
    for folder in ("samples", "can_bus"):
        assert contents(tmp_path / "two" / folder) == contents(tmp_path / "dev" / folder)
    assert {scene["name"] for scene in json.loads((tmp_path / "dev" / SMALL.version / "scene.json").read_text())} == {
        "scene-2000",
        "scene-8000",
        "scene-8001",
    }
    index = build_index(tmp_path / "dev", SMALL.version, tmp_path / "index.npz")
    assert [len(index.select(split)) for split in ("world_train", "world_dev", "world_val")] == [2, 2, 2]


def test_a_world_without_dev_scenes_is_as_before_the_setting_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # text of the default settings before there was the setting: stamp of every scene, part of the index's hash
    before = "2250cdb43c50"
    assert hashlib.sha256(WorldConfig().text.encode()).hexdigest()[:12] == before
    assert "dev_scenes" in WorldConfig(dev_scenes=1).text
    generate_world(tmp_path, SMALL, 0)
    assert list(json.loads((tmp_path / SMALL.version / "splits.json").read_text())) == ["world_train", "world_val"]
    monkeypatch.setattr(generate_module, "render_scene", None)  # nothing is rendered again
    generate_world(tmp_path, WorldConfig(**{**SMALL.__dict__, "dev_scenes": 0}), 0)


def test_the_devkit_renders_cameras_and_lidar(nusc: NuScenes, tmp_path: Path) -> None:
    for channel in ("CAM_FRONT", "LIDAR_TOP"):
        out = tmp_path / f"{channel}.png"
        nusc.render_sample_data(nusc.sample[0]["data"][channel], out_path=str(out), verbose=False)
        assert out.stat().st_size > 1000
        pyplot.close("all")
    assert nusc.map[0]["mask"].mask().any()


def test_the_devkit_scores_perfect_boxes_on_the_custom_split_as_perfect(nusc: NuScenes, tmp_path: Path) -> None:
    scene = next(scene for scene in nusc.scene if scene["name"] == "scene-8000")
    tokens = [sample["token"] for sample in nusc.sample if sample["scene_token"] == scene["token"]]
    truth = load_gt_of_sample_tokens(nusc, tokens, DetectionBox)
    results: dict[str, list[dict[str, Any]]] = {token: [] for token in tokens}
    for box in truth.all:
        velocity = [0.0 if math.isnan(v) else v for v in box.velocity]
        results[box.sample_token].append({**box.serialize(), "velocity": velocity, "detection_score": 0.9})
    submission = tmp_path / "results.json"
    meta = {f"use_{k}": k == "camera" for k in ("camera", "lidar", "radar", "map", "external")}
    submission.write_text(json.dumps({"meta": meta, "results": results}))
    settings = config_factory("detection_cvpr_2019")
    metrics, _ = DetectionEval(nusc, settings, str(submission), "world_val", str(tmp_path), verbose=False).evaluate()
    assert metrics.mean_dist_aps["car"] == pytest.approx(1.0)
    assert metrics.get_label_tp("car", "orient_err") == pytest.approx(0.0)


def test_all_ten_classes_appear_with_attributes_that_fit(nusc: NuScenes) -> None:
    seen = set()
    for row in nusc.sample_annotation:
        name = category_to_detection_name(row["category_name"])
        attributes = [nusc.get("attribute", token)["name"] for token in row["attribute_tokens"]]
        allowed = detection_name_to_rel_attributes(name)
        assert len(attributes) == bool(allowed) and set(attributes) <= set(allowed)
        width, length, height = row["size"]  # nuScenes' order
        assert (width, length, height) == pytest.approx([SIZES[name][0][i] for i in (1, 0, 2)], rel=0.45)
        assert row["translation"][2] == pytest.approx(height / 2)  # stands on the ground
        seen.add(name)
    assert seen == set(CLASSES)


def test_agents_move_steadily_and_only_where_their_attribute_says_so(nusc: NuScenes) -> None:
    for instance in nusc.instance:
        chain, token = [], instance["first_annotation_token"]
        while token:
            chain.append(nusc.get("sample_annotation", token))
            token = chain[-1]["next"]
        assert len(chain) == instance["nbr_annotations"] and chain[-1]["token"] == instance["last_annotation_token"]
        steps = np.diff([row["translation"] for row in chain], axis=0)
        if len(steps) > 1:
            assert np.abs(np.diff(steps, axis=0)).max() < 0.5  # metres in half a second twice: gentle curves only
        if len(steps) and chain[0]["attribute_tokens"]:
            attribute = nusc.get("attribute", chain[0]["attribute_tokens"][0])["name"]
            moving = attribute in ("vehicle.moving", "cycle.with_rider", "pedestrian.moving")
            assert (np.linalg.norm(steps, axis=1).max() > 0.2) == moving


def test_boxes_have_lidar_points_only_where_a_camera_sees_them(root: Path) -> None:
    def counts(config: WorldConfig) -> list[int]:
        scene = generate_module.render_scene(root / "again", config, 2000)
        return [row["num_lidar_pts"] for row in scene["sample_annotation"]]

    base = counts(CONFIG)
    assert any(base) and not all(base)
    assert not any(counts(WorldConfig(**{**CONFIG.__dict__, "min_pixels": 10**6})))  # nothing shows that much
    assert sum(map(bool, counts(WorldConfig(**{**CONFIG.__dict__, "lidar_range": 15.0})))) < sum(map(bool, base))


def view(parts: list[tuple[np.ndarray, np.ndarray, int]], objects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    corners, colors, owners = zip(*parts, strict=True)
    quads = np.concatenate(corners), np.concatenate(colors), np.repeat(owners, [len(c) for c in corners])
    light, crossing = Light(np.random.default_rng(0), 0.0), np.array([500.0, 0.0, 0.0])
    return draw(rig(160, 288)[0], (160, 288), np.zeros(3), quads, objects, 0.0, crossing, light, 0)


def car(x: float, yaw: float) -> tuple[np.ndarray, np.ndarray]:
    corners, colors = agent_quads(Agent("car", SIZES["car"][0], np.zeros((1, 4)), "vehicle.moving", 3))
    return _place(corners, np.array([x, 0.0, yaw])), colors


def test_an_agent_behind_a_wall_is_not_seen() -> None:
    wall = Quads()
    wall.part((8.0, -6.0, 0.0), (8.5, 6.0, 5.0), (0.5, 0.5, 0.5))
    _, seen, total = view([(*car(15.0, 0.0), 1)], 1)
    assert seen[0] == total[0] > 100
    for order in (1, -1):  # whichever is drawn first
        _, behind, unoccluded = view([(*wall.arrays(), 0), (*car(15.0, 0.0), 1)][::order], 1)
        assert behind[0] == 0 and unoccluded[0] == total[0]


def test_the_pixels_of_an_agent_lie_inside_its_projected_box() -> None:
    image, seen, _ = view([(*car(15.0, 0.0), 1)], 1)
    empty, _, _ = view([(*car(-15.0, 0.0), 1)], 1)
    rows, columns = np.nonzero(np.abs(image.astype(int) - empty).max(-1) > 8)
    focal, (length, width, height) = 1266 * 288 / 1600, SIZES["car"][0]
    near = 15.0 - length / 2 - 1.70  # metres from the front camera at x = 1.70, y = 0.02, z = 1.51 to the car's rear
    assert columns.min() == pytest.approx(144 - focal * (width / 2 - 0.02) / near, abs=2)
    assert columns.max() == pytest.approx(144 + focal * (width / 2 + 0.02) / near, abs=2)
    wheels = 15.0 - 0.4 * length - 1.70  # the underbody that touches the ground ends before the rear
    assert rows.max() == pytest.approx(160 * 0.545 + focal * 1.51 / wheels, abs=2)
    assert seen[0] <= focal**2 * width * height / near**2


def test_a_car_is_red_behind_and_white_in_front() -> None:
    def redness(yaw: float) -> float:
        image, _, _ = view([(*car(12.0, yaw), 1)], 1)
        patch = image[85:110, 120:168].astype(float)
        return float((patch[..., 0] - patch[..., 1]).mean())

    assert redness(0.0) > redness(math.pi) + 10  # driving away, then coming


@pytest.mark.parametrize("name", CLASSES)
def test_an_agent_stays_inside_its_box_and_fills_it(name: str) -> None:
    size = np.array(SIZES[name][0])
    attribute = "cycle.with_rider" if name in ("motorcycle", "bicycle") else ""
    corners, colors = agent_quads(Agent(name, tuple(size), np.zeros((1, 4)), attribute, 1))
    low, high = corners.reshape(-1, 3).min(0), corners.reshape(-1, 3).max(0)
    slack = 0.05  # decals stand off their face
    assert (low >= [-size[0] / 2 - slack, -size[1] / 2 - slack, -slack]).all()
    assert (high <= [size[0] / 2 + slack, size[1] / 2 + slack, size[2] + slack]).all()
    assert (high - low >= 0.7 * size).all()
    assert (colors >= 0).all() and (colors <= 1).all()


@pytest.mark.parametrize(
    ("share", "level"),
    [(0.0, "1"), (0.39, "1"), (0.4, "2"), (0.6, "3"), (0.79, "3"), (0.8, "4"), (1.0, "4")],
)
def test_visibility_bins_are_nuscenes(share: float, level: str) -> None:
    assert visibility_level(share) == level


def test_can_bus_poses_agree_with_the_ego_poses(root: Path, nusc: NuScenes) -> None:
    bus = NuScenesCanBus(str(root))
    for scene in nusc.scene:
        messages = {row["utime"]: row for row in bus.get_messages(scene["name"], "pose")}
        sample = nusc.get("sample", scene["first_sample_token"])
        while sample:
            pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
            message = messages[sample["timestamp"]]
            assert message["pos"] == pytest.approx(pose["translation"])
            assert message["orientation"] == pytest.approx(pose["rotation"])
            assert {"accel", "rotation_rate", "vel"} <= message.keys()
            sample = nusc.get("sample", sample["next"]) if sample["next"] else None


def test_a_killed_run_looks_incomplete_and_a_second_run_only_does_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_world(tmp_path / "whole", SMALL, 0)
    render = generate_module.render_scene
    done: list[int] = []

    def render_counting(root: Path, config: WorldConfig, number: int, limit: int) -> dict[str, Any]:
        if len(done) == limit:
            (root / "samples").mkdir(exist_ok=True)
            raise KeyboardInterrupt
        done.append(number)
        return render(root, config, number)

    part = tmp_path / "part"
    for limit in (0, 1, 2):  # killed in the first scene, killed in the second, left alone
        monkeypatch.setattr(generate_module, "render_scene", partial(render_counting, limit=limit))
        if limit < 2:
            with pytest.raises(KeyboardInterrupt):
                generate_world(part, SMALL, 0)
            assert not (part / SMALL.version / "scene.json").exists()
        else:
            generate_world(part, SMALL, 0)
    assert done == [2000, 8000]
    assert contents(part) == contents(tmp_path / "whole")


def test_rerendering_with_other_settings_takes_the_old_tables_away_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_world(tmp_path, SMALL, 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(generate_module, "scene_tables", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        generate_world(tmp_path, WorldConfig(**{**SMALL.__dict__, "seed": 1}), 0)
    assert not (tmp_path / SMALL.version / "scene.json").exists()
    generate_world(tmp_path, SMALL, 0)  # and does not take the half-overwritten scene for done
    generate_world(tmp_path.with_name("fresh"), SMALL, 0)
    assert contents(tmp_path) == contents(tmp_path.with_name("fresh"))


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FD3DError, match="choose another folder"):
        generate_world(tmp_path, SMALL, 0)
    with pytest.raises(FD3DError, match="choose another folder"):
        generate_world(tmp_path / "thesis.tex", SMALL, 0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": -1}, "seed"),
        ({"train_scenes": 0}, "train_scenes"),
        ({"train_scenes": 6001}, "train_scenes is 6001; use 6000"),
        ({"val_scenes": 2001}, "val_scenes"),
        ({"val_scenes": 1000, "dev_scenes": 1001}, "dev_scenes and world.val_scenes are 2001 together"),
        ({"dev_scenes": -1}, "dev_scenes is -1"),
        ({"frames_per_scene": 121}, "frames_per_scene"),
        ({"width": 287}, "size"),
        ({"density": -0.1}, "density"),
        ({"clutter": float("nan")}, "clutter"),
        ({"lidar_range": 0.0}, "lidar_range"),
        ({"min_pixels": 0}, "min_pixels"),  # unseen boxes would get points
        ({"version": "samples"}, "version"),  # the tables replace that folder
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(FD3DError, match=named):
        WorldConfig(**change)


def test_no_progress_bar_without_a_terminal(tmp_path: Path) -> None:
    call = "import sys, pathlib; from pipeline.data.world.config import WorldConfig; "
    call += "from pipeline.data.world.generate import generate_world; "
    call += f"generate_world(pathlib.Path(sys.argv[1]), {SMALL}, 0)"
    done = subprocess.run([sys.executable, "-c", call, str(tmp_path / "w")], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_images_have_the_size_and_cameras_that_the_tables_say(root: Path, nusc: NuScenes) -> None:
    import cv2

    for camera in CAMERAS:
        row = nusc.get("sample_data", nusc.sample[0]["data"][camera])
        assert cv2.imread(str(root / row["filename"])).shape == (row["height"], row["width"], 3) == (160, 288, 3)
