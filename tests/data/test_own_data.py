"""Data sets of one's own: what their tables may leave out or name otherwise, and what is refused in one line."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nuscenes.eval.detection.utils import category_to_detection_name

from pipeline.data import CAMERAS
from pipeline.data.categories import Categories
from pipeline.data.checks import tell_turns
from pipeline.data.devkit import open_scenes
from pipeline.data.geometry import can_bus_delta
from pipeline.data.index import FrameIndex, build_index
from pipeline.data.rig import Rig
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.evaluation.run import check_evaluation, score
from pipeline.evaluation.submission import write_submission
from pipeline.models.bevformer.transformer import ego_shift
from pipeline.profile import read_profile
from pipeline.settings import from_mapping

VERSION = "v1.0-world"
Rows = list[dict[str, Any]]


@pytest.fixture
def own(world: Path, tmp_path: Path) -> Path:
    """A copy of the tiny world's tables beside links to its images; no maps."""
    root = tmp_path / "own"
    shutil.copytree(world / VERSION, root / VERSION)
    for folder in ("samples", "can_bus"):
        (root / folder).symlink_to(world / folder)
    return root


def change(root: Path, table: str, by: Callable[[Rows], object], version: str = VERSION) -> None:
    """Change a table's rows in place."""
    path = root / version / f"{table}.json"
    rows = json.loads(path.read_text())
    by(rows)
    path.write_text(json.dumps(rows))


def each(**values: Any) -> Callable[[Rows], object]:
    """A change that gives every row the values."""
    return lambda rows: [row.update(values) for row in rows]


def without(*names: str) -> Callable[[Rows], object]:
    """A change that takes columns out of every row."""
    return lambda rows: [row.pop(name) for row in rows for name in names]


def indexed(root: Path, version: str = VERSION, **options: Any) -> tuple[FrameIndex, list[str]]:
    """Index of a data set, and the lines that were told."""
    lines: list[str] = []
    return build_index(root, version, root / "index.npz", tell=lines.append, **options), lines


def judged(root: Path, split: str, version: str = VERSION) -> dict[str, Any]:
    """Metrics of a submission that repeats the annotations of a split, through the checks before a detector runs."""
    source, out = FrameSource(root / "index.npz", root, split), root / "out"
    index = check_evaluation(source, version, out, out / "metrics.json")
    frames = [index[row] for row in index.select(split)]
    found = [(f.token, np.nan_to_num(f.boxes), np.linspace(1, 0.5, len(f.labels)), f.labels) for f in frames]
    write_submission(out / "submission.json", index, found)
    return score(out / "submission.json", index, source, out, out / "metrics.json")


def names(root: Path, version: str = VERSION) -> list[str]:
    return [row["name"] for row in json.loads((root / version / "scene.json").read_text())]


def test_an_index_is_the_same_without_maps_and_tells_nothing_where_all_counts(own: Path, world_index: Path) -> None:
    index, lines = indexed(own)
    assert index.sha256 == FrameIndex.load(world_index).sha256 and lines == []
    assert judged(own, "world_val")["mAP"] > 50


# Splits


@pytest.mark.parametrize("split", ["train", "val", "test", "mini_val", "all"])
def test_own_splits_of_any_name_are_evaluated(own: Path, split: str) -> None:
    (own / VERSION / "splits.json").write_text(json.dumps({split: names(own)[-1:]}))
    index, _ = indexed(own)
    assert len(index.select(split)) == 3  # of nine; an own split takes the place of the devkit's, and of all frames
    assert judged(own, split)["mAP"] > 50


def test_all_is_every_frame_and_the_devkits_splits_are_those_of_scenes_that_are_here(own: Path) -> None:
    (own / VERSION / "splits.json").unlink()
    (own / VERSION).rename(own / "v1.0-mini")
    (own / "can_bus").unlink()
    new = ["scene-0061", "scene-0553", "scene-0103"]
    change(own, "scene", lambda rows: [row.update(name=n) for row, n in zip(rows, new, strict=True)], "v1.0-mini")
    with pytest.warns(UserWarning, match="no CAN bus"):
        index, _ = indexed(own, "v1.0-mini")
    assert len(index.select("val")) == 6 and judged(own, "val", "v1.0-mini")["mAP"] > 50  # of v1.0-trainval's val
    assert len(index.select("all")) == 9 and judged(own, "all", "v1.0-mini")["mAP"] > 50


def test_a_split_without_annotations_gives_a_submission_and_no_metrics(own: Path) -> None:
    for table in ("sample_annotation", "instance"):
        change(own, table, list.clear)
    indexed(own)
    assert judged(own, "all") == {}
    assert (own / "out/submission.json").is_file() and not (own / "out/metrics.json").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", r"splits.json must be a mapping such as .*; it is \[1\]"),
        ("{}", r"splits.json must be a mapping"),
        ("{", r"splits.json cannot be read as JSON .*; repair it, or remove it"),
        ("", r"splits.json cannot be read as JSON"),
        ('{"val": "scene-8000"}', r"split 'val' of .* is 'scene-8000'; it must be a list of scene names"),
        ('{"val": [3]}', r"split 'val' of .* is \[3\]; it must be a list"),
        ('{"val": []}', r"split 'val' of .* has no scene; add one, or remove the split"),
        ('{"val": ["scene-8000", "scene-8000"]}', r"has scene scene-8000 twice"),
        ('{"val": ["nope"]}', r"has 1 scene that scene.json lacks, first 'nope'; there are scene-2000, "),
    ],
)
def test_faults_of_splits_are_one_line(own: Path, text: str, told: str) -> None:
    (own / VERSION / "splits.json").write_text(text)
    with pytest.raises(FD3DError, match=told) as caught:
        indexed(own)
    assert "\n" not in str(caught.value)


# Checks before a detector runs


def test_what_would_fail_after_the_detections_is_told_before(own: Path, tmp_path: Path) -> None:
    indexed(own)
    source, out = FrameSource(own / "index.npz", own, "world_val"), own / "out"
    (tmp_path / "file").write_text("")
    for place in ((tmp_path / "file", out / "m.json"), (out, tmp_path / "file" / "m.json"), (out, tmp_path)):
        with pytest.raises(FD3DError, match="cannot be written: .*; free some space or give another place"):
            check_evaluation(source, VERSION, *place)
    with pytest.raises(FD3DError, match="was made from v1.0-world, but the tables to evaluate on are v1.0-mini"):
        check_evaluation(source, "v1.0-mini", out, out / "m.json")
    with pytest.raises(FD3DError, match="split 'nope' has no scene in this index"):
        check_evaluation(FrameSource(own / "index.npz", own, "nope"), VERSION, out, out / "m.json")
    (own / VERSION / "instance.json").rename(own / "instance.json")
    with pytest.raises(FD3DError, match="has no instance.json, which the devkit needs"):
        check_evaluation(source, VERSION, out, out / "m.json")


def test_a_split_of_which_no_box_counts_is_refused_before_a_detector_runs(own: Path) -> None:
    scenes = {row["name"]: row["token"] for row in json.loads((own / VERSION / "scene.json").read_text())}
    last = scenes[names(own)[-1]]
    samples = {
        row["token"] for row in json.loads((own / VERSION / "sample.json").read_text()) if row["scene_token"] == last
    }
    zero = {"num_lidar_pts": 0, "num_radar_pts": 0}
    change(own, "sample_annotation", lambda rows: [r.update(zero) for r in rows if r["sample_token"] in samples])
    indexed(own)
    with pytest.raises(FD3DError, match="none of the .* box(?:es)? of split 'world_val' has a LiDAR or radar point"):
        judged(own, "world_val")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"attribute_name": "my.moving"}, "Unknown attribute_name my.moving"),
        ({"detection_name": "van"}, "Unknown detection_name van"),
        ({"size": [0.0, 1.0, 1.0]}, "size .0.0, 1.0, 1.0."),
    ],
)
def test_a_submission_that_the_devkit_cannot_read_is_one_line(own: Path, fault: dict, told: str) -> None:
    index, _ = indexed(own)
    judged(own, "world_val")
    path, source = own / "out/submission.json", FrameSource(own / "index.npz", own, "world_val")
    content = json.loads(path.read_text())
    for records in content["results"].values():
        for record in records:
            record.update(fault)
    path.write_text(json.dumps(content))
    with pytest.raises(
        FD3DError, match=f"submission.json .*(cannot be evaluated|the devkit refuses|that cannot be): .*{told}"
    ):
        score(path, index, source, own / "out", own / "out/metrics.json")


def test_links_that_are_null_end_an_object_s_track(own: Path) -> None:
    indexed(own)
    before = judged(own, "world_val")
    for table in ("sample", "sample_annotation"):
        change(own, table, lambda rows: [r.update({k: r[k] or None for k in ("prev", "next")}) for r in rows])
    indexed(own)
    assert judged(own, "world_val") == before


@pytest.mark.parametrize("lacks", ["everywhere", "in one frame"])
def test_a_lidar_that_does_not_count_may_be_missing(own: Path, lacks: str) -> None:
    calibrated = json.loads((own / VERSION / "calibrated_sensor.json").read_text())
    sensors = {
        row["token"] for row in json.loads((own / VERSION / "sensor.json").read_text()) if row["channel"] == "LIDAR_TOP"
    }
    lidars = {row["token"] for row in calibrated if row["sensor_token"] in sensors}

    def drop(rows: Rows) -> None:
        found = [row for row in rows if row["calibrated_sensor_token"] in lidars]
        for row in found if lacks == "everywhere" else found[-1:]:
            rows.remove(row)

    change(own, "sample_data", drop)
    indexed(own, rig=Rig(reference="ego"))
    assert judged(own, "world_val")["mAP"] > 50


def test_a_scene_without_frames_is_told_and_left_out(own: Path) -> None:
    index, _ = indexed(own)
    before, last = judged(own, "world_train"), names(own)[0]
    scene = next(row for row in json.loads((own / VERSION / "scene.json").read_text()) if row["name"] == last)
    samples = {
        row["token"]
        for row in json.loads((own / VERSION / "sample.json").read_text())
        if row["scene_token"] == scene["token"]
    }

    def drop(rows: Rows) -> None:
        rows[:] = [row for row in rows if row["sample_token"] not in samples or "CAM_FRONT/" not in row["filename"]]

    change(own, "sample_data", drop)
    _, (line,) = indexed(own, skip_incomplete=True)
    assert line.endswith(f"and are skipped, with them all of {last}")
    assert judged(own, "world_train")["mAP"] > 50 and before["mAP"] > 50
    with pytest.raises(FD3DError, match="lack a sensor"):
        indexed(own)
    change(own, "scene", lambda rows: [row.update(first_sample_token="") for row in rows if row["name"] == last])
    assert f"{last} has no sample, and is left out" in indexed(own)[1]
    assert judged(own, "world_train")["mAP"] > 50


def test_rows_of_samples_that_are_not_there_are_counted(own: Path) -> None:
    def strange(rows: Rows) -> None:
        lost = {row["token"] for row in rows[:100]}
        for row in rows:
            row.update({side: "" for side in ("prev", "next") if row["token"] in lost or row[side] in lost})
            row["sample_token"] = "elsewhere" if row["token"] in lost else row["sample_token"]

    before = len(indexed(own)[0].arrays["labels"])
    change(own, "sample_annotation", strange)
    index, (line,) = indexed(own)
    left = before - len(index.arrays["labels"])
    assert (
        line
        == f"{left} rows of sample_annotation.json are of samples that sample.json does not have, first elsewhere; they do not count"
    )


# Classes


def test_racks_that_the_profile_calls_no_class_still_take_bicycles_out(own: Path) -> None:
    """The devkit leaves out bicycles inside annotated racks, which it finds by their category."""
    given = Categories({"static_object.bicycle_rack": None, "vehicle.car": None, "vehicle.truck": "truck"})
    assert given.devkit_name("static_object.bicycle_rack") == "static_object.bicycle_rack"
    assert given.devkit_name("vehicle.truck") == "vehicle.truck"
    assert category_to_detection_name(given.devkit_name("vehicle.car")) is None


def test_categories_are_mapped_by_the_profile_and_what_is_not_mapped_is_counted(own: Path, world_index: Path) -> None:
    before = FrameIndex.load(world_index)
    indexed(own)
    plain = judged(own, "world_val")
    kinds = {"vehicle.car": "Kfz", "human.pedestrian.adult": "Mensch", "movable_object.barrier": "Zaun"}
    change(own, "category", lambda rows: [row.update(name=kinds.get(row["name"], row["name"])) for row in rows])
    barriers = int((before.arrays["labels"] == 5).sum())
    index, (line,) = indexed(own, classes={"Kfz": "car", "Mensch": "pedestrian"})
    assert re.fullmatch(
        rf"{barriers} of {len(before.arrays['labels'])} boxes of 1 category are not mapped: Zaun \(\d+\)", line
    )
    assert index.classes == {"Kfz": "car", "Mensch": "pedestrian"}
    kept = before.arrays["labels"] != 5
    np.testing.assert_array_equal(index.arrays["boxes"], before.arrays["boxes"][kept])
    found = judged(own, "world_val")
    assert found["AP"]["car"] == plain["AP"]["car"] > 0 and found["AP"]["pedestrian"] == plain["AP"]["pedestrian"] > 0
    assert plain["AP"]["barrier"] > 0 == found["AP"]["barrier"]


def test_a_category_of_nuscenes_can_be_left_out(own: Path) -> None:
    index, (line,) = indexed(own, classes={"vehicle.car": None})
    assert "are not mapped: vehicle.car (" in line and not (index.arrays["labels"] == 0).any()
    assert judged(own, "world_val")["AP"]["car"] == 0


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ({"vehicle.car": "van"}, r"data.classes.vehicle.car is 'van'; use null or one of car, truck"),
        ({"Kfz": "car"}, r"data.classes has 'Kfz', no category of .*; there are human"),
    ],
)
def test_a_wrong_mapping_is_named(own: Path, classes: dict, told: str) -> None:
    with pytest.raises(FD3DError, match=told):
        indexed(own, classes=classes)


def test_where_nothing_is_mapped_or_nothing_counts_there_is_no_index(own: Path) -> None:
    change(own, "sample_annotation", each(num_lidar_pts=0, num_radar_pts=0))
    with pytest.raises(
        FD3DError, match=r"none of the \d+ box(?:es)? of .* counts: num_lidar_pts and num_radar_pts are 0"
    ):
        indexed(own)
    change(own, "category", lambda rows: [row.update(name=f"own.{n}") for n, row in enumerate(rows)])
    with pytest.raises(
        FD3DError,
        match=r"(\d+) of \1 boxes of \d+ categor(?:y|ies) are not mapped: own.*name the class .* {own.\d: car}",
    ):
        indexed(own)
    assert not (own / "index.npz").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", [0.0, 4.0, 1.5]),
        ("size", [2.0, -1.0, 1.5]),
        ("translation", [float("nan")] * 3),
        ("translation", [1e300, 0, 0]),
        ("rotation", [0] * 4),
    ],
)
def test_boxes_that_cannot_be_are_named_and_do_not_count(own: Path, world_index: Path, name: str, value: list) -> None:
    before = FrameIndex.load(world_index)
    token = before[before.select("world_val")[1]].token  # in the middle of a scene: a neighbour to other boxes
    broken: list[str] = []

    def one(rows: Rows) -> None:
        row = next(row for row in rows if row["sample_token"] == token)
        row[name] = value
        broken.append(row["token"])

    change(own, "sample_annotation", one)
    index, (line,) = indexed(own)
    assert line.startswith("1 box that cannot be") and f"first annotation {broken[0]} of scene-8000" in line
    assert [len(f.labels) for f in before] == [len(f.labels) + (f.token == token) for f in index]
    row = open_scenes(own, VERSION, ["scene-8000"]).get("sample_annotation", broken[0])  # nor does it for the devkit
    assert row["num_lidar_pts"] == row["num_radar_pts"] == 0
    assert judged(own, "world_val")["mAP"] > 50


@pytest.mark.parametrize("step", [0, -1])
def test_times_that_stand_still_or_go_back_are_named(own: Path, step: int) -> None:
    scene: Rows = []

    def close(rows: Rows) -> None:
        scene.extend(rows[:2])
        rows[1]["timestamp"] = rows[0]["timestamp"] + step

    change(own, "sample", close)
    with pytest.raises(
        FD3DError, match="sample.json has timestamp .*; times of a scene's frames are microseconds and must increase"
    ) as caught:
        indexed(own)
    assert all(row["token"] in str(caught.value) for row in scene)


# Fields and sensors


@pytest.mark.parametrize(
    ("table", "by", "lines"),
    [
        ("sample_annotation", without("num_lidar_pts"), [r"\d+ box(?:es)? without num_lidar_pts; each counts"]),
        ("sample_annotation", without("num_radar_pts", "visibility_token"), []),
        ("sample_annotation", without("attribute_tokens"), ["none of the .* mAAE will be 1"]),
        (
            "attribute",
            lambda rows: [row.update(name=f"own.{row['name']}") for row in rows],
            ["none of the .* mAAE will be 1"],
        ),
    ],
)
def test_fields_that_are_missing_or_worded_are_read(own: Path, table: str, by: Any, lines: list[str]) -> None:
    change(own, table, by)
    told = indexed(own)[1]
    assert len(told) == len(lines) and all(re.match(want, line) for want, line in zip(lines, told, strict=True))
    assert judged(own, "world_val")["mAP"] > 50


def test_visibility_is_read_by_its_levels_name(own: Path, world_index: Path) -> None:
    levels = {str(row["token"]): row["level"] for row in json.loads((own / VERSION / "visibility.json").read_text())}
    worded = lambda rows: [row.update(visibility_token=levels[row["visibility_token"]]) for row in rows]  # noqa: E731
    change(own, "sample_annotation", worded)
    (own / VERSION / "visibility.json").unlink()
    want = FrameIndex.load(world_index).arrays["visibility"]
    assert len(set(want.tolist())) > 1
    np.testing.assert_array_equal(indexed(own)[0].arrays["visibility"], want)


def test_files_with_a_byte_order_mark_and_absolute_image_paths_are_read(
    own: Path, world: Path, world_index: Path
) -> None:
    change(own, "sample_data", lambda rows: [row.update(filename=str(world / row["filename"])) for row in rows])
    for path in [*(own / VERSION).glob("*.json")]:
        if path.name != "world.json":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    index, want = indexed(own)[0], FrameIndex.load(world_index)
    assert index[0].image_paths[0] == str(world / want[0].image_paths[0]) and index.splits == want.splits
    np.testing.assert_array_equal(index.arrays["image_bytes"], want.arrays["image_bytes"])
    assert judged(own, "world_val")["mAP"] > 50


def test_a_home_folder_may_be_written_short(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(own.parent))
    assert from_mapping(FrameSource, {"index": "~/i.npz", "root": "~/own", "split": "all"}, "data").root == own
    assert len(build_index("~/own", VERSION, own / "index.npz")) == 9


def lidar(root: Path) -> Callable[[dict], bool]:
    """Whether a calibration is the LiDAR's."""
    tokens = {
        row["token"]
        for row in json.loads((root / VERSION / "sensor.json").read_text())
        if row["channel"] == "LIDAR_TOP"
    }
    return lambda row: row["sensor_token"] in tokens


@pytest.mark.parametrize(
    ("headings", "told"),
    [
        ([-90.0, -89.9, -91.9], []),  # nuScenes'
        ([-87.9], ["top is turned by 2 degrees against nuScenes'"]),  # as no fault
        ([-90, -84], ["top is turned by 6 degrees against nuScenes', whose y axis looks ahead; boxes and history"]),
        ([0, 6], ["boxes are in the frame of top, whose x axis looks ahead"]),
        (
            [90],
            ["warning: top is turned by 180 degrees against nuScenes', whose y axis looks ahead; boxes and history"],
        ),
        ([-50], ["warning: top is turned by 40 degrees against nuScenes'"]),
        ([-90, 0], ["warning: top is turned by 90 degrees against nuScenes'"]),  # two cars
    ],
)
def test_a_frame_that_is_turned_against_nuscenes_is_told(headings: list[float], told: list[str]) -> None:
    turns = [np.radians(heading) for heading in headings]
    mounts = [[[np.cos(a), -np.sin(a), 0, 0], [np.sin(a), np.cos(a), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] for a in turns]
    lines: list[str] = []
    tell_turns("top", np.array(mounts), lines.append)
    assert len(lines) == len(told) and all(line.startswith(start) for line, start in zip(lines, told, strict=True))


def test_history_follows_a_lidar_that_looks_along_x(own: Path) -> None:
    is_lidar = lidar(own)
    change(own, "calibrated_sensor", lambda rows: [r.update(rotation=[1, 0, 0, 0]) for r in rows if is_lidar(r)])
    index, (line,) = indexed(own)
    assert line == "boxes are in the frame of LIDAR_TOP, whose x axis looks ahead"
    extent, moved = torch.tensor([-51.2, -51.2, -5, 51.2, 51.2, 3]), 0.0
    for rows in index.scenes.values():
        for before, after in zip(rows, rows[1:], strict=False):
            first, second = index[before], index[after]
            state = torch.from_numpy(can_bus_delta(second.can_bus, first.can_bus))[None]
            shift = ego_shift(state, extent)[0] * 102.4
            # the ego's motion in the axes of the current LiDAR frame, by brute force
            step = second.ego2global[:3, 3] - first.ego2global[:3, 3]
            want = ((second.ego2global @ second.lidar2ego)[:3, :3].T @ step)[:2]
            np.testing.assert_allclose(shift, want, atol=1e-3)
            moved = max(moved, float(want[0]))
    assert moved > 0.5  # ahead is x


def test_a_tilted_lidar_and_a_camera_without_intrinsics_are_refused(own: Path) -> None:
    is_lidar = lidar(own)
    change(own, "calibrated_sensor", lambda rows: [r.update(rotation=[0, 1, 0, 0]) for r in rows if is_lidar(r)])
    with pytest.raises(FD3DError, match="LIDAR_TOP's z axis .* is 180 degrees off the car's"):
        indexed(own)
    change(own, "calibrated_sensor", lambda rows: [r.update(camera_intrinsic=[]) for r in rows])
    with pytest.raises(FD3DError, match=r"CAM_FRONT of sample \w+ has no camera_intrinsic in calibrated_sensor.json"):
        indexed(own)


def test_a_camera_that_is_ignored_is_said_with_its_count(own: Path, world_index: Path) -> None:
    change(own, "sensor", lambda rows: rows.append({"token": "s", "channel": "CAM_ROOF", "modality": "camera"}))
    change(own, "calibrated_sensor", lambda rows: rows.append(rows[0] | {"token": "c", "sensor_token": "s"}))
    more = {"token": "d", "calibrated_sensor_token": "c"}
    change(own, "sample_data", lambda rows: rows.append(rows[0] | more))
    with pytest.raises(FD3DError, match=r"lack a sensor \(CAM_ROOF 8\)"):
        indexed(own)
    index, (line,) = indexed(own, rig=Rig(cameras=CAMERAS))
    assert line.startswith("ignored cameras: CAM_ROOF (1 key frames); those that count are CAM_FRONT, ")
    assert index.sha256 == FrameIndex.load(world_index).sha256


def test_frames_that_lack_a_camera_are_counted_and_can_be_skipped(own: Path, world_index: Path) -> None:
    before = FrameIndex.load(world_index)
    gone = before[before.scenes["scene-8000"][1]]
    change(own, "sample_data", lambda rows: rows.remove(next(r for r in rows if r["filename"] == gone.image_paths[2])))
    with pytest.raises(
        FD3DError,
        match=rf"1 of 9 frames of .* lack a sensor \(CAM_FRONT_LEFT 1\), first sample {gone.token} .*; data.skip_incomplete: true or --skip-incomplete leaves them out",
    ):
        indexed(own)
    index, (line,) = indexed(own, skip_incomplete=True)
    assert line.endswith("(CAM_FRONT_LEFT 1) and are skipped") and not index.has(gone.token)
    first, last = (index[row] for row in index.scenes["scene-8000"])
    assert (first.order, first.next, last.order, index[last.prev].token) == (0, first.prev + 8, 1, first.token)
    for frame in (first, last):  # velocities are still those of neighbours in the frame that is left out
        np.testing.assert_array_equal(frame.boxes, before[before.row(frame.token)].boxes)
    assert judged(own, "world_val")["mAP"] > 50


def test_the_profile_says_classes(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    text = (project / "params.yaml").read_text()
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("  val: world_val\n", "  val: world_val\n  classes: {Kfz: car, Zaun: null}\n"))
    assert read_profile(path).data.classes == {"Kfz": "car", "Zaun": None}
    path.write_text(text.replace("  val: world_val\n", "  val: world_val\n  classes: {Kfz: van}\n"))
    with pytest.raises(FD3DError, match="data.classes.Kfz is 'van'; use null or one of"):
        read_profile(path)
