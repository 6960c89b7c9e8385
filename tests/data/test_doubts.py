"""Tables that may be so and nearly never are: told in one line, with numbers, and nothing told of good ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES

from pipeline.data import CAMERAS, CLASSES
from pipeline.data.annotations import ATTRIBUTES
from pipeline.data.doubts import tell_intrinsics, tell_same, tell_turned, tell_unjudged
from pipeline.data.index import FrameIndex
from pipeline.data.world.config import WorldConfig
from pipeline.data.world.generate import generate_world
from tests.data.test_own_data import VERSION, Rows, change, each, indexed


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with scenes long enough to be judged by their motion."""
    root = tmp_path_factory.mktemp("drive")
    generate_world(root, WorldConfig(train_scenes=2, val_scenes=1, frames_per_scene=8), workers=0)
    return root


@pytest.fixture
def own(drive: Path, tmp_path: Path) -> Path:
    root = tmp_path / "own"
    shutil.copytree(drive / VERSION, root / VERSION)
    for folder in ("samples", "can_bus"):
        (root / folder).symlink_to(drive / folder)
    return root


def rows_of(root: Path, table: str) -> Rows:
    return json.loads((root / VERSION / f"{table}.json").read_text())


def by_camera(root: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of sample_data by channel, in order of time."""
    channels = {row["token"]: row["channel"] for row in rows_of(root, "sensor")}
    names = {row["token"]: channels[row["sensor_token"]] for row in rows_of(root, "calibrated_sensor")}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows_of(root, "sample_data"), key=lambda row: row["timestamp"]):
        found.setdefault(names[row["calibrated_sensor_token"]], []).append(row)
    return found


def only(lines: list[str], *told: str) -> None:
    """The one line that was told, with these parts."""
    assert len(lines) == 1 and all(part in lines[0] for part in told) and "\n" not in lines[0], lines


def test_a_good_drive_is_told_nothing(own: Path) -> None:
    assert indexed(own)[1] == []


def test_the_attributes_that_count_are_the_devkits() -> None:
    assert set(ATTRIBUTES) == set(ATTRIBUTE_NAMES)


# Annotations


def relinked(rows: Rows) -> None:
    """Let every annotation name another object's of the next frame as its next."""
    frames: dict[str, Rows] = {}
    for row in rows:
        frames.setdefault(row["sample_token"], []).append(row)
    known = {row["token"]: row for row in rows}
    for row in rows:
        if row["next"]:
            there = frames[known[row["next"]]["sample_token"]]
            row["next"] = next(o["token"] for o in there if o["instance_token"] != row["instance_token"])


def test_links_to_other_objects_are_told_and_not_followed(own: Path) -> None:
    want = indexed(own)[0].arrays["boxes"][:, 7:]
    count = sum(bool(row["next"]) for row in rows_of(own, "sample_annotation"))
    change(own, "sample_annotation", relinked)
    index, lines = indexed(own)
    only(lines, f"{count} annotations of {VERSION}/sample_annotation.json with a prev or next of another object")
    found = index.arrays["boxes"][:, 7:]
    both = np.isfinite(want).all(1) & np.isfinite(found).all(1)
    assert both.sum() > 50 and np.median(np.linalg.norm((found - want)[both], axis=1)) < 0.5
    assert np.isnan(found).any(1).sum() > np.isnan(want).any(1).sum()


def test_the_devkit_does_not_follow_links_to_other_objects_either(own: Path) -> None:
    from pipeline.data.devkit import open_truth

    change(own, "sample_annotation", relinked)
    index = indexed(own)[0]
    (scene,) = index.splits["world_val"]
    _, truth = open_truth(own, VERSION, [scene], index)
    for row in index.scenes[scene]:
        frame = index[row]
        speeds = np.sort(np.linalg.norm(frame.boxes[:, 7:], axis=1))
        theirs = np.sort([np.linalg.norm(box.velocity) for box in truth[frame.token]])
        assert np.allclose(speeds, theirs, atol=1e-3, equal_nan=True)


def test_annotations_without_any_link_are_told(own: Path) -> None:
    change(own, "sample_annotation", each(prev="", next=""))
    only(indexed(own)[1], "annotations of", "has a prev or next, so no box has a velocity: mAVE will be 1")


@pytest.mark.parametrize(
    ("table", "by"),
    [
        ("sample_annotation", each(attribute_tokens=[])),
        ("sample_annotation", each(attribute_tokens=["nope"])),
        ("attribute", lambda rows: [row.update(name=f"own.{row['name']}") for row in rows]),
    ],
)
def test_annotations_without_a_known_attribute_are_told(own: Path, table: str, by: Callable) -> None:
    change(own, table, by)
    only(indexed(own)[1], "has an attribute of nuScenes', such as vehicle.moving: mAAE will be 1")


def test_barriers_need_neither_links_nor_attributes() -> None:
    lines: list[str] = []
    barrier, car = CLASSES.index("barrier"), CLASSES.index("car")
    found = {"prev": np.array([b""]), "next": np.array([b""]), "attributed": np.array([False])}
    tell_unjudged(found | {"label": np.array([barrier])}, "v1.0", lines.append)
    assert lines == []
    tell_unjudged(found | {"label": np.array([car])}, "v1.0", lines.append)
    assert len(lines) == 2 and lines[0].startswith("none of the 1 annotation of v1.0/")


def test_boxes_that_are_turned_by_90_degrees_are_told(own: Path) -> None:
    def turn(rows: Rows) -> None:
        half = 0.5**0.5
        for row in rows:
            w, x, y, z = row["rotation"]
            row["rotation"] = [(w - z) * half, (x + y) * half, (y - x) * half, (w + z) * half]

    change(own, "sample_annotation", turn)
    only(indexed(own)[1], "degrees off their heading", "are boxes turned by 90 degrees?")


@pytest.mark.parametrize(
    ("turn", "speed", "count", "told"),
    [
        (0, 5, 20, False),
        (180, 5, 20, False),
        (50, 5, 20, False),
        (70, 5, 20, True),
        (-90, 5, 20, True),
        (90, 1, 20, False),
        (90, 5, 9, False),
    ],
)
def test_only_fast_boxes_across_their_heading_are_told(turn: float, speed: float, count: int, told: bool) -> None:
    boxes, way = np.full((2 * count, 9), np.nan), np.linspace(0, 6, count)
    boxes[:count, 6] = way + np.radians(turn)
    boxes[:count, 7:] = speed * np.stack([np.cos(way), np.sin(way)], 1)
    lines: list[str] = []
    tell_turned(boxes, "v1.0", lines.append)
    assert bool(lines) == told


# Poses and times


def test_a_car_that_drives_backwards_is_told_and_one_that_reverses_in_a_scene_not(own: Path) -> None:
    def half_turn(names: set[str]) -> Callable[[Rows], object]:
        def by(rows: Rows) -> None:
            for row in rows:
                if row["token"] in names:
                    w, x, y, z = row["rotation"]
                    row["rotation"] = [-z, y, -x, w]

        return by

    scenes = {row["token"]: row["scene_token"] for row in rows_of(own, "sample")}
    one = scenes[rows_of(own, "sample")[0]["token"]]
    of_one = {row["ego_pose_token"] for row in rows_of(own, "sample_data") if scenes[row["sample_token"]] == one}
    rest = {row["token"] for row in rows_of(own, "ego_pose")} - of_one
    change(own, "ego_pose", half_turn(of_one))
    assert not any("backwards" in line for line in indexed(own)[1])
    change(own, "ego_pose", half_turn(rest))
    only([line for line in indexed(own)[1] if "backwards" in line], "backwards in 100% of its way", "(w, x, y, z)")


def test_poses_of_other_frames_are_told(own: Path) -> None:
    late = {
        row["token"]: later["ego_pose_token"]
        for name, rows in by_camera(own).items()
        if name in ("CAM_FRONT", "CAM_BACK")
        for row, later in zip(rows, rows[1:], strict=False)
    }
    change(
        own,
        "sample_data",
        lambda rows: [row.update(ego_pose_token=late.get(row["token"], row["ego_pose_token"])) for row in rows],
    )
    lines = [line for line in indexed(own)[1] if "pose" in line]
    only(
        lines,
        "data of CAM_FRONT (",
        "), CAM_BACK (",
        "of 24) have an ego pose more than 0.1 s from their own time, up to",
    )


@pytest.mark.parametrize(
    "by",
    [lambda row: row.pop("timestamp"), lambda row: row.update(timestamp="soon"), lambda row: row.update(timestamp=0)],
)
def test_poses_without_a_time_are_not_doubted(own: Path, by: Callable) -> None:
    change(own, "ego_pose", lambda rows: [by(row) for row in rows])
    assert indexed(own)[1] == []


@pytest.mark.parametrize(("factor", "told"), [(3.6, "3.6"), (0.25, "0.2"), (1.3, None)])
def test_can_bus_speeds_of_another_unit_are_told(own: Path, drive: Path, factor: float, told: str | None) -> None:
    (own / "can_bus").unlink()
    shutil.copytree(drive / "can_bus", own / "can_bus")
    path = own / "can_bus" / f"{rows_of(own, 'scene')[0]['name']}_pose.json"
    messages = json.loads(path.read_text())
    path.write_text(json.dumps([m | {"vel": [factor * v for v in m["vel"]]} for m in messages]))
    lines = indexed(own)[1]
    if told is None:
        assert lines == []
    else:
        only(lines, f"CAN bus speeds of 1 scene are {told}", "times those of the ego poses", "in m/s, not km/h")


# Images and intrinsics


def test_two_cameras_with_the_same_images_are_told(own: Path) -> None:
    found = by_camera(own)
    front = {row["sample_token"]: row["filename"] for row in found["CAM_FRONT"]}
    back = {row["token"] for row in found["CAM_BACK"]}
    change(
        own,
        "sample_data",
        lambda rows: [row.update(filename=front[row["sample_token"]]) for row in rows if row["token"] in back],
    )
    only(indexed(own)[1], "images of the same content: CAM_FRONT and CAM_BACK (24 of 24 frames); does")


def test_a_camera_that_shows_one_image_is_told(own: Path) -> None:
    back = by_camera(own)["CAM_BACK"]
    names = {row["token"]: back[0]["filename"] for row in back}
    change(
        own, "sample_data", lambda rows: [row.update(filename=names.get(row["token"], row["filename"])) for row in rows]
    )
    only(indexed(own)[1], "all 24 images of CAM_BACK have the same content")


def test_images_that_are_missing_or_alike_by_chance_are_not_the_same() -> None:
    lines: list[str] = []
    tell_same(np.full((20, 2), -1), np.zeros((20, 2)), ("a", "b"), lines.append)
    sizes, sums = np.full((20, 2), 1000), np.arange(40).reshape(20, 2)
    sums[3] = 7  # one black frame of both
    tell_same(sizes, sums, ("a", "b"), lines.append)
    tell_same(sizes[:1], np.zeros((1, 2)), ("a", "b"), lines.append)
    assert lines == []
    sums[:3] = 7
    tell_same(sizes, sums, ("a", "b"), lines.append)
    only(lines, "a and b (4 of 20 frames)")


def scaled(factor: float, only_first: bool = False) -> Callable[[Rows], object]:
    def by(rows: Rows) -> None:
        for row in [row for row in rows if row["camera_intrinsic"]][: 1 if only_first else None]:
            row["camera_intrinsic"] = [[factor * x for x in line] for line in row["camera_intrinsic"][:2]] + [[0, 0, 1]]

    return by


@pytest.mark.parametrize(
    ("factor", "told"), [(0.75, True), (0.85, True), (1.2, True), (1.35, True), (1.05, False), (0.95, False)]
)
def test_intrinsics_of_another_resolution_are_told(own: Path, factor: float, told: bool) -> None:
    change(own, "calibrated_sensor", scaled(factor))
    lines = indexed(own)[1]
    assert bool(lines) == told
    if told:
        only(
            lines,
            "the principal points of all 6 cameras lie at",
            f"is the calibration of images {factor:.2f} times as large?",
        )


def test_a_single_cameras_principal_point_is_its_own(own: Path) -> None:
    change(own, "calibrated_sensor", scaled(1.3, only_first=True))
    assert indexed(own)[1] == []


NUSCENES = [(816, 491), (808, 495), (826, 479), (829, 481), (792, 492), (807, 501)]  # pixels of 1600 x 900, by camera


@pytest.mark.parametrize(
    ("scale", "cut", "told"),
    [(1, 0, False), (1, 140, False), (0.85, 0, True), (0.8, 0, True), (0.5, 0, False), (1.25, 0, True)],
)
def test_nuscenes_own_principal_points_and_cut_images_are_no_other_resolution(
    scale: float, cut: int, told: bool
) -> None:
    """Images whose upper rows were cut off have the point off the middle in rows only; half the size is told camera by camera."""
    intrinsics = np.tile(np.diag([1266.0, 1266.0, 1.0]), (3, 6, 1, 1))
    intrinsics[..., :2, 2] = np.array(NUSCENES) - [0, cut]
    intrinsics[..., :2, :] *= scale
    lines: list[str] = []
    tell_intrinsics(intrinsics, np.tile([900 - cut, 1600], (3, 6, 1)), CAMERAS, lines.append)
    assert bool(lines) == told


@pytest.mark.parametrize(("factor", "told"), [(2.0, "(2.00)"), (0.5, "(0.50)"), (1.3, None)])
def test_focal_lengths_that_differ_are_told(own: Path, factor: float, told: str | None) -> None:
    def stretch(rows: Rows) -> None:
        row = next(row for row in rows if row["camera_intrinsic"])
        row["camera_intrinsic"][0][0] *= factor

    change(own, "calibrated_sensor", stretch)
    lines = indexed(own)[1]
    if told is None:
        assert lines == []
    else:
        only(lines, f"fx / fy of CAM_FRONT {told}; are pixels not square")


def test_nothing_of_the_real_excerpt_is_doubted(excerpt_root: Path, tmp_path: Path) -> None:
    from pipeline.data.index import build_index

    lines: list[str] = []
    index = build_index(excerpt_root, "v1.0-mini", tmp_path / "i.npz", skip_incomplete=True, tell=lines.append)
    assert isinstance(index, FrameIndex) and len(lines) == 1 and "are not mapped" in lines[0]
