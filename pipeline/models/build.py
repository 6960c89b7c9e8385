"""From a config and a checkpoint to a detector."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import nn

from pipeline.errors import FD3DError


def load_config(path: str | Path) -> Config:
    """Read an mmengine config file.

    Raises:
        FD3DError: there is no such file, or it is no config.
    """
    if not Path(path).is_file():
        raise FD3DError(f"config {path} does not exist; see configs/ for those that ship")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is code: whatever it raises is the reader's to see, in one line
        raise FD3DError(f"config {path} cannot be read: {type(error).__name__}: {error}") from error
    # data sets, transforms and models are looked up in mmdet3d's registries
    init_default_scope("mmdet3d")
    return cfg


def build_detector(cfg: Config) -> nn.Module:
    """Build ``cfg.model`` with freshly initialised weights."""
    model = MODELS.build(cfg.model)
    # mmengine logs a line for every parameter that it initialises
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel("WARNING")
    model.init_weights()
    logger.setLevel(level)
    return model


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A checkpoint's state dict (bare, or under ``state_dict``) and how it was trained (``training``, else empty).

    Nothing in the file is executed.

    Raises:
        FD3DError: the file is missing, truncated, or holds more than tensors and plain values.
    """
    if not Path(path).is_file():
        raise FD3DError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:120]
        raise FD3DError(
            f"checkpoint {path} is not a plain PyTorch checkpoint ({reason}); save a state dict of tensors"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise FD3DError(f"checkpoint {path} holds no state dict; expected tensors by name, bare or under 'state_dict'")
    training = content.get("training")
    return state, training if isinstance(training, dict) else {}


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint strictly.

    Raises:
        FD3DError: listing missing, unexpected and mismatched keys.
    """
    (state, _), own = read_checkpoint(path), model.state_dict()
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    mismatched = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    problems = [
        f"{len(keys)} {kind} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched))
        if keys
    ]
    if problems:
        raise FD3DError(f"checkpoint {path} does not fit the config: {'; '.join(problems)}")
    model.load_state_dict(state)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
