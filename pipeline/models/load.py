"""Detectors from checkpoints, on the best device."""

from collections.abc import Mapping
from pathlib import Path

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

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
        load_checkpoint(model, checkpoint, cfg.get("adapter"))
    return _ready(cfg, model).to(best_device())


def detector_of(cfg: Config, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
    """A detector in evaluation mode with copies of the tensors of a state dict, as :func:`load_detector` would read them."""
    model = MODELS.build(cfg.model)
    model.load_state_dict(state)
    return _ready(cfg, model).to(device)


def _ready(cfg: Config, model: nn.Module) -> nn.Module:
    model.eval()
    if "corruption" in cfg:
        corrupt(model, Corruption.from_config(cfg.corruption))
    return model
