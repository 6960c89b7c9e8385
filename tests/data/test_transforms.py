import numpy as np
import pytest
import torch

import pipeline.distill.loading  # noqa: F401  registers what loads the expert's targets
from pipeline.data.dataset import FrameDataset
from pipeline.data.transforms import (
    LoadBoxes,
    LoadMultiViewImages,
    PackFrames,
    PhotometricDistortion,
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


def test_photometric_distortion_leaves_pixels_in_place(source):
    np.random.seed(0)
    item = dataset(source, [LoadMultiViewImages()])[0]
    before = item["frames"][0]["img"].astype(float)
    after = PhotometricDistortion()(item)["frames"][0]["img"].astype(float)
    assert np.abs(before - after).mean() > 1
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.9


def test_pixel_moving_augmentation_is_refused_beside_cached_targets():
    refuse_pixel_moving([{"type": "PhotometricDistortion"}, {"type": "LoadExpertTargets"}])
    with pytest.raises(FD3DError, match="Resize moves pixels"):
        refuse_pixel_moving([{"type": "Resize"}, {"type": "LoadExpertTargets"}])


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
