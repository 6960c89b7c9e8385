"""A queue of steps that need each other, some at a time, in threads that wait for processes."""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Self

from tqdm import tqdm

from pipeline.errors import FD3DError

_SECONDS = 0.5
"""Between two looks whether the queue is asked to end."""


class Stopped(Exception):
    """The queue is being stopped."""


class Claimed(Exception):
    """The training is being trained by another sweep."""


@dataclass
class Outcome:
    """Outcome of a sweep: names of trainings, and the reasons of failures."""

    done: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    claimed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class Task:
    """A step of the queue; it runs when all that it needs has ended well."""

    name: str
    needs: list[str]
    run: Callable[[], None]
    counts: bool = False
    """Whether the task is wanted itself, not only needed by others."""


class _Requests:
    """Requests to end the process (SIGINT, SIGTERM, SIGHUP), kept until they are answered.

    A handler that raises at once may do so within a destructor or a callback, whose exceptions Python only prints.
    """

    def __enter__(self) -> Self:
        self.received: int | None = None
        self.handlers: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN:  # nohup ignores SIGHUP, a shell SIGINT of what it runs in the background
                self.handlers[number] = handler
                signal.signal(number, self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _keep(self, number: int, _: FrameType | None) -> None:
        self.received = number

    def answer(self) -> None:
        """Let the handler that was there before answer a request; raises KeyboardInterrupt if it does not."""
        if self.received is not None:
            handler = self.handlers[self.received]
            if callable(handler):
                handler(self.received, None)
            raise KeyboardInterrupt


class Queue:
    """Queue that runs tasks in their order, as far as what they need is there.

    Args:
        jobs: tasks at once.
        stop: ends what the running tasks wait for.
        outcome: takes the names of tasks by what became of them.
        total: tasks that count, for the progress bar.
    """

    def __init__(self, jobs: int, stop: Callable[[], None], outcome: Outcome, total: int) -> None:
        self.jobs, self.stop, self.outcome = jobs, stop, outcome
        self.bar = tqdm(total=total, unit="row", disable=None)
        self.failed: set[str] = set()

    def run(self, tasks: Sequence[Task]) -> None:
        """Run all tasks; one whose needs failed fails too.

        Raises:
            KeyboardInterrupt: after ``stop``; also on SIGTERM.
        """
        pending = list(tasks)
        waiting = {task.name for task in pending}
        running: dict[Future, Task] = {}
        with _Requests() as requests, ThreadPoolExecutor(self.jobs) as pool:
            try:
                while pending or running:
                    for task in list(pending):
                        broken = [need for need in task.needs if need in self.failed]
                        if broken:
                            pending.remove(task)
                            waiting.discard(task.name)
                            self._failed(task, f"{broken[0]} failed")
                        elif len(running) < self.jobs and not any(need in waiting for need in task.needs):
                            pending.remove(task)
                            running[pool.submit(task.run)] = task
                    finished, _ = wait(running, timeout=_SECONDS, return_when=FIRST_COMPLETED)
                    for future in finished:
                        task = running.pop(future)
                        waiting.discard(task.name)
                        self._ended(task, future)
                    requests.answer()
            except BaseException:
                self.stop()
                raise
            finally:
                self.bar.close()

    def _ended(self, task: Task, future: Future) -> None:
        try:
            future.result()
        except Claimed:
            self.outcome.claimed.append(task.name)
        except (FD3DError, OSError) as error:
            self._failed(task, str(error))
            return
        else:
            if task.counts:
                self.outcome.done.append(task.name)
        if task.counts:
            self.bar.update()

    def _failed(self, task: Task, why: str) -> None:
        self.failed.add(task.name)
        self.outcome.failed[task.name] = why
        if task.counts:
            self.bar.update()
        tqdm.write(f"{task.name}: {why}")
