"""What a user can set about a training, beside its config."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import FD3DError
from pipeline.settings import from_mapping

POLICIES = ("cosine", "onecycle")


@dataclass(frozen=True)
class RunSettings:
    """How one training runs; what it trains stands in its config."""

    seed: int = 0
    """Seeds weights, shuffling and augmentation."""
    max_iters: int | None = None
    """Overrides the config's schedule."""
    workers: int = 1
    """Processes that decode images."""
    threads: int = 1
    """Torch threads of each process; two that spin on busy cores are far slower than one."""
    amp: bool = False
    """Mixed precision; needs a GPU."""
    checkpoint_every: int = 500
    """Iterations between checkpoints that a killed training resumes from."""
    cache_mb: int = 0
    """MB of the expert's targets that each of the ``workers`` keeps in memory."""
    curve_every: int | None = None
    """Iterations averaged into one row of ``losses.csv``; by default a twentieth of the schedule, 50 at most."""
    snapshots: tuple[int, ...] = ()
    """Iterations whose weights are kept besides the last ones, as ``detector-ITERATION.pth``."""


@dataclass(frozen=True)
class Inheritance:
    """Weights that a training starts from."""

    checkpoint: Path
    """The expert's."""
    modules: tuple[str, ...]
    """Paths of the apprentice's modules that start from it."""


@dataclass(frozen=True)
class Schedule:
    """``schedule`` of a detector's config."""

    max_iters: int
    """Optimiser steps."""
    warmup_iters: int
    """Steps of a linear warm-up; of the rise of a one-cycle."""
    batch_size: int
    """Frames of a step, per process."""
    policy: str
    """Course of the learning rate: ``cosine`` after a warm-up, or ``onecycle`` (Smith and Topin, 2018)."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise FD3DError(f"schedule.policy is '{self.policy}'; use {' or '.join(POLICIES)}")
        for name, least in (("max_iters", 4), ("warmup_iters", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise FD3DError(f"schedule.{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class Augment:
    """``augment`` of a detector's config."""

    photometric: bool = False
    """Whether colours are distorted at random; the one augmentation, since others move pixels."""


def read_schedule(cfg: Mapping[str, Any]) -> Schedule:
    """A config's schedule; its ``augment`` is checked as well.

    Raises:
        FD3DError: an unknown name, or a value of a wrong type or out of range.
    """
    if "schedule" not in cfg:
        raise FD3DError(f"config {getattr(cfg, 'filename', '')} has no schedule, so it cannot be trained")
    from_mapping(Augment, dict(cfg.get("augment") or {}), "augment")
    made: Schedule = from_mapping(Schedule, dict(cfg["schedule"]), "schedule")
    return made
