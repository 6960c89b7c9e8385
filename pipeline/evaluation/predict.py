"""Detectors in prediction mode: scenes in time order, history streamed."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from pipeline.data.frames import frame_batches
from pipeline.data.source import FrameSource
from pipeline.expert import build_adapter
from pipeline.models.detector import MultiCameraDetector


@torch.no_grad()
def predict(
    cfg: Config, model: nn.Module, source: FrameSource, workers: int = 1, rows: Sequence[int] | None = None
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Detect on a split.

    Args:
        rows: as in :func:`frame_batches`; of each scene the first frames without a gap, in time order.

    Yields:
        token, boxes (n, 9) in the LiDAR frame with centres of gravity, scores (n,), labels (n,).

    Raises:
        FD3DError: the detector is none of this project's, and its config has no adapter that says what it takes and gives.
    """
    if not isinstance(model, MultiCameraDetector):
        yield from _predict_foreign(cfg, model, source, workers, rows)
        return
    for batch in frame_batches(cfg, source, rows, workers):
        for sample in model.predict(**model.data_preprocessor(batch)):
            found = sample.pred_instances_3d
            boxes = found.bboxes_3d
            tensor = torch.cat([boxes.gravity_center, boxes.tensor[:, 3:]], -1)
            yield sample.token, *(t.cpu().numpy() for t in (tensor, found.scores_3d, found.labels_3d))


def _predict_foreign(
    cfg: Config, model: nn.Module, source: FrameSource, workers: int, rows: Sequence[int] | None
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """:func:`predict` of a detector of another project, through its adapter."""
    adapter = build_adapter(cfg)
    for batch in frame_batches(cfg, source, rows, workers):
        given = model.data_preprocessor(adapter.prepare(batch))
        found = adapter.detections(model.predict(given["inputs"], given["data_samples"]))
        for sample, frame in zip(batch["data_samples"], found, strict=True):
            yield sample.token, *(t.cpu().numpy() for t in (frame.boxes, frame.scores, frame.labels))
