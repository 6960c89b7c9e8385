"""Order of the frames and streams of random numbers, so that a resumed training goes on as if nothing had happened."""

import itertools
import random
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler, pseudo_collate, worker_init_fn
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import Runner
from torch.utils.data import get_worker_info

from pipeline.data.workers import begin_worker

_KEY = "random_state"


@DATA_SAMPLERS.register_module()
class ResumableSampler(InfiniteSampler):
    """Shuffled passes over a data set without end, every process taking every N-th item, that may start later.

    The order of the items does not depend on the number of processes: an update sees the same frames however they are
    divided.

    Args:
        dataset: data set.
        seed: of the shuffling.
        start: items of each process that are passed over.
    """

    def __init__(self, dataset: Sized, seed: int, start: int = 0) -> None:
        super().__init__(dataset, shuffle=True, seed=seed)
        self.start = start

    def __iter__(self) -> Iterator[int]:
        first = self.rank + self.start * self.world_size
        return itertools.islice(self._infinite_indices(), first, None, self.world_size)


def random_state() -> dict[str, Any]:
    """States of this process's generators, of plain values and tensors."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(state: dict[str, Any]) -> None:
    """Set what :func:`random_state` gave."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Give this process's generators back as they were, whatever was drawn within: a data loader draws its seed from them."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def collate_with_state(items: Sequence[Any]) -> dict[str, Any]:
    """A batch; one that a worker makes has the state that the worker's generators have after it."""
    batch: dict[str, Any] = pseudo_collate(items)
    return batch if get_worker_info() is None else batch | {_KEY: random_state()}


def start_worker(number: int, workers: int, seed: int, batches: int, states: Sequence[dict[str, Any] | None]) -> None:
    """Give a worker the generators of the one whose turn it was when the training stopped.

    Args:
        number: of the worker among ``workers``; batches are made in turns.
        seed: of the training.
        batches: batches taken before.
        states: per former worker its state, None for one that had made nothing.
    """
    begin_worker()
    former = (number + batches) % workers
    worker_init_fn(former, workers, get_rank(), seed)
    if (state := states[former]) is not None:
        set_random_state(state)


@HOOKS.register_module()
class RandomStates(Hook):
    """Keep the states of the workers' and the processes' generators with the checkpoints.

    Args:
        workers: data workers of each process.
        states: per worker the state that a resumed training starts from.
    """

    priority = "VERY_HIGH"

    def __init__(self, workers: int, states: Sequence[dict[str, Any] | None]) -> None:
        self.workers, self.states = workers, list(states)
        self.own: dict[str, Any] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take this process's state; processes were as many, since their number is in the recipe."""
        self.own = checkpoint["hooks"]["RandomStates"][get_rank()]["process"]

    def before_train(self, runner: Runner) -> None:
        """Go on with the checkpoint's random numbers, after all that draws some at the start."""
        if self.own is not None:
            set_random_state(self.own)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note the state of the worker that made the batch."""
        if _KEY in data_batch:
            self.states[runner.iter % self.workers] = data_batch.pop(_KEY)

    def collect(self) -> list[dict[str, Any]]:
        """For a checkpoint: per process the states of its workers and its own; called by all processes at once."""
        own = {"workers": self.states, "process": random_state()}
        return all_gather_object(own) if get_world_size() > 1 else [own]
