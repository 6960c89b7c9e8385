"""Course of a training: updates, accumulation and learning rate from a schedule, the data set and the processes."""

import math
from dataclasses import dataclass

from pipeline.errors import FD3DError, counted
from pipeline.training.settings import RunSettings, Schedule

_START, _END = 1 / 3, 1e-3
"""Share of the rate that a warm-up starts from, and share that a cosine ends at (BEVFormer's schedule)."""
_CYCLE_START, _CYCLE_END = 25.0, 1e4
"""Peak over first rate of a one-cycle, and first over last rate; at most this share of the updates rises."""
_CYCLE_RISE = 0.9


@dataclass(frozen=True)
class Course:
    """What a schedule comes to on a number of processes.

    Attributes:
        processes: processes that train together.
        batch_size: frames per process and iteration.
        accumulate: iterations whose gradients make one update.
        updates: optimiser steps.
        warmup: updates that the learning rate rises for.
        policy: ``cosine`` or ``onecycle``.
        epochs: passes that a cosine is constant within; None lets the cosine fall at every update.
        epoch_length: updates of an epoch; the last epoch takes what remains.
    """

    processes: int
    batch_size: int
    accumulate: int
    updates: int
    warmup: int
    policy: str
    epochs: int | None = None
    epoch_length: int = 1

    @property
    def batch(self) -> int:
        """Frames per update."""
        return self.processes * self.batch_size * self.accumulate

    @property
    def iterations(self) -> int:
        """Batches that every process takes."""
        return self.updates * self.accumulate

    def __str__(self) -> str:
        return f"{self.batch} = {counted(self.processes, 'process')} x {self.batch_size} x {self.accumulate} accumulated; {self.updates:,} updates"

    def learning_rate(self, update: int, base: float) -> float:
        """Learning rate of an update, counted from 0; ``base`` is the rate at the peak.

        A cosine is counted from the first update, and the linear warm-up scales it (mmcv's schedule, which BEVFormer and
        FD3D's release train by); a one-cycle is that of Smith and Topin (2018) in two phases.
        """
        if self.policy == "onecycle":
            first = base / _CYCLE_START
            peak = float(min(self.warmup / self.updates, _CYCLE_RISE) * self.updates) - 1
            if update <= peak and peak > 0:
                return _cosine(first, base, update / peak)
            peak = max(peak, 0.0)
            return _cosine(base, first / _CYCLE_END, (update - peak) / (self.updates - 1 - peak))
        done = update / self.updates
        if self.epochs is not None:
            done = min(update // self.epoch_length, self.epochs - 1) / self.epochs
        rate = _cosine(base, base * _END, done)
        if update < self.warmup:
            rate *= 1 - (1 - update / self.warmup) * (1 - _START)
        return rate


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * done) + 1)


def plan_course(schedule: Schedule, settings: RunSettings, frames: int, processes: int) -> Course:
    """The course of a training.

    Args:
        schedule: of the detector's config.
        settings: whose ``max_iters`` and ``batch_size`` replace the schedule's; a schedule in epochs is then compressed.
        frames: items of the data set.
        processes: processes that train together.

    Raises:
        FD3DError: the batch of an update cannot be reached, or there are too few updates.
    """
    batch_size = settings.batch_size or schedule.batch_size
    together = processes * batch_size
    batch = schedule.base_batch or together
    if batch % together:
        raise FD3DError(
            f"schedule.base_batch is {batch}, which {counted(processes, 'process')} x {counted(batch_size, 'frame')} "
            "do not divide; choose another number of processes, or another train.batch_size"
        )
    if schedule.epochs is None:
        updates, length = settings.max_iters or schedule.max_iters or 0, 1
    else:
        updates = settings.max_iters or schedule.epochs * frames // batch
        length = max(1, (updates // schedule.epochs) if settings.max_iters else frames // batch)
    if updates < 4:
        planned = (
            ""
            if schedule.epochs is None
            else f" ({counted(schedule.epochs, 'epoch')} of {counted(frames, 'frame')}, {batch} an update)"
        )
        raise FD3DError(
            f"{counted(updates, 'update')} planned{planned}; a schedule with warm-up and decay needs at least 4"
        )
    return Course(
        processes=processes,
        batch_size=batch_size,
        accumulate=batch // together,
        updates=updates,
        warmup=min(schedule.warmup_iters, updates // 2),
        policy=schedule.policy,
        epochs=schedule.epochs if schedule.by_epoch else None,
        epoch_length=length,
    )
