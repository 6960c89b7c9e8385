"""Evaluation of a detector, from checkpoint to metrics."""

import json
from pathlib import Path
from typing import Any

import torch

from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.evaluation.metrics import evaluate
from pipeline.evaluation.predict import predict
from pipeline.evaluation.submission import write_submission
from pipeline.files import write_atomically
from pipeline.models.build import load_config
from pipeline.models.load import load_detector


def evaluate_detector(
    config: Path, checkpoint: Path, source: FrameSource, version: str, out: Path, metrics: Path, workers: int
) -> dict[str, Any]:
    """Detect on a split, write submission and metrics.

    Args:
        version: folder of the data set's tables.
        out: folder for ``submission.json`` and ``pr.csv``.
        metrics: JSON file for the returned metrics.
        workers: processes that decode images.

    Returns:
        metrics as of :func:`~pipeline.evaluation.metrics.evaluate`.

    Raises:
        FD3DError: a file is missing or does not fit, or a detection is not finite.
    """
    if not checkpoint.is_file():
        raise FD3DError(f"checkpoint {checkpoint} does not exist; run 'dvc repro', or give another by --checkpoint")
    torch.set_num_threads(1)
    cfg = load_config(config)
    model = load_detector(cfg, checkpoint)
    index, detections = FrameIndex.load(source.index, source.root), predict(cfg, model, source, workers)
    write_submission(out / "submission.json", index, detections)
    del model, detections  # the metrics need their memory
    found = evaluate(out / "submission.json", source.root, version, source.split, out)
    write_atomically(metrics, lambda file: json.dump(found, file, indent=1))
    return found
