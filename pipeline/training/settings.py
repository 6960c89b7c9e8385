"""What a user can set about a training, beside its config."""

from dataclasses import dataclass
from pathlib import Path


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
