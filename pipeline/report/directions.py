"""Directions of a bird's-eye view: where ahead is in the frame of reference, and what the map's axes are called."""

import math
from dataclasses import dataclass

import numpy as np

_MOUNTING = 10.0  # degrees between an axis and a direction of the car that count as a mount's tolerance, not as a turn
_WORDS = {0: "forward", 90: "left", 180: "backward", -90: "right"}


@dataclass(frozen=True)
class Directions:
    """Directions of the axes of a frame of reference, as a car's driver would say them.

    Attributes:
        forward: degrees from the frame's x axis (towards its y axis) to the ego frame's x axis, which looks ahead; -180..180,
            a multiple of 90 where the frame's axes are along the car's up to a small angle of mounting.
        x, y: what lies at the end of the axis: forward, left, backward, right, or the angle from forward.
        yaw: what a box's yaw in this frame means: directions at 0 and 90 degrees.
    """

    forward: float
    x: str
    y: str
    yaw: str

    @classmethod
    def of(cls, lidar2ego: np.ndarray) -> "Directions":
        """Directions in a frame of reference.

        Args:
            lidar2ego: (4, 4) from the frame of reference to the ego frame, of the frame that is drawn.
        """
        forward = _kept(math.degrees(math.atan2(lidar2ego[0, 1], lidar2ego[0, 0])))
        # an axis at a time: the frame of a sensor that hangs upside down has its left where others have their right
        headings = [_kept(math.degrees(math.atan2(lidar2ego[1, i], lidar2ego[0, i]))) for i in (0, 1)]
        x, y = map(_word, headings)
        along = all(heading in _WORDS for heading in headings)
        yaw = f"0 {x}, 90 {y}" if along else f"0 along x, 90 along y, {forward:.0f} forward"
        return cls(forward, x, y, yaw)

    @property
    def up(self) -> bool:
        """Whether a picture with x to the right and y upwards has ahead at its top and right at its right, as LIDAR_TOP's has."""
        return (self.x, self.y) == ("right", "forward")


def _kept(angle: float) -> float:
    """Degrees, -180 excluded; exactly a direction of the car where they are near one."""
    nearest = 90.0 * round(angle / 90)
    kept = nearest if abs(angle - nearest) <= _MOUNTING else angle
    return 180.0 if kept == -180.0 else kept


def _word(heading: float) -> str:
    """Words for a heading in the ego frame, degrees to the left."""
    if heading in _WORDS:
        return _WORDS[int(heading)]
    return f"{abs(heading):.0f}° {'left' if heading > 0 else 'right'} of forward"
