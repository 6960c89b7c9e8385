"""Guards, curves and snapshots of a training, as hooks of mmengine's Runner."""

import csv
import resource
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from tqdm import tqdm

from pipeline.errors import FD3DError
from pipeline.files import write_atomically
from pipeline.models.pretrained import Taken, check_frozen, inherit_weights, take_pretrained
from pipeline.training.checkpoints import unwrapped
from pipeline.training.processes import average_buffers
from pipeline.training.schedule import Course
from pipeline.training.settings import Inheritance, Initial


def _number(value: Any) -> float:
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


class LearningRate(Hook):
    """Set the learning rate of every update; a pure function of the update, so that nothing of it is in a checkpoint.

    Args:
        course: course of the training.
        base: rate at the peak. A one-cycle gives it to all parameters; a cosine multiplies it where the config's
            ``paramwise_cfg`` says so.
    """

    priority = "HIGHEST"

    def __init__(self, course: Course, base: float) -> None:
        self.course, self.base = course, base
        self.bases: list[float] = []

    def before_run(self, runner: Runner) -> None:
        """Note each group's peak before a checkpoint's rates are loaded."""
        groups = runner.optim_wrapper.optimizer.param_groups
        self.bases = [self.base if self.course.policy == "onecycle" else group["lr"] for group in groups]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the rates."""
        update = runner.iter // self.course.accumulate
        for group, base in zip(runner.optim_wrapper.optimizer.param_groups, self.bases, strict=True):
            group["lr"] = self.course.learning_rate(update, base)


class LossCurve(Hook):
    """Write every logged loss term to a CSV file, one row per ``interval`` updates and one of a rest, averaged over all processes.

    Rows and the sums of a row that is begun are kept with the checkpoints: the curve of a resumed training is that of one
    which was never stopped, even where the file is gone.

    Args:
        path: of the CSV.
        interval: updates averaged into one row.
        accumulate: iterations of an update.
    """

    priority = "LOW"

    def __init__(self, path: Path, interval: int, accumulate: int = 1) -> None:
        self.path, self.interval, self.accumulate = path, interval, accumulate
        self.rows: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}
        self.count = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Go on from what :meth:`collect` gave."""
        state = checkpoint["hooks"]["LossCurve"]
        self.rows, self.sums, self.count = state["rows"], state["sums"], state["count"]

    def before_train(self, runner: Runner) -> None:
        """Write the rows of a training that goes on: it may have none left to add."""
        if self.rows and is_main_process():
            write_atomically(self.path, self._write)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Accumulate, and write at the interval."""
        for name, value in (outputs or {}).items():
            self.sums[name] = self.sums.get(name, 0.0) + _number(value)
        self.count += 1
        update, rest = divmod(runner.iter + 1, self.accumulate)
        if not rest and update % self.interval == 0:
            self._add_row(update)

    def after_train(self, runner: Runner) -> None:
        """Write what is left as a shorter last row: a training of fewer updates than the interval has a curve too."""
        if self.count:
            self._add_row(runner.iter // self.accumulate)

    def _add_row(self, update: int) -> None:
        self._average()
        self.rows.append({"step": update} | {name: round(v / self.count, 5) for name, v in self.sums.items()})
        self.sums, self.count = {}, 0
        if is_main_process():
            write_atomically(self.path, self._write)

    def collect(self) -> dict[str, Any]:
        """For a checkpoint: rows, and sums of the row that is begun; called by all processes at once."""
        self._average()
        return {"rows": self.rows, "sums": self.sums, "count": self.count}

    def _average(self) -> None:
        """Give all processes the mean of their sums."""
        if get_world_size() == 1:
            return
        parts = all_gather_object(self.sums)
        names = dict.fromkeys(name for part in parts for name in part)
        self.sums = {name: sum(part.get(name, 0.0) for part in parts) / len(parts) for name in names}

    def _write(self, file: Any) -> None:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in self.rows for name in row)))
        writer.writeheader()
        writer.writerows(self.rows)


class Progress(Hook):
    """A progress bar, quiet when not on a terminal (then the logger's lines tell).

    Args:
        accumulate: iterations of an update.
    """

    priority = "LOWEST"

    def __init__(self, accumulate: int = 1) -> None:
        self.accumulate = accumulate

    def before_train(self, runner: Runner) -> None:
        """Open the bar where a resumed run continues."""
        done, total = (count // self.accumulate for count in (runner.iter, runner.max_iters))
        self.bar = tqdm(total=total, initial=done, unit="step", disable=None if is_main_process() else True)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """One update further."""
        if (runner.iter + 1) % self.accumulate == 0:
            self.bar.update()

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        self.bar.close()


class StepTimes(Hook):
    """Time of this process's updates and its largest memory; those before a resume are not in them, as in ``seconds``.

    The first updates are left out, since they wait for the data workers to start. What lies between ``before_val`` and
    ``after_val`` does not count.

    Args:
        accumulate: iterations of an update.

    Attributes:
        validating: seconds of all validations.
    """

    priority = "LOWEST"

    def __init__(self, accumulate: int = 1) -> None:
        self.accumulate, self.validating = accumulate, 0.0
        self.times: list[float] = []
        self._begun = self._paused = self._since = 0.0

    def before_train(self, runner: Runner) -> None:
        """Begin."""
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._begun = time.perf_counter()

    def before_val(self, runner: Runner) -> None:
        """Pause."""
        self._since = time.perf_counter()

    def after_val(self, runner: Runner) -> None:
        """Go on."""
        self._paused += time.perf_counter() - self._since

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Take the time of an update, the wait for its data included."""
        if (runner.iter + 1) % self.accumulate:
            return
        now = time.perf_counter()
        self.times.append(now - self._begun - self._paused)
        self.validating += self._paused
        self._begun, self._paused = now, 0.0

    def facts(self) -> dict[str, Any]:
        """``seconds_per_step``, the median, and ``peak_memory_mb``, the largest over the processes; called by all at once."""
        memory = peak_memory()
        if get_world_size() > 1:
            memory = max(all_gather_object(memory))
        times = self.times[_UNSETTLED:] or self.times
        facts: dict[str, Any] = {"peak_memory_mb": round(memory / 1e6)}
        return ({"seconds_per_step": float(f"{statistics.median(times):.4g}")} if times else {}) | facts


_UNSETTLED = 3
"""First updates of a process whose times do not count."""


def peak_memory() -> int:
    """Largest memory of this process so far, bytes: allocated on its GPU, or its resident set where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class NaNGuard(Hook):
    """Stop at the first loss that is not finite and name the frames; runs before any checkpoint is written."""

    priority = "VERY_HIGH"

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Check the step's losses."""
        bad = [name for name, value in (outputs or {}).items() if not np.isfinite(_number(value))]
        if bad:
            tokens = ", ".join(sample.token for sample in data_batch["data_samples"])
            raise FD3DError(
                f"{', '.join(bad)} is not finite at step {runner.iter + 1}, frames {tokens}; look at these frames, or "
                f"lower the learning rate; the last checkpoint in {runner.work_dir} is from before"
            )


class Snapshots(Hook):
    """Keep the weights of early updates, for experts of falling quality.

    Args:
        updates: updates whose weights are kept.
        save: function that writes the model's weights after an update.
        accumulate: iterations of an update.
    """

    def __init__(self, updates: Sequence[int], save: Callable[[nn.Module, int], None], accumulate: int = 1) -> None:
        self.updates, self.save, self.accumulate = updates, save, accumulate

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save where it is due."""
        update, rest = divmod(runner.iter + 1, self.accumulate)
        if rest or update not in self.updates:
            return
        average_buffers(unwrapped(runner.model))
        if is_main_process():
            self.save(unwrapped(runner.model), update)


class StartFrom(Hook):
    """Start from pretrained and from inherited weights; a resumed training has them already.

    Args:
        init: pretrained backbone and neck.
        inheritance: modules that start from an expert's weights, over the pretrained ones.
        begin: called by the main process of a training that starts afresh, once nothing about the start can be refused any more.
        adapter: settings of the adapter in the detector's config.
    """

    def __init__(
        self,
        init: Initial,
        inheritance: Inheritance | None,
        begin: Callable[[], None] = lambda: None,
        adapter: Mapping[str, Any] | None = None,
    ) -> None:
        self.init, self.inheritance, self.begin, self.adapter = init, inheritance, begin, adapter

    def before_train(self, runner: Runner) -> None:
        """Load the weights over the freshly initialised ones, and tell what was taken.

        Raises:
            FD3DError: a file does not fit, or frozen parameters would keep random weights.
        """
        if runner.iter > 0:
            return
        detector = unwrapped(runner.model)
        detector = getattr(detector, "student", detector)
        found = start_weights(detector, self.init)
        if self.inheritance:
            given = self.inheritance
            found.append(inherit_weights(detector, given.checkpoint, given.modules, adapter=self.adapter))
        names = frozenset().union(*(taken.names for taken in found))
        check_frozen(detector, names, self.init.setting, self.init.checkpoint)
        if is_main_process():
            self.begin()
            for taken in found:
                print(*taken.report, sep="\n", flush=True)


def check_start(detector: nn.Module, init: Initial, given: Collection[str] = ()) -> None:
    """Refuse a start from a pretrained file that does not fit, or after which frozen parameters would keep random weights.

    Args:
        detector: freshly built; takes the file's weights.
        given: names of tensors that start from elsewhere.

    Raises:
        FD3DError: naming the setting.
    """
    names = frozenset(given).union(*(taken.names for taken in start_weights(detector, init)))
    check_frozen(detector, names, init.setting, init.checkpoint)


def start_weights(detector: nn.Module, init: Initial) -> list[Taken]:
    """Load a pretrained file into a detector; what was taken, nothing without a file.

    Raises:
        FD3DError: the file does not fit; naming the setting.
    """
    if init.checkpoint is None:
        return []
    init.check()
    try:
        return [take_pretrained(detector, init.checkpoint)]
    except FD3DError as error:
        raise FD3DError(f"{init.setting}: {error}") from error


for hook in (LearningRate, LossCurve, Progress, StepTimes, NaNGuard, Snapshots, StartFrom):
    HOOKS.register_module(module=hook)
