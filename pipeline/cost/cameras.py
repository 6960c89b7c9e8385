"""Cameras and frames that costs are counted for."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.data import CAMERAS
from pipeline.data.geometry import invert, transform
from pipeline.data.index import FrameIndex
from pipeline.data.world.rig import LIDAR_POSITION, LIDAR_ROTATION, rig
from pipeline.errors import FD3DError
from pipeline.profile import Profile


@dataclass(frozen=True)
class Cameras:
    """Calibrated cameras.

    Attributes:
        source: origin of the calibration, in words.
        image_hw: rows and columns of the original images, the largest of all cameras.
        intrinsics: (V, 3, 3) pixels of the original images.
        lidar2cam: (V, 4, 4).
        names: V names.
    """

    source: str
    image_hw: tuple[int, int]
    intrinsics: np.ndarray
    lidar2cam: np.ndarray
    names: tuple[str, ...] = CAMERAS


def rig_cameras(height: int = 900, width: int = 1600) -> Cameras:
    """Cameras of the embedded world's rig, mounted as on the nuScenes car, for images of the given size."""
    lidar = transform(list(LIDAR_POSITION), list(LIDAR_ROTATION.elements))
    cameras, lidar2cam = rig(height, width), []
    for camera in cameras:
        mount = np.eye(4)
        mount[:3, :3], mount[:3, 3] = camera.rotation, camera.position
        lidar2cam.append(invert(mount) @ lidar)
    intrinsics = np.stack([camera.intrinsic for camera in cameras])
    return Cameras(
        "the nuScenes-like rig of pipeline/data/world/rig.py", (height, width), intrinsics, np.stack(lidar2cam)
    )


def frame_cameras(index: str | Path, token: str | None = None) -> Cameras:
    """Cameras of a frame of an index; default: the index's first frame.

    Raises:
        FD3DError: the index cannot be read, or has no such frame.
    """
    frames = FrameIndex.load(index)
    frame = frames[0 if token is None else frames.row(token)]
    height, width = (int(n) for n in frame.image_sizes.max(0))  # smaller images are padded
    return Cameras(
        f"frame {frame.token} of {index}", (height, width), frame.intrinsics, frame.lidar2cam, frames.cameras
    )


def training_scenes(profile: Profile, index: Path | None = None) -> dict[str, list[int]]:
    """Rows of an index, by default the profile's, by scene of the training split, in the store's order.

    Raises:
        FD3DError: there is no index, or it lacks the split.
    """
    path = index or profile.data.index
    if not path.is_file():
        raise FD3DError(
            f"{path} does not exist, so the number of frames is unknown; give --frames (28130 for nuScenes' train), or "
            "run 'fd3d index'"
        )
    frames = FrameIndex.load(path)
    rows = set(frames.select(profile.data.train))
    return {
        name: found for name in sorted(frames.scenes) if (found := [row for row in frames.scenes[name] if row in rows])
    }
