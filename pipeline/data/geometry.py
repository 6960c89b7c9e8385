"""Frames of reference: LiDAR, ego, global, camera; and the ego motion that BEVFormer reads."""

import numpy as np
from pyquaternion import Quaternion


def transform(translation: list[float], rotation: list[float]) -> np.ndarray:
    """4x4 matrix from a nuScenes translation (metres) and quaternion (w, x, y, z)."""
    matrix = np.eye(4)
    matrix[:3, :3] = Quaternion(rotation).rotation_matrix
    matrix[:3, 3] = translation
    return matrix


def invert(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a rigid 4x4 matrix."""
    out = np.eye(4)
    out[:3, :3] = matrix[:3, :3].T
    out[:3, 3] = -matrix[:3, :3].T @ matrix[:3, 3]
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
    """Heading of a frame's x axis about z, radians."""
    return float(np.arctan2(matrix[1, 0], matrix[0, 0]))


def move_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Boxes (n, 9) = (centre, size, yaw, velocity) into another frame whose z axis is nearly parallel.

    Yaw and velocity are turned in the plane, as nuScenes' own conversions do for upright boxes.
    """
    out = boxes.copy()
    out[:, :3] = boxes[:, :3] @ matrix[:3, :3].T + matrix[:3, 3]
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))], -1) @ matrix[:3, :3].T
    out[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    velocity = np.concatenate([boxes[:, 7:9], np.zeros((len(boxes), 1))], -1) @ matrix[:3, :3].T
    out[:, 7:9] = velocity[:, :2]
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
