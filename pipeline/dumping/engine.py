"""The dump: shards to whoever runs them, and what is left to do when all are written."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from pipeline.data.index import FrameIndex
from pipeline.dumping.coverage import join_counts
from pipeline.dumping.moments import join_moments
from pipeline.dumping.rows import DumpSettings, library_versions, make_manifest, scene_rows
from pipeline.dumping.session import Job, forget_sessions, session_of, shard_tokens, write
from pipeline.errors import FD3DError
from pipeline.expert import build_adapter
from pipeline.models.build import load_config
from pipeline.prediction import frame_batches
from pipeline.training import FrameSource
from store_schema import ShardWriter, StoreSchema, StoreWriter, open_storage
from store_schema.storage import LocalStorage, Storage


@dataclass(frozen=True)
class ClusterSettings:
    """Who runs the expert; nothing here changes what is stored."""

    workers: int = 1
    """Processes that each hold the expert and write shards; 1 runs it in the calling process, without dask."""
    threads_per_worker: int = 1
    """Torch threads of each of them."""
    address: str | None = None
    """A running dask scheduler whose workers are used instead, for example tcp://host:8786."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads_per_worker"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise FD3DError(f"dump.cluster.{name} is {getattr(self, name)}; it is a number of at least 1")
        if self.address is not None and self.workers != 1:
            raise FD3DError("dump.cluster has workers and an address; with an address its scheduler's workers are used")

    @property
    def in_process(self) -> bool:
        """No dask."""
        return self.workers == 1 and self.address is None


Report = Callable[[int, int], None]
"""Takes a shard and the number of its frames that have run."""


class Engine(Protocol):
    """Runs a job's shards."""

    def probe(self, job: Job, token: str) -> tuple[StoreSchema, dict[str, np.ndarray]]:
        """As :meth:`~pipeline.dumping.session.Session.probe`."""

    def run(self, job: Job, writer: ShardWriter, shards: Sequence[int], report: Report) -> None:
        """Write shards; on an error those that are finished stay."""


class InProcess:
    """Runs the expert here; one thread writes a shard while the next one is inferred."""

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *error: object) -> None:
        forget_sessions()

    def probe(self, job: Job, token: str) -> tuple[StoreSchema, dict[str, np.ndarray]]:
        """See :class:`Engine`."""
        return session_of(job).probe(token)

    def run(self, job: Job, writer: ShardWriter, shards: Sequence[int], report: Report) -> None:
        """See :class:`Engine`."""
        session = session_of(job)
        numbers = [session.number[token] for shard in shards for token in shard_tokens(writer, shard)]
        batches = frame_batches(session.cfg, job.source, numbers, job.decoders)
        writing: Future[None] | None = None
        # leaving the pool waits for the last shard, also after an error or Ctrl-C
        with ThreadPoolExecutor(1) as pool:
            for shard in shards:
                result = session.infer(writer.schema, shard_tokens(writer, shard), batches, partial(report, shard))
                if writing is not None:
                    writing.result()
                writing = pool.submit(write, writer, shard, result)
                del result  # its memory is free when it is written
            if writing is not None:
                writing.result()


class Progress:
    """One bar of frames over all workers, quiet when not on a terminal.

    Args:
        total: frames of the store.
        initial: those that an earlier dump has written.
    """

    def __init__(self, total: int, initial: int) -> None:
        self.bar = tqdm(total=total, initial=initial, unit="frame", disable=None)
        self.frames: dict[int, int] = {}

    def __call__(self, shard: int, frames: int) -> None:
        """A shard that is run again after its worker died counts once."""
        self.bar.update(frames - self.frames.get(shard, 0))
        self.frames[shard] = frames


def make_engine(cluster: ClusterSettings) -> Any:
    """The engine of these settings, a context manager."""
    if cluster.in_process:
        return InProcess()
    from pipeline.dumping.cluster import DaskEngine  # dask takes a second to import

    return DaskEngine(cluster)


def dump(
    config: Path,
    checkpoint: Path | None,
    source: FrameSource,
    out: str | Path | Storage,
    settings: DumpSettings,
    workers: int = 1,
    scenes: Sequence[str] | None = None,
    cluster: ClusterSettings | None = None,
) -> dict[str, Any]:
    """Write the store; a killed dump goes on with the shards that are missing.

    Args:
        checkpoint: None runs random weights, which the manifest says.
        out: folder or URL.
        workers: processes that decode images; on a cluster threads of each worker.
        scenes: names to restrict the dump to.
        cluster: who runs the expert, by default this process.

    Returns:
        ``frames``, their number, and ``coverage``, counts of the focal areas (:mod:`pipeline.dumping.coverage`).

    Raises:
        FD3DError: bad input, features that are not finite (with the frame's token), or the cluster is gone.
        StoreError: the store was made by another expert, config or index, is being written, or the disk is full.
    """
    cluster = cluster or ClusterSettings()
    storage = open_storage(out)
    if not cluster.in_process:  # workers have working folders of their own
        if isinstance(storage, LocalStorage):
            storage = LocalStorage(storage.path.absolute())
        checkpoint = checkpoint and checkpoint.absolute()
        source = replace(source, index=source.index.absolute(), root=source.root.absolute())
    cfg = load_config(config)
    build_adapter(cfg)  # a config without one is refused before anything starts
    index = FrameIndex.load(source.index, source.root)
    tokens = {
        name: [index[row].token for row in rows] for name, rows in scene_rows(index, source.split, scenes).items()
    }
    versions = tuple(library_versions().items())
    job = Job(cfg.pretty_text, checkpoint, source, settings, cluster.threads_per_worker, workers, versions)
    with make_engine(cluster) as engine:
        schema, constants = engine.probe(job, next(iter(tokens.values()))[0])
        manifest = make_manifest(cfg, config, checkpoint, index, source, settings)
        with StoreWriter(storage, schema, manifest, tokens, settings.frames_per_shard) as writer:
            writer.write_constants(constants)
            pending = writer.pending()
            total = sum(map(len, tokens.values()))
            progress = Progress(total, total - sum(len(shard_tokens(writer.shards, shard)) for shard in pending))
            with progress.bar:
                engine.run(job, writer.shards, pending, progress)
            sums = writer.sums()
            writer.finalise(join_moments(shard["moments"] for shard in sums))
    return {"frames": total, "coverage": join_counts(shard["coverage"] for shard in sums)}
