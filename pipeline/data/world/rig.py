"""Sensor rigs: nuScenes' six cameras and LiDAR (Caesar et al., 2020), a ring of seven cameras as Argoverse 2's (Wilson et al., 2021),
and five cameras of two sizes without a LiDAR."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from pyquaternion import Quaternion

from pipeline.data import CATEGORIES
from pipeline.data.geometry import cos_sin


@dataclass(frozen=True)
class Lidar:
    """A LiDAR.

    Attributes:
        name: channel.
        position: (3,) in the ego frame, metres.
        right_turns: quarter turns to the right of its x axis, against the ego frame's, which looks ahead.
    """

    name: str
    position: tuple[float, float, float]
    right_turns: int

    @property
    def rotation(self) -> Quaternion:
        """LiDAR axes to ego axes."""
        return Quaternion(axis=(0, 0, 1), degrees=-90 * self.right_turns)


Mount = tuple[tuple[float, float, float], float, float]
"""Position in the ego frame (m), yaw of the optical axis (degrees), focal length in pixels of images of 1600 columns."""


@dataclass(frozen=True)
class SensorRig:
    """Sensors of a car, and how its data set names objects.

    Attributes:
        mounts: cameras by name, in the order of the tables.
        categories: category by detection class.
        lidar: the LiDAR; None for a car without.
        portrait: cameras whose images have rows and columns exchanged.
        small: cameras whose images have three quarters of the rows and half of the columns.
        can_bus: whether there are CAN bus messages.
    """

    mounts: Mapping[str, Mount]
    categories: Mapping[str, str]
    lidar: Lidar | None = None
    portrait: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    can_bus: bool = False

    def size(self, camera: str, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a camera's images; arguments are those of the largest landscape images."""
        if camera in self.portrait:
            return width, height
        return (height * 3 // 4, width // 2) if camera in self.small else (height, width)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the cameras, and last of the LiDAR."""
        return (*self.mounts, *([self.lidar.name] if self.lidar else []))


_MOUNTS: dict[str, Mount] = {
    "CAM_FRONT": ((1.70, 0.02, 1.51), 0.0, 1266.0),
    "CAM_FRONT_RIGHT": ((1.55, -0.49, 1.50), -55.0, 1260.0),
    "CAM_FRONT_LEFT": ((1.52, 0.49, 1.51), 55.0, 1272.0),
    "CAM_BACK": ((0.03, 0.00, 1.58), 180.0, 809.0),
    "CAM_BACK_LEFT": ((1.04, 0.48, 1.59), 110.0, 1257.0),
    "CAM_BACK_RIGHT": ((1.02, -0.48, 1.58), -110.0, 1259.0),
}
LIDAR_POSITION = (0.94, 0.0, 1.84)
_LIDAR = Lidar("LIDAR_TOP", LIDAR_POSITION, 1)
LIDAR_ROTATION = _LIDAR.rotation

_RING: dict[str, Mount] = {
    "ring_front_center": ((1.64, 0.00, 1.43), 0.0, 1316.0),
    "ring_front_left": ((1.57, 0.18, 1.43), 45.0, 1316.0),
    "ring_front_right": ((1.57, -0.18, 1.43), -45.0, 1316.0),
    "ring_side_left": ((1.31, 0.27, 1.43), 99.0, 1316.0),
    "ring_side_right": ((1.31, -0.27, 1.43), -99.0, 1316.0),
    "ring_rear_left": ((1.11, 0.11, 1.43), 153.0, 1316.0),
    "ring_rear_right": ((1.11, -0.11, 1.43), -153.0, 1316.0),
}
_AV2_CATEGORIES = {
    "car": "REGULAR_VEHICLE",
    "truck": "TRUCK",
    "construction_vehicle": "LARGE_VEHICLE",
    "bus": "BUS",
    "trailer": "VEHICULAR_TRAILER",
    "barrier": "CONSTRUCTION_BARREL",
    "motorcycle": "MOTORCYCLE",
    "bicycle": "BICYCLE",
    "pedestrian": "PEDESTRIAN",
    "traffic_cone": "CONSTRUCTION_CONE",
}
_FIVE: dict[str, Mount] = {
    "front_wide": ((1.80, 0.00, 1.40), 0.0, 900.0),
    "left": ((1.20, 0.60, 1.20), 70.0, 450.0),
    "right": ((1.20, -0.60, 1.20), -70.0, 450.0),
    "rear_left": ((0.20, 0.60, 1.20), 145.0, 450.0),
    "rear_right": ((0.20, -0.60, 1.20), -145.0, 450.0),
}
RIGS = {
    "nuscenes": SensorRig(_MOUNTS, CATEGORIES, _LIDAR, can_bus=True),
    "argoverse2": SensorRig(
        _RING, _AV2_CATEGORIES, Lidar("up_lidar", (1.35, 0.0, 1.64), 0), portrait=("ring_front_center",)
    ),
    "five": SensorRig(_FIVE, {name: name.capitalize() for name in CATEGORIES}, small=tuple(_FIVE)[1:]),
}
"""Rigs by name, as the setting ``world.rig`` gives it."""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: (3,) in the ego frame, metres.
        rotation: (3, 3) camera axes (right, down, forward) to ego axes.
        intrinsic: (3, 3) pixels.
        size: rows and columns of the images.
    """

    name: str
    position: np.ndarray
    rotation: np.ndarray
    intrinsic: np.ndarray
    size: tuple[int, int]


def rig(height: int, width: int, name: str = "nuscenes") -> list[Camera]:
    """Cameras of the rig ``name`` in the order of its tables; the largest landscape images have ``height`` and ``width``."""
    cameras, sensors = [], RIGS[name]
    for camera, (position, yaw, focal) in sensors.mounts.items():
        rows, columns = sensors.size(camera, height, width)
        c, s = cos_sin(math.radians(yaw))
        rotation = np.array([[s, 0.0, c], [-c, 0.0, s], [0.0, -1.0, 0.0]])
        f = focal * width / 1600
        # the optical centre lies a little below the middle row, as on nuScenes (491 of 900 rows)
        intrinsic = np.array([[f, 0.0, columns * 0.5], [0.0, f, rows * 0.545], [0.0, 0.0, 1.0]])
        cameras.append(Camera(camera, np.array(position), rotation, intrinsic, (rows, columns)))
    return cameras
