"""A queue of steps that need each other, some at a time, in threads that wait for processes."""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from tqdm import tqdm

from pipeline.errors import FD3DError


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
        previous = signal.getsignal(signal.SIGTERM)
        if previous is signal.SIG_DFL:  # the command line has a handler of its own
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
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
                        finished, _ = wait(running, return_when=FIRST_COMPLETED)
                        for future in finished:
                            task = running.pop(future)
                            waiting.discard(task.name)
                            self._ended(task, future)
                except BaseException:
                    self.stop()
                    raise
        finally:
            signal.signal(signal.SIGTERM, previous)
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
