"""Guards, curves and snapshots of a training, as hooks of mmengine's Runner."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from tqdm import tqdm

from pipeline.errors import FD3DError
from pipeline.files import write_atomically
from pipeline.models.checkpoints import inherit_weights
from pipeline.training.settings import Inheritance


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside mmengine's wrapper for several processes."""
    inner = getattr(model, "module", None)
    return inner if isinstance(inner, nn.Module) else model


def _number(value: Any) -> float:
    return float(value.detach() if isinstance(value, torch.Tensor) else value)


class LossCurve(Hook):
    """Write every logged loss term to a CSV file, one row per ``interval`` iterations, and survive a resume.

    Args:
        path: of the CSV.
        interval: iterations averaged into one row.
    """

    priority = "LOW"

    def __init__(self, path: Path, interval: int) -> None:
        self.path, self.interval = path, interval
        self.rows: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}

    def before_train(self, runner: Runner) -> None:
        """Keep the rows of the part that is already trained."""
        if self.path.exists() and runner.iter > 0:
            with open(self.path, newline="") as file:
                rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
            self.rows = [row for row in rows if row["step"] <= runner.iter]

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Accumulate, and write at the interval."""
        for name, value in (outputs or {}).items():
            self.sums[name] = self.sums.get(name, 0.0) + _number(value)
        step = runner.iter + 1
        if step % self.interval or not is_main_process():
            return
        self.rows.append({"step": step} | {k: round(v / self.interval, 5) for k, v in self.sums.items()})
        self.sums = {}
        names = list(dict.fromkeys(name for row in self.rows for name in row))

        def write(file: Any) -> None:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)

        write_atomically(self.path, write)


class Progress(Hook):
    """A progress bar, quiet when not on a terminal (then the logger's lines tell)."""

    priority = "LOWEST"

    def before_train(self, runner: Runner) -> None:
        """Open the bar where a resumed run continues."""
        self.bar = tqdm(total=runner.max_iters, initial=runner.iter, unit="step", disable=None)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """One step further."""
        self.bar.update()

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        self.bar.close()


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
    """Keep the weights of early iterations, for experts of falling quality.

    Args:
        iterations: iterations whose weights are kept.
        save: function that writes the model's weights of an iteration.
    """

    def __init__(self, iterations: Sequence[int], save: Callable[[nn.Module, int], None]) -> None:
        self.iterations, self.save = iterations, save

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save where it is due."""
        if runner.iter + 1 in self.iterations and is_main_process():
            self.save(unwrapped(runner.model), runner.iter + 1)


class Inherit(Hook):
    """Start from inherited weights; a resumed training has them already."""

    def __init__(self, inheritance: Inheritance) -> None:
        self.inheritance = inheritance

    def before_train(self, runner: Runner) -> None:
        """Load the inherited weights over the freshly initialised ones."""
        if runner.iter == 0:
            detector = unwrapped(runner.model)
            inherit_weights(
                getattr(detector, "student", detector), self.inheritance.checkpoint, self.inheritance.modules
            )


class PlainCheckpoint(Hook):
    """Keep functions out of checkpoints, so that a resume can load them with ``weights_only``.

    mmengine's one-cycle scheduler puts its annealing function into its state (on loading it keeps its own), and its log
    history the functions that smooth it (curves are :class:`LossCurve`'s).
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Drop callables from the schedulers' states, and the log history."""
        checkpoint["message_hub"]["log_scalars"] = {}
        states = checkpoint.get("param_schedulers", [])
        checkpoint["param_schedulers"] = [{k: v for k, v in state.items() if not callable(v)} for state in states]


for hook in (LossCurve, Progress, NaNGuard, Snapshots, Inherit, PlainCheckpoint):
    HOOKS.register_module(module=hook)
