"""Frames as stage 1 takes them from an expert of any family."""

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor


@dataclass
class BEVReading:
    """Positions at which the queries of every decoder layer read the BEV map.

    Attributes:
        sampling: (L, K, M, P, 2) x, y in 0..1 of the BEV extent.
        attention: (L, K, M, P) attention weights.
    """

    sampling: Tensor
    attention: Tensor


@dataclass
class CameraReading:
    """Values that the queries of every decoder layer read from the cameras' pyramids.

    Attributes:
        points: (L, K, 3) metres, LiDAR frame: the points that are projected.
        weights: (L, K, V, levels) weights of each camera and level, 0 where a point is not visible.
        sampled: (L, K, C) the weighted sum of the pyramid samples.
    """

    points: Tensor
    weights: Tensor
    sampled: Tensor


@dataclass
class ExpertFrame:
    """Outputs of the expert for one frame, on the expert's device. K queries, best score first.

    Attributes:
        boxes: (K, 9) LiDAR frame, z of the centre.
        score: (K,) score of the best class.
        label: (K,) class numbers.
        bev: (C, H, W), row = y, column = x; None for an expert without a BEV map.
        pv: levels of (V, C, Hl, Wl); empty for an expert without a camera pyramid.
        image_hw: rows and columns of the padded image that the pyramid divides.
        view_hw: (V, 2) rows and columns of each camera's own image, where images differ in size.
        reference: (K, 3) in 0..1, entering the last decoder layer; None where the expert has no queries.
        features: (K, C) query states of the last layer; None where the expert has no queries.
        reading: readings of the queries; None where unknown.
    """

    boxes: Tensor
    score: Tensor
    label: Tensor
    bev: Tensor | None = None
    pv: list[Tensor] = field(default_factory=list)
    image_hw: tuple[int, int] | None = None
    view_hw: np.ndarray | None = None
    reference: Tensor | None = None
    features: Tensor | None = None
    reading: BEVReading | CameraReading | None = None
