"""Settings of a training, beside the detector's config."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.augment import read_augment
from pipeline.errors import FD3DError
from pipeline.settings import from_mapping

POLICIES = ("cosine", "onecycle")


@dataclass(frozen=True)
class RunSettings:
    """Settings of one training's run; the detector's config says what is trained."""

    seed: int = 0
    """Seed of weights, shuffling and augmentation."""
    max_iters: int | None = None
    """Optimiser steps; default: the config's schedule."""
    workers: int = 1
    """Number of processes that decode images."""
    threads: int = 1
    """Torch threads of each process; two that spin on busy cores are far slower than one."""
    amp: bool = False
    """Whether to train in mixed precision, which needs a GPU."""
    checkpoint_every: int = 500
    """Iterations between checkpoints that a killed training resumes from."""
    cache_mb: int = 0
    """Memory of each of the ``workers`` for the expert's targets, MB."""
    curve_every: int | None = None
    """Iterations averaged into one row of ``losses.csv``; default: a twentieth of the schedule, at most 50."""
    snapshots: tuple[int, ...] = ()
    """Iterations whose weights are kept besides the last ones, as ``detector-ITERATION.pth``."""

    def __post_init__(self) -> None:
        least = {
            "seed": 0,
            "max_iters": 4,
            "workers": 0,
            "threads": 1,
            "checkpoint_every": 1,
            "cache_mb": 0,
            "curve_every": 1,
        }
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise FD3DError(f"train.{name} is {value}; it must be at least {lowest}")
        if self.seed >= 2**32:
            raise FD3DError(f"train.seed is {self.seed}; it must be below 2**32")


@dataclass(frozen=True)
class Inheritance:
    """Weights that a training starts from."""

    checkpoint: Path
    """Checkpoint of the expert."""
    modules: tuple[str, ...]
    """Paths of the student's modules that start from the checkpoint."""


@dataclass(frozen=True)
class Schedule:
    """Entry ``schedule`` of a detector's config."""

    max_iters: int
    """Optimiser steps."""
    warmup_iters: int
    """Steps of the linear warm-up, or of the rise of a one-cycle."""
    batch_size: int
    """Frames per step and process."""
    policy: str
    """Course of the learning rate: ``cosine`` after a warm-up, or ``onecycle`` (Smith and Topin, 2018)."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise FD3DError(f"schedule.policy is '{self.policy}'; use {' or '.join(POLICIES)}")
        for name, least in (("max_iters", 4), ("warmup_iters", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise FD3DError(f"schedule.{name} is {getattr(self, name)}; it must be at least {least}")


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
