"""Frames of reference: LiDAR, ego, global, camera; and the ego motion that BEVFormer reads."""

import math
from collections.abc import Sequence

import numpy as np

# What the index is made of must have the same bits on every processor. Additions, multiplications, divisions and roots are
# exactly rounded everywhere; products of matrices by BLAS add in an order of the kernel's own, and sine, cosine and
# arctangent differ in their last bit, so that these are rounded.


def cos_sin(angle: float) -> tuple[float, float]:
    """Cosine and sine, rounded to ten decimals: the same on every processor."""
    return round(math.cos(angle), 10), round(math.sin(angle), 10)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product (..., n, k) times (k, m), added up in the order of k on every processor."""
    total = a[..., 0, None] * b[0]
    for k in range(1, len(b)):
        total = total + a[..., k, None] * b[k]
    return np.asarray(total)


def transform(translation: Sequence[float], rotation: Sequence[float]) -> np.ndarray:
    """4x4 matrix from a nuScenes translation (metres) and quaternion (w, x, y, z)."""
    norm = math.sqrt(sum(float(part) * float(part) for part in rotation))
    w, x, y, z = (float(part) / norm for part in rotation)
    matrix = np.eye(4)
    matrix[0, :3] = 1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)
    matrix[1, :3] = 2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)
    matrix[2, :3] = 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)
    matrix[:3, 3] = translation
    return matrix


def invert(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a rigid 4x4 matrix."""
    out = np.eye(4)
    out[:3, :3] = matrix[:3, :3].T
    out[:3, 3] = -product(matrix[:3, :3].T, matrix[:3, 3:])[:, 0]
    return out


def lidar2img(intrinsics: np.ndarray, lidar2cam: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Projection matrices (V, 4, 4) from the LiDAR frame to pixels of images resized by ``scale``.

    Args:
        intrinsics: (V, 3, 3) for the original images.
        lidar2cam: (V, 4, 4).
    """
    view = np.tile(np.eye(4), (len(intrinsics), 1, 1))
    view[:, :3, :3] = intrinsics
    view[:, :2] *= scale
    return view @ lidar2cam


def yaw_of(matrix: np.ndarray) -> float:
    """Heading of a frame's x axis about z, radians, rounded to ten decimals."""
    return round(math.atan2(matrix[1, 0], matrix[0, 0]), 10)


def move_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Boxes (n, 9) = (centre, size, yaw, velocity) into another frame whose z axis is nearly parallel.

    Yaw and velocity are turned in the plane, as nuScenes' own conversions do for upright boxes.
    """
    out, turn = boxes.copy(), matrix[:3, :3].T
    out[:, :3] = product(boxes[:, :3], turn) + matrix[:3, 3]
    heading = product(np.round(np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], -1), 10), turn[:2])
    out[:, 6] = np.round(np.arctan2(heading[:, 1], heading[:, 0]), 9)
    out[:, 7:9] = product(boxes[:, 7:9], turn[:2])[:, :2]
    return out


def can_bus_delta(current: np.ndarray, previous: np.ndarray | None) -> np.ndarray:
    """BEVFormer's ego-motion vector (18,) from two absolute ones.

    Position ([0:3]) and yaw in degrees ([-1]) become differences to the previous frame, zero without one; yaw in
    radians ([-2]) stays absolute.
    """
    out = current.copy()
    if previous is None:
        out[:3], out[-1] = 0.0, 0.0
    else:
        out[:3] -= previous[:3]
        out[-1] -= previous[-1]
    return out
