"""Cameras of a data set that count, and the frame of reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import CAMERAS
from pipeline.data.json_stream import rows_of
from pipeline.errors import FD3DError

EGO = "ego"
"""Name of the ego frame at the time of the first camera, as a frame of reference."""
MAX_CAMERAS = 12
_TURN_TOLERANCE = 10.0  # degrees between the mounts of two cars' frames of reference that a detector does not mind


def is_camera(sensor: Mapping[str, Any]) -> bool:
    """Whether a row of the sensor table is a camera's: by its modality, in small or capital letters, or a name of nuScenes'."""
    return sensor["channel"] in CAMERAS or str(sensor.get("modality")).strip().lower() == "camera"


def other_sensors(folder: Path) -> tuple[str, ...]:
    """Names of the sensors that are no cameras and no radars, of the table in a folder; none where the table cannot be read."""
    try:
        return _others(list(rows_of(folder / "sensor.json")))
    except (FD3DError, OSError, ValueError, LookupError, TypeError):
        return ()


def _others(sensors: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    lidars = [row for row in sensors if not is_camera(row) and str(row.get("modality")).strip().lower() != "radar"]
    return tuple(sorted({str(row["channel"]) for row in lidars}))


def rig_of_tables(folder: Path) -> tuple[tuple[str, ...], str] | None:
    """Names of the cameras and of the frame of reference that an index of tables has where no profile names others.

    Returns:
        None where the sensor table cannot be read, which the making of an index names.

    Raises:
        FD3DError: there are no cameras or too many.
    """
    try:
        return Rig().found(list(rows_of(folder / "sensor.json")), folder)
    except FD3DError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def sizes_of(image_sizes: np.ndarray) -> tuple[tuple[int, int], ...] | None:
    """Rows and columns of each camera's images; None where images of one camera differ in size.

    Args:
        image_sizes: (n, V, 2) of an index.
    """
    if (image_sizes != image_sizes[0]).any():
        return None
    return tuple((int(rows), int(columns)) for rows, columns in image_sizes[0])


def turn_of(lidar2ego: np.ndarray) -> float:
    """Degrees by which a frame of reference is turned against nuScenes' LiDAR, whose x axis is to the car's right: the median, from
    -180 to 180, to a tenth.

    Args:
        lidar2ego: (n, 4, 4) of an index; the identity where boxes are in the ego frame, which gives 90.
    """
    turns = np.degrees(np.arctan2(lidar2ego[:, 1, 0], lidar2ego[:, 0, 0])) + 90
    found, counts = np.unique(np.round(_wrapped(turns), 1), return_counts=True)
    away = np.abs(_wrapped(found[:, None] - found))  # the median on a circle is nearest to all
    return float(found[(away * counts).sum(1).argmin()]) + 0.0  # no -0


def other_turn(made_for: float, given: float) -> bool:
    """Whether two frames of reference, by degrees as of :func:`turn_of`, are mounted too differently for one detector."""
    return bool(abs(_wrapped(np.float64(made_for - given))) > _TURN_TOLERANCE)


def turned_otherwise(told: str, frame: str | None, made_for: float, given: str, turn: float) -> str:
    """Message on a frame of reference that is mounted otherwise than a detector's.

    Args:
        told: first words, which name the detector.
        frame: the detector's frame of reference; None where its name is not known.
        made_for, turn: degrees of the detector's frame and of the data's, as of :func:`turn_of`.
        given: the data's frame of reference.
    """
    return (
        f"{told} {frame or 'a frame of reference'} turned by {round(made_for)} degrees against nuScenes' LIDAR_TOP, whose y axis looks ahead, the "
        f"index's {given} is turned by {round(turn)}; set data.reference to a sensor with the training's axes and make the index again, or "
        "train for these"
    )


def _wrapped(degrees: np.ndarray | np.float64) -> np.ndarray:
    return np.asarray((degrees + 180) % 360 - 180)


def other_images(
    made_for: Sequence[tuple[int, int]], given: Sequence[Sequence[int]], cameras: Sequence[str]
) -> str | None:
    """The first camera whose images have another size (rows, columns) than a detector is made for, in words; None without one."""
    for camera, own, found in zip(cameras, made_for, given, strict=True):
        if own != tuple(found):
            return f"images of {own[0]}x{own[1]} of {camera}; the data have {found[0]}x{found[1]}"
    return None


@dataclass(frozen=True)
class Rig:
    """Sensors that count.

    Attributes:
        cameras: names in the order of the index; none for all of the data set's, nuScenes' own first.
        reference: sensor whose frame boxes and BEV maps are in, or ``ego``; None for LIDAR_TOP, and for the ego frame where the
            data set has no LIDAR_TOP.
    """

    cameras: Sequence[str] = ()
    reference: str | None = None

    def found(self, sensors: Sequence[dict[str, Any]], folder: Path) -> tuple[tuple[str, ...], str]:
        """Names of the cameras and of the frame of reference, of rows of the sensor table.

        Raises:
            FD3DError: a sensor is not there, or there are no cameras or too many.
        """
        channels = [row["channel"] for row in sensors]
        known = [row["channel"] for row in sensors if is_camera(row)]
        known = sorted(set(known), key=lambda name: (CAMERAS.index(name) if name in CAMERAS else len(CAMERAS), name))
        if not known:
            raise FD3DError(f"{folder}/sensor.json has no sensor with modality 'camera'; give cameras this modality")
        cameras = tuple(self.cameras or known)
        for name in cameras:
            if name not in known:
                raise FD3DError(f"data.cameras names {name}, which {folder} does not have; it has {', '.join(known)}")
        if not 1 <= len(cameras) <= MAX_CAMERAS or len(set(cameras)) < len(cameras):
            raise FD3DError(
                f"the cameras of {folder} are {', '.join(cameras) or 'none'}; name 1 to {MAX_CAMERAS}, each once, under data.cameras"
            )
        reference = self.reference or ("LIDAR_TOP" if "LIDAR_TOP" in channels else EGO)
        others = ", ".join((*_others(sensors), EGO))
        if reference in known:
            raise FD3DError(
                f"data.reference is {reference}, a camera of {folder}, whose z axis looks ahead; boxes need an upright frame: name one of {others}"
            )
        if reference != EGO and reference not in channels:
            raise FD3DError(f"data.reference is {reference}, which {folder} does not have; name one of {others}")
        return cameras, reference
