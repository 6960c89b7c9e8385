"""Doubts about a whole data set, told once it is read: what tables may say, and nearly never mean."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.data import CLASSES
from pipeline.data.checks import OFF_MIDDLE, check_cameras, tell_sideways, tell_still
from pipeline.errors import counted, listed

Tell = Callable[[str], object]
_MOTIONLESS = [
    CLASSES.index(name) for name in ("barrier", "traffic_cone")
]  # whose velocity and attribute nobody judges
_FAST = 2.0  # metres per second, from which a box moves along its heading
_LEAST_FAST = 10  # such boxes, from which they are judged
_MAX_CRAB = 60.0  # degrees between motion and heading, either way ahead (the median)
_SAME_SHARE = 0.1  # of frames, from which two cameras' images of one content are told
_LEAST_FRAMES = 2  # of one content, from which it is no chance
_POSE_GAP = 100_000  # microseconds between data and their ego pose
_LATE_SHARE = 0.1  # of a sensor's data, from which such poses are told
_SCALED = (
    (0.9, 1.0),
    (1.12, 1.05),
)  # shares of the middle in columns and rows that all principal points lie below or above at another resolution
_SPREAD = 1.2  # largest over smallest such share; nuScenes' own have 1.12
_MAX_ASPECT = 1.5  # of focal lengths, from which pixels are doubted


def tell_doubts(arrays: Mapping[str, np.ndarray], tables: Any, tell: Tell) -> None:
    """Check the columns of all frames against each other, and tell of what is doubtful.

    Args:
        arrays: columns of the index.
        tables: the :class:`~pipeline.data.tables.FrameTables` that they were made from.
        tell: called with a line.

    Raises:
        FD3DError: as of :func:`~pipeline.data.checks.check_cameras`.
    """
    where, cameras, found = tables.folder.name, tables.cameras, tables.annotations
    calibration = (arrays["lidar2cam"], arrays["intrinsics"], arrays["image_sizes"])
    check_cameras(*calibration, cameras, f"{where}/ego_pose.json", tell)
    tell_intrinsics(arrays["intrinsics"], arrays["image_sizes"], cameras, tell)
    tell_still(arrays["boxes"], arrays["timestamp"], tell)
    tell_unjudged(found, where, tell)
    if tables.foreign:
        tell(
            f"{counted(len(tables.foreign), 'annotation')} of {where}/sample_annotation.json with a prev or next of another object (instance_token), "
            f"first {tables.foreign[0]}; such links are not followed, and give no velocity"
        )
    tell_turned(arrays["boxes"], where, tell)
    tell_sideways(arrays["ego2global"], arrays["scene_token"], where, tell)
    tell_same(arrays["image_bytes"], arrays["image_crc32"], cameras, tell)
    tell_pose_times(tables.pose_gaps[tables.complete], tables.channels, where, tell)


def tell_unjudged(found: Mapping[str, np.ndarray], where: str, tell: Tell) -> None:
    """Tell of annotations none of which is linked, or none of which has an attribute: nuScenes' mAVE or mAAE is then 1.

    Args:
        found: columns of :meth:`~pipeline.data.annotations.Annotations.columns`.
        where: the tables' folder in messages.
    """
    moving = ~np.isin(found["label"], _MOTIONLESS)
    if not moving.any():
        return
    count = counted(int(moving.sum()), "annotation")
    if not (found["prev"][moving] != b"").any() and not (found["next"][moving] != b"").any():
        tell(
            f"none of the {count} of {where}/sample_annotation.json has a prev or next, so no box has a velocity: mAVE will be 1, and nothing "
            "learns to tell motion; link the annotations of an object from frame to frame"
        )
    if not found["attributed"][moving].any():
        tell(
            f"none of the {count} of {where}/sample_annotation.json has an attribute of nuScenes', such as vehicle.moving: mAAE will be 1, "
            "and NDS lower by up to 0.1"
        )


def tell_turned(boxes: np.ndarray, where: str, tell: Tell) -> None:
    """Tell of boxes (n, 9), yaw and velocity last, that move across their heading."""
    fast = boxes[np.linalg.norm(boxes[:, 7:], axis=1) > _FAST].astype(np.float64)  # a NaN is not
    if len(fast) < _LEAST_FAST:
        return
    off = np.abs(np.sin(np.arctan2(fast[:, 8], fast[:, 7]) - fast[:, 6]))
    angle = np.degrees(np.arcsin(np.median(np.minimum(off, 1))))
    if angle > _MAX_CRAB:
        tell(
            f"boxes of {where}/sample_annotation.json move {angle:.0f} degrees off their heading (the median of {len(fast)} faster than "
            f"{_FAST:g} m/s); are boxes turned by 90 degrees? A box's x axis looks ahead, and size is (width, length, height)"
        )


def tell_same(sizes: np.ndarray, checksums: np.ndarray, cameras: Sequence[str], tell: Tell) -> None:
    """Tell of cameras with the same images as another, and of cameras whose images are all the same.

    Args:
        sizes, checksums: (n, V) of image files, sizes below 0 where they are not known.
        cameras: names.
    """
    pairs = []
    for first, second in combinations(range(len(cameras)), 2):
        same = (checksums[:, first] == checksums[:, second]) & (sizes[:, first] == sizes[:, second])
        count = int((same & (sizes[:, first] > 0)).sum())
        if count >= max(_LEAST_FRAMES, _SAME_SHARE * len(sizes)):
            pairs.append(f"{cameras[first]} and {cameras[second]} ({count} of {counted(len(sizes), 'frame')})")
    if pairs:
        tell(
            f"cameras have images of the same content: {listed(pairs)}; does sample_data.json name the files of another camera?"
        )
    known = (sizes > 0).all(0) & (len(sizes) >= _LEAST_FRAMES)
    still = known & (sizes == sizes[:1]).all(0) & (checksums == checksums[:1]).all(0)
    if still.any():
        names = ", ".join(name for name, one in zip(cameras, still, strict=True) if one)
        tell(
            f"all {counted(len(sizes), 'image')} of {names} have the same content; does sample_data.json name one file for all frames?"
        )


def tell_pose_times(gaps: np.ndarray, channels: Sequence[str], where: str, tell: Tell) -> None:
    """Tell of sensors whose data have poses of another time.

    Args:
        gaps: (n, channels) microseconds between data and their ego pose, 0 where a time is not given.
        channels: names.
        where: the tables' folder in messages.
    """
    far = gaps > _POSE_GAP
    late = np.flatnonzero(far.sum(0) > _LATE_SHARE * len(gaps))
    if len(late):
        names = listed(
            [f"{channels[at]} ({int(far[:, at].sum())} of {len(gaps)})" for at in late.tolist()], len(channels)
        )
        tell(
            f"data of {names} have an ego pose more than {_POSE_GAP / 1e6:g} s from their own time, up to {gaps[:, late].max() / 1e6:.1f} s, by "
            f"{where}/ego_pose.json; are the poses those of other frames?"
        )


def tell_intrinsics(intrinsics: np.ndarray, sizes: np.ndarray, cameras: Sequence[str], tell: Tell) -> None:
    """Tell of intrinsics of another resolution, by principal points off the middle by one factor, and of pixels that are not square.

    Args:
        intrinsics: (n, V, 3, 3) pixels.
        sizes: (n, V, 2) rows and columns.
        cameras: names.
    """
    shares = np.median(intrinsics[..., :2, 2] / sizes[..., ::-1], axis=0) * 2
    low, high = shares.min(), shares.max()
    smaller, larger = (shares < _SCALED[0]).all(), (shares > _SCALED[1]).all()
    told = (np.abs(shares / 2 - 0.5) > OFF_MIDDLE).any()  # camera by camera
    if len(cameras) > 1 and (smaller or larger) and high < _SPREAD * low and not told:
        tell(
            f"the principal points of all {counted(len(cameras), 'camera')} lie at {low:.2f} to {high:.2f} of the images' middle, in columns and rows; is "
            f"the calibration of images {np.median(shares[:, 0]):.2f} times as large?"
        )
    aspects = np.median(intrinsics[..., 0, 0] / intrinsics[..., 1, 1], axis=0)
    odd = [
        f"{name} ({aspect:.2f})"
        for name, aspect in zip(cameras, aspects, strict=True)
        if not 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT
    ]
    if odd:
        tell(
            f"focal lengths fx and fy differ: fx / fy of {listed(odd, len(cameras))}; are pixels not square, or is one of them wrong?"
        )
