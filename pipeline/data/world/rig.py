"""The sensor rig: six cameras and a LiDAR mounted as on the nuScenes car (Caesar et al., 2020)."""

import math
from dataclasses import dataclass

import numpy as np
from pyquaternion import Quaternion

from pipeline.data import CAMERAS
from pipeline.data.geometry import cos_sin

# name: position in the ego frame (m), yaw of the optical axis (degrees), focal length at 1600 columns (pixels)
_MOUNTS = {
    "CAM_FRONT": ((1.70, 0.02, 1.51), 0.0, 1266.0),
    "CAM_FRONT_RIGHT": ((1.55, -0.49, 1.50), -55.0, 1260.0),
    "CAM_FRONT_LEFT": ((1.52, 0.49, 1.51), 55.0, 1272.0),
    "CAM_BACK": ((0.03, 0.00, 1.58), 180.0, 809.0),
    "CAM_BACK_LEFT": ((1.04, 0.48, 1.59), 110.0, 1257.0),
    "CAM_BACK_RIGHT": ((1.02, -0.48, 1.58), -110.0, 1259.0),
}
LIDAR_POSITION = (0.94, 0.0, 1.84)
LIDAR_ROTATION = Quaternion(axis=(0, 0, 1), degrees=-90)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: (3,) in the ego frame, metres.
        rotation: (3, 3) camera axes (right, down, forward) to ego axes.
        intrinsic: (3, 3) pixels.
    """

    name: str
    position: np.ndarray
    rotation: np.ndarray
    intrinsic: np.ndarray


def rig(height: int, width: int) -> list[Camera]:
    """The six cameras for images of a size, in BEVFormer's order."""
    cameras = []
    for name in CAMERAS:
        position, yaw, focal = _MOUNTS[name]
        c, s = cos_sin(math.radians(yaw))
        rotation = np.array([[s, 0.0, c], [-c, 0.0, s], [0.0, -1.0, 0.0]])
        f = focal * width / 1600
        # the optical centre lies a little below the middle row, as on nuScenes (491 of 900 rows)
        intrinsic = np.array([[f, 0.0, width * 0.5], [0.0, f, height * 0.545], [0.0, 0.0, 1.0]])
        cameras.append(Camera(name, np.array(position), rotation, intrinsic))
    return cameras
