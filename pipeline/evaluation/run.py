"""Evaluation of a detector, from checkpoint to metrics."""

import json
from pathlib import Path
from typing import Any

import torch

from pipeline.data.devkit import open_truth
from pipeline.data.images import check_images
from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.evaluation.early import frames_to_evaluate
from pipeline.evaluation.metrics import evaluate, evaluated_scenes
from pipeline.evaluation.predict import predict
from pipeline.evaluation.submission import write_submission
from pipeline.evaluation.submitted import submitted
from pipeline.files import check_needed, file_sha256, write_atomically
from pipeline.models.build import load_config
from pipeline.models.load import load_detector
from pipeline.models.pairs import check_data


def evaluate_detector(
    config: Path, checkpoint: Path, source: FrameSource, version: str, out: Path, metrics: Path, workers: int
) -> dict[str, Any]:
    """Detect on a split, write submission and metrics.

    Args:
        version: folder of the data set's tables.
        out: folder for ``submission.json`` and ``pr.csv``.
        metrics: JSON file for the returned metrics; what was evaluated is noted in it, see :func:`score`.
        workers: processes that decode images.

    Returns:
        metrics as of :func:`score`.

    Raises:
        FD3DError: a file is missing or does not fit, the split cannot be evaluated, a place cannot be written, or a detection
            is not finite; all but the last before the detector runs.
    """
    check_needed(checkpoint=checkpoint)
    index = check_evaluation(source, version, out, metrics)
    cfg = load_config(config)
    check_data(cfg, checkpoint, index, source.root)
    check_images(index, source.root, index.select(source.split), source.index)
    torch.set_num_threads(1)
    detector = file_sha256(checkpoint)
    model = load_detector(cfg, checkpoint)
    detections = predict(cfg, model, source, workers)
    write_submission(out / "submission.json", index, detections)
    del model, detections  # the metrics need their memory
    return score(out / "submission.json", index, source, out, metrics, detector)


def check_evaluation(
    source: FrameSource, version: str, out: Path, metrics: Path, submission: Path | None = None
) -> FrameIndex:
    """The index of frames that can be evaluated; arguments as of :func:`evaluate_detector`.

    Args:
        submission: the one to score, where no detector runs.

    Raises:
        FD3DError: index, tables or split do not fit each other, the split has boxes of which none counts, or a place cannot be
            written.
    """
    check_needed(submission=submission)
    index = frames_to_evaluate(source, version, out, metrics)
    scenes = evaluated_scenes(source.root, version, source.split)
    if index.boxes_of(index.select(source.split))[0]:
        open_truth(source.root, version, scenes, index)  # what the devkit refuses is known before hours of detection
    return index


def score(
    submission: Path, index: FrameIndex, source: FrameSource, out: Path, metrics: Path, detector: str | None = None
) -> dict[str, Any]:
    """Evaluate a submission and write the metrics; arguments as of :func:`evaluate_detector`.

    Args:
        detector: SHA-256 of the checkpoint that detected; None where that is not known.

    Returns:
        metrics as of :func:`~pipeline.evaluation.metrics.evaluate`; none, and none written, for a split without annotations, of which
        the submission is compared all the same.
        ``evaluated`` has one entry: ``checkpoint_sha256``, ``index_sha256`` and ``split``.

    Raises:
        FD3DError: the submission is missing or damaged, or does not cover the split.
    """
    rows = index.select(source.split)
    if not index.boxes_of(rows)[0]:
        for _ in submitted(submission, source.split, [index[row].token for row in rows], index):
            pass  # each is compared when it is taken
        return {}
    found = evaluate(submission, source.root, index.version, source.split, out, index=index)
    # a list, since 'dvc metrics' leaves lists out: hashes are no columns of a table of numbers
    found["evaluated"] = [{"checkpoint_sha256": detector, "index_sha256": index.sha256, "split": source.split}]
    write_atomically(metrics, lambda file: json.dump(found, file, indent=1))
    return found
