"""Trainings of the embedded world's students, some steps long, each in processes of their own."""

import os
import random
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from pipeline.data.source import FrameSource
from pipeline.distill.settings import DistillSettings
from pipeline.training.settings import RunSettings, Validation

# Two frames an update however they are divided; statistics of the backbone as in the papers' students.
CONFIG = """
_base_ = "{project}/configs/world/{student}.py"
model = dict(img_backbone=dict(norm_eval=True))
schedule = dict(max_iters=8, warmup_iters=2, batch_size=1, base_batch={batch})
"""
STUDENTS = {"bevformer": "apprentice", "detr3d": "detr3d_apprentice"}


@dataclass(frozen=True)
class Job:
    """A training: plain, or with FD3D's losses from a store."""

    config: Path
    source: FrameSource
    out: Path
    run: dict[str, Any]
    store: Path | None = None
    distill: dict[str, Any] = field(default_factory=dict)
    validation: Validation | None = None
    restart: bool = False

    def train(self) -> dict[str, Any]:
        """Train here."""
        from pipeline.distill.apprentice import train_apprentice
        from pipeline.training.plain import train_plain

        run = RunSettings(**self.run)
        if self.store is None:
            return train_plain(
                self.config, self.source, self.out, run, validation=self.validation, restart=self.restart
            )
        settings = DistillSettings.from_dict(self.distill)
        shared: dict[str, Any] = dict(source=self.source, store=self.store, expert=Path("none"))
        shared |= dict(validation=self.validation, restart=self.restart)
        return train_apprentice(self.config, "fd3d", settings, out=self.out, run=run, **shared)


def write_config(project: Path, family: str, path: Path, batch: int = 2, more: str = "") -> Path:
    """Config of a student."""
    path.write_text(CONFIG.format(project=project, student=STUDENTS[family], batch=batch) + more)
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _child(job: Job, environment: dict[str, str], prepare: Callable[..., None] | None, args: tuple) -> None:
    os.environ.update(environment)
    # data workers that import everything again would take most of the time; this process has one thread yet
    forked = torch.multiprocessing.get_context("fork")
    setattr(torch.multiprocessing, "get_context", lambda method=None: forked)  # noqa: B010  mypy refuses the assignment
    if prepare is not None:
        prepare(*args)
    job.train()


def start(
    job: Job, environment: dict[str, str] | None = None, prepare: Callable[..., None] | None = None, *args: Any
) -> BaseProcess:
    """Start a training in a process of its own, after ``prepare(*args)`` there."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.training.small", "pipeline.training.plain", "pipeline.distill.apprentice"])
    process = context.Process(target=_child, args=(job, environment or {}, prepare, args))
    process.start()
    return process


def train_together(job: Job, processes: int) -> None:
    """Train in several processes as torchrun starts them."""
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [start(job, shared | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(processes)]
    for rank in ranks:
        rank.join(300)
    assert [rank.exitcode for rank in ranks] == [0] * processes


def die_at_call(name: str, count: int) -> None:
    """Kill this process at the ``count``-th call of a function of ``os`` that writing a checkpoint makes."""
    original, calls = getattr(os, name), iter(range(1, 1 << 30))

    def dying(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(os, name, dying)


def die_after(steps: int, seed: int) -> None:
    """Kill this process at a random moment after ``steps`` more training steps."""
    from pipeline.training.loop import UpdateLoop

    original, done = UpdateLoop.run_iter, iter(range(1, 1 << 30))

    def timed(self: Any, batch: Any) -> None:
        original(self, batch)
        if next(done) == steps:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, random.Random(seed).uniform(1e-4, 0.4))

    UpdateLoop.run_iter = timed  # type: ignore[method-assign]
