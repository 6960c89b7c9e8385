"""Detections as a nuScenes submission."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.data import CLASSES
from pipeline.data.geometry import move_boxes
from pipeline.data.index import FrameIndex
from pipeline.errors import FD3DError
from pipeline.files import write_atomically

MAX_BOXES = 500  # per sample, the benchmark's limit
_MOVING = 0.2  # m/s, above which a box counts as moving (mmdet3d's rule)

# attribute when moving and when not
_ATTRIBUTES = {
    "car": ("vehicle.moving", "vehicle.parked"),
    "truck": ("vehicle.moving", "vehicle.parked"),
    "construction_vehicle": ("vehicle.moving", "vehicle.parked"),
    "trailer": ("vehicle.moving", "vehicle.parked"),
    "bus": ("vehicle.moving", "vehicle.stopped"),
    "motorcycle": ("cycle.with_rider", "cycle.without_rider"),
    "bicycle": ("cycle.with_rider", "cycle.without_rider"),
    "pedestrian": ("pedestrian.moving", "pedestrian.standing"),
    "barrier": ("", ""),
    "traffic_cone": ("", ""),
}

Detection = tuple[str, np.ndarray, np.ndarray, np.ndarray]


_META = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": True}


def to_submission(index: FrameIndex, detections: Iterable[Detection]) -> dict[str, Any]:
    """The submission of a camera-only detector.

    Args:
        detections: token, boxes (n, 9) in the LiDAR frame with centres of gravity, scores (n,), labels (n,).

    Raises:
        FD3DError: a value is not finite.
    """
    return {"meta": _META, "results": dict(_results(index, detections))}


def write_submission(path: Path, index: FrameIndex, detections: Iterable[Detection]) -> None:
    """Write the submission frame by frame, as ``json.dump`` of :func:`to_submission` would; arguments as there.

    Raises:
        FD3DError: a value is not finite.
    """

    def write(file: IO[str]) -> None:
        file.write(f'{{"meta": {json.dumps(_META)}, "results": {{')
        for number, (token, records) in enumerate(_results(index, detections)):
            file.write(f"{', ' if number else ''}{json.dumps(token)}: {json.dumps(records)}")
        file.write("}}")

    write_atomically(path, write)


def _results(index: FrameIndex, detections: Iterable[Detection]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for token, boxes, scores, labels in detections:
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise FD3DError(f"detections of frame {token} are not finite; look at the checkpoint")
        frame = index[index.row(token)]
        best = np.argsort(-scores, kind="stable")[:MAX_BOXES]
        moved = move_boxes(boxes[best].astype(np.float64), frame.ego2global @ frame.lidar2ego)
        yield (
            token,
            [
                _record(token, box, float(score), CLASSES[int(label)])
                for box, score, label in zip(moved, scores[best], labels[best], strict=True)
            ],
        )


def _record(token: str, box: np.ndarray, score: float, name: str) -> dict[str, Any]:
    yaw, velocity = box[6], box[7:9]
    moving, still = _ATTRIBUTES[name]
    return {
        "sample_token": token,
        "translation": [float(v) for v in box[:3]],
        "size": [float(box[i]) for i in (4, 3, 5)],
        "rotation": [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))],
        "velocity": [float(v) for v in velocity],
        "detection_name": name,
        "detection_score": score,
        "attribute_name": moving if np.hypot(*velocity) > _MOVING else still,
    }
