"""Detectors from checkpoints, on the best device."""

from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from pipeline.models.build import build_detector
from pipeline.models.checkpoints import load_checkpoint
from pipeline.models.corruption import Corruption, corrupt


def best_device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_detector(cfg: Config, checkpoint: Path | None, seed: int = 0) -> nn.Module:
    """A detector in evaluation mode on the best device; without a checkpoint its weights are random from ``seed``.

    A config with ``corruption`` makes the detector worse on purpose (:mod:`pipeline.models.corruption`).

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
