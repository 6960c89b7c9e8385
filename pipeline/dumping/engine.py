"""Engines of a dump: the interface, the engine in this process, and the progress bar."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from pipeline.data.frames import frame_batches
from pipeline.dumping.session import Job, forget_sessions, session_of, shard_tokens, write
from store_schema import ShardWriter, StoreSchema

Report = Callable[[int, int], None]
"""Callback that takes a shard and the number of the shard's frames that have run."""


class Engine(Protocol):
    """Engine that runs a job's shards."""

    def probe(self, job: Job, token: str) -> tuple[StoreSchema, dict[str, np.ndarray]]:
        """See :meth:`~pipeline.dumping.session.Session.probe`."""

    def learn(
        self, job: Job, schema: StoreSchema, scenes: Sequence[Sequence[str]], report: Callable[[int], None]
    ) -> dict[str, np.ndarray]:
        """See :meth:`~pipeline.dumping.session.Session.learn`."""

    def look(
        self, job: Job, schema: StoreSchema, scenes: Sequence[Sequence[str]], report: Callable[[int], None]
    ) -> float | None:
        """See :meth:`~pipeline.dumping.session.Session.look`."""

    def again(
        self, job: Job, writer: ShardWriter, shard: int
    ) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
        """See :meth:`~pipeline.dumping.session.Session.again`."""

    def run(self, job: Job, writer: ShardWriter, shards: Sequence[int], report: Report) -> None:
        """Write shards; on an error the finished shards stay."""


class InProcess:
    """Engine in this process; one thread writes a shard while the next one is inferred."""

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *error: object) -> None:
        forget_sessions()

    def probe(self, job: Job, token: str) -> tuple[StoreSchema, dict[str, np.ndarray]]:
        """See :class:`Engine`."""
        return session_of(job).probe(token)

    def learn(
        self, job: Job, schema: StoreSchema, scenes: Sequence[Sequence[str]], report: Callable[[int], None]
    ) -> dict[str, np.ndarray]:
        """See :class:`Engine`."""
        return session_of(job).learn(schema, scenes, report)

    def look(
        self, job: Job, schema: StoreSchema, scenes: Sequence[Sequence[str]], report: Callable[[int], None]
    ) -> float | None:
        """See :class:`Engine`."""
        return session_of(job).look(schema, scenes, report)

    def again(
        self, job: Job, writer: ShardWriter, shard: int
    ) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
        """See :class:`Engine`."""
        return session_of(job).again(writer, shard)

    def run(self, job: Job, writer: ShardWriter, shards: Sequence[int], report: Report) -> None:
        """See :class:`Engine`."""
        session = session_of(job)
        numbers = [session.number[token] for shard in shards for token in shard_tokens(writer, shard)]
        batches = frame_batches(session.cfg, job.source, numbers, job.decoders)
        writing: Future[None] | None = None
        # leaving the pool waits for the last shard, also after an error or Ctrl-C
        with ThreadPoolExecutor(1) as pool:
            for shard in shards:
                result = session.infer(writer, shard_tokens(writer, shard), batches, partial(report, shard))
                if writing is not None:
                    writing.result()
                writing = pool.submit(write, writer, shard, result)
                del result  # the result's memory is free once the shard is written
            if writing is not None:
                writing.result()


class Progress:
    """One bar of frames over all workers, quiet when not on a terminal.

    Args:
        total: frames of the store.
        initial: frames that an earlier dump has written.
        unit: of the bar.
    """

    def __init__(self, total: int, initial: int, unit: str = "frame") -> None:
        self.bar = tqdm(total=total, initial=initial, unit=unit, disable=None)
        self.frames: dict[int, int] = {}

    def __call__(self, shard: int, frames: int) -> None:
        """Advance the bar; a shard that is run again after its worker died counts once."""
        self.bar.update(frames - self.frames.get(shard, 0))
        self.frames[shard] = frames
