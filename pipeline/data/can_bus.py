"""Ego states in the layout of BEVFormer's data code, from the CAN bus expansion or from ego poses."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.data.geometry import product, yaw_of
from pipeline.data.json_stream import rows_of
from pipeline.errors import FD3DError, counted

_FAR = 60_000_000  # microseconds from a frame to its message, beyond which the two have other clocks or units
_MOVING = 2.0  # metres per second of the car, from which its speeds are compared
_LEAST_MOVING = 3  # such frames of a scene
_MAX_RATIO = 2.0  # between the speeds of messages and of ego poses


class EgoStates:
    """Ego states of scenes, one scene at a time: from the CAN bus expansion, from ego poses where it is absent."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "can_bus"
        self.derived: set[str] = set()
        self.speeds: dict[str, float] = {}
        """Speed by messages over that by ego poses, the median of a scene that moves."""

    def of(
        self,
        scene: str,
        timestamps: np.ndarray,
        ego2global: np.ndarray,
        real_parts: np.ndarray,
        turns: np.ndarray | float = 0.0,
    ) -> np.ndarray:
        """(n, 18) states of a scene's key frames.

        Layout (BEVFormer's data code): position 3, orientation 4, acceleration 3, rotation rate 3, velocity 3, yaw in
        radians, yaw in degrees. Position and yaw are the ego pose's; the four orientation slots all hold the
        quaternion's real part, as they do in the data that official checkpoints were trained on.

        Args:
            scene: name of the scene.
            timestamps: (n,) microseconds, in order.
            ego2global: (n, 4, 4).
            real_parts: (n,) real parts of the ego poses' quaternions as recorded.
            turns: (n,) radians by which the LiDAR is turned against nuScenes'. The yaw is turned too: BEVFormer's shift of the
                history takes the yaw for the heading of the BEV map's y axis.

        Raises:
            FD3DError: the scene's messages cannot be read.
        """
        states, derived = self._measured(scene, timestamps), _from_poses(timestamps, ego2global)
        if states is None:
            self.derived.add(scene)
            states = derived
        else:
            speeds = np.linalg.norm(derived[:, 6:9], axis=1)
            if (moving := speeds > _MOVING).sum() >= _LEAST_MOVING:
                self.speeds[scene] = float(np.median(np.linalg.norm(states[moving, 6:9], axis=1) / speeds[moving]))
        yaws = (np.array([yaw_of(pose) for pose in ego2global]) + turns) % (2 * np.pi)
        turned = np.stack([yaws, np.degrees(yaws)], 1)
        return np.concatenate([ego2global[:, :3, 3], np.tile(real_parts[:, None], 4), states, turned], 1)

    def warn(self) -> None:
        """Say once how many scenes had no messages."""
        if self.derived:
            warnings.warn(
                f"no CAN bus poses of {counted(len(self.derived), 'scene')}; the ego motion there is derived from ego poses",
                stacklevel=3,
            )

    def tell_speeds(self, tell: Callable[[str], object]) -> None:
        """Tell of scenes whose messages have other speeds than their ego poses, such as km/h."""
        other = {scene: ratio for scene, ratio in self.speeds.items() if not 1 / _MAX_RATIO <= ratio <= _MAX_RATIO}
        if other:
            tell(
                f"CAN bus speeds of {counted(len(other), 'scene')} are {np.median(list(other.values())):.2f} times those of the ego poses (the median), "
                f"first {next(iter(other))}; give vel in m/s, not km/h, and utime of the frames' clock"
            )

    def _measured(self, scene: str, timestamps: np.ndarray) -> np.ndarray | None:
        path = self.folder / f"{scene}_pose.json"
        if not path.exists():
            return None
        try:
            times, values = _messages(path)
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise FD3DError(f"CAN bus messages {path} cannot be read ({error!r}); copy the file again") from error
        if not len(times):
            return None
        # BEVFormer's data code reads these values from the first message *after* the frame; its checkpoints expect that.
        after = np.minimum(np.searchsorted(times, timestamps, side="right"), len(times) - 1)
        if len(bad := np.flatnonzero(~np.isfinite(values[after]).all(1))):
            raise FD3DError(
                f"CAN bus messages {path} have values that are not finite at utime {times[after[bad[0]]]}; remove the file to "
                "derive the ego motion of its scene from ego poses"
            )
        if len(far := np.flatnonzero(np.abs(times[after] - timestamps) > _FAR)):
            seconds = abs(int(times[after[far[0]]]) - int(timestamps[far[0]])) / 1e6
            raise FD3DError(
                f"CAN bus messages {path} are {seconds:g} s from the frame at {timestamps[far[0]]} ({len(far)} of {counted(len(timestamps), 'frame')}); "
                "give utime in microseconds of the frames' clock, or remove the file to derive the ego motion of its scene from ego poses"
            )
        return values[after]


def _messages(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times (n,) in microseconds, in order, and acceleration, rotation rate and velocity (n, 9) of a file's messages."""
    times: list[int] = []
    values: list[list[float]] = []
    for message in rows_of(path):
        times.append(message["utime"])
        triples = [message[name] for name in ("accel", "rotation_rate", "vel")]
        if any(len(triple) != 3 for triple in triples):
            raise ValueError("accel, rotation_rate and vel are three numbers each")
        values.append([number for triple in triples for number in triple])
    order = np.argsort(np.array(times, dtype=np.int64), kind="stable")
    return np.array(times, dtype=np.int64)[order], np.array(values, dtype=np.float64).reshape(-1, 9)[order]


def _from_poses(timestamps: np.ndarray, ego2global: np.ndarray) -> np.ndarray:
    """Velocity and yaw rate (n, 9) by differences of the neighbouring key frames' ego poses; acceleration zero."""
    states = np.zeros((len(timestamps), 9))
    times, yaws = timestamps.astype(np.float64), [yaw_of(pose) for pose in ego2global]
    for here, pose in enumerate(ego2global):
        first, last = max(here - 1, 0), min(here + 1, len(ego2global) - 1)
        if last > first:
            seconds = (times[last] - times[first]) / 1e6
            moved = ego2global[last, :3, 3] - ego2global[first, :3, 3]
            states[here, 6:9] = product(pose[:3, :3].T, moved[:, None])[:, 0] / seconds
            states[here, 5] = ((yaws[last] - yaws[first] + np.pi) % (2 * np.pi) - np.pi) / seconds
    return states
