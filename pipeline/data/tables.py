"""Tables of a nuScenes-format data set: by the devkit, or row by row with only the columns that are needed."""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes

from pipeline.data import CAMERAS, CLASSES
from pipeline.data.geometry import transform
from pipeline.data.json_stream import rows_of
from pipeline.errors import FD3DError

Row = dict[str, Any]
CHANNELS = (*CAMERAS, "LIDAR_TOP")
LIDAR = len(CAMERAS)
"""Number of the LiDAR in ``CHANNELS``."""
_BLOCK = 20_000  # rows of annotations that are held as Python objects


def table_folder(root: str | Path, version: str) -> Path:
    """Folder of the tables.

    Raises:
        FD3DError: the root has no such version.
    """
    folder = Path(root) / version
    if not folder.is_dir():
        raise FD3DError(f"{root} has no folder {version}; give the data set's root and one of its versions")
    return folder


def split_scenes(root: str | Path, version: str) -> dict[str, list[str]]:
    """Scene names by split: the devkit's, and those of the data set's own ``splits.json``."""
    splits = dict(create_splits_scenes())
    custom = Path(root) / version / "splits.json"
    if custom.exists():
        splits |= json.loads(custom.read_text())
    return splits


class _SceneTables(NuScenes):
    """The devkit's tables with the rows of some scenes, and with no sensor data but the LiDAR's key frames."""

    def __init__(self, folder: Path, scenes: Collection[str]) -> None:
        self._folder, self._scenes = folder, frozenset(scenes)
        self._kept: dict[str, list[Row]] = {}
        super().__init__(version=folder.name, dataroot=str(folder.parent), verbose=False)

    def __load_table__(self, table_name: str) -> list[Row]:
        return self._rows_of(table_name)

    def _rows_of(self, name: str) -> list[Row]:
        if name not in self._kept:
            chosen = self._chosen(name)
            self._kept[name] = [row for row in rows_of(self._folder / f"{name}.json") if chosen(row)]
        return self._kept[name]

    def _tokens(self, name: str, column: str = "token") -> frozenset[str]:
        return frozenset(row[column] for row in self._rows_of(name))

    def _chosen(self, name: str) -> Callable[[Row], bool]:
        if name == "scene":
            return lambda row: row["name"] in self._scenes
        if name == "sample":
            scenes = self._tokens("scene")
            return lambda row: row["scene_token"] in scenes
        if name == "sample_annotation":
            samples = self._tokens("sample")
            return lambda row: row["sample_token"] in samples
        if name == "sample_data":
            samples = self._tokens("sample")
            sensors = {row["token"] for row in self._rows_of("sensor") if row["channel"] == "LIDAR_TOP"}
            calibrated = self._rows_of("calibrated_sensor")
            lidars = {row["token"] for row in calibrated if row["sensor_token"] in sensors}
            return lambda row: (
                row["is_key_frame"] and row["calibrated_sensor_token"] in lidars and row["sample_token"] in samples
            )
        if name == "ego_pose":
            poses = self._tokens("sample_data", "ego_pose_token")
            return lambda row: row["token"] in poses
        return lambda row: True


def open_scenes(root: str | Path, version: str, scenes: Collection[str]) -> NuScenes:
    """The devkit's tables as far as the annotations of some scenes need them; a part of the memory of all tables.

    Args:
        scenes: names.

    Raises:
        FD3DError: the root has no such version, or a table is missing or damaged.
    """
    folder = table_folder(root, version)
    try:
        return _SceneTables(folder, scenes)
    except (OSError, AssertionError, KeyError, ValueError) as error:
        raise FD3DError(f"the tables in {folder} cannot be read: {error}") from error


@dataclass(frozen=True)
class Chain:
    """Key frames of a scene: rows ``start`` to ``stop`` of all columns."""

    name: str
    token: str
    start: int
    stop: int


class FrameTables:
    """Columns that the frame index needs, key frames in the order of scene names and of time.

    Args:
        folder: of the tables.

    Attributes:
        chains: scenes.
        tokens: (n,) list of sample tokens.
        times: (n,) int64 times of the samples, microseconds.
        timestamps: (n,) int64 times of the LiDAR's sweeps, microseconds.
        files: (n, 6) image paths, objects.
        sizes: (n, 6, 2) rows and columns.
        poses: (n, 7, 7) translation and quaternion of the ego pose by channel.
        sensors: (n, 7) row of ``mounts`` and ``intrinsics`` by channel.
        mounts: (m, 4, 4) sensor frame to ego frame.
        intrinsics: (m, 3, 3), zero for a LiDAR.
        annotations: columns of the annotations of the ten classes, in the order of key frames: frame, label, token, prev and
            next (bytes), place (translation, size as (width, length, height), quaternion), points, visibility.
        counts: (n + 1,) offsets of the key frames' annotations.

    Raises:
        FD3DError: a table is missing or damaged, or a frame lacks a camera.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read_samples()
        self._read_sensor_data()
        self._read_poses()
        self.annotations, self.counts = self._read_annotations()

    @contextmanager
    def _table(self, name: str) -> Iterator[Iterator[Row]]:
        path = self.folder / f"{name}.json"
        try:
            yield rows_of(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise FD3DError(f"the tables in {self.folder} cannot be read: {path.name}: {reason}") from error
        except (KeyError, TypeError) as error:
            raise FD3DError(f"the tables in {self.folder} do not fit each other: {path.name}: {error!r}") from error

    def _read_samples(self) -> None:
        with self._table("scene") as rows:
            scenes = sorted(rows, key=lambda row: (row["name"], row["token"]))
        with self._table("sample") as rows:
            samples = {row["token"]: (row["timestamp"], row["next"]) for row in rows}
            self.chains: list[Chain] = []
            self.tokens: list[str] = []
            for scene in scenes:
                start, token = len(self.tokens), scene["first_sample_token"]
                while token:
                    self.tokens.append(token)
                    token = samples[token][1]
                self.chains.append(Chain(scene["name"], scene["token"], start, len(self.tokens)))
            self.times = np.array([samples[token][0] for token in self.tokens], dtype=np.int64)
        self._number = {token: number for number, token in enumerate(self.tokens)}

    def _read_sensor_data(self) -> None:
        with self._table("sensor") as rows:
            channels = {row["token"]: row["channel"] for row in rows}
        with self._table("calibrated_sensor") as rows:
            mounts = list(rows)
            channel_of = [CHANNELS.index(c) if (c := channels[m["sensor_token"]]) in CHANNELS else -1 for m in mounts]
            self.mounts = transform([m["translation"] for m in mounts], [m["rotation"] for m in mounts])
            self.intrinsics = np.array([m["camera_intrinsic"] or np.zeros((3, 3)) for m in mounts], dtype=np.float64)
        number_of = {mount["token"]: number for number, mount in enumerate(mounts)}
        shape = (len(self.tokens), len(CHANNELS))
        self.sensors, self._pose_rows = np.full(shape, -1, dtype=np.int32), np.full(shape, -1, dtype=np.int32)
        self.sizes = np.zeros((*shape[:1], LIDAR, 2), dtype=np.int32)
        self.files = np.empty((*shape[:1], LIDAR), dtype=object)
        self.timestamps = np.zeros(shape[0], dtype=np.int64)
        self._pose_tokens: dict[str, int] = {}
        with self._table("sample_data") as rows:
            for row in rows:
                frame = self._number.get(row["sample_token"]) if row["is_key_frame"] else None
                if frame is None:
                    continue
                mount = number_of[row["calibrated_sensor_token"]]
                channel = channel_of[mount]
                if channel < 0:
                    continue
                self.sensors[frame, channel] = mount
                pose = self._pose_tokens.setdefault(row["ego_pose_token"], len(self._pose_tokens))
                self._pose_rows[frame, channel] = pose
                if channel == LIDAR:
                    self.timestamps[frame] = row["timestamp"]
                else:
                    self.files[frame, channel] = row["filename"]
                    self.sizes[frame, channel] = row["height"], row["width"]
        for frame, channel in np.argwhere(self.sensors < 0)[:1]:
            scene = next(chain.name for chain in self.chains if chain.start <= frame < chain.stop)
            raise FD3DError(
                f"sample {self.tokens[frame]} of {scene} has no {CHANNELS[channel]}; six cameras and LIDAR_TOP are needed"
            )

    def _read_poses(self) -> None:
        poses = np.full((len(self._pose_tokens), 7), np.nan)
        with self._table("ego_pose") as rows:
            for row in rows:
                number = self._pose_tokens.pop(row["token"], None)
                if number is not None:
                    poses[number] = *row["translation"], *row["rotation"]
        if self._pose_tokens:
            raise FD3DError(f"the tables in {self.folder} have no ego pose {next(iter(self._pose_tokens))}")
        self.poses = poses[self._pose_rows]
        del self._pose_rows

    def _read_annotations(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        with self._table("category") as rows:
            names = {row["token"]: category_to_detection_name(row["name"]) for row in rows}
        with self._table("instance") as rows:
            kinds = {row["token"]: names[row["category_token"]] for row in rows}
        labels = {token: -1 if name is None else CLASSES.index(name) for token, name in kinds.items()}
        blocks, block = [], _Annotations()
        with self._table("sample_annotation") as rows:
            for row in rows:
                frame, label = self._number.get(row["sample_token"]), labels[row["instance_token"]]
                if frame is None or label < 0:
                    continue
                block.add(frame, label, row)
                if len(block.frame) == _BLOCK:
                    blocks.append(block.columns())
                    block = _Annotations()
            blocks.append(block.columns())
        order = np.argsort(np.concatenate([columns["frame"] for columns in blocks]), kind="stable")
        columns = {name: np.concatenate([made.pop(name) for made in blocks])[order] for name in list(blocks[0])}
        counts = np.concatenate([[0], np.cumsum(np.bincount(columns["frame"], minlength=len(self.tokens)))])
        return columns, counts


class _Annotations:
    """Annotations as flat lists, from which the columns are made: rows as they are would keep the garbage collector busy."""

    def __init__(self) -> None:
        self.frame: list[int] = []
        self.label: list[int] = []
        self.tokens: list[str] = []
        self.place: list[float] = []
        self.facts: list[int] = []

    def add(self, frame: int, label: int, row: Row) -> None:
        """Append a row of the table."""
        self.frame.append(frame)
        self.label.append(label)
        self.tokens += row["token"], row["prev"], row["next"]
        self.place += row["translation"]
        self.place += row["size"]
        self.place += row["rotation"]
        self.facts += row["num_lidar_pts"], row["num_radar_pts"], int(row["visibility_token"] or 0)

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of the rows."""
        tokens = np.array(self.tokens, dtype=np.bytes_).reshape(-1, 3)
        facts = np.array(self.facts, dtype=np.int32).reshape(-1, 3)
        return {
            "frame": np.array(self.frame, dtype=np.int32),
            "label": np.array(self.label, dtype=np.uint8),
            "token": tokens[:, 0],
            "prev": tokens[:, 1],
            "next": tokens[:, 2],
            "place": np.array(self.place, dtype=np.float64).reshape(-1, 10),
            "num_lidar_pts": facts[:, 0],
            "num_radar_pts": facts[:, 1],
            "visibility": facts[:, 2].astype(np.uint8),
        }
