"""Live frames refused by name: images, calibration and poses that cannot be."""

import warnings
from collections.abc import Iterable, Sequence

import numpy as np

from pipeline.data.checks import (
    LEAST_FOCAL,
    MAX_POSE_TILT,
    MAX_SPEED,
    MAX_TURN_RATE,
    check_cameras,
    check_mounts,
)
from pipeline.data.geometry import yaw_of
from pipeline.data.rig import other_turn, turn_of
from pipeline.errors import FD3DError, counted

_MAX_GAP = 60.0  # seconds between two frames, beyond which a history is of no use and times have another unit
_STATE_TOLERANCE = 1.0, 5.0  # metres and degrees between a pose and the state that is measured with the pose


def checked_images(
    images: Iterable[np.ndarray], views: int | None, sizes: Sequence[tuple[int, int]] | None
) -> list[np.ndarray]:
    """Images of a frame, one of every camera.

    Args:
        images: arrays (H, W, 3) uint8.
        views: number of cameras; None for any.
        sizes: rows and columns of each camera's image; None for any.

    Raises:
        FD3DError: naming the first image that is missing or does not fit.
    """
    if isinstance(images, str) or not hasattr(images, "__iter__"):
        raise FD3DError(f"images are of type {type(images).__name__}; give V arrays (H, W, 3) uint8, RGB")
    given = list(images)
    if not given or views not in (None, len(given)):
        raise FD3DError(f"a frame has {counted(len(given), 'image')}, the detector takes {views}; give it its own rig")
    for number, image in enumerate(given):
        if image is None:
            raise FD3DError(f"image {number} is missing; give a frame only when every camera has an image")
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,) or not image.size:
            kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise FD3DError(f"image {number} is {kind}; give (H, W, 3) uint8, RGB")
        if sizes is not None and image.shape[:2] != sizes[number]:
            rows, columns = sizes[number]
            raise FD3DError(
                f"image {number} is {image.shape[0]}x{image.shape[1]}, the detector was made for {rows}x{columns}; give the images in the "
                "order of its cameras, or train and export it for this rig"
            )
    return given


def check_sizes(sizes: Sequence[tuple[int, int]], last: Sequence[tuple[int, int]] | None) -> None:
    """Refuse images (rows, columns) of other sizes than the last frame's.

    Raises:
        FD3DError: naming the first.
    """
    for number, (own, before) in enumerate(zip(sizes, last or sizes, strict=True)):
        if own != before:
            raise FD3DError(
                f"image {number} is {own[0]}x{own[1]}, in the last frame {before[0]}x{before[1]}; call reset() before another rig"
            )


def check_calibration(
    intrinsics: np.ndarray, lidar2cam: np.ndarray, lidar2ego: np.ndarray, sizes: Sequence[tuple[int, int]]
) -> None:
    """Refuse a calibration that cannot be, and warn of one that looks as if it were not of these images.

    Args:
        intrinsics: (V, 3, 3) pixels.
        lidar2cam: (V, 4, 4).
        lidar2ego: (4, 4).
        sizes: rows and columns of each camera's image.

    Raises:
        FD3DError: naming the matrix or the camera.
    """
    views = len(sizes)
    check_finite("calibration.intrinsics", intrinsics, (views, 3, 3))
    for number, matrix in enumerate(np.asarray(intrinsics)):
        if np.diag(matrix)[:2].min() < LEAST_FOCAL or matrix[1, 0] != 0 or np.abs(matrix[2] - (0, 0, 1)).max() > 1e-6:
            raise FD3DError(
                f"calibration.intrinsics[{number}] is no camera matrix; give ((fx, 0, cx), (0, fy, cy), (0, 0, 1)) in pixels"
            )
    check_rigid("calibration.lidar2cam", lidar2cam, (views, 4, 4))
    check_rigid("calibration.lidar2ego", lidar2ego, (4, 4))
    seen, mount = np.asarray(lidar2cam, np.float64), np.asarray(lidar2ego, np.float64)
    names = [f"camera {number}" for number in range(views)]
    mounts = {name: (mount @ np.linalg.inv(matrix))[None] for name, matrix in zip(names, seen, strict=True)}
    check_mounts(mounts, "the reference frame", mount[None], _warn, "the calibration")
    check_cameras(seen[None], np.asarray(intrinsics)[None], np.asarray(sizes)[None], names, "the calibration", _warn)


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=5)


def check_turn(lidar2ego: np.ndarray, made_for: float | None) -> None:
    """Refuse a frame of reference that is turned otherwise than the detector's: boxes would be of a world turned alike.

    Args:
        lidar2ego: (4, 4) reference frame to ego frame.
        made_for: degrees as of :func:`~pipeline.data.rig.turn_of`; None for any.

    Raises:
        FD3DError: naming both turns.
    """
    turn = turn_of(np.asarray(lidar2ego, np.float64)[None])
    if made_for is not None and other_turn(made_for, turn):
        raise FD3DError(
            f"calibration.lidar2ego is of a frame turned by {round(turn)} degrees against nuScenes' LIDAR_TOP, whose y axis looks ahead, the "
            f"detector was trained in one turned by {round(made_for)}; give lidar2cam and lidar2ego of a frame with the training's axes, or train for these"
        )


def check_pose(ego2global: np.ndarray, timestamp: int) -> None:
    """Refuse a pose (4, 4) that is none or tilts the car, and a time that is no number of microseconds.

    Raises:
        FD3DError: naming which.
    """
    check_rigid("pose.ego2global", ego2global, (4, 4))
    tilt = float(np.degrees(np.arccos(np.clip(np.asarray(ego2global)[2, 2], -1, 1))))
    if tilt > MAX_POSE_TILT:
        raise FD3DError(
            f"pose.ego2global tilts the car by {tilt:.0f} degrees; give a frame whose z axis is up, quaternions are (w, x, y, z)"
        )
    if not isinstance(timestamp, int | np.integer) or isinstance(timestamp, bool):
        raise FD3DError(f"pose.timestamp is {timestamp!r}; give microseconds as an integer")


def check_state(state: np.ndarray, ego2global: np.ndarray, turn: float) -> None:
    """Refuse an ego state (18,) that is not of the pose (4, 4) beside it: the history moves by the state.

    Args:
        turn: radians by which the LiDAR is turned against nuScenes', part of the state's yaw.

    Raises:
        FD3DError: naming the difference.
    """
    check_finite("pose.state", state, (18,))
    values, pose = np.asarray(state, np.float64), np.asarray(ego2global, np.float64)
    away = float(np.linalg.norm(values[:2] - pose[:2, 3]))
    yaw = np.degrees(yaw_of(pose) + turn)
    turned = max(_angle(np.degrees(values[-2]) - yaw), _angle(values[-1] - yaw))
    if away > _STATE_TOLERANCE[0] or turned > _STATE_TOLERANCE[1]:
        raise FD3DError(
            f"pose.state is {away:.1f} m and {turned:.0f} degrees from pose.ego2global; give position and yaw of that pose (last two "
            "numbers: radians, degrees), or leave the state out"
        )


def check_step(last: np.ndarray, last_time: int, pose: np.ndarray, time: int) -> None:
    """Refuse a pose (4, 4) that no car reaches from the last one; times in microseconds.

    Raises:
        FD3DError: naming the way, the turn or the times.
    """
    seconds = (int(time) - int(last_time)) / 1e6
    if seconds <= 0:
        raise FD3DError(f"frame {time} is not after the last one, {last_time}; call reset() before another drive")
    if seconds > _MAX_GAP:
        raise FD3DError(
            f"frame {time} is {seconds:.0f} s after the last one, {last_time}; give microseconds, or call reset() before another drive"
        )
    here, there = np.asarray(pose, np.float64), np.asarray(last, np.float64)
    way = float(np.linalg.norm(here[:3, 3] - there[:3, 3]))
    if way > MAX_SPEED * seconds + 1:
        raise FD3DError(
            f"the car moved {way:.1f} m in the {seconds:g} s since the last frame; give metres and microseconds, or call reset() "
            "before another drive"
        )
    turned = _angle(np.degrees(yaw_of(here) - yaw_of(there)))
    if turned > MAX_TURN_RATE * seconds + _STATE_TOLERANCE[1]:
        raise FD3DError(
            f"the car turned by {turned:.0f} degrees in the {seconds:g} s since the last frame; give ego2global in one frame that does "
            "not move, or call reset() before another drive"
        )


def _angle(degrees: float) -> float:
    return abs((float(degrees) + 180) % 360 - 180)


def check_finite(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse an array of another shape, or with numbers that are not finite."""
    try:
        fits = np.shape(array) == shape and bool(np.isfinite(np.asarray(array, np.float64)).all())
    except (TypeError, ValueError):  # ragged, or no numbers
        raise FD3DError(f"{name} is no array of numbers; give {shape}") from None
    if not fits:
        raise FD3DError(f"{name} has shape {np.shape(array)} or numbers that are not finite; give {shape}")


def check_rigid(name: str, matrices: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse matrices (..., 4, 4) that are no rotation and translation: transposed, scaled or mirrored ones."""
    check_finite(name, matrices, shape)
    for number, matrix in enumerate(np.asarray(matrices, np.float64).reshape(-1, 4, 4)):
        turn = matrix[:3, :3]
        fits = np.allclose(turn @ turn.T, np.eye(3), atol=1e-2) and np.linalg.det(turn) > 0
        if not fits or not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6):
            which = name if shape == (4, 4) else f"{name}[{number}]"
            raise FD3DError(f"{which} is no rigid motion; give a rotation and a translation above the row (0, 0, 0, 1)")
