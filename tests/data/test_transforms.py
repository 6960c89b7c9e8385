import numpy as np
import pytest
import torch

from pipeline.data.dataset import FrameDataset
from pipeline.data.transforms import (
    LoadBoxes,
    LoadMultiViewImages,
    PackFrames,
    PhotometricDistortion,
    WorldFlip,
    refuse_pixel_moving,
)
from pipeline.errors import FD3DError

RANGE = [-40.0, -40.0, -5.0, 40.0, 40.0, 3.0]


def dataset(source, steps, **kwargs) -> FrameDataset:
    return FrameDataset(source.index, source.root, source.split, steps, **kwargs)


def test_queue_repeats_a_scenes_first_frame_without_history(source):
    data = dataset(source, [], queue_length=3)
    first, third = data.raw_item(0)["frames"], data.raw_item(2)["frames"]
    assert len({f["frame"].token for f in first}) == 1 and not any(f["has_history"] for f in first)
    assert [f["has_history"] for f in third] == [False, True, True]
    assert (third[0]["can_bus"][:3] == 0).all()


def test_prediction_items_know_whether_the_scene_went_on_before_them(source):
    data = dataset(source, [], queue_length=3, test_mode=True)
    assert [data.raw_item(i)["frames"][0]["has_history"] for i in range(3)] == [False, True, True]


def test_packed_item_has_scaled_images_and_projections(source):
    full, half = (
        dataset(source, [LoadMultiViewImages(scale), LoadBoxes(RANGE), PackFrames()])[0] for scale in (1.0, 0.5)
    )
    assert full["inputs"]["img"].shape == (1, 6, 3, 160, 288) and full["inputs"]["img"].dtype == torch.uint8
    assert half["inputs"]["img"].shape == (1, 6, 3, 80, 144)
    a, b = (item["data_samples"].frames[0]["lidar2img"] for item in (full, half))
    np.testing.assert_allclose(a[:, :2] * 0.5, b[:, :2], rtol=1e-5)
    # halving by bilinear interpolation is the mean of two by two pixels
    mean = full["inputs"]["img"].float().unflatten(-1, (144, 2)).unflatten(-3, (80, 2)).mean((-1, -3))
    assert torch.allclose(mean, half["inputs"]["img"], atol=1e-3)


def test_boxes_without_points_are_left_out(source):
    data = dataset(source, [])
    frame = data.raw_item(0)["frames"][-1]["frame"]
    item = LoadBoxes(RANGE)(data.raw_item(0))
    inside = (np.abs(frame.boxes[:, :2]) <= 40).all(1) & (frame.num_lidar_pts > 0)
    assert len(item["labels"]) == inside.sum() < len(frame.labels)


def test_mirrored_world_projects_boxes_onto_mirrored_pixels(source):
    data = dataset(source, [LoadMultiViewImages()], queue_length=2)
    plain, mirrored = data[1], WorldFlip(prob=1.0)(data[1])
    points = np.array([[5.0, 20.0, -1.0, 1.0], [-12.0, 3.0, 0.0, 1.0], [2.0, -15.0, -1.0, 1.0]])
    flipped = points * [-1, 1, 1, 1]
    for before, after in zip(plain["frames"], mirrored["frames"], strict=True):
        for slot, other in enumerate((0, 2, 1, 3, 5, 4)):
            p, q = points @ before["lidar2img"][slot].T, flipped @ after["lidar2img"][other].T
            seen = p[:, 2] > 0.5
            u, v = p[seen, 0] / p[seen, 2], p[seen, 1] / p[seen, 2]
            np.testing.assert_allclose(q[seen, 0] / q[seen, 2], 288 - u, atol=1e-6)
            np.testing.assert_allclose(q[seen, 1] / q[seen, 2], v, atol=1e-6)
            assert (after["img"][other] == before["img"][slot][:, ::-1]).all()
    boxes, mirror = (LoadBoxes(RANGE)(item)["boxes"] for item in (plain, mirrored))
    heading, turned = (np.stack([np.cos(b[:, 6]), np.sin(b[:, 6])]) for b in (boxes, mirror))
    np.testing.assert_allclose(turned, heading * [[-1], [1]], atol=1e-6)


def test_photometric_distortion_leaves_pixels_in_place(source):
    np.random.seed(0)
    item = dataset(source, [LoadMultiViewImages()])[0]
    before = item["frames"][0]["img"].astype(float)
    after = PhotometricDistortion()(item)["frames"][0]["img"].astype(float)
    assert np.abs(before - after).mean() > 1
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("kind", ["WorldFlip", "Resize"])
def test_pixel_moving_augmentation_is_refused_beside_cached_targets(kind):
    refuse_pixel_moving([{"type": "PhotometricDistortion"}, {"type": "LoadExpertTargets"}])
    refuse_pixel_moving([{"type": "WorldFlip"}])
    with pytest.raises(FD3DError, match=f"{kind} moves pixels"):
        refuse_pixel_moving([{"type": kind}, {"type": "LoadExpertTargets"}])


@pytest.mark.parametrize("content", [None, b"", b"\xff\xd8\xff no image"])
def test_missing_and_truncated_images_are_named(source, tmp_path, content):
    data = dataset(source, [LoadMultiViewImages()])
    item = data.raw_item(0)
    path = tmp_path / item["frames"][0]["frame"].image_paths[0]
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FD3DError, match="CAM_FRONT"):
        LoadMultiViewImages()(item | {"root": tmp_path})
