"""Ego states in the layout of BEVFormer's data code, from the CAN bus expansion or from ego poses."""

import warnings
from pathlib import Path

import numpy as np
from nuscenes.can_bus.can_bus_api import NuScenesCanBus
from nuscenes.nuscenes import NuScenes

from pipeline.data.geometry import product, transform, yaw_of


class EgoStates:
    """Ego states from the CAN bus expansion; from ego poses where it is absent."""

    def __init__(self, nusc: NuScenes, root: Path) -> None:
        self.nusc = nusc
        self.api = NuScenesCanBus(dataroot=str(root)) if (root / "can_bus").is_dir() else None
        self.messages: dict[str, list[dict] | None] = {}
        self.derived: set[str] = set()

    def at(self, scene: dict, timestamp: int, ego2global: np.ndarray, real_part: float) -> np.ndarray:
        """(18,) state at a time in microseconds; ``real_part`` is that of the ego pose's quaternion as recorded.

        Layout (BEVFormer's data code): position 3, orientation 4, acceleration 3, rotation rate 3, velocity 3, yaw in
        radians, yaw in degrees. Position and yaw are the ego pose's; the four orientation slots all hold the
        quaternion's real part, as they do in the data that official checkpoints were trained on.
        """
        state = self._measured(scene, timestamp)
        if state is None:
            self.derived.add(scene["name"])
            state = self._from_poses(scene, timestamp, ego2global)
        yaw = yaw_of(ego2global) % (2 * np.pi)
        return np.concatenate([ego2global[:3, 3], np.full(4, real_part), state, [yaw, np.degrees(yaw)]])

    def warn(self) -> None:
        """Say once how many scenes had no messages."""
        if self.derived:
            warnings.warn(
                f"{len(self.derived)} scenes have no CAN bus poses; their ego motion is derived from ego poses",
                stacklevel=3,
            )

    def _measured(self, scene: dict, timestamp: int) -> np.ndarray | None:
        name = scene["name"]
        if name not in self.messages:
            self.messages[name] = None
            if self.api is not None and (Path(self.api.can_dir) / f"{name}_pose.json").exists():
                self.messages[name] = self.api.get_messages(name, "pose")
        messages = self.messages[name]
        if not messages:
            return None
        times = np.array([m["utime"] for m in messages])
        # BEVFormer's data code reads these values from the first message *after* the frame; its checkpoints expect that.
        message = messages[min(int(np.searchsorted(times, timestamp, side="right")), len(messages) - 1)]
        return np.array([*message["accel"], *message["rotation_rate"], *message["vel"]])

    def _from_poses(self, scene: dict, timestamp: int, ego2global: np.ndarray) -> np.ndarray:
        """Velocity and yaw rate by differences of the neighbouring key frames' ego poses; acceleration zero."""
        samples = [self.nusc.get("sample", scene["first_sample_token"])]
        while samples[-1]["next"]:
            samples.append(self.nusc.get("sample", samples[-1]["next"]))
        poses = []
        for sample in samples:
            data = self.nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
            pose = self.nusc.get("ego_pose", data["ego_pose_token"])
            poses.append((data["timestamp"], transform(pose["translation"], pose["rotation"])))
        times = np.array([t for t, _ in poses], dtype=np.float64)
        here = int(np.argmin(np.abs(times - timestamp)))
        first, last = max(here - 1, 0), min(here + 1, len(poses) - 1)
        state = np.zeros(9)
        if last > first:
            seconds = (times[last] - times[first]) / 1e6
            moved = poses[last][1][:3, 3] - poses[first][1][:3, 3]
            state[6:9] = product(ego2global[:3, :3].T, moved[:, None])[:, 0] / seconds
            turned = yaw_of(poses[last][1]) - yaw_of(poses[first][1])
            state[5] = ((turned + np.pi) % (2 * np.pi) - np.pi) / seconds
        return state
