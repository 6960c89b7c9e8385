"""Detection metrics by the devkit's own evaluation."""

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.data_classes import DetectionMetricDataList
from nuscenes.eval.detection.evaluate import DetectionEval

from pipeline.data.tables import open_scenes, split_scenes, table_folder
from pipeline.errors import FD3DError
from pipeline.files import write_atomically

# the devkit's names of the true-positive errors and the benchmark's
ERRORS = {"trans_err": "mATE", "scale_err": "mASE", "orient_err": "mAOE", "vel_err": "mAVE", "attr_err": "mAAE"}


def evaluate(submission: Path, root: Path, version: str, split: str, work_dir: Path) -> dict[str, Any]:
    """Evaluate a submission by ``detection_cvpr_2019``.

    Args:
        work_dir: folder for ``pr.csv``, precision over recall per class at 2 m.

    Returns:
        NDS and mAP in percent, the five mean errors (m, 1 - IoU, rad, m/s, 1 - accuracy), AP in percent and errors by class.

    Raises:
        FD3DError: the split is unknown or the submission does not cover it.
    """
    nusc = open_nuscenes(root, version)
    splits = split_scenes(root, version)
    if split not in splits:
        raise FD3DError(f"split '{split}' is unknown; the data set has {', '.join(splits)}")
    wanted = {s["token"] for s in nusc.sample if nusc.get("scene", s["scene_token"])["name"] in splits[split]}
    given = set(json.loads(submission.read_text())["results"])
    if wanted - given or given - wanted:
        odd = sorted(wanted ^ given)[0]
        raise FD3DError(
            f"{submission} has {len(given & wanted)} of the {len(wanted)} samples of {split} and {len(given - wanted)} others, first {odd}"
        )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        evaluation = DetectionEval(
            nusc, config_factory("detection_cvpr_2019"), str(submission), split, str(work_dir), verbose=False
        )
        metrics, curves = evaluation.evaluate()
    found = metrics.serialize()
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
