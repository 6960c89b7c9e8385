"""Frames as stage 1 takes them from an expert of any family."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.data import CLASSES
from pipeline.errors import FD3DError, counted


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
        view_hw: (V, 2) rows and columns of each camera's own image, in pixels of the padded image, where images differ in size: areas end there.
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


def check_frame(frame: object, num_queries: int, adapter: str) -> None:
    """Refuse what an adapter gave, if it is not as :class:`ExpertFrame` says; numbers that are not finite are left to the dump, which
    names the frame.

    Args:
        num_queries: K that was asked for.
        adapter: name of the adapter in messages.

    Raises:
        FD3DError: naming the part.
    """
    if not isinstance(frame, ExpertFrame):
        raise FD3DError(f"{adapter}.read gave {type(frame).__name__} for a frame; give an ExpertFrame")
    wanted = {"boxes": (num_queries, 9), "score": (num_queries,), "label": (num_queries,)}
    for name, shape in wanted.items():
        part = getattr(frame, name)
        told = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
        if told != shape:
            raise FD3DError(
                f"{adapter}.read gave {name} {told} for {counted(num_queries, 'query')}; give a tensor {shape}"
            )
    maps = {"bev": (frame.bev, 3)} if frame.bev is not None else {}
    for name, (part, dims) in (maps | {f"pv[{i}]": (level, 4) for i, level in enumerate(frame.pv)}).items():
        if not isinstance(part, Tensor) or part.dim() != dims:
            told = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
            raise FD3DError(f"{adapter}.read gave {name} {told}; give a tensor of {dims} dimensions")
    if frame.view_hw is not None and frame.pv and np.shape(frame.view_hw) != (len(frame.pv[0]), 2):
        raise FD3DError(
            f"{adapter}.read gave view_hw {np.shape(frame.view_hw)} for {counted(len(frame.pv[0]), 'camera')}; give rows and columns of each "
            "camera's own image, or leave it out where images have one size"
        )
    label, score = frame.label, frame.score
    if label.is_floating_point() or not ((label >= 0) & (label < len(CLASSES))).all():
        raise FD3DError(
            f"{adapter}.read gave the label {label.max().item():g}; give numbers of pipeline.data.CLASSES, 0 to {len(CLASSES) - 1}"
        )
    if ((score < 0) | (score > 1)).any():
        raise FD3DError(f"{adapter}.read gave scores of {score.min():g} to {score.max():g}; give scores in 0..1")
    if (torch.diff(score) > 0).any():
        raise FD3DError(f"{adapter}.read gave queries that are not in the order of their scores; give the best first")
