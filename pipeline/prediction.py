"""Detectors in prediction mode: scenes in time order, history streamed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet3d.registry import DATASETS
from mmengine.config import Config
from torch import nn
from torch.utils.data import DataLoader, Subset

from pipeline.expert import Corruption, corrupt
from pipeline.models.build import build_detector
from pipeline.models.checkpoints import load_checkpoint
from pipeline.training import FrameSource, frame_dataset


def best_device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_detector(cfg: Config, checkpoint: Path | None, seed: int = 0) -> nn.Module:
    """A detector in evaluation mode on the best device; without a checkpoint its weights are random from ``seed``.

    A config with ``corruption`` makes it worse on purpose (:mod:`pipeline.expert.corruption`).

    Raises:
        FD3DError: the checkpoint is missing or does not fit.
    """
    torch.manual_seed(seed)
    model = build_detector(cfg)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    model.eval()
    if "corruption" in cfg:
        corrupt(model, Corruption.from_config(cfg.corruption))
    return model.to(best_device())


def frame_batches(
    cfg: Config, source: FrameSource, rows: Sequence[int] | None, workers: int
) -> Iterator[dict[str, Any]]:
    """Collated batches of one frame each, decoded ahead by ``workers`` processes.

    Args:
        rows: dataset rows in the order wanted; None is the whole split.
    """
    dataset = DATASETS.build(frame_dataset(cfg, source, train=False))
    subset = dataset if rows is None else Subset(dataset, list(rows))
    context = "forkserver" if workers else None
    loader = DataLoader(subset, 1, num_workers=workers, collate_fn=collate, multiprocessing_context=context)
    yield from loader


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A list of items to the layout that data preprocessors take."""
    return {
        "inputs": {"img": [item["inputs"]["img"] for item in items]},
        "data_samples": [item["data_samples"] for item in items],
    }


@torch.no_grad()
def predict(
    cfg: Config, model: nn.Module, source: FrameSource, workers: int = 1, rows: Sequence[int] | None = None
) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Detect on a split.

    Args:
        rows: as in :func:`frame_batches`; of each scene the first frames without a gap, in time order.

    Yields:
        token, boxes (n, 9) in the LiDAR frame with centres of gravity, scores (n,), labels (n,).
    """
    for batch in frame_batches(cfg, source, rows, workers):
        for sample in model.predict(**model.data_preprocessor(batch)):
            found = sample.pred_instances_3d
            boxes = found.bboxes_3d
            tensor = torch.cat([boxes.gravity_center, boxes.tensor[:, 3:]], -1)
            yield sample.token, *(t.cpu().numpy() for t in (tensor, found.scores_3d, found.labels_3d))
