"""Detection metrics by the devkit's own evaluation."""

import contextlib
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes
from nuscenes.eval.detection.data_classes import DetectionMetricDataList
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.nuscenes import NuScenes

from pipeline.data.devkit import TABLES, open_truth
from pipeline.data.folder import table_folder
from pipeline.data.index import FrameIndex
from pipeline.data.json_stream import rows_of
from pipeline.data.splits import split_scenes
from pipeline.errors import FD3DError
from pipeline.evaluation.submitted import REFUSALS, RULES, submitted, told
from pipeline.files import write_atomically

# the devkit's names of the true-positive errors and the benchmark's
ERRORS = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}
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
        except REFUSALS as error:
            raise FD3DError(f"submission {submission} cannot be evaluated: {told(error)}") from error
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
        self.nusc, self.cfg, self.verbose = nusc, config_factory(RULES), False
        self.pred_boxes = EvalBoxes()
        for token, boxes in submitted(submission, split, truth.sample_tokens, index):
            self.pred_boxes.boxes[token] = self._counted(boxes).boxes[token]
        self.gt_boxes = self._counted(truth)
        self.sample_tokens = self.gt_boxes.sample_tokens

    def _counted(self, boxes: EvalBoxes) -> EvalBoxes:
        """Boxes that the metrics count: within the range of their class, with points, not in a bicycle rack."""
        if not boxes.all:  # the devkit cannot tell the kind of no boxes
            return boxes
        return filter_eval_boxes(self.nusc, add_center_dist(self.nusc, boxes), self.cfg.class_range)


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
