"""What cannot be in a data set's tables, images and submissions: refused in one line, before any long work."""

import io
import json
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data import CAMERAS
from pipeline.data.checks import tell_sideways
from pipeline.data.columns import is_broken, is_cut
from pipeline.data.images import check_images
from pipeline.data.rig import Rig
from pipeline.data.source import FrameSource
from pipeline.data.transforms import LoadMultiViewImages
from pipeline.errors import FD3DError
from pipeline.evaluation.run import check_evaluation, score
from stages.start import started
from store_schema import open_storage
from tests.data.test_own_data import VERSION, Rows, change, each, indexed, judged


@pytest.fixture
def own(world: Path, tmp_path: Path) -> Path:
    root = tmp_path / "own"
    shutil.copytree(world / VERSION, root / VERSION)
    for folder in ("samples", "can_bus"):
        (root / folder).symlink_to(world / folder)
    return root


def first(**values: Any) -> Callable[[Rows], object]:
    return lambda rows: rows[0].update(values)


def scaled(column: str, factor: float) -> Callable[[Rows], object]:
    return lambda rows: [row.update({column: row[column] * factor}) for row in rows]


def moved(column: str, by: Callable[[np.ndarray], np.ndarray]) -> Callable[[Rows], object]:
    return lambda rows: [row.update({column: by(np.array(row[column], dtype=float)).tolist()}) for row in rows]


def as_text(column: str) -> Callable[[Rows], object]:
    """Numbers as texts, as of a table that was made from CSV."""

    def by(rows: Rows) -> None:
        for row in rows:
            row[column] = [str(x) for x in row[column]] if isinstance(row[column], list) else str(row[column])

    return by


def turned(rows: Rows) -> None:
    for row in rows:
        row["width"], row["height"] = row["height"], row["width"]


def spun(rows: Rows) -> None:
    """Turn the car by half a turn from the middle of the second scene on."""
    for row in rows[len(rows) // 2 :]:
        w, x, y, z = row["rotation"]
        row["rotation"] = [-z, y, -x, w]


def calibrated_inverse(row: dict[str, Any]) -> dict[str, Any]:
    """Rotation from the car to the sensor in place of the one from the sensor to the car."""
    w, x, y, z = row["rotation"]
    return {"rotation": [w, -x, -y, -z]}


def same_frame(rows: Rows) -> None:
    """Let an annotation name another one of its object, in its own frame, as its next."""
    other = next(row for row in rows[1:] if row["sample_token"] == rows[0]["sample_token"])
    rows[0].update(prev="", next=other["token"], instance_token=other["instance_token"])


MATRIX = [[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]
TRANSPOSED = np.array(MATRIX).T.tolist()
FAULTS: list[tuple[str, Callable[[Rows], object], str]] = [
    ("sensor", lambda rows: rows[0].pop("token"), "do not fit each other: sensor.json: KeyError"),
    ("sensor", first(channel=[]), "sensor.json: TypeError.*channel is \\[\\], no text"),
    ("calibrated_sensor", lambda rows: rows[0].pop("token"), "calibrated_sensor.json: KeyError"),
    ("calibrated_sensor", first(rotation=[1, 0, 0]), "rotation of .* is .1, 0, 0.; it must be 4 numbers"),
    ("calibrated_sensor", first(translation="x"), "translation of .* is 'x'; it must be 3 numbers"),
    ("calibrated_sensor", first(camera_intrinsic=[[1, 0, 0, 0]] * 3), "camera_intrinsic of .* must be 3 x 3 numbers"),
    ("calibrated_sensor", first(camera_intrinsic=TRANSPOSED), r"not \[\[fx, s, cx\].*; is it transposed"),
    ("calibrated_sensor", first(camera_intrinsic=[[1.1, 0, 0.5], [0, 1.1, 0.5], [0, 0, 1]]), "give pixels, not shares"),
    (
        "calibrated_sensor",
        first(camera_intrinsic=[[float("nan")] * 3] * 3),
        "CAM_FRONT of sample .* no camera_intrinsic",
    ),
    ("calibrated_sensor", first(translation=[float("nan")] * 3), "is no rigid motion; give finite"),
    ("ego_pose", first(translation=[1, 2]), "translation of .* it must be 3 numbers"),
    ("ego_pose", first(translation=[float("nan")] * 3), "is no rigid motion; give finite"),
    (
        "ego_pose",
        lambda rows: [row.update(rotation=[0, 0, 1, 0]) for row in rows],
        "tilts the car by 180 degrees .*w, x, y, z",
    ),
    (
        "ego_pose",
        lambda rows: [row.update(translation=[1000 * x for x in row["translation"]]) for row in rows],
        "moves the car by .* m in 0.5 s .* in metres",
    ),
    ("ego_pose", spun, "turns the car by 1[78]. degrees in 0.5 s from sample .*from the car's frame to the global one"),
    (
        "calibrated_sensor",
        lambda rows: [row.update(calibrated_inverse(row)) for row in rows if row["camera_intrinsic"]],
        "4 of 6 cameras lie on their side.* CAM_FRONT is rolled by 90 degrees; .*from the camera, z axis ahead and y axis down, to the car",
    ),
    (
        "calibrated_sensor",
        each(camera_intrinsic=[[100.0, 0, 5000], [0, 100, 80], [0, 0, 1]]),
        "principal point of CAM_FRONT is at 17.36 of the columns .* give intrinsics in pixels of these images",
    ),
    (
        "calibrated_sensor",
        each(camera_intrinsic=[[400.0, 0, 288], [0, 400, 160], [0, 0, 1]]),
        "principal point of CAM_FRONT is at 1.00 of the columns and 1.00 of the rows .* in pixels of these images",
    ),
    ("calibrated_sensor", lambda rows: rows.append(rows[0] | {"translation": [9, 9, 9]}), "has the token .* twice"),
    ("sensor", lambda rows: rows.append(dict(rows[0])), "sensor.json has the token .* twice; remove one"),
    (
        "ego_pose",
        lambda rows: rows.append(rows[0] | {"translation": [9, 9, 9]}),
        "ego_pose.json has the token .* twice",
    ),
    ("category", lambda rows: rows.append(dict(rows[0])), "category.json has the token .* twice"),
    ("instance", lambda rows: rows.append(dict(rows[0])), "instance.json has the token .* twice"),
    ("scene", lambda rows: rows.append(dict(rows[0])), "scene.json has the name .* twice"),
    ("scene", lambda rows: rows.append(rows[0] | {"name": "other"}), "scene.json has the token .* twice"),
    ("sample_data", first(calibrated_sensor_token="nope"), "calibrated_sensor.json has no row with the token 'nope'"),
    ("sample_annotation", first(instance_token="nope"), "instance.json has no row with the token 'nope'"),
    ("sample", first(token="Straße"), "sample.json has the token 'Straße'; give tokens of 1 to 64"),
    ("sample", first(next="nope"), "sample.json has no row with the token 'nope'"),
    ("sample_annotation", same_frame, "annotation .* has prev none and next .*, which are not in order of time"),
    (
        "ego_pose",
        lambda rows: [row.update(translation=[9e3, 0, 0]) for row in rows[::7]],
        "CAM_[A-Z_]* is .* m from the LiDAR .* by v1.0-world/ego_pose.json; give the car's pose at each sensor's own time",
    ),
    ("scene", first(name=3), "scene.json: TypeError.*name is 3, no text"),
    ("scene", list.clear, "has no frames: no scene of scene.json has a sample"),
    ("sample", lambda rows: rows.append(dict(rows[0])), "sample.json has sample .* twice; remove one"),
    ("sample", first(scene_token="zz"), "is in the chain of scene .*, but its scene_token is 'zz'"),
    ("sample", lambda rows: rows[2].update(next=rows[0]["token"]), "follow each other in a ring"),
    (
        "sample",
        scaled("timestamp", 1000),
        "sample.json has timestamps 500000000 apart .*; give timestamps in microseconds",
    ),
    ("sample", scaled("timestamp", 100), "give timestamps in microseconds"),  # nanoseconds at 20 Hz
    ("sample", first(timestamp=1700120000.5), "timestamp of .* is 1700120000.5; give a whole number"),
    ("sample_data", first(is_key_frame="false"), "is_key_frame of .* is 'false'; give true or false"),
    ("sample_data", first(filename="a\0b"), "filename is .*, no text"),
    ("scene", first(name="\ud800"), "name is .*, no text"),
    ("scene", first(token="Straße"), "scene.json has the token 'Straße'; give tokens of 1 to 64"),
    (
        "sample",
        first(token="../../../esc"),
        "sample.json has the token '../../../esc'; give tokens .* and slashes, such",
    ),
    ("scene", first(name="../scene"), "v1.0-world/scene.json: name of .* is '../scene'; .* names without slashes"),
    ("sample", first(token="x" * 65), "sample.json has the token 'x{65}'; give tokens of 1 to 64"),
    ("sample_data", lambda rows: rows.append(dict(rows[0])), "has two key frames of CAM_FRONT for sample .*; keep one"),
    ("sample_data", first(filename=3), "filename is 3, no text"),
    ("sample_data", each(width=0), "width or height 0 or below for sample"),
    ("sample_data", turned, "image .* has 160x288 pixels .*, sample_data.json says 288x160"),
    ("sample_data", each(timestamp=float("inf")), "timestamp of .* is inf; give a whole number"),
    ("sample_annotation", first(size=[1, 1]), "annotation .* must have 3 numbers of translation, 3 of size and 4"),
    (
        "sample_annotation",
        first(attribute_tokens=[["a"]]),
        "attribute_tokens of annotation .* must be a list of tokens",
    ),
    ("sample_annotation", lambda rows: rows.append(dict(rows[0])), "has annotation .* 2 times; keep one"),
    ("sample_annotation", first(num_lidar_pts=float("inf")), "sample_annotation.json: cannot convert"),
    ("sample_annotation", first(num_lidar_pts=3_000_000_000), "num_lidar_pts of .* is 3000000000; give the number of"),
    ("sample_annotation", first(num_radar_pts=3e9), "num_radar_pts of annotation .* is 3000000000.0; give the number"),
    (
        "sample_annotation",
        moved("size", lambda size: 1000 * size),
        "boxes of [0-9]* m .the median.; give sizes in metres",
    ),
    (
        "sample_annotation",
        moved("rotation", lambda turn: np.roll(turn, -1)),
        "tilts .* boxes by more .*are .w, x, y, z.",
    ),
    (
        "sample_annotation",
        moved("translation", lambda place: 1000 * place),
        "m from the car .the median.; .* in the global",
    ),
    ("sample_annotation", moved("translation", lambda place: place - (0, 5000, 0)), "boxes [0-9]* m from the car"),
    ("calibrated_sensor", moved("translation", lambda place: 1000 * place), "m from the car's origin in .*in metres"),
    ("category", first(name=[]), "category.json: TypeError"),
    # what the devkit could not reckon with or read, hours later
    ("sample", as_text("timestamp"), "v1.0-world/sample.json: timestamp of .* is '1[0-9]*'; give a whole number"),
    ("sample_data", as_text("timestamp"), "v1.0-world/sample_data.json: timestamp of .* give a whole number"),
    ("sample_data", as_text("width"), "v1.0-world/sample_data.json: width of .* is '288'; give a whole number"),
    ("sample_data", each(height=160.4), "sample_data.json: height of .* is 160.4; give a whole number"),
    ("sample_data", each(height=None), "sample_data.json: height of .* is None; give a whole number"),
    ("sample_data", lambda rows: [row.pop("token") for row in rows], "sample_data.json: KeyError"),
    ("sample_data", each(token="same"), "sample_data.json has the token same twice; remove one"),
    ("ego_pose", as_text("translation"), "v1.0-world/ego_pose.json: translation of .* it must be 3 numbers"),
    ("ego_pose", as_text("rotation"), "v1.0-world/ego_pose.json: rotation of .* it must be 4 numbers"),
    ("ego_pose", first(translation=[None, 1, 2]), "ego_pose.json: translation of .* is .None, 1, 2.; it must be 3"),
    ("calibrated_sensor", as_text("translation"), "v1.0-world/calibrated_sensor.json: translation of .* be 3 numbers"),
    ("calibrated_sensor", as_text("rotation"), "calibrated_sensor.json: rotation of .* it must be 4 numbers"),
    ("calibrated_sensor", first(rotation=[True] * 4), "calibrated_sensor.json: rotation of .* it must be 4 numbers"),
    (
        "calibrated_sensor",
        first(camera_intrinsic=[["100", "0", "50"], ["0", "100", "50"], ["0", "0", "1"]]),
        "calibrated_sensor.json: camera_intrinsic of .* must be 3 x 3 numbers",
    ),
    (
        "sample_annotation",
        as_text("translation"),
        "v1.0-world/sample_annotation.json: translation of annotation .* must have 3 numbers",
    ),
    ("sample_annotation", as_text("size"), "size of annotation .* is .'.*; annotations must have 3 numbers"),
    ("sample_annotation", as_text("rotation"), "rotation of annotation .* is .'.*; annotations must have 3 numbers"),
    ("sample_annotation", first(translation=[1, 2, None]), "translation of annotation .* is .1, 2, None.; annotations"),
    ("sample_annotation", first(size="abc"), "size of annotation .* is 'abc'; annotations must have 3 numbers"),
    ("sample_annotation", first(prev=5), "sample_annotation.json: TypeError.*prev is 5, no text"),
    ("attribute", lambda rows: rows[0].pop("token"), "attribute.json: KeyError"),
    ("attribute", lambda rows: rows[0].pop("name"), "attribute.json: KeyError.*'name'"),
    ("attribute", first(name=None), "attribute.json: TypeError.*name is None, no text"),
    ("attribute", lambda rows: rows.append(dict(rows[0])), "attribute.json has the token .* twice; remove one"),
    (
        "scene",
        first(name="x" * 300),
        "v1.0-world/scene.json: name of .* is 'xxx.* with 300 bytes; .* 200 bytes at most",
    ),
]


@pytest.mark.parametrize(("table", "by", "told"), FAULTS)
def test_tables_that_cannot_be_are_one_line(own: Path, table: str, by: Callable, told: str) -> None:
    change(own, table, by)
    with pytest.raises(FD3DError, match=told) as caught:
        indexed(own)
    assert "\n" not in str(caught.value) and not (own / "index.npz").exists()


def test_vehicles_that_are_wider_than_long_are_told(own: Path) -> None:
    change(own, "sample_annotation", moved("size", lambda size: size[[1, 0, 2]]))
    told = indexed(own)[1]
    assert any("sample_annotation.json are wider than long; size is (width, length, height)" in line for line in told)


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        (0, None),
        (20, None),
        (180, "backwards in 100% of its way"),
        (90, "90 degrees off its x axis"),
        (-40, "40 degrees off"),
    ],
)
def test_a_car_that_moves_sideways_is_told(turn: float, told: str | None) -> None:
    """Two drives along another heading each; the step between the drives counts for neither."""
    poses, scenes = np.tile(np.eye(4), (16, 1, 1)), np.repeat([b"a", b"b"], 8)
    for scene, heading in enumerate((30, 200)):
        way, own = np.radians(heading), np.radians(heading + turn)
        rows = slice(8 * scene, 8 * scene + 8)
        poses[rows, :2, :2] = [[np.cos(own), -np.sin(own)], [np.sin(own), np.cos(own)]]
        poses[rows, :2, 3] = np.arange(8)[:, None] * 3 * [np.cos(way), np.sin(way)]
    lines: list[str] = []
    tell_sideways(poses, scenes, "v1.0", lines.append)
    assert not lines if told is None else told in lines[0] and "14 steps)" in lines[0]


@pytest.mark.parametrize(
    ("turn", "told"),
    [((0, 0, 0, 1), "is upside down by its rotation"), ((0.7071, 0, 0, 0.7071), "is rolled by -?90 degrees by its")],
)
def test_a_camera_that_lies_is_told(own: Path, turn: Sequence[float], told: str) -> None:
    """Turned about its own optical axis, as a camera that is mounted that way."""

    def lay(rows: Rows) -> None:
        row = next(row for row in rows if row["camera_intrinsic"])
        (w, x, y, z), (c, _, _, s) = row["rotation"], turn
        row["rotation"] = [w * c - z * s, x * c + y * s, y * c - x * s, z * c + w * s]

    change(own, "calibrated_sensor", lay)
    assert any(re.search(told, line) for line in indexed(own)[1])


@pytest.mark.parametrize(("factor", "told"), [(1.5, True), (0.5, True), (1.2, False), (1.0, False)])
def test_a_principal_point_of_another_resolution_is_told(own: Path, factor: float, told: bool) -> None:
    def scale(rows: Rows) -> None:
        for row in rows:
            if row["camera_intrinsic"]:
                row["camera_intrinsic"] = [[factor * x for x in line] for line in row["camera_intrinsic"][:2]] + [
                    [0, 0, 1]
                ]

    change(own, "calibrated_sensor", scale)
    assert any("of its 160x288 images; is the calibration of" in line for line in indexed(own)[1]) == told


def test_ego_states_take_quaternions_of_any_length_and_annotations_null_links(own: Path) -> None:
    want = indexed(own)[0]
    change(own, "ego_pose", moved("rotation", lambda turn: 3 * turn))
    change(
        own,
        "sample_annotation",
        lambda rows: [row.update({k: row[k] or None for k in ("prev", "next")}) for row in rows],
    )
    found = indexed(own)[0]
    assert np.allclose(found.arrays["can_bus"], want.arrays["can_bus"], atol=1e-9)
    assert np.allclose(found.arrays["boxes"], want.arrays["boxes"], atol=1e-4, equal_nan=True)


@pytest.mark.parametrize(("token", "level"), [("300", 0), ("-1", 0), ("4", 4), ("0", 0), ("v60-80", 3)])
def test_visibility_tokens_of_no_level_are_unknown(own: Path, token: str, level: int) -> None:
    change(own, "sample_annotation", each(visibility_token=token))
    (own / VERSION / "visibility.json").unlink()
    assert set(indexed(own)[0].arrays["visibility"].tolist()) == {level}


def test_text_behind_a_table_is_refused(own: Path) -> None:
    path = own / VERSION / "scene.json"
    path.write_text(path.read_text() + "[]")
    with pytest.raises(FD3DError, match="scene.json: . stands behind the end"):
        indexed(own)


def test_frames_of_several_largest_sizes_are_refused(own: Path) -> None:
    (own / "samples").unlink()  # so that only the tables tell

    def second(rows: Rows) -> None:
        of = {row["sample_token"] for row in rows[:1]}
        other = next(row["sample_token"] for row in rows if row["sample_token"] not in of)
        for row in rows:
            if row["sample_token"] == other and row["width"]:
                row["width"] = 100

    change(own, "sample_data", second)
    with pytest.raises(
        FD3DError, match="the images of sample .* 160x288 .*, those of sample .* 160x100 .1 of 9 samples differ"
    ):
        indexed(own)


def test_sensors_without_modality_are_no_cameras(own: Path) -> None:
    change(own, "sensor", lambda rows: [row.update(modality=None, channel=f"own {n}") for n, row in enumerate(rows)])
    with pytest.raises(FD3DError, match="sensor.json has no sensor with modality 'camera'"):
        indexed(own)


def test_points_that_were_not_counted_are_those_of_a_box_that_counts(own: Path) -> None:
    change(own, "sample_annotation", each(num_lidar_pts=-1))
    index, (line,) = indexed(own)
    assert (index.arrays["num_lidar_pts"] == 1).all() and "boxes without num_lidar_pts" in line
    assert judged(own, "world_val")["mAP"] > 50


def test_samples_that_no_chain_reaches_and_cameras_that_look_up_are_told(own: Path) -> None:
    change(own, "calibrated_sensor", first(rotation=[1, 0, 0, 0]))
    change(own, "sample", lambda rows: rows.append(rows[0] | {"token": "lost"}))
    assert [line[:40] for line in indexed(own)[1]] == [
        "1 sample in no scene's chain from first_",
        "CAM_FRONT looks 90 degrees above the hor",
    ]


def test_an_image_that_cannot_be_read_is_told(own: Path, world: Path) -> None:
    (own / "samples").unlink()
    shutil.copytree(world / "samples", own / "samples")
    for name in indexed(own)[0][1].image_paths[1:3]:  # of the scene's second frame
        (own / name).write_bytes(b"no image")
    with pytest.warns(
        UserWarning, match="missing, empty or damaged: 2 image files"
    ):  # so no frame of them is trained on
        (line,) = (line for line in indexed(own)[1] if "cannot be read" in line)
    assert line.endswith(", and 1 more of scene-2000; copy images again that are damaged, then run 'fd3d index' again")


DEEP = "has pixels of more than 8 bits"


@pytest.mark.parametrize(
    ("name", "write", "told"),
    [
        (
            "a.png",
            lambda path, image: cv2.imwrite(path, image.astype(np.uint16) * 200),
            "has pixels of more than 8 bits .RGB;16B.",
        ),
        (
            "a.png",
            lambda path, image: cv2.imwrite(path, image[..., 0].astype(np.uint16) * 200),
            "has pixels of more than 8 bits",
        ),
        (
            "a.ppm",
            lambda path, image: cv2.imwrite(path, image.astype(np.uint16) * 200),
            f"{DEEP} .up to 65535.; convert",
        ),
        (
            "a.ppm",
            lambda path, image: Path(path).write_bytes(b"P6 288 160 100\n" + (image // 3).tobytes()),
            "has pixels of up to 100, which OpenCV does not scale to 255; convert",
        ),
        ("a.jp2", lambda path, image: cv2.imwrite(path, image.astype(np.uint16) * 200), f"{DEEP} .16.; convert"),
        ("a.jp2", lambda path, image: cv2.imwrite(path, image.astype(np.uint16)[..., 0]), DEEP),
        ("a.tif", lambda path, image: cv2.imwrite(path, image.astype(np.uint16) * 200), f"{DEEP} .RGB;16"),
        ("a.tif", lambda path, image: cv2.imwrite(path, image / np.float32(255)), DEEP),  # which Pillow does not open
        ("a.tif", lambda path, image: cv2.imwrite(path, image[..., 0] / np.float32(255)), DEEP),
        (
            "a.tif",
            lambda path, image: cv2.imwrite(path, (image // 2).astype(np.int8)),
            "has pixels with a sign; convert",
        ),
        (
            "a.tif",
            lambda path, image: cv2.imwrite(path, (image[..., 0] // 2).astype(np.int8)),
            "has pixels with a sign",
        ),
        ("a.hdr", lambda path, image: cv2.imwrite(path, image), "has pixels of floating point .Radiance HDR.; convert"),
        ("a.pfm", lambda path, image: cv2.imwrite(path, image), "has pixels of floating point .PFM.; convert"),
        ("a.pfm", lambda path, image: cv2.imwrite(path, image[..., 0]), DEEP),
        (
            "a.exr",
            lambda path, image: Path(path).write_bytes(b"\x76\x2f\x31\x01" + image.tobytes()),
            "has pixels of floating point .OpenEXR.; convert",
        ),
        ("a.gif", lambda path, image: Image.fromarray(image).save(path), "is a GIF file, which OpenCV does not decode"),
        (
            "a.tif",
            lambda path, image: Image.fromarray(image).save(path, tiffinfo={274: 3}),
            "is a TIFF file with an orientation",
        ),
        (
            "a.tif",
            lambda path, image: Image.fromarray(image).save(path, tiffinfo={274: 6}),
            "is a TIFF file with an orientation",
        ),
        ("a.tif", lambda path, image: Image.fromarray(image).save(path), None),
        ("a.tif", lambda path, image: Image.fromarray(image).convert("1").save(path), None),
        ("a.bmp", lambda path, image: Image.fromarray(image).save(path), None),
        ("a.ppm", lambda path, image: cv2.imwrite(path, image), None),
        ("a.jp2", lambda path, image: cv2.imwrite(path, image), None),
    ],
)
def test_images_that_cannot_be_decoded_as_recorded_are_refused_by_the_index(
    own: Path, world: Path, name: str, write: Callable, told: str | None
) -> None:
    (own / "samples").unlink()
    shutil.copytree(world / "samples", own / "samples")
    write(str(own / "samples" / name), np.random.default_rng(0).integers(0, 256, (160, 288, 3), np.uint8))
    change(own, "sample_data", first(filename=f"samples/{name}"))
    with pytest.raises(FD3DError, match=f"image .*{name} {told}") if told else nullcontext():
        index, lines = indexed(own)
        assert lines == [] and (index.arrays["image_bytes"] > 0).all()
        LoadMultiViewImages()._decode(own / "samples" / name, np.array([160, 288]))


def test_cameras_by_a_modality_in_capitals_and_sensors_with_intrinsics_are_found(own: Path) -> None:
    change(
        own,
        "sensor",
        lambda rows: [
            row.update(channel=row["channel"].lower(), modality="Camera") for row in rows if row["modality"] == "camera"
        ],
    )
    assert indexed(own)[0].cameras == tuple(sorted(name.lower() for name in CAMERAS))
    change(own, "sensor", lambda rows: rows[0].update(modality="ccd"))
    index, (line,) = indexed(own)
    assert len(index.cameras) == 5 and line.startswith("ignored cameras: cam_")


def test_a_camera_whose_images_are_of_other_frames_is_told(own: Path) -> None:
    def late(rows: Rows) -> None:
        for row in rows:
            row["timestamp"] += 400_000 * ("CAM_BACK/" in row["filename"])

    change(own, "sample_data", late)
    *lines, poses = indexed(own)[1]
    assert lines and all(
        "images of CAM_BACK taken more than half a step between frames apart" in line for line in lines
    )
    assert poses.startswith("data of CAM_BACK (9 of 9) have an ego pose more than 0.1 s from their own time, up to 0.4")


def test_frames_too_far_apart_for_velocities_are_told(own: Path) -> None:
    (own / "can_bus").unlink()
    for table in ("sample", "sample_data", "ego_pose"):
        change(
            own,
            table,
            lambda rows: [row.update(timestamp=(row["timestamp"] - 1_500_000_000_000_000) * 10) for row in rows],
        )
    assert any("no box has a velocity: frames are 5 s apart" in line for line in indexed(own)[1])


def test_a_version_is_the_name_of_a_folder(own: Path) -> None:
    for version in (f"{VERSION}/", str(own / VERSION), f"../own/{VERSION}"):
        with pytest.raises(FD3DError, match="give the name of a folder directly below"):
            indexed(own, version)


def test_an_image_of_another_size_in_the_middle_of_a_scene_is_named(own: Path, world: Path) -> None:
    (own / "samples").unlink()
    shutil.copytree(world / "samples", own / "samples")
    path = own / indexed(own)[0][1].image_paths[2]
    cv2.imwrite(str(path), np.zeros((100, 288, 3), np.uint8))
    with pytest.raises(FD3DError, match=f"image {path} has 100x288 pixels .*, sample_data.json says 160x288"):
        indexed(own)


def test_missing_and_empty_images_are_warned_of_by_name(own: Path, world: Path) -> None:
    (own / "samples").unlink()
    shutil.copytree(world / "samples", own / "samples")
    first, second = (own / path for path in indexed(own)[0][0].image_paths[:2])
    first.write_bytes(b"")
    second.unlink()
    with pytest.warns(
        UserWarning, match=f"missing, empty or damaged: 2 image files of .*, first .*{first.name}; copy the files"
    ):
        indexed(own)


def encoded(kind: str, *options: int) -> bytes:
    """An image file of noise."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    done, content = cv2.imencode(kind, noise, options)
    assert done
    return content.tobytes()


@pytest.mark.parametrize(
    "content",
    [
        encoded(".jpg"),
        encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        encoded(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
        encoded(".png"),
        encoded(".webp"),
    ],
)
def test_an_image_that_ends_early_is_known_without_decoding(content: bytes) -> None:
    assert not is_cut(content) and not is_cut(content + b"\0" * 1000)  # as cards and containers fill files up
    for left in (2, len(content) // 2, len(content) - 20):
        assert is_cut(content[:-left])
    if content[:2] == b"\xff\xd8":  # a thumbnail, which is whole, in front of the picture
        thumbnail = b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content
        assert not is_cut(content[:2] + thumbnail + content[2:])
        assert is_cut(content[:2] + thumbnail + content[2:-9])
        assert not is_cut(
            content + b"meta\xff\xda\0\1" + bytes(range(256)) * 9
        )  # what a recorder writes behind the picture
        assert is_cut(content[:-9] + b"meta" + content)  # as a second picture behind one that is cut
    assert not is_cut(b"") and not is_cut(b"BM")  # empty is told otherwise, and what has no head by another message


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_bitmap_that_ends_early_is_known(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (37, 11)).save(file, "BMP")
    content = file.getvalue()
    assert not is_cut(content) and not is_cut(content + b"\0" * 100)
    assert is_cut(content[:-9]) and is_cut(content[: len(content) // 2])


def test_a_png_that_is_damaged_in_the_middle_is_known_and_told(own: Path, world: Path) -> None:
    content = encoded(".png")
    middle = len(content) // 2
    broken = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    assert is_broken(broken) and not is_broken(content) and not is_broken(content + b"more") and not is_cut(broken)
    assert not is_broken(content[:-20])  # which is cut
    (own / "samples").unlink()
    shutil.copytree(world / "samples", own / "samples")
    row = json.loads((own / VERSION / "sample_data.json").read_text())[0]
    path = own / "samples/a.png"
    cv2.imwrite(str(path), cv2.imread(str(own / row["filename"])))
    change(own, "sample_data", first(filename="samples/a.png"))
    assert indexed(own)[1] == []
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(100) + content[len(content) // 2 + 100 :])
    with pytest.warns(UserWarning, match="missing, empty or damaged: 1 image file"):
        assert indexed(own)[1][0].startswith(f"image {path} is damaged: a part has not its checksum; copy images again")


def test_an_image_that_is_cut_is_told_and_its_frame_refused(own: Path, world: Path) -> None:
    (own / "samples").unlink()
    shutil.copytree(world / "samples", own / "samples")
    whole, _ = indexed(own)
    first, second = (own / path for path in whole[0].image_paths[:2])
    for path in (first, second):
        path.write_bytes(path.read_bytes()[:-200])
    image = cv2.imread(str(first))
    assert image is not None and image.shape[:2] == (160, 288)  # decoded all the same
    with pytest.warns(UserWarning, match=f"missing, empty or damaged: 2 image files of .*, first .*{first.name}"):
        index, told = indexed(own)
    (line,) = [line for line in told if "cut" in line]
    assert line.startswith(f"image {first} is cut: its end is missing, and 1 more of {whole[0].scene_name}; copy")
    check_images(index, own, range(1, 3), Path("i.npz"))
    with pytest.raises(FD3DError, match=f"image {first} was missing or damaged when i.npz was made; copy it again"):
        check_images(index, own, range(3), Path("i.npz"))


def test_images_of_16_bits_are_refused(tmp_path: Path) -> None:
    """Twelve bits in sixteen would be decoded as nearly black."""
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 6, 3), 4000, np.uint16))
    with pytest.raises(FD3DError, match=r"a.png has uint16 pixels; convert the images to 8 bits a channel"):
        LoadMultiViewImages()._decode(tmp_path / "a.png", np.array([4, 6]))


def test_images_are_decoded_as_the_sensor_recorded_them(tmp_path: Path) -> None:
    upper = np.zeros((32, 64, 3), np.uint8)
    upper[:16] = 255
    done, encoded = cv2.imencode(".jpg", upper)
    assert done
    # an Exif segment with orientation 3: a viewer turns the image by 180 degrees
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    content = encoded.tobytes()
    turned_by = content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:]
    (tmp_path / "a.jpg").write_bytes(turned_by)
    assert cv2.imread(str(tmp_path / "a.jpg"))[:16].mean() < 10
    assert LoadMultiViewImages()._decode(tmp_path / "a.jpg", np.array([32, 64]))[:16].mean() > 245


@pytest.mark.parametrize("count", [1, 12, 13])
def test_one_to_twelve_cameras_count(own: Path, count: int) -> None:
    sensors = {row["channel"]: row["token"] for row in json.loads((own / VERSION / "sensor.json").read_text())}
    more = [{"token": f"s{n}", "channel": f"cam{n}", "modality": "camera"} for n in range(count)]
    kept = [row for row in json.loads((own / VERSION / "sensor.json").read_text()) if row["channel"] not in CAMERAS]
    (own / VERSION / "sensor.json").write_text(json.dumps(kept + more))
    mounts = {row["token"]: row for row in json.loads((own / VERSION / "calibrated_sensor.json").read_text())}
    front = next(token for token, row in mounts.items() if row["sensor_token"] == sensors["CAM_FRONT"])
    lidar = next(token for token, row in mounts.items() if row["sensor_token"] == sensors["LIDAR_TOP"])
    made = [mounts[lidar], *(mounts[front] | {"token": f"c{n}", "sensor_token": f"s{n}"} for n in range(count))]
    (own / VERSION / "calibrated_sensor.json").write_text(json.dumps(made))
    data = json.loads((own / VERSION / "sample_data.json").read_text())
    ours = [row for row in data if row["calibrated_sensor_token"] == lidar]
    fronts = [row for row in data if row["calibrated_sensor_token"] == front]
    ours += [
        row | {"token": f"{row['token']}{n}", "calibrated_sensor_token": f"c{n}"}
        for row in fronts
        for n in range(count)
    ]
    (own / VERSION / "sample_data.json").write_text(json.dumps(ours))
    if count == 13:
        with pytest.raises(
            FD3DError, match="the cameras of .* are cam0, .*; name 1 to 12, each once, under data.cameras"
        ):
            indexed(own)
        assert len(indexed(own, rig=Rig(("cam0", "cam12")))[0].cameras) == 2
    else:
        assert len(indexed(own)[0].cameras) == count


# What the devkit would refuse after the detections


@pytest.mark.parametrize(
    ("table", "by"),
    [
        ("attribute", lambda rows: rows[0].pop("token")),
        ("attribute", first(token=[])),
        ("attribute", lambda rows: rows[0].pop("name")),
        ("sample_data", lambda rows: [row.pop("token") for row in rows]),
        ("instance", list.clear),
    ],
)
def test_tables_that_the_devkit_cannot_read_are_told_before_a_detector_runs(
    own: Path, table: str, by: Callable
) -> None:
    indexed(own)
    source, out = FrameSource(own / "index.npz", own, "world_val"), own / "out"
    change(own, table, by)
    with pytest.raises(FD3DError, match="the devkit cannot read the (tables|annotations) in .*; copy the tables again"):
        check_evaluation(source, VERSION, out, out / "m.json")


def test_an_index_of_other_frames_than_the_tables_is_told_before_a_detector_runs(own: Path) -> None:
    indexed(own)
    change(own, "sample", lambda rows: rows.pop())
    with pytest.raises(FD3DError, match="has 3 frames of 1 scene, of which sample.json has 2; make the index again"):
        check_evaluation(FrameSource(own / "index.npz", own, "world_val"), VERSION, own, own / "m.json")


Content = dict[str, Any]
SUBMISSIONS: list[tuple[Callable[[Content, str], object], str]] = [
    (lambda results, token: results.pop(token), "has 2 of the 3 samples of world_val and 0 others"),
    (lambda results, token: results.update(other=[]), "has 3 of the 3 samples of world_val and 1 other, first other"),
    (lambda results, token: results.update({token: {}}), "for sample .*; it must be a list of boxes"),
    (lambda results, token: results.update({token: None}), "for sample .*; it must be a list of boxes"),
    (lambda results, token: results.update({token: [3]}), "which is no box of this sample"),
    (lambda results, token: results[token][0].update(sample_token="x"), "which is no box of this sample"),
    (lambda results, token: results[token][0].update(detection_score="x"), "has detection_score 'x' for sample"),
    (lambda results, token: results[token][0].pop("size"), "the devkit refuses: KeyError: 'size'"),
    (lambda results, token: results[token][0].update(translation=[float("nan")] * 3), "the devkit refuses: Ass.*NaN"),
]


def test_submissions_that_are_foreign_incomplete_or_broken_are_one_line(own: Path) -> None:
    index, _ = indexed(own)
    want, path = judged(own, "world_val"), own / "out/submission.json"
    good, source = path.read_text(), FrameSource(own / "index.npz", own, "world_val")
    given = (path, index, source, own / "out", own / "m.json")
    path.write_text("\ufeff" + good)
    assert score(*given) == want
    for by, told in SUBMISSIONS:
        content = json.loads(good)
        by(content["results"], next(iter(content["results"])))
        path.write_text(json.dumps(content))
        with pytest.raises(FD3DError, match=told) as caught:
            score(*given)
        assert "\n" not in str(caught.value)
    for text in ("", good[:3000], "[]", good + "x", "null"):
        path.write_text(text)
        with pytest.raises(FD3DError, match="submission .* cannot be read"):
            score(*given)


def test_paths_on_the_command_line_may_begin_with_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given: dict[str, Any] = {}
    started(lambda **options: given.update(options))(
        root=Path("~/a"), checkpoint=[Path("~/b")], split="val", index=None
    )
    assert given == {"root": tmp_path / "a", "checkpoint": [tmp_path / "b"], "split": "val", "index": None}
    assert open_storage("~/store") == open_storage(tmp_path / "store")
