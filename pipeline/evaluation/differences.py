"""How far the detections of two programs on one frame lie apart."""

import numpy as np

from pipeline.evaluation.live import Boxes


def difference(ours: Boxes, theirs: Boxes) -> tuple[float, float]:
    """Largest difference of boxes (metres, radians, m/s) and of scores, each box against its nearest of its class.

    The boxes' order counts for nothing, since equal scores have none. Both are infinite where a box has no counterpart.
    """
    if len(ours.boxes) != len(theirs.boxes):
        return float("inf"), float("inf")
    if not len(ours.boxes):
        return 0.0, 0.0
    boxes = np.abs(_rows(ours)[:, None] - _rows(theirs)[None]).max(-1)
    scores = np.abs(ours.scores[:, None] - theirs.scores[None])
    apart = np.where(ours.labels[:, None] == theirs.labels[None], np.maximum(boxes, scores), np.inf)
    pairs = [
        *zip(range(len(apart)), apart.argmin(1), strict=True),
        *zip(apart.argmin(0), range(len(apart)), strict=True),
    ]
    if not all(np.isfinite(apart[pair]) for pair in pairs):
        return float("inf"), float("inf")
    return max(float(boxes[pair]) for pair in pairs), max(float(scores[pair]) for pair in pairs)


def _rows(found: Boxes) -> np.ndarray:
    yaw = found.boxes[:, 6:7]
    return np.concatenate([found.boxes[:, :6], np.sin(yaw), np.cos(yaw), found.boxes[:, 7:]], 1)
