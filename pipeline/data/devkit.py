"""The devkit's tables of some scenes, as its evaluation needs them."""

import io
from collections.abc import Callable, Collection, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import load_gt_of_sample_tokens
from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.nuscenes import NuScenes

from pipeline.data.annotations import FARTHEST, attributes_of, points_of, possible
from pipeline.data.categories import Categories
from pipeline.data.folder import table_folder
from pipeline.data.index import FrameIndex
from pipeline.data.json_stream import rows_of
from pipeline.errors import FD3DError, counted

Row = dict[str, Any]
TABLES = (
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
)
"""Tables that the evaluation needs."""
_FAULTS = (OSError, AssertionError, LookupError, TypeError, ValueError, OverflowError, AttributeError)
"""What the devkit raises for rows that cannot be."""
_UNREAD = ("log", "map", "visibility")  # no metric depends on these, nor on the maps that the devkit would look for


class _SceneTables(NuScenes):
    """The devkit's tables with the rows of some scenes, and with no sensor data but the LiDAR's key frames.

    Rows are as the devkit takes them: mapped categories by nuScenes' names, no attributes of other names, points 0 for boxes that
    cannot be, and the sensor of the frame of reference, whose ego pose boxes' distances are from, under the name LIDAR_TOP.
    """

    def __init__(self, folder: Path, scenes: Collection[str], categories: Categories, reference: str) -> None:
        self._reference = reference
        self._folder, self._scenes, self._categories = folder, frozenset(scenes), categories
        self._kept: dict[str, list[Row]] = {}
        super().__init__(version=folder.name, dataroot=str(folder.parent), verbose=False)

    def __load_table__(self, table_name: str) -> list[Row]:
        return self._rows_of(table_name)

    def _rows_of(self, name: str) -> list[Row]:
        if name not in self._kept:
            path = self._folder / f"{name}.json"
            unread = name in _UNREAD or (name == "attribute" and not path.is_file())
            chosen, made = self._chosen(name), self._maker(name)
            self._kept[name] = [] if unread else [made(row) for row in rows_of(path) if chosen(row)]
            if name == "sample_annotation":
                _cut_foreign(self._kept[name])
        return self._kept[name]

    def __make_reverse_index__(self, verbose: bool) -> None:
        self.map = [
            {"token": "", "log_tokens": []}
        ]  # the devkit looks at the first, after it has opened the maps of all
        super().__make_reverse_index__(verbose)

    def _maker(self, name: str) -> Callable[[Row], Row]:
        """Function that gives the devkit's form of a row."""
        if name == "category":
            return lambda row: row | {"name": self._categories.devkit_name(row["name"])}
        if name == "sensor":
            channels = {"LIDAR_TOP": "LIDAR_TOP beside the reference", self._reference: "LIDAR_TOP"}
            return lambda row: {"modality": ""} | row | {"channel": channels.get(row["channel"], row["channel"])}
        if name == "attribute":
            return lambda row: row if row["name"] in ATTRIBUTE_NAMES else row | {"name": ""}
        if name == "sample_annotation":
            attributes = self._tokens("attribute")
            return lambda row: _annotation(row, attributes)
        return lambda row: row

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


def _annotation(row: Row, attributes: Collection[str]) -> Row:
    row["num_lidar_pts"], row["num_radar_pts"] = points_of(row)
    row["prev"], row["next"] = row["prev"] or "", row["next"] or ""
    row["attribute_tokens"] = [token for token in attributes_of(row) if token in attributes]
    if not possible(np.array([[*row["translation"], *row["size"], *row["rotation"]]], dtype=np.float64))[0]:
        row |= {"size": [1.0, 1.0, 1.0], "rotation": [1.0, 0.0, 0.0, 0.0], "num_lidar_pts": 0, "num_radar_pts": 0}
        if not (np.abs(row["translation"]) <= FARTHEST).all():  # NaN neither
            row["translation"] = [0.0, 0.0, 0.0]
    return row


def _cut_foreign(rows: list[Row]) -> None:
    """Cut links to annotations of other objects, which the index does not follow either."""
    instances = {row["token"]: row["instance_token"] for row in rows}
    for row in rows:
        for side in ("prev", "next"):
            if row[side] and instances.get(row[side], row["instance_token"]) != row["instance_token"]:
                row[side] = ""


def open_scenes(
    root: str | Path,
    version: str,
    scenes: Collection[str],
    classes: Mapping[str, str | None] | None = None,
    reference: str = "LIDAR_TOP",
) -> NuScenes:
    """The devkit's tables as far as the annotations of some scenes need them; a part of the memory of all tables.

    Args:
        scenes: names.
        classes: detection class by category, over nuScenes' mapping.
        reference: sensor whose ego poses count.

    Raises:
        FD3DError: the root has no such version, or a table is missing or damaged.
    """
    folder = table_folder(root, version)
    try:
        return _SceneTables(folder, scenes, Categories(classes or {}), reference)
    except FD3DError:
        raise
    except _FAULTS as error:
        raise FD3DError(
            f"the devkit cannot read the tables in {folder}: {type(error).__name__}: {error}; copy the tables again"
        ) from error


def open_truth(
    root: str | Path, version: str, scenes: Collection[str], index: FrameIndex | None = None
) -> tuple[NuScenes, EvalBoxes]:
    """The devkit's tables of some scenes, and the annotated boxes of their frames as the devkit takes them.

    Args:
        scenes: names.
        index: index whose frames and classes count; None is every frame and nuScenes' classes.

    Raises:
        FD3DError: as of :func:`open_scenes`; or index and tables have other frames.
    """
    options = () if index is None else (index.classes, index.pose_sensor)
    nusc = open_scenes(root, version, scenes, *options)
    samples = [sample for sample in nusc.sample if index is None or index.has(sample["token"])]
    frames = [sample["token"] for sample in samples]
    if index is not None and len(frames) != (wanted := sum(len(index.scenes.get(name, ())) for name in scenes)):
        raise FD3DError(
            f"index {index.path} has {counted(wanted, 'frame')} of {counted(len(scenes), 'scene')}, of which sample.json has {len(frames)}; make the index again"
        )
    if lacking := [sample["token"] for sample in samples if "LIDAR_TOP" not in sample["data"]]:
        sensor = "LIDAR_TOP" if index is None else index.pose_sensor
        raise FD3DError(
            f"{nusc.table_root}/sample_data.json has no key frame of {sensor} for sample {lacking[0]}, by whose pose boxes are evaluated; make "
            "the index again"
        )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        try:
            return nusc, load_gt_of_sample_tokens(nusc, frames, DetectionBox)
        except _FAULTS as error:
            raise FD3DError(
                f"the devkit cannot read the annotations in {nusc.table_root}: {type(error).__name__}: {error}; copy the tables again"
            ) from error
