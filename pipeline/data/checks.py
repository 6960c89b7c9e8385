"""Checks of a data set's tables: numbers, times, image sizes and calibrations that cannot be."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline.data.geometry import lidar_turn, product
from pipeline.errors import FD3DError, counted

_MAX_SLANT = 10.0  # degrees, up to which a LiDAR's x axis looks along the car's
_MAX_TILT = 20.0  # degrees between the z axes of the LiDAR and of the car
_MAX_MOUNT = 50.0  # metres from a sensor to the origin of the car
_MAX_PITCH = 60.0  # degrees of a camera above or below the horizon, from which its axes are doubted
_MAX_ROLL = 45.0  # degrees about a camera's axis, from which its axes are doubted
_AT_BORDER = 0.45  # the same for a point at the border or outside
OFF_MIDDLE = 0.2, 0.35
"""Shares of columns and rows from an image's middle, beyond which a principal point is doubted."""
MAX_POSE_TILT = 45.0
"""Degrees between the z axes of the car and of the map, beyond which rotations have another order."""
LEAST_FOCAL = 10.0
"""Pixels, below which a focal length is given in shares of the image."""
MAX_SPEED = 150.0
"""Metres per second, beyond which poses or times have another unit."""
MAX_TURN_RATE = 180.0
"""Degrees per second about the vertical, beyond which two poses are not of one drive."""
_LEAST_STEP = 1.0  # metres between two poses, from which their direction counts
_LEAST_STEPS = 10  # such steps of a data set, from which the car's heading is judged
_MAX_SIDEWAYS = 30.0  # degrees between the car's x axis and its way (the median), beyond which poses are doubted
_MAX_BACKWARDS = 0.5  # share of such steps
_STEPS = 1_000, 60_000_000  # microseconds between key frames, beyond which times have another unit
_LATEST = 10**17  # microseconds since 1970, which no car reaches, and nanoseconds have passed
MAX_GAP = 1.5
"""Seconds between key frames, above which the devkit gives a box no velocity."""


def check_times(scene: str, tokens: Sequence[str], columns: Mapping[str, np.ndarray], where: str) -> None:
    """Refuse times of a scene that stand still or go back, by which speeds would be divided, and times of another unit.

    Args:
        tokens: n sample tokens, in order.
        columns: times (n,), microseconds, by the table that they are from.
        where: the tables' folder in messages.

    Raises:
        FD3DError: naming the first two such samples.
    """
    for table, times in columns.items():
        steps = np.diff(times)
        if len(wrong := np.flatnonzero(steps <= 0)):
            first = wrong[0]
            raise FD3DError(
                f"{where}/{table}.json has timestamp {times[first]} for sample {tokens[first]} of {scene} and {times[first + 1]} for the "
                f"next, {tokens[first + 1]}; times of a scene's frames are microseconds and must increase ({len(wrong)} do not)"
            )
        if len(steps) and not (_STEPS[0] <= np.median(steps) <= _STEPS[1] and times.max() < _LATEST):
            raise FD3DError(
                f"{where}/{table}.json has timestamps {int(np.median(steps))} apart for the samples of {scene}, first {tokens[0]}; give "
                "timestamps in microseconds"
            )


def tell_late(
    cameras: Sequence[str], times: np.ndarray, frames: np.ndarray, tokens: Sequence[str], tell: Callable[[str], object]
) -> None:
    """Tell of cameras whose images are farther in time from their frames than the next frame's would be.

    Args:
        cameras: names.
        times: (n, V) microseconds of images, 0 where unknown.
        frames: (n,) microseconds of a scene's frames.
        tokens: n sample tokens.
        tell: called with a line.
    """
    if len(frames) < 2:
        return
    away = np.where(times > 0, np.abs(times - frames[:, None]), 0)
    for camera, late in zip(cameras, away.T, strict=True):
        if count := int((late > np.median(np.diff(frames)) / 2).sum()):
            tell(
                f"{counted(count, 'image')} of {camera} taken more than half a step between frames apart from their frame, up to "
                f"{late.max() / 1e6:.1f} s, of sample {tokens[int(late.argmax())]}"
            )


def tell_still(boxes: np.ndarray, times: np.ndarray, tell: Callable[[str], object]) -> None:
    """Tell of boxes without velocities, since key frames are too far apart.

    Args:
        boxes: (n, 9), velocities last.
        times: microseconds of all frames.
        tell: called with a line.
    """
    step = np.median(np.abs(np.diff(times))) / 1e6 if len(times) > 1 else 0
    if len(boxes) and np.isnan(boxes[:, 7:]).all() and step > MAX_GAP:
        tell(
            f"no box has a velocity: frames are {step:g} s apart (the median), and the devkit takes velocities over {MAX_GAP:g} s at most; are "
            "timestamps in microseconds?"
        )


def check_poses(scene: str, tokens: Sequence[str], times: np.ndarray, poses: np.ndarray, where: str) -> None:
    """Refuse poses of a car that lies on its side, and of one that moves or turns faster than cars do.

    Args:
        tokens: n sample tokens, in order.
        times: (n,) microseconds.
        poses: (n, 4, 4) ego frame to global frame.
        where: the tables' folder in messages.

    Raises:
        FD3DError: naming the first such sample.
    """
    tilt = np.degrees(np.arccos(np.clip(poses[:, 2, 2], -1, 1)))
    if len(tilted := np.flatnonzero(tilt > MAX_POSE_TILT)):
        raise FD3DError(
            f"{where}/ego_pose.json tilts the car by {tilt[tilted[0]]:.0f} degrees at sample {tokens[tilted[0]]} of {scene}; rotations are "
            "(w, x, y, z)"
        )
    way, seconds = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1), np.diff(times) / 1e6
    if len(fast := np.flatnonzero(way > MAX_SPEED * seconds + 1)):
        first = fast[0]
        raise FD3DError(
            f"{where}/ego_pose.json moves the car by {way[first]:.0f} m in {seconds[first]:g} s from sample {tokens[first]} of {scene} to "
            f"{tokens[first + 1]}; give translations in metres"
        )
    yaws = np.degrees(np.arctan2(poses[:, 1, 0], poses[:, 0, 0]))
    turned = np.abs((np.diff(yaws) + 180) % 360 - 180)
    if len(spun := np.flatnonzero(turned > MAX_TURN_RATE * seconds + 5)):
        first = spun[0]
        raise FD3DError(
            f"{where}/ego_pose.json turns the car by {turned[first]:.0f} degrees in {seconds[first]:g} s from sample {tokens[first]} of {scene} "
            f"to {tokens[first + 1]}; rotations are (w, x, y, z), from the car's frame to the global one"
        )


def tell_sideways(poses: np.ndarray, scenes: np.ndarray, where: str, tell: Callable[[str], object]) -> None:
    """Tell of a car that moves sideways or, most of the time, backwards: of poses that lead from the global frame to the car's, of
    quaternions in another order, or of other axes.

    Args:
        poses: (n, 4, 4) ego frame to global frame, scene after scene.
        scenes: (n,) scene of each.
        where: the tables' folder in messages.
        tell: called with a line.
    """
    moved = product(poses[:-1, :3, :3].transpose(0, 2, 1), np.diff(poses[:, :3, 3], axis=0)[..., None])[..., 0]
    moved = moved[(scenes[1:] == scenes[:-1]) & (np.linalg.norm(moved[:, :2], axis=1) > _LEAST_STEP)]
    if len(moved) < _LEAST_STEPS:
        return
    angle = np.median(np.degrees(np.arctan2(np.abs(moved[:, 1]), np.abs(moved[:, 0]))))
    if angle > _MAX_SIDEWAYS:
        tell(
            f"the car moves {angle:.0f} degrees off its x axis by {where}/ego_pose.json (the median of {len(moved)} steps); poses lead from the "
            "car's frame, whose x axis looks ahead, to the global one"
        )
    elif (share := float((moved[:, 0] < 0).mean())) > _MAX_BACKWARDS:
        tell(
            f"the car drives backwards in {share:.0%} of its way by {where}/ego_pose.json ({len(moved)} steps); poses lead from the car's frame, "
            "whose x axis looks ahead, to the global one, and rotations are (w, x, y, z)"
        )


def check_sizes(sizes: np.ndarray, tokens: Sequence[str], where: str) -> None:
    """Refuse image sizes that cannot be, and frames that cannot share a batch.

    Args:
        sizes: (n, V, 2) rows and columns.
        tokens: n sample tokens.
        where: the tables' folder in messages.

    Raises:
        FD3DError: naming the first such sample.
    """
    if len(bad := np.flatnonzero((sizes <= 0).any((1, 2)))):
        raise FD3DError(
            f"{where}/sample_data.json has width or height 0 or below for sample {tokens[bad[0]]}; give the images' size in pixels"
        )
    largest = sizes.max(1)
    if len(other := np.flatnonzero((largest != largest[0]).any(1))):
        (rows, columns), (rows_there, columns_there) = largest[0], largest[other[0]]
        raise FD3DError(
            f"the images of sample {tokens[0]} have up to {rows}x{columns} pixels (rows x columns), those of sample {tokens[other[0]]} "
            f"{rows_there}x{columns_there} ({len(other)} of {len(sizes)} samples differ); cameras may differ in size, frames may not: resize "
            "the images, or index such cars apart"
        )


def check_intrinsic(matrix: np.ndarray, camera: str) -> None:
    """Refuse a camera without a calibration, and a matrix (3, 3) that is no pinhole camera's in pixels.

    Raises:
        FD3DError: naming the camera.
    """
    focal = matrix[[0, 1], [0, 1]]
    if not np.isfinite(matrix).all() or not matrix.any():
        raise FD3DError(f"{camera} has no camera_intrinsic in calibrated_sensor.json; give its 3 x 3 matrix in pixels")
    told = f"{camera} has the camera_intrinsic {matrix.tolist()} in calibrated_sensor.json"
    if (focal <= 0).any():
        raise FD3DError(f"{told}, whose focal lengths are not above 0; give pixels")
    if matrix[1, 0] != 0 or matrix[2].tolist() != [0, 0, 1]:
        raise FD3DError(f"{told}, not [[fx, s, cx], [0, fy, cy], [0, 0, 1]]; is it transposed?")
    if (focal < LEAST_FOCAL).any():
        raise FD3DError(f"{told}; give pixels, not shares of the image")


def check_mounts(
    cameras: Mapping[str, np.ndarray],
    lidar: str,
    mounts: np.ndarray,
    tell: Callable[[str], object],
    where: str = "calibrated_sensor.json",
) -> None:
    """Refuse tilted LiDARs, sensors far from the car and rigs whose cameras lie; tell of single cameras that lie or look to the sky.

    Args:
        cameras: mounts (n, 4, 4) of each camera.
        lidar: name of the sensor that is the frame of reference.
        mounts: (m, 4, 4) of that sensor.
        tell: called with a line.
        where: what the mounts are from, in messages.

    Raises:
        FD3DError: the sensor is tilted, a sensor is not on the car, or half of the cameras lie.
    """
    for name, found in (*cameras.items(), (lidar, mounts)):
        if (away := np.linalg.norm(found[:, :3, 3], axis=1).max()) > _MAX_MOUNT:
            raise FD3DError(f"{name} is {away:.0f} m from the car's origin in {where}; give translations in metres")
    for mount in mounts:
        tilt = math.degrees(math.acos(max(-1.0, min(1.0, mount[2, 2]))))
        if tilt > _MAX_TILT:
            raise FD3DError(
                f"{lidar}'s z axis in {where} is {tilt:.0f} degrees off the car's; boxes need an upright LiDAR, turn its data"
            )
    told = {camera: doubt for camera, found in cameras.items() if (doubt := _doubt(found))}
    lying = [camera for camera, doubt in told.items() if not doubt.startswith("is upside down")]
    if lying and len(cameras) > 1 and 2 * len(told) >= len(cameras):
        raise FD3DError(
            f"{len(told)} of {len(cameras)} cameras lie on their side, are upside down or look up or down by {where}: {lying[0]} "
            f"{told[lying[0]]}; rotations are (w, x, y, z), from the camera, z axis ahead and y axis down, to the car"
        )
    for camera, doubt in told.items():
        tell(f"{camera} {doubt} by its rotation in {where}; a camera's z axis looks ahead and its y axis down")


def tell_turns(lidar: str, mounts: np.ndarray, tell: Callable[[str], object]) -> None:
    """Tell of a frame of reference, mounts (m, 4, 4), whose axes are not nuScenes'; warn of other axes than nearly x or y ahead, or of several."""
    turns = np.degrees([lidar_turn(mount) for mount in mounts])
    if (np.abs(turns - 90) <= _MAX_SLANT).all():  # as of the ego frame and of most LiDARs but nuScenes'
        tell(f"boxes are in the frame of {lidar}, whose x axis looks ahead")
    elif (turns != 0).any():
        doubt = "warning: " if (np.abs(turns) > _MAX_SLANT).any() else ""
        tell(
            f"{doubt}{lidar} is turned by {', '.join(f'{turn:.0f}' for turn in np.unique(turns[turns != 0].round()))} degrees against nuScenes', "
            "whose y axis looks ahead; boxes and history follow its own axes"
        )


def _doubt(mounts: np.ndarray) -> str:
    """What is odd about a camera's mounts (n, 4, 4); empty where nothing is."""
    pitch = np.degrees(np.arcsin(np.clip(mounts[:, 2, 2], -1, 1)))
    steep = pitch[np.abs(pitch).argmax()]
    if abs(steep) > _MAX_PITCH:
        return f"looks {abs(steep):.0f} degrees {'above' if steep > 0 else 'below'} the horizon"
    roll = np.degrees(np.arctan2(mounts[:, 2, 0], -mounts[:, 2, 1]))
    rolled = roll[np.abs(roll).argmax()]
    if abs(rolled) > 180 - _MAX_ROLL:
        return "is upside down"
    return f"is rolled by {rolled:.0f} degrees" if abs(rolled) > _MAX_ROLL else ""


def check_cameras(
    lidar2cam: np.ndarray,
    intrinsics: np.ndarray,
    sizes: np.ndarray,
    cameras: Sequence[str],
    where: str,
    tell: Callable[[str], object],
) -> None:
    """Refuse cameras far from the LiDAR and principal points that cannot be of these images, and tell of points that are off its middle.

    Args:
        lidar2cam: (n, V, 4, 4), with the motion between the exposures.
        intrinsics: (n, V, 3, 3) pixels.
        sizes: (n, V, 2) rows and columns.
        cameras: names.
        where: what the poses are from, in messages.
        tell: called with a line.

    Raises:
        FD3DError: naming the camera.
    """
    away = np.median(np.linalg.norm(lidar2cam[..., :3, 3], axis=-1), axis=0)  # a rotation keeps the length
    points = np.median(intrinsics[..., :2, 2] / sizes[..., ::-1], axis=0)
    off = np.abs(points - 0.5).max(1)
    of_half = 2 * (off > _AT_BORDER).sum() >= len(cameras)  # one camera's images may be cut, not most
    for camera, distance, (x, y), (rows, columns) in zip(cameras, away, points, sizes[0], strict=True):
        if distance > _MAX_MOUNT:
            raise FD3DError(
                f"{camera} is {distance:.0f} m from the LiDAR (the median) by {where}; give the car's pose at each sensor's own time"
            )
        told = f"the principal point of {camera} is at {x:.2f} of the columns and {y:.2f} of the rows of its {rows}x{columns} images"
        if max(abs(x - 0.5), abs(y - 0.5)) > (_AT_BORDER if of_half else 1):
            raise FD3DError(f"{told}; give intrinsics in pixels of these images")
        if abs(x - 0.5) > OFF_MIDDLE[0] or abs(y - 0.5) > OFF_MIDDLE[1]:
            tell(f"{told}; is the calibration of another resolution?")
