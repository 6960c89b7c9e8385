"""The training loop: updates of several batches each, and no replay of past data."""

from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.registry import LOOPS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from pipeline.models.positives import positives_of_update

from .checkpoints import unwrapped


@runtime_checkable
class TakesUpdates(Protocol):
    """A model that does not do the same in every update."""

    def begin_update(self, number: int) -> None:
        """Prepare for update ``number``, from 0 on."""


@LOOPS.register_module()
class UpdateLoop(IterBasedTrainLoop):
    """Loop over optimiser steps; the sampler starts where a resumed training stopped.

    Args:
        accumulate: batches of an update. They are loaded before the first is computed, since the losses of all are divided
            by the number of annotated boxes of all.
        kwargs: arguments of mmengine's loop.
    """

    def __init__(self, runner: Runner, dataloader: Any, max_iters: int, accumulate: int) -> None:
        super().__init__(runner, dataloader, max_iters, val_interval=max_iters + 1)
        self.accumulate = accumulate

    def run(self) -> nn.Module:
        """Train, and return the model."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        while self._iter < self._max_iters:
            batches = [next(self.dataloader_iterator) for _ in range(self.accumulate)]
            if isinstance(learner := unwrapped(self.runner.model), TakesUpdates):
                learner.begin_update(self._iter // self.accumulate)
            with positives_of_update(_mean_boxes(batches)) if self.accumulate > 1 else nullcontext():
                for batch in batches:
                    self.runner.model.train()
                    self.run_iter(batch)
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        model: nn.Module = self.runner.model
        return model


def _mean_boxes(batches: list[dict[str, Any]]) -> float:
    """Annotated boxes per batch, over the batches of all processes."""
    count = sum(len(sample.gt_instances_3d.labels_3d) for batch in batches for sample in batch["data_samples"])
    total = torch.tensor([float(count)], dtype=torch.float64)
    all_reduce(total)
    return total.item() / (len(batches) * get_world_size())
