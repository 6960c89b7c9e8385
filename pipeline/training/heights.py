"""Does a detector look where a data set's objects are? Heights of a config against annotated boxes."""

import warnings
from collections.abc import Sequence

import numpy as np
from mmengine.config import Config

from pipeline.data.index import FrameIndex

_BELOW = 0.5  # metres below the ground, from which a height is wasted
_OUTSIDE = 0.2  # share of boxes outside the range of heights, from which the range is doubted


def warn_of_heights(cfg: Config, index: FrameIndex, rows: Sequence[int]) -> None:
    """Warn of a config whose range or pillars are of another frame of reference than the data: a LiDAR's origin is two metres
    above the ground, the car's on it.

    Args:
        cfg: config of the detector.
        rows: rows of the frames that it is trained on.
    """
    if "pc_range" not in cfg:
        return
    offsets = index.arrays["box_offsets"]
    boxes = index.arrays["boxes"][np.concatenate([np.arange(offsets[row], offsets[row + 1]) for row in rows])]
    boxes = boxes[np.isfinite(boxes[:, :6]).all(1)]
    low, high = cfg.pc_range[2], cfg.pc_range[5]
    if not len(boxes):
        return
    config = cfg.filename or "the config"
    outside = float(np.mean((boxes[:, 2] < low) | (boxes[:, 2] > high)))
    if outside > _OUTSIDE:
        warnings.warn(
            f"{outside:.0%} of the boxes are outside the heights {low:g} to {high:g} m of pc_range of {config}; set pc_range for the frame of "
            f"{index.reference}",
            stacklevel=3,
        )
    ground = float(np.median(boxes[:, 2] - boxes[:, 5] / 2))
    heights = _pillar_heights(cfg, low, high)
    wasted = int((heights < ground - _BELOW).sum())
    if len(heights) and 2 * wasted >= len(heights):
        warnings.warn(
            f"{wasted} of {len(heights)} pillar_heights of {config} are below the ground, which is at {ground:.1f} m of the frame of "
            f"{index.reference} (the boxes' median lower side); set pillar_heights and pc_range for this frame",
            stacklevel=3,
        )


def _pillar_heights(cfg: Config, low: float, high: float) -> np.ndarray:
    """Metres, as of :class:`~pipeline.models.bevformer.encoder.BEVFormerEncoder`; none of a detector without pillars."""
    head = cfg.model.get("pts_bbox_head") or {}
    encoder = (head.get("transformer") or {}).get("encoder") or {}
    if given := encoder.get("pillar_heights"):
        return np.array(given, dtype=float)
    number = encoder.get("num_points_in_pillar", 0)
    return low + np.linspace(0.5, high - low - 0.5, number)
