import json
from pathlib import Path

import numpy as np
import pytest
from pyquaternion import Quaternion

from pipeline.data import CAMERAS, CLASSES
from pipeline.data.geometry import can_bus_delta, invert, lidar2img, transform
from pipeline.data.index import FrameIndex, build_index
from pipeline.data.world.config import WorldConfig
from pipeline.data.world.generate import generate_world
from pipeline.errors import FD3DError


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
    with pytest.warns(UserWarning, match="2 scenes have no CAN bus") as seen:
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


def built(root: Path, **settings: float) -> str:
    """Hash of the index of a small world."""
    config = WorldConfig(train_scenes=1, val_scenes=1, frames_per_scene=1, height=64, width=64, **settings)  # type: ignore[arg-type]
    generate_world(root, config, workers=0)
    return build_index(root, config.version, root.parent / f"{root.name}.npz").sha256


def test_the_index_covers_images_and_the_settings_that_made_them(tmp_path: Path):
    first = built(tmp_path / "My Disk" / "a")  # a path with a space
    assert built(tmp_path / "b") == first
    assert built(tmp_path / "c", photometric=0.3) != first
    assert built(tmp_path / "d", clutter=0.5) != first
    index = FrameIndex.load(tmp_path / "b.npz")
    image = tmp_path / "b" / index[0].image_paths[2]
    assert index[0].image_bytes[2] == image.stat().st_size
    image.write_bytes(image.read_bytes() + b"x")
    assert build_index(tmp_path / "b", "v1.0-world", tmp_path / "b2.npz").sha256 != first
    image.unlink()
    with pytest.warns(UserWarning, match="1 image files .* are missing"):
        assert build_index(tmp_path / "b", "v1.0-world", tmp_path / "b3.npz")[0].image_bytes[2] == -1


def test_images_of_another_generator_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    built(tmp_path / "a")
    image = tmp_path / "a" / FrameIndex.load(tmp_path / "a.npz")[0].image_paths[0]
    image.write_bytes(b"of the old code")
    built(tmp_path / "a")
    assert image.read_bytes() == b"of the old code"  # a scene that is done is not rendered again
    monkeypatch.setattr("pipeline.data.world.generate.GENERATOR", 99)
    built(tmp_path / "a")
    assert image.read_bytes() != b"of the old code"


def test_transforms_are_those_of_pyquaternion(excerpt_root: Path):
    """The index's own arithmetic, the same on every processor, moves real poses by less than a nanometre."""
    poses = json.loads((excerpt_root / "v1.0-mini/ego_pose.json").read_text())
    for pose in poses:
        want = Quaternion(pose["rotation"]).transformation_matrix
        want[:3, 3] = pose["translation"]
        ours = transform(pose["translation"], pose["rotation"])
        np.testing.assert_allclose(ours, want, atol=1e-12, rtol=0)
        np.testing.assert_allclose(invert(ours), np.linalg.inv(want), atol=1e-9, rtol=0)
