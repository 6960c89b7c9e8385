"""Tables of a nuScenes-format data set, row by row with only the columns that are needed."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data import CLASSES
from pipeline.data.annotations import (
    Annotations,
    check_boxes,
    check_row,
    known_attributes,
    uncounted,
    visibility_levels,
)
from pipeline.data.categories import Categories
from pipeline.data.checks import check_intrinsic, check_mounts, check_sizes, check_times, tell_late, tell_turns
from pipeline.data.geometry import transform
from pipeline.data.rig import EGO, Rig, is_camera
from pipeline.data.tokens import ByToken, table_rows
from pipeline.data.values import flag, name_of, numbers, text, time_of, token_of, whole
from pipeline.errors import FD3DError, counted, listed

Row = dict[str, Any]
LIDAR = -1
"""Column of the sensor that is the frame of reference, the LiDAR by default, behind those of the cameras."""
Tell = Callable[[str], object]
"""Callback that takes a line on what of the data set does not count."""
_BLOCK = 20_000  # rows of annotations that are held as Python objects


@dataclass(frozen=True)
class Chain:
    """Key frames of a scene: rows ``start`` to ``stop`` of all columns."""

    name: str
    token: str
    start: int
    stop: int

    def rows(self, complete: np.ndarray) -> np.ndarray:
        """Rows of the scene's complete frames."""
        return self.start + np.flatnonzero(complete[self.start : self.stop])


class FrameTables:
    """Columns that the frame index needs, key frames in the order of scene names and of time.

    Args:
        folder: of the tables.
        categories: detection classes of the data set's categories.
        rig: cameras and frame of reference.
        skip_incomplete: leave out frames that lack a camera or the LiDAR.
        tell: told what does not count: cameras, frames, categories and boxes.

    Attributes:
        chains: scenes.
        cameras: names of the V cameras.
        channels: names of the cameras and, last, of the frame of reference, ``ego`` or a sensor.
        tokens: (n,) list of sample tokens.
        times: (n,) int64 times of the samples, microseconds.
        timestamps: (n,) int64 times of the reference sensor's data, microseconds.
        files: (n, V) image paths, objects.
        sizes: (n, V, 2) rows and columns.
        pose_gaps: (n, V + 1) microseconds between a sensor's data and their ego pose, 0 where a time is not given.
        foreign: annotations that name another object's as their prev or next; of the scenes whose boxes are made.
        poses: (n, V + 1, 7) translation and quaternion of the ego pose by channel.
        sensors: (n, V + 1) row of ``mounts`` and ``intrinsics`` by channel.
        mounts: (m, 4, 4) sensor frame to ego frame.
        intrinsics: (m, 3, 3), zero for a LiDAR.
        annotations: columns of the annotations of the ten classes, in the order of key frames: frame, label, token, prev and
            next (bytes), place (translation, size as (width, length, height), quaternion), points, visibility.
        counts: (n + 1,) offsets of the key frames' annotations.
        complete: (n,) which frames have all sensors.
        box_offsets: (m + 1,) offsets of the complete frames' possible boxes.

    Raises:
        FD3DError: a table is missing or damaged, a frame lacks a sensor, a scene's times do not increase, a camera has no
            intrinsics, the LiDAR is tilted, or no box counts.
    """

    def __init__(self, folder: Path, categories: Categories, rig: Rig, skip_incomplete: bool, tell: Tell) -> None:
        self.folder, self.categories, self.tell = folder, categories, tell
        self.foreign: list[str] = []
        self._read_samples()
        self._read_sensor_data(rig)
        self._check_complete(skip_incomplete)
        self._check_columns()
        self._read_poses()
        self.annotations, self.counts = self._read_annotations()
        found = self.annotations
        kept = found["frame"][found["possible"] & self.complete[found["frame"]]]
        counts = np.bincount(kept, minlength=len(self.tokens))[self.complete]
        self.box_offsets = np.concatenate([[0], np.cumsum(counts)])

    def _read_samples(self) -> None:
        with table_rows(self.folder, "scene") as rows:
            file = self.folder / "scene.json"
            found = [(name_of(row), token_of(row, file), row["first_sample_token"]) for row in rows]
        scenes = sorted(found)
        for what, values in (("name", [row[0] for row in found]), ("token", [row[1] for row in found])):
            if twice := [value for value, count in Counter(values).items() if count > 1]:
                raise FD3DError(f"{self.folder}/scene.json has the {what} {twice[0]} twice; remove one")
        samples: ByToken[tuple[int, str, str]] = ByToken(self.folder, "sample", ())
        self.chains: list[Chain] = []
        self.tokens: list[str] = []
        with table_rows(self.folder, "sample") as rows:
            for row in rows:
                if (token := token_of(row, self.folder / "sample.json")) in samples:
                    raise FD3DError(f"{self.folder}/sample.json has sample {token} twice; remove one")
                samples[token] = whole(row, "timestamp"), row["next"], row["scene_token"]
            for name, scene, token in scenes:
                start = len(self.tokens)
                while token:
                    self.tokens.append(token)
                    _, after, of = samples[token]
                    if of != scene:
                        raise FD3DError(
                            f"sample {token} of {self.folder} is in the chain of scene {scene} ({name}), but its scene_token is {of!r}"
                        )
                    token = after
                    if len(self.tokens) > len(samples):
                        raise FD3DError(f"samples of {name} in {self.folder} follow each other in a ring")
                self.chains.append(Chain(name, scene, start, len(self.tokens)))
                if start == len(self.tokens):
                    self.tell(f"{name} has no sample, and is left out")
            self.times = np.array([samples[token][0] for token in self.tokens], dtype=np.int64)
        if not self.tokens:
            raise FD3DError(f"{self.folder} has no frames: no scene of scene.json has a sample")
        if lost := sorted(samples.keys() - set(self.tokens)):
            self.tell(
                f"{counted(len(lost), 'sample')} in no scene's chain from first_sample_token by next, first {lost[0]}"
            )
        self._number = dict.fromkeys(samples, -1) | {token: number for number, token in enumerate(self.tokens)}

    def _read_sensor_data(self, rig: Rig) -> None:
        with table_rows(self.folder, "sensor") as rows:
            sensors = list(rows)
            channels = ByToken(self.folder, "sensor", ((row["token"], text(row, "channel")) for row in sensors))
            optical = {row["channel"] for row in sensors if is_camera(row)}
        ignored, strange = Counter[str](), list[str]()
        self.cameras, reference = rig.found(sensors, self.folder)
        self.channels = (*self.cameras, reference)
        views = len(self.cameras)
        with table_rows(self.folder, "calibrated_sensor") as rows:
            mounts = list(rows)
            names = [channels[mount["sensor_token"]] for mount in mounts]
            columns_of = [[i for i, known in enumerate(self.channels) if known == name] for name in names]
            turns = np.reshape([numbers(mount, "rotation", 4) for mount in mounts], (-1, 4))
            self.mounts = transform([numbers(mount, "translation", 3) for mount in mounts], turns)
            blank = np.zeros((3, 3))
            known = [numbers(m, "camera_intrinsic", 3, 3) if m.get("camera_intrinsic") else blank for m in mounts]
            self.intrinsics = np.array(known, dtype=np.float64)
            numbered = ((mount["token"], number) for number, mount in enumerate(mounts))
            number_of = ByToken(self.folder, "calibrated_sensor", numbered)
            optical |= {name for name, matrix in zip(names, known, strict=True) if matrix.any()}
        shape = (len(self.tokens), views + 1)
        self.sensors, self._pose_rows = np.full(shape, -1, dtype=np.int32), np.full(shape, -1, dtype=np.int32)
        self.sizes = np.zeros((*shape[:1], views, 2), dtype=np.int32)
        self.files = np.empty((*shape[:1], views), dtype=object)
        self.timestamps, self._taken = np.zeros(shape[0], dtype=np.int64), np.zeros((shape[0], views), dtype=np.int64)
        self._pose_tokens: dict[str, int] = {}
        data_tokens = set[str]()
        with table_rows(self.folder, "sample_data") as rows:
            for row in rows:
                if not flag(row, "is_key_frame"):
                    continue
                if (frame := self._number.get(row["sample_token"], -2)) < 0:
                    strange += [row["sample_token"]] * (frame == -2)
                    continue
                mount = number_of[row["calibrated_sensor_token"]]
                if not (columns := columns_of[mount]):
                    ignored[names[mount]] += 1
                    continue
                if self.sensors[frame, columns[0]] >= 0:
                    raise FD3DError(
                        f"{self.folder}/sample_data.json has two key frames of {names[mount]} for sample {row['sample_token']}; keep one"
                    )
                pose = self._pose_tokens.setdefault(row["ego_pose_token"], len(self._pose_tokens))
                self.sensors[frame, columns], self._pose_rows[frame, columns] = mount, pose
                if columns[-1] == views or (reference == EGO and columns[0] == 0):
                    self.timestamps[frame] = whole(row, "timestamp")
                    if (token := text(row, "token")) in data_tokens:  # by which the devkit finds the car's place
                        raise FD3DError(f"{self.folder}/sample_data.json has the token {token} twice; remove one")
                    data_tokens.add(token)
                if columns[0] < views:
                    self._taken[frame, columns[0]] = time_of(row)
                    self.files[frame, columns[0]] = text(row, "filename")
                    self.sizes[frame, columns[0]] = whole(row, "height"), whole(row, "width")
        if reference == EGO:
            self.mounts = np.concatenate([self.mounts, np.eye(4)[None]])
            self.intrinsics = np.concatenate([self.intrinsics, np.zeros((1, 3, 3))])
            self._pose_rows[:, LIDAR] = self._pose_rows[:, 0]
            self.sensors[:, LIDAR] = np.where(self.sensors[:, 0] < 0, -1, len(mounts))
        if other := [f"{name} ({count} key frames)" for name, count in ignored.items() if name in optical]:
            self.tell(f"ignored cameras: {', '.join(other)}; those that count are {', '.join(self.cameras)}")
        self._tell_strange("key frames of sample_data.json", strange)

    def _tell_strange(self, what: str, samples: Sequence[str]) -> None:
        """Say how many rows are of samples that the table of samples lacks, as where a data set was cut."""
        if samples:
            self.tell(
                f"{len(samples)} {what} are of samples that sample.json does not have, first {samples[0]}; they do not count"
            )

    def _check_complete(self, skip: bool) -> None:
        self.complete = (self.sensors >= 0).all(1)
        if self.complete.all():
            return
        lacking, frame = (~self.complete).sum(), int(np.argmin(self.complete))
        channel = int(np.argmin(self.sensors[frame] >= 0))
        by_channel = zip(self.channels, (self.sensors < 0).sum(0).tolist(), strict=True)
        counts = ", ".join(f"{name} {count}" for name, count in by_channel if count)
        told = f"{lacking} of {counted(len(self.tokens), 'frame')} of {self.folder} lack a sensor ({counts})"
        if not skip or not self.complete.any():
            way_out = "; data.skip_incomplete: true or --skip-incomplete leaves them out" if self.complete.any() else ""
            raise FD3DError(
                f"{told}, first sample {self.tokens[frame]} of {self._scene_of(frame)} has no {self.channels[channel]}; "
                f"{counted(len(self.cameras), 'camera')} and {self.channels[LIDAR]} are needed{way_out}"
            )
        lost = [chain.name for chain in self.chains if chain.start < chain.stop and not len(chain.rows(self.complete))]
        self.tell(f"{told} and are skipped" + (f", with them all of {', '.join(lost)}" if lost else ""))

    def _scene_of(self, frame: int) -> str:
        return next(chain.name for chain in self.chains if chain.start <= frame < chain.stop)

    def _check_columns(self) -> None:
        """Refuse times, image sizes and calibrations of complete frames that cannot be."""
        for chain in self.chains:
            rows = chain.rows(self.complete)
            times = {"sample": self.times[rows], "sample_data": self.timestamps[rows]}
            tokens = [self.tokens[row] for row in rows]
            check_times(chain.name, tokens, times, self.folder.name)
            tell_late(self.cameras, self._taken[rows], self.timestamps[rows], tokens, self.tell)
        complete = np.flatnonzero(self.complete)
        check_sizes(self.sizes[complete], [self.tokens[row] for row in complete], self.folder.name)
        found = [np.unique(column, return_index=True) for column in self.sensors[complete].T]
        cameras = dict(zip(self.cameras, found, strict=False))
        for name, (used, first) in cameras.items():
            for sensor, row in zip(used, first, strict=True):
                where = f"{name} of sample {self.tokens[complete[row]]}"
                check_intrinsic(self.intrinsics[sensor], where)
        mounts = {name: self.mounts[used] for name, (used, _) in cameras.items()}
        reference = self.mounts[found[LIDAR][0]]
        check_mounts(mounts, self.channels[LIDAR], reference, self.tell)
        tell_turns(self.channels[LIDAR], reference, self.tell)

    def _read_poses(self) -> None:
        poses, known = np.full((len(self._pose_tokens), 7), np.nan), np.zeros(len(self._pose_tokens), dtype=bool)
        times = np.zeros(len(known), dtype=np.int64)
        with table_rows(self.folder, "ego_pose") as rows:
            for row in rows:
                number = self._pose_tokens.get(row["token"])
                if number is None:
                    continue
                if known[number]:
                    raise FD3DError(f"{self.folder}/ego_pose.json has the token {row['token']} twice; remove one")
                poses[number] = *numbers(row, "translation", 3), *numbers(row, "rotation", 4)
                known[number], times[number] = True, time_of(row)
        if not known.all():
            lost = list(self._pose_tokens)[int(np.argmin(known))]
            raise FD3DError(f"the tables in {self.folder} have no ego pose {lost}")
        lengths = np.linalg.norm(poses[:, 3:], axis=1, keepdims=True)
        poses[:, 3:] /= np.where(
            (np.abs(lengths - 1) > 1e-3) & (lengths > 0), lengths, 1.0
        )  # ego states take them as recorded
        self.poses = poses[self._pose_rows]
        there, taken = times[self._pose_rows], np.column_stack([self._taken, self.timestamps])
        self.pose_gaps = np.where((there > 0) & (taken > 0), np.abs(there - taken), 0)
        del self._pose_rows, self._pose_tokens

    def _read_annotations(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        with table_rows(self.folder, "category") as rows:
            names = ByToken(self.folder, "category", ((row["token"], text(row, "name")) for row in rows))
        self.categories.check(set(names.values()), self.folder)
        with table_rows(self.folder, "instance") as rows:
            pairs = ((row["token"], (number, names[row["category_token"]])) for number, row in enumerate(rows))
            kinds = ByToken(self.folder, "instance", pairs)
        classes = {name: self.categories.class_of(name) for name in names.values()}
        labels = {name: -1 if kind is None else CLASSES.index(kind) for name, kind in classes.items()}
        facts = visibility_levels(self.folder), known_attributes(self.folder)
        blocks, block, unmapped, pointless, strange = [], Annotations(*facts), Counter[str](), 0, list[str]()
        with table_rows(self.folder, "sample_annotation") as rows:
            for row in rows:
                frame, (instance, category) = self._number.get(row["sample_token"], -2), kinds[row["instance_token"]]
                if frame == -2:
                    strange.append(row["sample_token"])
                    continue
                check_row(row)  # of all that the devkit reads
                if frame < 0:
                    continue
                if (label := labels[category]) < 0:
                    unmapped[category] += 1
                    continue
                pointless += uncounted(row)
                block.add(frame, label, instance, row)
                if len(block.frame) == _BLOCK:
                    blocks.append(block.columns())
                    block = Annotations(*facts)
            blocks.append(block.columns())
        self._tell_strange("rows of sample_annotation.json", strange)
        order = np.argsort(np.concatenate([columns["frame"] for columns in blocks]), kind="stable")
        columns = {name: np.concatenate([made.pop(name) for made in blocks])[order] for name in list(blocks[0])}
        counts = np.concatenate([[0], np.cumsum(np.bincount(columns["frame"], minlength=len(self.tokens)))])
        self._tell_boxes(columns, unmapped, pointless)
        return columns, counts

    def check_boxes(self) -> None:
        """Check annotations against ego poses: see :func:`~pipeline.data.annotations.check_boxes`."""
        cars = np.where(self.complete[:, None], self.poses[:, LIDAR, :3], np.nan)
        check_boxes(self.annotations, cars, self.folder.name, self.tell)

    def _tell_boxes(self, found: dict[str, np.ndarray], unmapped: Counter[str], pointless: int) -> None:
        """Say which boxes do not count.

        Raises:
            FD3DError: there are annotations, but none is of a class, or none of those counts.
        """
        mapped, left = len(found["frame"]), unmapped.total()
        if left:
            kinds = listed([f"{name} ({count})" for name, count in unmapped.most_common()], 8)
            told = f"{left} of {counted(mapped + left, 'box')} of {counted(len(unmapped), 'category')} are not mapped: {kinds}"
            if not mapped:
                raise FD3DError(
                    f"{told}; name the class of a category under data.classes, such as {{{next(iter(unmapped))}: car}}"
                )
            self.tell(told)
        if pointless:
            self.tell(f"{counted(pointless, 'box')} without num_lidar_pts; each counts as one with a LiDAR point")
        bad = np.flatnonzero(~found["possible"])
        if len(bad):
            first = bad[0]
            size = ", ".join(f"{number:g}" for number in found["place"][first, 3:6])
            self.tell(
                f"{counted(len(bad), 'box')} that cannot be (a size that is not above 0, or numbers that are not finite or above 1e9), which do not count, first "
                f"annotation {found['token'][first].decode()} of {self._scene_of(found['frame'][first])}, size {size}"
            )
        points = found["num_lidar_pts"] + found["num_radar_pts"]
        if mapped and not (found["possible"] & (points > 0) & self.complete[found["frame"]]).any():
            raise FD3DError(
                f"none of the {counted(mapped, 'box')} of {self.folder} counts: num_lidar_pts and num_radar_pts are 0, or the box cannot be; where points "
                "were not counted, leave num_lidar_pts out of sample_annotation.json"
            )
