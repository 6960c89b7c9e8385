"""The frame index: everything about a nuScenes-format data set but its pixels, in one file read without pickle."""

import hashlib
import io
import json
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes
from tqdm import tqdm

from pipeline.data import CAMERAS, CLASSES, GENERATED_BY
from pipeline.data.can_bus import EgoStates
from pipeline.data.geometry import invert, move_boxes, product, transform, yaw_of
from pipeline.errors import FD3DError
from pipeline.files import write_atomically

FORMAT = 2
"""Number of the index's format; 2 has the images' sizes in bytes and the generator's settings."""
_PER_FRAME = (
    "token",
    "scene_token",
    "scene_name",
    "order",
    "prev",
    "next",
    "timestamp",
    "image_paths",
    "image_sizes",
    "image_bytes",
    "intrinsics",
    "lidar2cam",
    "lidar2ego",
    "ego2global",
    "can_bus",
)
_PER_BOX = ("boxes", "labels", "num_lidar_pts", "num_radar_pts", "visibility", "instance")


@dataclass(frozen=True)
class Frame:
    """One key frame.

    Attributes:
        order: position in its scene, from 0.
        prev, next: rows of the neighbouring frames, -1 at a scene's ends.
        timestamp: of the LiDAR sweep, microseconds.
        image_paths: six paths relative to the data root, order of ``CAMERAS``.
        image_sizes: (6, 2) rows and columns.
        image_bytes: (6,) sizes of the image files in bytes, -1 of one that is missing; so another image is another index.
        intrinsics: (6, 3, 3) pixels.
        lidar2cam: (6, 4, 4) LiDAR frame at its time to camera frame at its own time, by way of the global frame.
        lidar2ego, ego2global: (4, 4) at the LiDAR's time.
        can_bus: (18,) absolute ego state in BEVFormer's layout.
        boxes: (n, 9) float32 (x, y, z, dx, dy, dz, yaw, vx, vy) in the LiDAR frame, centres of gravity; unknown
            velocities are NaN.
        labels: (n,) numbers in ``CLASSES``.
        num_lidar_pts, num_radar_pts: (n,).
        visibility: (n,) nuScenes level 1..4, 0 where unknown.
        instance: (n,) instance tokens.
    """

    token: str
    scene_token: str
    scene_name: str
    order: int
    prev: int
    next: int
    timestamp: int
    image_paths: tuple[str, ...]
    image_sizes: np.ndarray
    image_bytes: np.ndarray
    intrinsics: np.ndarray
    lidar2cam: np.ndarray
    lidar2ego: np.ndarray
    ego2global: np.ndarray
    can_bus: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    num_lidar_pts: np.ndarray
    num_radar_pts: np.ndarray
    visibility: np.ndarray
    instance: np.ndarray


class FrameIndex:
    """Frames by row or token, scenes and splits. Cheap to send to another process: arrays only."""

    def __init__(self, arrays: dict[str, np.ndarray], sha256: str) -> None:
        self.arrays, self.sha256 = arrays, sha256

    @classmethod
    def load(cls, path: str | Path, root: str | Path | None = None) -> "FrameIndex":
        """Read an index.

        Args:
            root: when given, it must be the folder of a data set with the version that the index was made from.

        Raises:
            FD3DError: the file is missing, damaged, of another format, or ``root`` does not fit.
        """
        if not Path(path).is_file():
            raise FD3DError(f"index {path} does not exist; make it with 'fd3d index'")
        content = Path(path).read_bytes()
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise FD3DError(f"index {path} is damaged ({error}); make it again with 'fd3d index'") from error
        if int(arrays.get("format", -1)) != FORMAT:
            raise FD3DError(
                f"index {path} has format {arrays.get('format')}, this program reads {FORMAT}; make it again"
            )
        index = cls(arrays, hashlib.sha256(content).hexdigest())
        if root is not None and not (Path(root) / index.version).is_dir():
            raise FD3DError(
                f"{root} has no folder {index.version}, which index {path} was made from; check the data root"
            )
        return index

    @property
    def version(self) -> str:
        """Name of the tables' folder."""
        return str(self.arrays["version"])

    def __len__(self) -> int:
        return len(self.arrays["token"])

    def __getitem__(self, row: int) -> Frame:
        a = self.arrays
        start, stop = a["box_offsets"][row], a["box_offsets"][row + 1]
        values: dict[str, Any] = {}
        for name in _PER_FRAME:
            value = a[name][row]
            values[name] = value.item() if value.ndim == 0 else value
        values["image_paths"] = tuple(str(p) for p in values["image_paths"])
        values |= {name: a[name][start:stop] for name in _PER_BOX}
        return Frame(**values)

    def __iter__(self) -> Iterator[Frame]:
        return (self[row] for row in range(len(self)))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {str(token): row for row, token in enumerate(self.arrays["token"])}

    def row(self, token: str) -> int:
        """Row of a sample token.

        Raises:
            FD3DError: there is no such frame.
        """
        if token not in self._rows:
            raise FD3DError(f"the index has no frame {token}; it was made from {self.version}")
        return self._rows[token]

    @cached_property
    def scenes(self) -> dict[str, list[int]]:
        """Rows by scene name, in time order."""
        out: dict[str, list[int]] = {}
        for row, name in enumerate(self.arrays["scene_name"]):
            out.setdefault(str(name), []).append(row)
        return out

    @cached_property
    def splits(self) -> dict[str, list[str]]:
        """Scene names by split, of those splits that have a scene here."""
        return {k: v for k, v in json.loads(str(self.arrays["splits"])).items() if v}

    def select(self, split: str) -> list[int]:
        """Rows of a split, scene by scene; ``all`` is every frame.

        Raises:
            FD3DError: no scene of that split is here.
        """
        if split == "all":
            return list(range(len(self)))
        if split not in self.splits:
            raise FD3DError(f"split '{split}' has no scene in this index; it has {', '.join(self.splits)} and all")
        return [row for name in self.splits[split] for row in self.scenes[name]]


def open_nuscenes(root: str | Path, version: str) -> NuScenes:
    """The devkit's tables.

    Raises:
        FD3DError: the root has no such version, or a table is missing or damaged.
    """
    if not (Path(root) / version).is_dir():
        raise FD3DError(f"{root} has no folder {version}; give the data set's root and one of its versions")
    try:
        return NuScenes(version=version, dataroot=str(root), verbose=False)
    except (OSError, AssertionError, KeyError, ValueError) as error:
        raise FD3DError(f"the tables in {Path(root) / version} cannot be read: {error}") from error


def split_scenes(root: str | Path, version: str) -> dict[str, list[str]]:
    """Scene names by split: the devkit's, and those of the data set's own ``splits.json``."""
    splits = dict(create_splits_scenes())
    custom = Path(root) / version / "splits.json"
    if custom.exists():
        splits |= json.loads(custom.read_text())
    return splits


def build_index(root: str | Path, version: str, out: str | Path) -> FrameIndex:
    """Index a data set with the devkit and write the file ``out``, the same bytes for the same data set on every machine.

    The index covers the images by their sizes in bytes, and the settings of a generated data set.

    Raises:
        FD3DError: a table or a camera is missing.
    """
    nusc = open_nuscenes(root, version)
    poses = EgoStates(nusc, Path(root))
    rows: dict[str, list[Any]] = {name: [] for name in (*_PER_FRAME, *_PER_BOX)}
    offsets, missing = [0], 0
    bar = tqdm(total=len(nusc.sample), unit="frame", disable=None)
    for scene in sorted(nusc.scene, key=lambda s: (s["name"], s["token"])):
        tokens = [scene["first_sample_token"]]
        while nxt := nusc.get("sample", tokens[-1])["next"]:
            tokens.append(nxt)
        for order, token in enumerate(tokens):
            here = len(rows["token"])
            frame = _frame(nusc, scene, token, poses)
            frame |= {
                "order": order,
                "prev": here - 1 if order else -1,
                "next": here + 1 if order + 1 < len(tokens) else -1,
            }
            frame["image_bytes"] = [_file_bytes(Path(root) / path) for path in frame["image_paths"]]
            missing += frame["image_bytes"].count(-1)
            for name in _PER_FRAME:
                rows[name].append(frame[name])
            for name in _PER_BOX:
                rows[name].extend(frame[name])
            offsets.append(len(rows["boxes"]))
            bar.update()
    bar.close()
    if missing:
        warnings.warn(f"{missing} image files of {root} are missing; frames that need them will fail", stacklevel=2)
    poses.warn()
    arrays = {name: np.array(rows[name]) for name in _PER_FRAME}
    arrays["boxes"] = np.array(rows["boxes"], dtype=np.float32).reshape(-1, 9)
    for name in ("labels", "num_lidar_pts", "num_radar_pts", "visibility"):
        arrays[name] = np.array(rows[name], dtype=np.int64)
    arrays["instance"] = np.array(rows["instance"], dtype="U32")
    generator = Path(root) / version / GENERATED_BY
    here_names = {scene["name"] for scene in nusc.scene}
    splits = {k: [n for n in names if n in here_names] for k, names in split_scenes(root, version).items()}
    arrays |= {
        "box_offsets": np.array(offsets),
        "format": np.array(FORMAT),
        "version": np.array(version),
        "generator": np.array(generator.read_text() if generator.is_file() else ""),
        "splits": np.array(json.dumps({k: v for k, v in splits.items() if v})),
    }
    write_atomically(Path(out), lambda file: np.savez(file, **arrays), binary=True)
    return FrameIndex.load(out, root)


def _file_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _frame(nusc: NuScenes, scene: dict, token: str, poses: "EgoStates") -> dict[str, Any]:
    sample = nusc.get("sample", token)
    absent = [channel for channel in (*CAMERAS, "LIDAR_TOP") if channel not in sample["data"]]
    if absent:
        raise FD3DError(f"sample {token} of {scene['name']} has no {absent[0]}; six cameras and LIDAR_TOP are needed")
    lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    lidar2ego, ego2global = _sensor_frames(nusc, lidar)
    lidar2global = product(ego2global, lidar2ego)
    to_lidar = invert(lidar2global)
    cameras = [nusc.get("sample_data", sample["data"][name]) for name in CAMERAS]
    lidar2cam, intrinsics = [], []
    for camera in cameras:
        cam2ego, ego2global_cam = _sensor_frames(nusc, camera)
        lidar2cam.append(product(invert(product(ego2global_cam, cam2ego)), lidar2global))
        intrinsics.append(nusc.get("calibrated_sensor", camera["calibrated_sensor_token"])["camera_intrinsic"])
    boxes: dict[str, list[Any]] = {name: [] for name in _PER_BOX}
    for ann_token in sample["anns"]:
        ann = nusc.get("sample_annotation", ann_token)
        name = category_to_detection_name(ann["category_name"])
        if name is None:
            continue
        width, length, height = ann["size"]
        yaw = yaw_of(transform([0, 0, 0], ann["rotation"]))
        velocity = nusc.box_velocity(ann_token)[:2]
        boxes["boxes"].append([*ann["translation"], length, width, height, yaw, *velocity])
        boxes["labels"].append(CLASSES.index(name))
        boxes["num_lidar_pts"].append(ann["num_lidar_pts"])
        boxes["num_radar_pts"].append(ann["num_radar_pts"])
        boxes["visibility"].append(int(ann["visibility_token"] or 0))
        boxes["instance"].append(ann["instance_token"])
    moved = move_boxes(np.array(boxes["boxes"]).reshape(-1, 9), to_lidar)
    return boxes | {
        "boxes": moved,
        "token": token,
        "scene_token": scene["token"],
        "scene_name": scene["name"],
        "timestamp": lidar["timestamp"],
        "image_paths": [camera["filename"] for camera in cameras],
        "image_sizes": [(camera["height"], camera["width"]) for camera in cameras],
        "intrinsics": np.array(intrinsics),
        "lidar2cam": np.array(lidar2cam),
        "lidar2ego": lidar2ego,
        "ego2global": ego2global,
        "can_bus": poses.at(
            scene, lidar["timestamp"], ego2global, nusc.get("ego_pose", lidar["ego_pose_token"])["rotation"][0]
        ),
    }


def _sensor_frames(nusc: NuScenes, data: dict) -> tuple[np.ndarray, np.ndarray]:
    calibrated = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
    pose = nusc.get("ego_pose", data["ego_pose_token"])
    return (
        transform(calibrated["translation"], calibrated["rotation"]),
        transform(pose["translation"], pose["rotation"]),
    )
