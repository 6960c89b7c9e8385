"""Detection metrics by the devkit's own evaluation."""

import contextlib
import csv
import io
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionMetricDataList
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.nuscenes import NuScenes

from pipeline.data.annotations import FARTHEST, possible
from pipeline.data.devkit import TABLES, open_truth
from pipeline.data.folder import table_folder
from pipeline.data.index import FrameIndex
from pipeline.data.json_stream import JSONStream, rows_of
from pipeline.data.origin import origin_of
from pipeline.data.splits import split_scenes
from pipeline.errors import FD3DError, counted
from pipeline.files import write_atomically

# the devkit's names of the true-positive errors and the benchmark's
ERRORS = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}
_REFUSALS = (AssertionError, KeyError, TypeError, ValueError, AttributeError, OverflowError)
"""What the devkit raises for a record that cannot be."""
_LISTS = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2, "ego_translation": 3}
"""Fields of a record that are lists, and of how many numbers."""
_TOO_LARGE = 1 << 63
"""Numpy makes whole numbers from here on objects, of which the devkit cannot tell whether they are NaN."""
METRICS = ("NDS", "mAP", *ERRORS.values())
"""NDS and mAP in percent, and the mean errors."""


def evaluated_scenes(root: Path, version: str, split: str) -> list[str]:
    """Names of a split's scenes that the tables have; ``all`` is every scene, unless the data set has a split of this name.

    Raises:
        FD3DError: a table is missing, or the split is unknown or has no scene here.
    """
    folder = table_folder(root, version)
    for name in TABLES:
        if not (folder / f"{name}.json").is_file():
            raise FD3DError(f"{folder} has no {name}.json, which the devkit needs to evaluate; copy the tables again")
    try:
        here = sorted(row["name"] for row in rows_of(folder / "scene.json"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FD3DError(f"{folder}/scene.json cannot be read: {error!r}; copy the tables again") from error
    splits = {"all": here} | split_scenes(root, version)
    if split not in splits:
        raise FD3DError(f"split '{split}' is unknown; the data set has {', '.join(splits)}")
    if not (scenes := [name for name in splits[split] if name in here]):
        raise FD3DError(f"split '{split}' has no scene in {folder}; name another split")
    return scenes


def evaluate(
    submission: Path,
    root: Path,
    version: str,
    split: str,
    work_dir: Path | None = None,
    scenes: Sequence[str] | None = None,
    index: FrameIndex | None = None,
) -> dict[str, Any]:
    """Evaluate a submission by ``detection_cvpr_2019``.

    Args:
        work_dir: folder for ``pr.csv``, precision over recall per class at 2 m; None writes none.
        scenes: names of the split's scenes that the submission covers; None is the whole split.
        index: index whose frames and classes count; None is every frame and nuScenes' classes.

    Returns:
        NDS and mAP in percent, the five mean errors (m, 1 - IoU, rad, m/s, 1 - accuracy), AP in percent and errors by class.

    Raises:
        FD3DError: the split cannot be evaluated, lacks a scene, or the submission does not cover the scenes.
    """
    known = evaluated_scenes(root, version, split)
    if scenes is not None and (unknown := sorted(set(scenes) - set(known))):
        raise FD3DError(f"split '{split}' has no scene {unknown[0]}; name scenes of the split")
    count = known if scenes is None else scenes
    nusc, truth = open_truth(root, version, count, index)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            metrics, curves = _SplitEval(nusc, submission, split, truth, index).evaluate()
        except FD3DError:
            raise
        except _REFUSALS as error:
            raise FD3DError(f"submission {submission} cannot be evaluated: {_told(error)}") from error
    found = metrics.serialize()
    if work_dir is not None:
        _write_curves(curves, work_dir / "pr.csv")
    return {
        "NDS": round(100 * found["nd_score"], 2),
        "mAP": round(100 * found["mean_ap"], 2),
        **{name: round(found["tp_errors"][key], 4) for key, name in ERRORS.items()},
        "AP": {name: round(100 * ap, 2) for name, ap in found["mean_dist_aps"].items()},
        "errors": {
            name: {key: round(v, 4) for key, v in e.items() if v == v} for name, e in found["label_tp_errors"].items()
        },
    }


class _SplitEval(DetectionEval):
    """The devkit's evaluation, with predictions read and filtered frame by frame: boxes that do not count take no memory.

    Args:
        nusc: tables of the split's scenes.
        truth: annotated boxes of the frames that count.
        index: index whose splits a submission of other frames is looked for in.
    """

    def __init__(
        self, nusc: NuScenes, submission: Path, split: str, truth: EvalBoxes, index: FrameIndex | None = None
    ) -> None:
        self.nusc, self.cfg, self.verbose, self.index = nusc, config_factory("detection_cvpr_2019"), False, index
        self.pred_boxes = self._predictions(submission, split, truth.sample_tokens)
        self.gt_boxes = self._counted(truth)
        self.sample_tokens = self.gt_boxes.sample_tokens

    def _counted(self, boxes: EvalBoxes) -> EvalBoxes:
        """Boxes that the metrics count: within the range of their class, with points, not in a bicycle rack."""
        if not boxes.all:  # the devkit cannot tell the kind of no boxes
            return boxes
        return filter_eval_boxes(self.nusc, add_center_dist(self.nusc, boxes), self.cfg.class_range)

    def _predictions(self, submission: Path, split: str, wanted: list[str]) -> EvalBoxes:
        boxes, known, others = EvalBoxes(), set(wanted), []
        for token, records in _results(submission):
            if token not in known:
                others.append(token)
                continue
            if token in boxes.boxes:
                raise FD3DError(f"{submission} has sample {token} twice; keep one")
            if not isinstance(records, list):
                raise FD3DError(f"{submission} has {records!r:.40} for sample {token}; it must be a list of boxes")
            if strange := [r for r in records if not isinstance(r, dict) or r.get("sample_token", token) != token]:
                raise FD3DError(
                    f"{submission} has {strange[0]!r:.80} for sample {token}, which is no box of this sample"
                )
            if len(records) > self.cfg.max_boxes_per_sample:
                raise FD3DError(
                    f"{submission} has {len(records)} boxes for sample {token}; {self.cfg.max_boxes_per_sample} are allowed"
                )
            if unsure := [r for r in records if not _is_score(r.get("detection_score"))]:
                raise FD3DError(
                    f"{submission} has detection_score {unsure[0].get('detection_score')!r:.40} for sample {token}; give numbers of 0 or more"
                )
            if (odd := next(filter(None, map(_no_number, records)), None)) is not None:
                raise FD3DError(f"{submission} has {odd[0]} {odd[1]!r:.60} for sample {token}; give {odd[2]}")
            try:
                frame = EvalBoxes.deserialize({token: [_shared_texts(record) for record in records]}, DetectionBox)
            except _REFUSALS as error:
                raise FD3DError(
                    f"{submission} has a box of sample {token} that the devkit refuses: {_told(error)}"
                ) from error
            if (bad := _impossible(frame.boxes[token])) is not None:
                raise FD3DError(
                    f"{submission} has a box of sample {token} that cannot be: translation {bad.translation}, size {bad.size}, rotation "
                    f"{bad.rotation}, velocity {bad.velocity}; give finite numbers up to {FARTHEST:g}, sizes above 0 and a rotation"
                )
            boxes.boxes[token] = self._counted(frame).boxes[token]
        if others or len(boxes) < len(known):
            first, given = min([*others, *(known - set(boxes.boxes))]), {*others, *boxes.boxes}
            whose = () if self.index is None else origin_of(self.index, given)
            raise FD3DError(
                f"{submission} has {len(boxes)} of the {counted(len(known), 'sample')} of {split} and {counted(len(others), 'other')}, "
                f"first {ascii(first)[1:-1]:.80}: {'; '.join(whose or ['give one of this split'])}"
            )
        return boxes


def _no_number(record: Mapping[str, Any]) -> tuple[str, Any, str] | None:
    """The first field of a record that must be numbers and is not: its name, its value and what it must be. Missing fields and wrong
    numbers of numbers are the devkit's to refuse."""
    lists = [record[name] for name in _LISTS if name in record]
    if "num_pts" not in record and all(type(one) is list for one in lists) and set(map(type, chain(*lists))) == {float}:
        return None  # as nearly all records are
    for name, count in _LISTS.items():
        value = record.get(name, [])
        if not isinstance(value, list) or not all(map(_is_number, value)):
            return name, value, f"{count} numbers"
    points = record.get("num_pts", -1)
    if not (_is_number(points) and abs(points) < _TOO_LARGE):
        return "num_pts", points, "a whole number, or leave it out"
    return None


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < _TOO_LARGE)


def _impossible(boxes: list[DetectionBox]) -> DetectionBox | None:
    """The first box that cannot be; a velocity that is not known may be NaN."""
    numbers = [[*box.translation, *box.size, *box.rotation, *box.velocity] for box in boxes]
    values = np.array(numbers, dtype=np.float64).reshape(len(boxes), 12)
    bad = ~possible(values[:, :10]) | (np.abs(values[:, 10:]) > FARTHEST).any(1)
    return boxes[int(bad.argmax())] if bad.any() else None


def _results(submission: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Token and records of every frame of a submission.

    Raises:
        FD3DError: the file is missing or no submission.
    """
    try:
        with open(submission, encoding="utf-8-sig") as file:
            stream = JSONStream(file)
            found = False
            for key in stream.members():
                if key != "results":
                    stream.value()
                    continue
                if found:
                    raise ValueError("'results' is there twice")
                found = True
                for token in stream.members():
                    yield token, stream.value()
            stream.end()
    except (OSError, ValueError) as error:
        if isinstance(error, FD3DError):
            raise
        raise FD3DError(f"submission {submission} cannot be read: {error}") from error


def _is_score(value: Any) -> bool:
    return (
        type(value) in (int, float) and 0 <= value <= sys.float_info.max
    )  # compared exactly, where a float of it would overflow


def _told(error: Exception) -> str:
    """A refusal of the devkit in a line; some have no words of their own."""
    if words := " ".join(str(error).split()):
        return f"{type(error).__name__}: {words:.160}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {last.line}"


def _shared_texts(record: dict[str, Any]) -> dict[str, Any]:
    """The record with one copy of each text for all records."""
    return {name: sys.intern(value) if isinstance(value, str) else value for name, value in record.items()}


def _write_curves(curves: DetectionMetricDataList, path: Path, distance: float = 2.0) -> None:
    def write(file: Any) -> None:
        writer = csv.writer(file)
        writer.writerow(["class", "recall", "precision"])
        for (name, threshold), data in sorted(curves.md.items()):
            if threshold == distance:
                writer.writerows(
                    (name, round(r, 3), round(p, 4)) for r, p in zip(data.recall[::5], data.precision[::5], strict=True)
                )

    write_atomically(path, write)
