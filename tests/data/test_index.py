import hashlib
import itertools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from pyquaternion import Quaternion

from pipeline.data import CAMERAS, CLASSES
from pipeline.data.geometry import can_bus_delta, invert, lidar2img, transform
from pipeline.data.images import check_images
from pipeline.data.index import FrameIndex, build_index
from pipeline.data.npz import write_arrays
from pipeline.data.transforms import LoadMultiViewImages
from pipeline.data.world.config import GENERATOR, WorldConfig
from pipeline.data.world.generate import generate_world
from pipeline.errors import FD3DError

SMALL = WorldConfig(train_scenes=1, val_scenes=1, frames_per_scene=2, height=32, width=64)


def indexed(root: Path, config: WorldConfig) -> FrameIndex:
    generate_world(root / "world", config, 0)
    return build_index(root / "world", config.version, root / "index.npz")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a world and its index; tests that change files copy the folder."""
    root = tmp_path_factory.mktemp("small")
    indexed(root, SMALL)
    return root


@pytest.mark.parametrize("setting", ["photometric", "clutter"])
def test_settings_that_change_only_the_images_change_the_index(small: Path, tmp_path: Path, setting: str) -> None:
    changed: dict[str, Any] = {setting: 0.3}
    base, other = FrameIndex.load(small / "index.npz"), indexed(tmp_path, replace(SMALL, **changed))
    assert other.sha256 != base.sha256
    assert (other.arrays["image_bytes"] != base.arrays["image_bytes"]).any()


def test_the_same_settings_give_the_same_index_at_a_path_with_a_space(small: Path, tmp_path: Path) -> None:
    assert indexed(tmp_path / "a folder", SMALL).sha256 == FrameIndex.load(small / "index.npz").sha256


def test_an_image_of_another_size_is_another_index_and_a_missing_one_has_size_minus_one(
    small: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(small / "world", tmp_path / "world")
    before = FrameIndex.load(small / "index.npz")
    sizes = [[(root / path).stat().st_size for path in frame.image_paths] for frame in before]
    assert before.arrays["image_bytes"].dtype == np.int64 and before.arrays["image_bytes"].tolist() == sizes
    changed, absent = (root / path for path in before[1].image_paths[2:4])
    changed.write_bytes(changed.read_bytes() + b"x")
    sizes[1][2] += 1
    larger = build_index(root, SMALL.version, tmp_path / "larger.npz")
    assert larger.arrays["image_bytes"].tolist() == sizes and larger.sha256 != before.sha256
    absent.unlink()
    sizes[1][3] = -1
    with pytest.warns(UserWarning, match="missing, empty or damaged: 1 image file of"):
        assert build_index(root, SMALL.version, tmp_path / "absent.npz").arrays["image_bytes"].tolist() == sizes


def test_an_image_with_other_pixels_and_as_many_bytes_is_another_index_and_is_not_decoded_by_the_old_one(
    small: Path, tmp_path: Path
) -> None:
    """DVC runs the stages again after such a change, and they must not take what they find for made."""
    root = shutil.copytree(small / "world", tmp_path / "world")
    before = FrameIndex.load(small / "index.npz")
    image = root / before[1].image_paths[2]
    content = image.read_bytes()
    at = content.rindex(b"\xff\xd9") - 9
    changed = content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]
    image.write_bytes(changed)
    assert build_index(root, SMALL.version, tmp_path / "index.npz").sha256 != before.sha256
    load = LoadMultiViewImages()
    for row, index in itertools.product(range(2), (small / "index.npz", tmp_path / "index.npz")):
        item = {"root": root, "frames": [{"frame": FrameIndex.load(index)[row]}]}
        if row == 1 and index.parent == small:
            with pytest.raises(
                FD3DError, match=f"image {image} is another than when the index was made; run 'fd3d index'"
            ):
                load.transform(item)
        else:
            load.transform(item)


def test_images_that_are_not_those_of_the_index_are_named(small: Path, tmp_path: Path) -> None:
    root, name = shutil.copytree(small / "world", tmp_path / "world"), Path("index.npz")
    index = FrameIndex.load(small / "index.npz")
    everything = range(len(index))
    check_images(index, root, everything, name)
    first, second = (root / path for path in (index[0].image_paths[1], index[2].image_paths[0]))
    content = first.read_bytes()
    for damage, told in (
        (
            lambda: first.write_bytes(content + b"x"),
            f"{first} has {len(content) + 1} bytes, and had {len(content)} when index",
        ),
        (lambda: first.write_bytes(b""), f"{first} is empty; copy it again$"),
        (first.unlink, f"{first} cannot be read: No such file or directory; is the data root complete.$"),
        (second.unlink, r"is the data root complete. \(2 of 24 images\)"),
    ):
        damage()
        with pytest.raises(FD3DError, match=told):
            check_images(index, root, everything, name)
    check_images(index, root, [1, 3], name)  # frames that do not count may be damaged
    with pytest.warns(UserWarning, match="2 image files"):
        later = build_index(root, SMALL.version, tmp_path / "later.npz")
    first.write_bytes(content)
    with pytest.raises(
        FD3DError, match=f"{first} was missing or damaged when later.npz was made; .* run 'fd3d index' again"
    ):
        check_images(later, root, [0], Path("later.npz"))


def test_the_generators_settings_are_part_of_the_index(small: Path, tmp_path: Path) -> None:
    index = FrameIndex.load(small / "index.npz")
    settings = asdict(SMALL)
    del settings["dev_scenes"], settings["rig"]  # not named where there are none, and where it is nuScenes'
    assert json.loads(str(index.arrays["generator"])) == {"generator": GENERATOR} | settings
    root = shutil.copytree(small / "world", tmp_path / "world")
    (root / SMALL.version / "world.json").unlink()
    without = build_index(root, SMALL.version, tmp_path / "index.npz")
    assert str(without.arrays["generator"]) == "" and without.sha256 != index.sha256


def test_an_index_of_an_older_format_is_refused(small: Path, tmp_path: Path) -> None:
    arrays = FrameIndex.load(small / "index.npz").arrays
    np.savez(tmp_path / "old.npz", **(arrays | {"format": np.array(1)}))
    with pytest.raises(FD3DError, match="has format 1, this program reads 4; make it again with 'fd3d index'"):
        FrameIndex.load(tmp_path / "old.npz")


def test_an_index_in_the_layout_before_is_refused_in_a_line(small: Path, tmp_path: Path) -> None:
    index = FrameIndex.load(small / "index.npz")
    old = {"format": np.array(2), "token": index.arrays["token"].astype("U32"), "boxes": index.arrays["boxes"]}
    np.savez(tmp_path / "old.npz", **old)
    with pytest.raises(FD3DError, match="has format 2, this program reads 4; make it again with 'fd3d index'"):
        FrameIndex.load(tmp_path / "old.npz")


def test_tokens_that_would_name_files_elsewhere_are_refused(small: Path, tmp_path: Path) -> None:
    arrays = dict(FrameIndex.load(small / "index.npz").arrays)
    token = arrays["token"].copy()
    token[1] = b"../../../esc"
    with open(tmp_path / "given.npz", "wb") as file:
        write_arrays(file, arrays | {"token": token})
    with pytest.raises(FD3DError, match="given.npz has sample tokens with slashes; make it again with 'fd3d index'"):
        FrameIndex.load(tmp_path / "given.npz")


def test_columns_are_mapped_read_only_and_numpy_reads_them_too(small: Path) -> None:
    index = FrameIndex.load(small / "index.npz")
    with np.load(small / "index.npz") as file:
        assert set(file.files) == set(index.arrays)
        for name, column in index.arrays.items():
            np.testing.assert_array_equal(column, file[name])
            assert column.flags.aligned and not column.flags.owndata and not column.flags.writeable
    assert hashlib.sha256((small / "index.npz").read_bytes()).hexdigest() == index.sha256


def test_another_process_is_sent_the_path_and_refuses_a_file_that_was_made_again(small: Path, tmp_path: Path) -> None:
    path = shutil.copy(small / "index.npz", tmp_path)
    index = FrameIndex.load(path)
    index.row(index[1].token)
    sent = pickle.dumps(index)
    assert len(sent) < 1000
    np.testing.assert_equal(asdict(pickle.loads(sent)[1]), asdict(index[1]))
    os.utime(path, ns=(1, 1))
    with pytest.raises(FD3DError, match="was made again while it was in use"):
        pickle.loads(sent)


def test_a_changed_byte_is_found(small: Path, tmp_path: Path) -> None:
    content = bytearray((small / "index.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "index.npz").write_bytes(content)
    with pytest.raises(FD3DError, match="is damaged .*; make it again"):
        FrameIndex.load(tmp_path / "index.npz")


def changed_table(root: Path, name: str, change: Callable[[list[dict]], None]) -> None:
    path = root / SMALL.version / f"{name}.json"
    rows = json.loads(path.read_text())
    change(rows)
    path.write_text(json.dumps(rows))


def test_sensor_data_between_key_frames_and_poses_of_none_change_nothing(small: Path, tmp_path: Path) -> None:
    root = shutil.copytree(small / "world", tmp_path / "world")

    def sweep(rows: list[dict]) -> None:
        rows.insert(1, rows[0] | {"token": "sweep", "ego_pose_token": "late", "is_key_frame": False})

    changed_table(root, "sample_data", sweep)
    changed_table(root, "ego_pose", lambda rows: rows.append(rows[0] | {"token": "late", "translation": [1, 2, 3]}))
    assert build_index(root, SMALL.version, tmp_path / "x.npz").sha256 == FrameIndex.load(small / "index.npz").sha256


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("sample_annotation", lambda rows: rows[0].pop("size"), "sample_annotation.json: KeyError..size"),
        ("sample_annotation", lambda rows: rows[0].update(attribute_tokens=["a", "b"]), "has 2 attributes; the devkit"),
        ("sample_annotation", lambda rows: rows[0].update(prev="none"), "names none as its prev"),
        ("ego_pose", lambda rows: rows.clear(), "have no ego pose"),
        ("ego_pose", lambda rows: rows[0].update(rotation=[0, 0, 0, 0]), "is no rigid motion"),
        ("sample_data", lambda rows: rows.pop(0), "has no CAM_FRONT; 6 cameras and LIDAR_TOP are needed"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_tables_that_lack_something_are_named(small: Path, tmp_path: Path, table, change, message: str) -> None:
    root = shutil.copytree(small / "world", tmp_path / "world")
    changed_table(root, table, change)
    with pytest.raises(FD3DError, match=message):
        build_index(root, SMALL.version, tmp_path / "x.npz")


@pytest.mark.parametrize("content", ["", "[{", '[{"is_key_frame": false}'])
def test_a_damaged_table_is_named(small: Path, tmp_path: Path, content: str) -> None:
    root = shutil.copytree(small / "world", tmp_path / "world")
    (root / SMALL.version / "sample_data.json").write_text(content)
    with pytest.raises(FD3DError, match="v1.0-world cannot be read: sample_data.json"):
        build_index(root, SMALL.version, tmp_path / "x.npz")


def test_boxes_are_the_devkits(world: Path, world_index: Path) -> None:
    nusc, index, kinds = NuScenes("v1.0-world", str(world), verbose=False), FrameIndex.load(world_index), set()
    for frame in index:
        annotations = [nusc.get("sample_annotation", token) for token in nusc.get("sample", frame.token)["anns"]]
        to_global = frame.ego2global @ frame.lidar2ego
        np.testing.assert_allclose(
            frame.boxes[:, :3] @ to_global[:3, :3].T + to_global[:3, 3],
            [a["translation"] for a in annotations],
            atol=1e-4,
        )
        velocities = np.array([nusc.box_velocity(a["token"])[:2] for a in annotations])
        found = np.column_stack([frame.boxes[:, 7:9], np.zeros(len(frame.boxes))]) @ to_global[:3, :3].T
        np.testing.assert_allclose(found[:, :2], velocities, atol=1e-3)
        assert frame.num_lidar_pts.tolist() == [a["num_lidar_pts"] for a in annotations]
        kinds |= {(bool(a["prev"]), bool(a["next"])) for a in annotations}
    assert {(True, True), (True, False), (False, True)} <= kinds  # differences to both sides and to one


def test_index_is_the_same_bytes_twice(world, world_index, tmp_path):
    again = build_index(world, "v1.0-world", tmp_path / "again.npz")
    assert again.sha256 == FrameIndex.load(world_index).sha256


def test_scenes_are_chains_in_time_order(world_index):
    index = FrameIndex.load(world_index)
    for rows in index.scenes.values():
        frames = [index[row] for row in rows]
        assert [f.order for f in frames] == list(range(len(frames)))
        assert [f.prev for f in frames] == [-1, *rows[:-1]]
        assert [f.next for f in frames] == [*rows[1:], -1]
        assert all(a.timestamp < b.timestamp for a, b in zip(frames, frames[1:], strict=False))


def test_splits_are_disjoint_and_unknown_ones_are_refused(world_index):
    index = FrameIndex.load(world_index)
    train, val = (set(index.select(s)) for s in ("world_train", "world_val"))
    assert (len(train), len(val)) == (6, 3) and not train & val
    with pytest.raises(FD3DError, match="split 'nope' has no scene.*world_train"):
        index.select("nope")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), (b"", "is damaged"), (b"PK\x03\x04 truncated", "is damaged")],
)
def test_bad_index_files_are_refused(tmp_path, content, message):
    path = tmp_path / "index.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FD3DError, match=message):
        FrameIndex.load(path)


def test_wrong_root_and_version_are_named(world, world_index, tmp_path):
    with pytest.raises(FD3DError, match="no folder v1.0-nope"):
        build_index(world, "v1.0-nope", tmp_path / "x.npz")
    with pytest.raises(FD3DError, match="no folder v1.0-world"):
        FrameIndex.load(world_index, tmp_path)


def test_can_bus_deltas_follow_the_ego(world_index):
    index = FrameIndex.load(world_index)
    rows = next(iter(index.scenes.values()))
    first, second = index[rows[0]], index[rows[1]]
    start, step = can_bus_delta(first.can_bus, None), can_bus_delta(second.can_bus, first.can_bus)
    assert (start[:3] == 0).all() and start[-1] == 0
    np.testing.assert_allclose(step[:3], second.ego2global[:3, 3] - first.ego2global[:3, 3])
    assert step[-2] == second.can_bus[-2]


def test_without_can_bus_folder_motion_is_derived_with_one_warning(excerpt_root, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for name in ("v1.0-mini", "maps", "samples"):
        (root / name).symlink_to(excerpt_root / name)
    with pytest.warns(UserWarning, match="no CAN bus poses of 2 scenes") as seen:
        derived = build_index(root, "v1.0-mini", tmp_path / "derived.npz")
    assert sum("CAN bus" in str(w.message) for w in seen) == 1
    measured = build_index(excerpt_root, "v1.0-mini", tmp_path / "measured.npz")
    for a, b in zip(derived, measured, strict=True):
        np.testing.assert_allclose(a.can_bus[[0, 1, 2, -2, -1]], b.can_bus[[0, 1, 2, -2, -1]])
        if a.scene_name == "scene-0103":  # speeds agree with the car's own within a metre per second
            assert abs(a.can_bus[13] - b.can_bus[13]) < 1.0


def test_excerpt_agrees_with_published_infos(excerpt_root, tmp_path):
    reference = json.loads((excerpt_root / "reference" / "infos_reference.json").read_text())
    index = build_index(excerpt_root, "v1.0-mini", tmp_path / "index.npz")
    for frame in index:
        wanted = [gt for gt in reference[frame.token]["gt"] if gt["name"] in CLASSES]
        boxes = np.array([gt["box_lidar_xyzwlh"] for gt in wanted])
        nearest = np.linalg.norm(frame.boxes[None, :, :3] - boxes[:, None, :3], axis=-1).argmin(1)
        found = frame.boxes[nearest]
        np.testing.assert_allclose(found[:, :3], boxes[:, :3], atol=2e-3)
        np.testing.assert_allclose(found[:, [4, 3, 5]], boxes[:, 3:], atol=1e-3)
        turned = found[:, 6] - np.array([gt["yaw_lidar"] for gt in wanted])
        np.testing.assert_allclose(np.cos(turned), 1, atol=1e-5)
        want = reference[frame.token]["lidar2img"]
        matrices = lidar2img(frame.intrinsics, frame.lidar2cam)
        for name, matrix in zip(CAMERAS, matrices, strict=True):
            np.testing.assert_allclose(matrix, np.array(want[name]), atol=1e-3)


def test_images_of_another_generator_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexed(tmp_path, SMALL)
    index = FrameIndex.load(tmp_path / "index.npz")
    (root,) = {path.parents[2] for path in tmp_path.rglob("*.jpg")}
    image = root / index[0].image_paths[0]
    image.write_bytes(b"of the old code")
    indexed(tmp_path, SMALL)
    assert image.read_bytes() == b"of the old code"  # a scene that is done is not rendered again
    monkeypatch.setattr("pipeline.data.world.config.GENERATOR", 99)
    indexed(tmp_path, SMALL)
    assert image.read_bytes() != b"of the old code"


def test_transforms_are_those_of_pyquaternion(excerpt_root: Path) -> None:
    """The index's own arithmetic, the same on every processor, moves real poses by less than a nanometre."""
    for pose in json.loads((excerpt_root / "v1.0-mini/ego_pose.json").read_text()):
        want = Quaternion(pose["rotation"]).transformation_matrix
        want[:3, 3] = pose["translation"]
        ours = transform(pose["translation"], pose["rotation"])
        np.testing.assert_allclose(ours, want, atol=1e-12, rtol=0)
        np.testing.assert_allclose(invert(ours), np.linalg.inv(want), atol=1e-9, rtol=0)
