"""Resized images in fixed point against float32."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.data.dataset import FrameDataset
from pipeline.data.pixels import levels, resized
from pipeline.data.transforms import LoadMultiViewImages, PackFrames, PhotometricDistortionPerImage
from pipeline.models.preprocessor import FramePreprocessor


@pytest.mark.parametrize(("scale", "error"), [(0.5, 0.0), (0.8, 0.0), (0.3, 1 / 250)])
def test_fixed_point_is_exact_at_the_shipped_scales(scale: float, error: float) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 90, 160, 3), dtype=np.uint8)
    size = (round(160 * scale), round(90 * scale))
    packed = resized(images, size, True)
    assert packed.dtype == np.int16
    want = np.stack([cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) for image in images])
    np.testing.assert_allclose(levels(torch.from_numpy(packed)).numpy(), want, rtol=0, atol=error)


def test_images_in_floating_point_stay_so() -> None:
    images = np.full((1, 4, 4, 3), 300.25, np.float32)  # an augmentation may leave 0..255
    half = resized(images, (2, 2), True)
    assert half.dtype == np.float32 and (half == 300.25).all()


@pytest.mark.parametrize(
    ("scale", "distorted", "kind", "error"),
    [(0.5, False, torch.int16, 0), (0.5, True, torch.float16, 1 / 8), (1.0, True, torch.float16, 1 / 8)],
)
def test_a_compact_item_is_half_as_large_and_the_same_to_the_detector(source, scale, distorted, kind, error) -> None:
    preprocess = FramePreprocessor([123.0, 116.0, 103.0], [1.0, 1.0, 1.0])
    items = []
    for compact in (False, True):
        np.random.seed(3)
        steps: list[Any] = [LoadMultiViewImages(scale), PackFrames(compact)]
        if distorted:
            steps.insert(1, PhotometricDistortionPerImage())
        items.append(FrameDataset(source.index, source.root, source.split, steps)[0])
    images = [item["inputs"]["img"] for item in items]
    assert [image.dtype for image in images] == [torch.float32, kind]
    assert images[0].nbytes == 2 * images[1].nbytes
    ready = [preprocess({"inputs": {"img": [i["inputs"]["img"]]}, "data_samples": [i["data_samples"]]}) for i in items]
    torch.testing.assert_close(ready[0]["inputs"]["img"], ready[1]["inputs"]["img"], rtol=0, atol=error)
