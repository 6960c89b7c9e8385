"""Settings of a training, beside the detector's config."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.augment import read_augment
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError, SettingError
from pipeline.settings import from_mapping

_MOST = 1024
"""Largest number of processes or threads that a machine is taken to bear."""
POLICIES = ("cosine", "onecycle")
_WHY = {"max_iters": ", for the warm-up and decay of the learning rate"}
"""Reasons for bounds that do not go without saying."""


@dataclass(frozen=True)
class RunSettings:
    """Settings of one training's run; the detector's config says what is trained."""

    seed: int = 0
    """Seed of weights, shuffling and augmentation."""
    max_iters: int | None = None
    """Optimiser steps; default: the config's schedule."""
    batch_size: int | None = None
    """Frames per process and iteration; default: the config's schedule, which says the frames of an update too."""
    workers: int = 1
    """Number of processes that decode images."""
    threads: int = 1
    """Torch threads of each process; two that spin on busy cores are far slower than one."""
    amp: bool = False
    """Whether to train in mixed precision, which needs a GPU."""
    checkpoint_every: int = 500
    """Optimiser steps between checkpoints that a killed training resumes from."""
    cache_mb: int = 0
    """Memory of each of the ``workers`` for the expert's targets, MB."""
    curve_every: int | None = None
    """Optimiser steps averaged into one row of ``losses.csv``; default: a twentieth of the schedule, at most 50. The last row
    may be of fewer."""
    snapshots: tuple[int, ...] = ()
    """Optimiser steps whose weights are kept besides the last ones, as ``detector-STEP.pth``."""
    validate_every: int | None = None
    """Passes over the training split between validations, rows of ``validation.csv``; the last step is validated too. None
    validates never."""
    validate_scenes: int | None = None
    """Number of scenes of a validation, spread evenly over the validation split; default: all."""
    tensorboard: bool = False
    """Whether to write losses, learning rate and validations for TensorBoard too; needs the extra ``tensorboard``."""

    def __post_init__(self) -> None:
        least = {
            "seed": 0,
            "max_iters": 4,
            "batch_size": 1,
            "workers": 0,
            "threads": 1,
            "checkpoint_every": 1,
            "cache_mb": 0,
            "curve_every": 1,
            "validate_every": 1,
            "validate_scenes": 1,
        }
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise SettingError(f"{name} is {value}; it must be at least {lowest}{_WHY.get(name, '')}")
        for name in ("workers", "threads"):
            if getattr(self, name) > _MOST:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be at most {_MOST}")
        if self.seed >= 2**32:
            raise SettingError(f"seed is {self.seed}; it must be below 2**32")


@dataclass(frozen=True)
class Validation:
    """Frames that a training is validated on."""

    source: FrameSource
    """Frames of the validation split."""
    version: str
    """Folder of the data set's tables below the root, which the devkit evaluates on."""


@dataclass(frozen=True)
class Initial:
    """Pretrained backbone and neck that a training starts from."""

    checkpoint: Path | None = None
    """Pretrained file; none starts from random weights."""
    setting: str = "init"
    """Name of the setting that names the file, in messages."""

    def check(self) -> None:
        """Refuse a file that is not there.

        Raises:
            FD3DError: naming the setting and the file.
        """
        if self.checkpoint is not None and not self.checkpoint.is_file():
            raise FD3DError(f"{self.setting} {self.checkpoint} does not exist; put the file there")


RANDOM = Initial()
"""Random weights everywhere."""


@dataclass(frozen=True)
class Inheritance:
    """Weights of an expert that a student's training starts from."""

    checkpoint: Path
    """Checkpoint of the expert."""
    modules: tuple[str, ...]
    """Paths of the student's modules that start from the checkpoint."""


@dataclass(frozen=True)
class Schedule:
    """Entry ``schedule`` of a detector's config."""

    warmup_iters: int
    """Optimiser steps of the linear warm-up, or of the rise of a one-cycle."""
    batch_size: int
    """Frames per process and iteration."""
    policy: str
    """Course of the learning rate: ``cosine`` with a warm-up, or ``onecycle`` (Smith and Topin, 2018)."""
    max_iters: int | None = None
    """Optimiser steps, where ``epochs`` is not given."""
    epochs: int | None = None
    """Passes over the data set, where ``max_iters`` is not given."""
    base_batch: int | None = None
    """Frames per optimiser step over all processes: gradients are accumulated up to it; default: processes x ``batch_size``."""
    by_epoch: bool = False
    """Whether a cosine is constant within an epoch, as published for BEVFormer, or falls at every step."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise FD3DError(f"schedule.policy is '{self.policy}'; use {' or '.join(POLICIES)}")
        least = {"max_iters": 4, "epochs": 1, "warmup_iters": 0, "batch_size": 1, "base_batch": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise FD3DError(f"schedule.{name} is {value}; it must be at least {lowest}{_WHY.get(name, '')}")
        if (self.max_iters is None) == (self.epochs is None):
            raise FD3DError(
                f"schedule.max_iters is {self.max_iters} and schedule.epochs is {self.epochs}; give one of them"
            )
        if self.epochs is not None and self.base_batch is None:
            raise FD3DError(
                "schedule.epochs needs schedule.base_batch, the frames of an optimiser step; published is 8"
            )
        if self.by_epoch and (self.epochs is None or self.policy != "cosine"):
            raise FD3DError("schedule.by_epoch needs schedule.epochs and the policy cosine; leave it out")


def read_schedule(cfg: Mapping[str, Any]) -> Schedule:
    """A config's schedule; its ``augment`` is checked as well.

    Raises:
        FD3DError: an unknown name, or a value of a wrong type or out of range.
    """
    if "schedule" not in cfg:
        raise FD3DError(f"config {getattr(cfg, 'filename', '')} has no schedule, so it cannot be trained")
    read_augment(cfg)
    made: Schedule = from_mapping(Schedule, dict(cfg["schedule"]), "schedule")
    return made
