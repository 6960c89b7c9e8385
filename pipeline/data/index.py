"""The frame index: everything about a nuScenes-format data set but its pixels, in one file read without pickle."""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.data import CAMERAS, GENERATED_BY
from pipeline.data.can_bus import EgoStates
from pipeline.data.categories import Categories
from pipeline.data.columns import scene_columns, warn_of_images
from pipeline.data.doubts import tell_doubts
from pipeline.data.folder import table_folder
from pipeline.data.npz import map_arrays, write_arrays
from pipeline.data.rig import EGO, Rig
from pipeline.data.splits import own_splits, split_scenes
from pipeline.data.tables import FrameTables, Tell
from pipeline.errors import FD3DError
from pipeline.files import check_needed, check_writable, write_atomically

FORMAT = 4
"""Number of the index's format; 3 is mapped into memory: narrow columns, texts as bytes; 4 has checksums of the images."""
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
    "image_crc32",
    "intrinsics",
    "lidar2cam",
    "lidar2ego",
    "ego2global",
    "can_bus",
)
_PER_BOX = ("boxes", "labels", "num_lidar_pts", "num_radar_pts", "visibility")


@dataclass(frozen=True)
class Frame:
    """One key frame.

    Attributes:
        order: position in its scene, from 0.
        prev, next: rows of the neighbouring frames, -1 at a scene's ends.
        timestamp: of the LiDAR sweep, microseconds.
        image_paths: V paths relative to the data root, order of ``cameras``.
        image_sizes: (V, 2) rows and columns.
        image_bytes, image_crc32: (V,) sizes and CRC-32 of the image files, -1 and 0 of one that is missing or damaged.
        intrinsics: (V, 3, 3) pixels.
        lidar2cam: (V, 4, 4) LiDAR frame at its time to camera frame at its own time, by way of the global frame.
        lidar2ego, ego2global: (4, 4) at the LiDAR's time.
        can_bus: (18,) absolute ego state in BEVFormer's layout.
        boxes: (n, 9) float32 (x, y, z, dx, dy, dz, yaw, vx, vy) in the LiDAR frame, centres of gravity; unknown
            velocities are NaN.
        labels: (n,) numbers in ``CLASSES``.
        num_lidar_pts, num_radar_pts: (n,).
        visibility: (n,) nuScenes level 1..4, 0 where unknown.
        cameras: names of the V cameras.
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
    image_crc32: np.ndarray
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
    cameras: tuple[str, ...] = CAMERAS


class FrameIndex:
    """Frames by row or token, scenes and splits.

    The arrays are mapped from the file, so that all processes of a machine share one copy; another process is sent the path.

    Args:
        path: file of ``fd3d index``.
        check: whether to compare the file's checksums, which reads it once.

    Attributes:
        arrays: columns by name, read-only.

    Raises:
        FD3DError: the file is missing, damaged or of another format.
    """

    def __init__(self, path: str | Path, check: bool = True) -> None:
        self.path = Path(path).absolute()
        check_needed(index=Path(path))
        self._stamp = _stamp(self.path)
        try:
            self.arrays, self._mapping = map_arrays(self.path, check)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise FD3DError(f"index {path} is damaged ({error}); make it again with 'fd3d index'") from error
        if (found := self.arrays.get("format")) is None or int(found) != FORMAT:
            raise FD3DError(
                f"index {path} has format {found}, this program reads {FORMAT}; make it again with 'fd3d index'"
            )
        if lacking := [name for name in (*_PER_FRAME, *_PER_BOX) if name not in self.arrays]:
            raise FD3DError(f"index {path} has no column {lacking[0]}; make it again with 'fd3d index'")
        if b"/" in self.arrays["token"].tobytes():  # drawings are named by tokens
            raise FD3DError(f"index {path} has sample tokens with slashes; make it again with 'fd3d index'")

    @classmethod
    def load(cls, path: str | Path, root: str | Path | None = None) -> "FrameIndex":
        """Open an index.

        Args:
            root: when given, it must be the folder of a data set with the version that the index was made from.

        Raises:
            FD3DError: the file is missing, damaged, of another format, or ``root`` does not fit.
        """
        index = cls(path)
        if root is not None and not (Path(root) / index.version).is_dir():
            raise FD3DError(
                f"{root} has no folder {index.version}, which index {path} was made from; check the data root"
            )
        return index

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.path, self._stamp)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file, which is that of its content: the same data set has the same on every machine."""
        return hashlib.sha256(self._mapping).hexdigest()

    def check_made(self, manifest: Mapping[str, Any], store: object) -> None:
        """Refuse a store that another index made.

        Args:
            manifest: the store's, of which section ``data`` has the index's hash.
            store: name of the store in messages.

        Raises:
            FD3DError: the store was made by another index; both hashes are named.
        """
        made_by = str(manifest.get("data", {}).get("index_sha256"))
        if self.sha256 != made_by:
            raise FD3DError(
                f"store {store} was not made by index {self.path}: the index's SHA-256 is {self.sha256[:12]}, the manifest's "
                f"{made_by[:12]}; name the index that made the store, or dump with this one"
            )

    @property
    def version(self) -> str:
        """Name of the tables' folder."""
        return str(self.arrays["version"])

    @property
    def settings(self) -> dict[str, Any]:
        """What of a profile's section ``data`` decides the index."""
        classes = json.loads(str(self.arrays["classes"])) if "classes" in self.arrays else {}
        return {"version": self.version, "classes": classes, "cameras": list(self.cameras), "reference": self.reference}

    def __len__(self) -> int:
        return len(self.arrays["token"])

    def __getitem__(self, row: int) -> Frame:
        a = self.arrays
        start, stop = a["box_offsets"][row], a["box_offsets"][row + 1]
        values: dict[str, Any] = {name: a[name][row] for name in _PER_FRAME}
        values |= {name: a[name][start:stop] for name in _PER_BOX}
        for name, value in values.items():
            if value.dtype.kind == "S":
                values[name] = value.decode() if value.ndim == 0 else tuple(path.decode() for path in value.tolist())
            elif value.dtype.kind != "f":  # columns are as narrow as their values allow
                values[name] = value.item() if value.ndim == 0 else value.astype(np.int64)
        return Frame(**values, cameras=self.cameras)

    def __iter__(self) -> Iterator[Frame]:
        return (self[row] for row in range(len(self)))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {token.decode(): row for row, token in enumerate(self.arrays["token"].tolist())}

    def row(self, token: str) -> int:
        """Row of a sample token.

        Raises:
            FD3DError: there is no such frame.
        """
        if token not in self._rows:
            raise FD3DError(f"the index has no frame {token}; it was made from {self.version}")
        return self._rows[token]

    def has(self, token: str) -> bool:
        """Whether there is a frame of a sample token."""
        return token in self._rows

    @cached_property
    def scenes(self) -> dict[str, list[int]]:
        """Rows by scene name, in time order."""
        out: dict[str, list[int]] = {}
        for row, name in enumerate(self.arrays["scene_name"].tolist()):
            out.setdefault(name.decode(), []).append(row)
        return out

    @cached_property
    def splits(self) -> dict[str, list[str]]:
        """Scene names by split, of those splits that have a scene here."""
        return {k: v for k, v in json.loads(str(self.arrays["splits"])).items() if v}

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras, in the order of all columns."""
        return tuple(json.loads(str(self.arrays["cameras"]))) if "cameras" in self.arrays else CAMERAS

    @cached_property
    def reference(self) -> str:
        """Frame of reference of the boxes: a sensor, or ``ego``."""
        return str(self.arrays["reference"]) if "reference" in self.arrays else "LIDAR_TOP"

    @cached_property
    def pose_sensor(self) -> str:
        """Sensor at whose time boxes are: the frame of reference, or the first camera where this is the ego frame."""
        return self.cameras[0] if self.reference == EGO else self.reference

    @cached_property
    def classes(self) -> dict[str, str | None]:
        """Detection class by category, over nuScenes' mapping; the profile's ``data.classes`` when the index was made."""
        return dict(json.loads(str(self.arrays["classes"]))) if "classes" in self.arrays else {}

    def boxes_of(self, rows: Sequence[int]) -> tuple[int, int]:
        """Number of boxes of some rows, and of those among them that count: with at least one LiDAR or radar point."""
        offsets = self.arrays["box_offsets"]
        counted = np.concatenate([[0], np.cumsum(self.arrays["num_lidar_pts"] + self.arrays["num_radar_pts"] > 0)])
        chosen = np.asarray(rows, dtype=np.int64)
        start, stop = offsets[chosen], offsets[chosen + 1]
        return int((stop - start).sum()), int((counted[stop] - counted[start]).sum())

    def select(self, split: str) -> list[int]:
        """Rows of a split, scene by scene; ``all`` is every frame, unless the data set has a split of this name.

        Raises:
            FD3DError: no scene of that split is here.
        """
        if split == "all" and split not in self.splits:
            return list(range(len(self)))
        if split not in self.splits:
            raise FD3DError(f"split '{split}' has no scene in this index; it has {', '.join(self.splits)} and all")
        return [row for name in self.splits[split] for row in self.scenes[name]]


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _reopened(path: Path, stamp: tuple[int, int]) -> FrameIndex:
    index = FrameIndex(path, check=False)
    if index._stamp != stamp:
        raise FD3DError(f"index {path} was made again while it was in use; start the command again")
    return index


def build_index(
    root: str | Path,
    version: str,
    out: str | Path,
    classes: Mapping[str, str | None] | None = None,
    skip_incomplete: bool = False,
    rig: Rig | None = None,
    tell: Tell = lambda line: None,
) -> FrameIndex:
    """Index a data set and write the file ``out``, the same bytes for the same data set on every machine.

    The index covers the images, which are read once, by their checksums, and the settings of a generated data set.

    Args:
        classes: detection class by category, over nuScenes' mapping; None for a category that is no class.
        skip_incomplete: leave out frames that lack a camera or the LiDAR.
        rig: cameras and frame of reference.
        tell: called with a line for everything that does not count: categories, boxes, cameras, frames.

    Raises:
        FD3DError: ``out`` cannot be written, a table or ``splits.json`` is missing or damaged, a frame lacks a camera, a scene's times do not increase, or
            there are annotations and none counts.
    """
    folder = table_folder(root, version)
    check_writable(Path(out))
    root = folder.parent
    known_splits = split_scenes(root, version)
    categories = Categories(classes or {})
    tables, states = FrameTables(folder, categories, rig or Rig(), skip_incomplete, tell), EgoStates(root)
    own_splits(folder, {chain.name for chain in tables.chains})
    bar = tqdm(total=len(tables.tokens), unit="frame", disable=None)
    scenes, here = [], set()
    for chain in tables.chains:
        if len(chain.rows(tables.complete)):
            scenes.append(scene_columns(tables, chain, states, root))
            here.add(chain.name)
        bar.update(chain.stop - chain.start)
    bar.close()
    tables.check_boxes()  # after the poses, which the boxes are held against
    arrays = {name: np.concatenate([scene.pop(name) for scene in scenes]) for name in (*_PER_FRAME, *_PER_BOX)}
    tell_doubts(arrays, tables, tell)
    states.tell_speeds(tell)
    warn_of_images(arrays["image_paths"], arrays["image_bytes"], root)
    states.warn()
    generator = folder / GENERATED_BY
    splits = {k: [n for n in names if n in here] for k, names in known_splits.items()}
    arrays |= {
        "box_offsets": tables.box_offsets,
        "format": np.array(FORMAT),
        "version": np.array(version),
        "generator": np.array(generator.read_text() if generator.is_file() else ""),
        "splits": np.array(json.dumps({k: v for k, v in splits.items() if v})),
    }
    if classes:  # not in an index with nuScenes' own mapping, which stays as it was before there was the setting
        arrays["classes"] = np.array(json.dumps(dict(classes), sort_keys=True))
    if tables.cameras != CAMERAS:  # likewise
        arrays["cameras"] = np.array(json.dumps(tables.cameras))
    if tables.channels[-1] != "LIDAR_TOP":
        arrays["reference"] = np.array(tables.channels[-1])
    write_atomically(Path(out), lambda file: write_arrays(file, arrays), binary=True)
    return FrameIndex.load(out, root)
