"""Frames of reference: LiDAR, ego, global, camera; and the ego motion that BEVFormer reads."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

# What the index is made of must have the same bits on every processor. Additions, multiplications, divisions and roots are
# exactly rounded everywhere. Products of matrices by BLAS add in an order of the kernel's own, and sine, cosine and
# arctangent of the C library differ in their last bit; rounding would hide most such differences, but not those beside a
# rounding limit. So these functions are series of exactly rounded operations.

# pi / 2 in two parts, of which multiples of the first are exact
_QUARTER, _QUARTER_REST = 1.57079632673412561417, 6.07710050650619224932e-11
# Degrees up to which a LiDAR counts as mounted like nuScenes'. LIDAR_TOP's mounts are turned a little (of the mini split's by 0.1), and official
# checkpoints were trained as if by nothing, so that much has to count as nothing; history is then off by at most 0.35 m in a step of 10 m, less
# than a cell of BEVFormer's BEV map (0.51 m).
_MAX_TURN = 2.0


def cos_sin(angle: float) -> tuple[float, float]:
    """Cosine and sine of radians: the same bits on every processor, within 1e-15 for angles of up to 1000."""
    turns = math.floor(angle / (_QUARTER + _QUARTER_REST) + 0.5)
    rest = angle - turns * _QUARTER - turns * _QUARTER_REST
    square = rest * rest
    c, s = 1.0, 1.0
    for n in range(18, 0, -2):  # Taylor's series, from its last term
        c, s = 1.0 - c * square / (n * (n - 1)), 1.0 - s * square / (n * (n + 1))
    s *= rest
    return ((c, s), (-s, c), (-c, -s), (s, -c))[turns % 4]


def arctan2(y: float, x: float) -> float:
    """Angle of the direction (x, y), radians in -pi..pi, 0 of (0, 0): the same bits on every processor, within 1e-15."""
    low, high = min(abs(x), abs(y)), max(abs(x), abs(y))
    if high == 0.0:
        return 0.0
    tangent = low / high
    for _ in range(3):  # halves the angle
        tangent = tangent / (1.0 + math.sqrt(1.0 + tangent * tangent))
    square, series = tangent * tangent, 0.0
    for n in range(19, 0, -2):
        series = 1.0 / n - square * series
    angle = 8.0 * tangent * series
    if abs(y) > abs(x):
        angle = _QUARTER - angle + _QUARTER_REST
    if x < 0:
        angle = 2 * _QUARTER - angle + 2 * _QUARTER_REST
    return math.copysign(angle, y)


def cos_sin_of(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """:func:`cos_sin` of many angles (n,), with the same bits; the renderer compiles the scalar form."""
    turns = np.floor(angles / (_QUARTER + _QUARTER_REST) + 0.5)
    rest = angles - turns * _QUARTER - turns * _QUARTER_REST
    square = rest * rest
    c, s = np.ones_like(rest), np.ones_like(rest)
    for n in range(18, 0, -2):
        c, s = 1.0 - c * square / (n * (n - 1)), 1.0 - s * square / (n * (n + 1))
    s *= rest
    quarter = (turns % 4).astype(np.int64)
    return np.choose(quarter, [c, -s, -c, s]), np.choose(quarter, [s, c, -s, -c])


def arctan2_of(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """:func:`arctan2` of many directions (n,), with the same bits."""
    low, high = np.minimum(np.abs(x), np.abs(y)), np.maximum(np.abs(x), np.abs(y))
    tangent = low / np.where(high == 0.0, 1.0, high)
    for _ in range(3):
        tangent = tangent / (1.0 + np.sqrt(1.0 + tangent * tangent))
    square, series = tangent * tangent, np.zeros_like(tangent)
    for n in range(19, 0, -2):
        series = 1.0 / n - square * series
    angle = 8.0 * tangent * series
    angle = np.where(np.abs(y) > np.abs(x), _QUARTER - angle + _QUARTER_REST, angle)
    angle = np.where(x < 0, 2 * _QUARTER - angle + 2 * _QUARTER_REST, angle)
    return np.where(high == 0.0, 0.0, np.copysign(angle, y))


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product (..., n, k) times (..., k, m), added up in the order of k on every processor."""
    total = a[..., 0, None] * b[..., 0, None, :]
    for k in range(1, b.shape[-2]):
        total = total + a[..., k, None] * b[..., k, None, :]
    return np.asarray(total)


def transform(translation: ArrayLike, rotation: ArrayLike) -> np.ndarray:
    """Matrices (..., 4, 4) from nuScenes translations (..., 3) in metres and quaternions (..., 4) as (w, x, y, z)."""
    w, x, y, z = np.moveaxis(np.asarray(rotation, dtype=np.float64), -1, 0)
    norm = np.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w / norm, x / norm, y / norm, z / norm
    matrix = np.tile(np.eye(4), (*np.shape(norm), 1, 1))
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            matrix[..., i, j] = value
    matrix[..., :3, 3] = translation
    return matrix


def invert(matrix: np.ndarray) -> np.ndarray:
    """Inverse of rigid matrices (..., 4, 4)."""
    out, back = np.tile(np.eye(4), (*matrix.shape[:-2], 1, 1)), np.swapaxes(matrix[..., :3, :3], -1, -2)
    out[..., :3, :3] = back
    out[..., :3, 3] = -product(back, matrix[..., :3, 3:])[..., 0]
    return out


def resized_hw(hw: np.ndarray | Sequence[int], scale: float) -> tuple[int, int]:
    """Rows and columns of an image resized by ``scale``: whole numbers."""
    rows, columns = (round(float(side) * scale) for side in hw)
    return rows, columns


def resize_factors(hw: np.ndarray | Sequence[int], scale: float) -> np.ndarray:
    """What resizing by ``scale`` multiplies x and y with, (2,): not quite ``scale`` where sides are odd, say."""
    return (np.array(resized_hw(hw, scale)) / np.asarray(hw, dtype=np.float64))[::-1]


def own_hw(sizes: np.ndarray, scale: float) -> np.ndarray:
    """Rows and columns (V, 2) float32 of the images of V cameras in the common image that is resized by ``scale``; shares of
    pixels count.

    Args:
        sizes: (V, 2) of the original images, which are padded to the largest and then resized.
    """
    return (sizes * resize_factors(sizes.max(0), scale)[::-1]).astype(np.float32)


def lidar2img(intrinsics: np.ndarray, lidar2cam: np.ndarray, scale: float | np.ndarray = 1.0) -> np.ndarray:
    """Projection matrices (V, 4, 4) from the LiDAR frame to pixels of images resized by ``scale``.

    Args:
        intrinsics: (V, 3, 3) for the original images.
        lidar2cam: (V, 4, 4).
        scale: factor of both, or factors (2,) of x and y, as of :func:`resize_factors`.
    """
    view = np.tile(np.eye(4), (len(intrinsics), 1, 1))
    view[:, :3, :3] = intrinsics
    view[:, :2] *= np.reshape(scale, (-1, 1))
    return view @ lidar2cam


def yaw_of(matrix: np.ndarray) -> float:
    """Heading of a frame's x axis about z, radians."""
    return arctan2(float(matrix[1, 0]), float(matrix[0, 0]))


def lidar_turn(mount: np.ndarray) -> float:
    """Radians by which a LiDAR (mount (4, 4), to the ego frame) is turned against nuScenes', whose x axis is to the right; 0
    up to 2 degrees, an angle of mounting that official checkpoints have learned with."""
    turn = math.remainder(yaw_of(mount) + math.pi / 2, 2 * math.pi)
    return turn if abs(math.degrees(turn)) > _MAX_TURN else 0.0


def move_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Boxes (n, 9) = (centre, size, yaw, velocity) into another frame whose z axis is nearly parallel.

    Yaw and velocity are turned in the plane, as nuScenes' own conversions do for upright boxes.

    Args:
        matrix: (4, 4) for all boxes, or (n, 4, 4) with one for each.
    """
    out, turn = boxes.copy(), np.swapaxes(matrix[..., :3, :3], -1, -2)
    flat = turn[..., :2, :]
    out[:, :3] = product(boxes[:, None, :3], turn)[:, 0] + matrix[..., :3, 3]
    heading = product(np.stack(cos_sin_of(boxes[:, 6]), -1)[:, None], flat)[:, 0]
    out[:, 6] = arctan2_of(heading[:, 1], heading[:, 0])
    out[:, 7:9] = product(boxes[:, None, 7:9], flat)[:, 0, :2]
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
