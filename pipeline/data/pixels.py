"""Images on their way from a worker: float32, or in half of the bytes.

Halving an image by bilinear interpolation gives quarters of the 256 levels, and 0.8 of its size sixty-fourths. In steps of
1/128 level both are exact, so int16 includes the very numbers that float32 would. Images whose colours were distorted in floating
point may leave 0..255 and are float16: the rounding error is at most 1/8 level, a quarter of the error of 8-bit pixels.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

AS_RECORDED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
"""How images are decoded: in the sensor's own rows and columns, which the calibration is of, whatever a file's Exif says."""
STEPS = 128
"""Steps of a level of the 0..255 scale: 255 levels are 32640, the largest int16 is 32767."""


def resized(images: np.ndarray, size: tuple[int, int], fixed_point: bool) -> np.ndarray:
    """Images (V, H, W, 3) resized bilinearly to (columns, rows).

    Args:
        fixed_point: whether uint8 images become int16 in steps of 1/128 level; otherwise, and for images in floating
            point, the result is float32.
    """
    steps = STEPS if fixed_point and images.dtype == np.uint8 else 0

    def resize(image: np.ndarray) -> np.ndarray:
        image = image.astype(np.int16) * STEPS if steps else image.astype(np.float32)
        return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)

    return np.stack([resize(image) for image in images])


def halved(images: Tensor) -> Tensor:
    """Images in float32 as float16, others as they are."""
    return images.half() if images.dtype == torch.float32 else images


def levels(images: Tensor) -> Tensor:
    """Images in float32 on the 0..255 scale, from uint8, floating point or fixed point."""
    return images.float() / STEPS if images.dtype == torch.int16 else images.float()
