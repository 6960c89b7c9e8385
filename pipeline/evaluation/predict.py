"""Detectors in prediction mode: scenes in time order, history streamed."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from pipeline.data.frames import frame_batches
from pipeline.data.source import FrameSource
from pipeline.expert import adapter_of
from pipeline.expert.declared import foreign_errors
from pipeline.expert.detections import check_detections
from pipeline.models.detector import MultiCameraDetector

Detection = tuple[str, np.ndarray, np.ndarray, np.ndarray]
"""Token, boxes (n, 9) in the LiDAR frame with centres of gravity, scores (n,), labels (n,)."""


def predict(
    cfg: Config, model: nn.Module, source: FrameSource, workers: int = 1, rows: Sequence[int] | None = None
) -> Iterator[Detection]:
    """Detect on a split.

    Args:
        rows: as in :func:`frame_batches`; of each scene the first frames without a gap, in time order.

    Raises:
        FD3DError: the detector is none of this project's, and its config has no adapter that says what it takes and gives.
    """
    detect = batch_detector(cfg, model)
    for batch in frame_batches(cfg, source, rows, workers):
        yield from detect(batch)


def batch_detector(cfg: Config, model: nn.Module) -> Callable[[dict[str, Any]], list[Detection]]:
    """The function from a collated batch of :func:`frame_batches` to the detections of its frames.

    Raises:
        FD3DError: as :func:`predict`.
    """
    if isinstance(model, MultiCameraDetector):
        return partial(_detect_own, model)
    return partial(_detect_foreign, adapter_of(cfg, model), model)


@torch.no_grad()
def _detect_own(model: MultiCameraDetector, batch: dict[str, Any]) -> list[Detection]:
    found = []
    for sample in model.predict(**model.data_preprocessor(batch)):
        boxes = sample.pred_instances_3d.bboxes_3d
        tensor = torch.cat([boxes.gravity_center, boxes.tensor[:, 3:]], -1)
        found.append(_on_host(sample, tensor, sample.pred_instances_3d.scores_3d, sample.pred_instances_3d.labels_3d))
    return found


@torch.no_grad()
def _detect_foreign(adapter: Any, model: nn.Module, batch: dict[str, Any]) -> list[Detection]:
    """Detections of a detector of another project, through its adapter."""
    with foreign_errors(adapter, model):
        given = model.data_preprocessor(adapter.prepare(batch))
        found = adapter.detections(model.predict(given["inputs"], given["data_samples"]))
        for frame in found:
            check_detections(frame, type(adapter).__name__)
    frames = zip(batch["data_samples"], found, strict=True)
    return [_on_host(sample, frame.boxes, frame.scores, frame.labels) for sample, frame in frames]


def _on_host(sample: Any, *tensors: Tensor) -> Detection:
    boxes, scores, labels = (t.cpu().numpy() for t in tensors)
    return sample.token, boxes, scores, labels
