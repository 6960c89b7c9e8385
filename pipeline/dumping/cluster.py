"""The dump on dask.distributed: a task is a shard, a worker process loads the expert once."""

import asyncio
import atexit
import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import dask
import distributed
import numpy as np
from distributed import CancelledError, Client, LocalCluster, WorkerPlugin, as_completed, get_worker, secede
from distributed.comm import connect
from distributed.deploy.spec import close_clusters
from distributed.scheduler import KilledWorker
from distributed.security import Security
from tqdm import tqdm

from pipeline.dumping.engine import Report
from pipeline.dumping.guard import MARK, guarded
from pipeline.dumping.session import Job, forget_sessions, session_of, shard_tokens, write
from pipeline.dumping.settings import ClusterSettings
from pipeline.dumping.shared import check_store
from pipeline.errors import FD3DError, counted
from store_schema import ShardWriter, StoreError, StoreSchema

CONNECT = 20
"""Seconds within which a scheduler must answer."""
TELLINGS = 10
"""Attempts to tell all workers of a dump, a second apart, while some of the workers die."""
SILENT = 3
"""Seconds without a worker after which it is said that one is waited for."""
WORKERS = 600
"""Seconds within which a scheduler must get its first worker, which a batch system may queue."""


async def _greet(address: str) -> None:
    """Ask a scheduler who it is: dask's client waits without end for the answer of another program.

    Raises:
        OSError, TimeoutError: nothing listens there, or what listens does not answer as a scheduler does.
    """

    async def ask() -> object:
        comm = await connect(address, timeout=CONNECT, **Security().get_connection_args("client"))
        try:
            await comm.write({"op": "identity", "reply": True})
            return await comm.read()
        finally:
            comm.abort()

    try:
        await asyncio.wait_for(ask(), CONNECT)
    except (TimeoutError, OSError, ValueError):
        raise
    except Exception as error:  # of other bytes, taken for a message of whatever size they spell
        raise OSError("what listens there speaks another protocol") from error


class ShardPlugin(WorkerPlugin):
    """State of every worker of a dump; the scheduler sends the plugin to workers that join or restart, too.

    Args:
        name: name of the dump, also the topic of progress messages.
        job: how the expert is run.
        writer: writer of the store.
        device: kind of device that the expert runs on.
    """

    def __init__(self, name: str, job: Job, writer: ShardWriter, device: str) -> None:
        self.name, self.job, self.writer, self.device = name, job, writer, device

    def setup(self, worker: Any) -> None:
        """Make the locks of a worker and its set of active tasks."""
        # One shard infers and one is written, whatever the worker's number of threads: history is streamed through the
        # one expert, and memory holds two shards at most.
        self.inferring, self.writing = threading.Lock(), threading.Lock()
        self.active: set[str] = set()

    def teardown(self, worker: Any) -> None:
        """Free the expert."""
        forget_sessions()


class NotWantedError(Exception):
    """The dump that asked for this shard has ended."""


@contextmanager
def named(worker: Any) -> Iterator[None]:
    """Name the worker in an error that another one may not have."""
    try:
        yield
    except (FD3DError, StoreError) as error:
        raise FD3DError(f"worker {worker.address}: {error}") from error


def probe(job: Job, token: str) -> tuple[tuple[StoreSchema, dict[str, np.ndarray]], str]:
    """Task: see :meth:`~pipeline.dumping.session.Session.probe`; also the kind of device that this worker has."""
    with named(get_worker()):
        session = session_of(job)
    return session.probe(token), session.expert.device.type


def learn(job: Job, schema: StoreSchema, scenes: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """Task: see :meth:`~pipeline.dumping.session.Session.learn`."""
    return session_of(job).learn(schema, scenes, lambda frames: None)


def look(job: Job, schema: StoreSchema, scenes: Sequence[Sequence[str]]) -> float | None:
    """Task: see :meth:`~pipeline.dumping.session.Session.look`."""
    return session_of(job).look(schema, scenes, lambda frames: None)


def again(job: Job, writer: ShardWriter, shard: int) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
    """Task: see :meth:`~pipeline.dumping.session.Session.again`."""
    return session_of(job).again(writer, shard)


def run_shard(name: str, key: str, shard: int) -> None:
    """Task: infer and write a shard; the next one's inference starts while this one is written.

    Args:
        name: name of the :class:`ShardPlugin`.
        key: key of this task.

    Raises:
        FD3DError: this worker differs from the main process or from the worker of the first frame, in one line with its name.
    """
    worker = get_worker()
    plugin: Any = worker.plugins[name]  # the ShardPlugin

    def report(frames: int) -> None:
        # a dump that was stopped or killed must not go on writing here: another may start on the same store
        task = worker.state.tasks.get(key)
        if task is None or task.state not in ("executing", "long-running"):
            raise NotWantedError(f"shard {shard} is not wanted any more")
        worker.log_event(name, {"shard": shard, "frames": frames})

    plugin.active.add(key)
    try:
        with plugin.inferring:
            report(0)
            with named(worker):
                check_store(plugin.writer)
                session, tokens = session_of(plugin.job), shard_tokens(plugin.writer, shard)
                if (here := session.expert.device.type) != plugin.device:
                    raise FD3DError(
                        f"the expert runs on its {here}, on that of the first frame on the {plugin.device}; use workers of one kind"
                    )
            result = session.infer(plugin.writer, tokens, session.decoded(tokens), report)
            plugin.writing.acquire()
        try:
            report(len(tokens))
            secede()
            write(plugin.writer, shard, result)
        finally:
            plugin.writing.release()
    finally:
        plugin.active.discard(key)


async def settle(name: str, dask_worker: Any) -> None:
    """Wait on a worker until no task of a dump runs."""
    plugin = dask_worker.plugins.get(name)
    while plugin is not None and plugin.active:
        await asyncio.sleep(0.05)


class DaskEngine:
    """Engine that runs shards on a local cluster of processes or on a running scheduler's workers.

    Raises:
        FD3DError: no scheduler answers or has workers, or the scheduler or too many workers are lost during the dump.
    """

    def __init__(self, cluster: ClusterSettings) -> None:
        self.settings = cluster

    def __enter__(self) -> "DaskEngine":
        with ExitStack() as stack:
            self._start(stack)
            self._exit = stack.pop_all()
        return self

    def _start(self, stack: ExitStack) -> None:
        address = self.settings.address
        self.local: LocalCluster | None = None
        if address is None:
            # Ctrl-C is this process's to handle: threads and processes that start under the mask inherit it
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            environment = "distributed.nanny.pre-spawn-environ"
            # dask has workers give memory back at every free, which makes tensors pay for fresh pages every time
            changes: dict[str, str | None] = {f"{environment}.MALLOC_TRIM_THRESHOLD_": None}
            changes[f"{environment}.{MARK}"] = stack.enter_context(guarded())
            try:
                with dask.config.set(changes):
                    self.local = LocalCluster(
                        n_workers=self.settings.workers,
                        threads_per_worker=1,
                        dashboard_address=None,
                        # without a dashboard the scheduler still serves HTTP, by default at a port that another dump has
                        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                        # dask's share per worker counts the machine's cores, not the workers, and a paused worker never
                        # resumes: what it holds is in use
                        memory_limit=None,
                        silence_logs=logging.CRITICAL,
                    )
            except BaseException as error:
                # dask cannot close a cluster that is half started; the workers are guarded
                atexit.unregister(close_clusters)
                logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
                if isinstance(error, RuntimeError):  # dask's word for a worker that ended before it answered
                    raise FD3DError(
                        "a worker of the dump died while it was starting; is there enough memory for "
                        f"{counted(self.settings.workers, 'worker')}? The same command goes on from here"
                    ) from error
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            if address is not None:
                asyncio.run(_greet(address))
            self.client = Client(self.local or address, timeout=CONNECT)
        except (TimeoutError, OSError, ValueError) as error:
            reason = (str(error).splitlines() or [f"no answer within {CONNECT} s"])[0]
            raise FD3DError(
                f"no dask scheduler answers at {address} ({reason}); start one or correct the address"
            ) from error
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what matters is raised
        try:
            self._wait_for_workers()
        except TimeoutError as error:
            self._close()
            raise FD3DError(f"the scheduler at {address} has no workers; start some with 'dask worker'") from error

    def _wait_for_workers(self) -> None:
        """Wait for the first worker, and say so where it is not there yet."""
        if self.local is None:
            with suppress(TimeoutError):
                return self.client.wait_for_workers(1, timeout=SILENT)
            tqdm.write(
                f"warning: the scheduler at {self.settings.address} has no workers yet; waiting up to {WORKERS} s for the first ('dask worker' starts one)"
            )
        self.client.wait_for_workers(1, timeout=WORKERS)

    def __exit__(self, *error: object) -> None:
        with self._exit:
            self._close()

    def _close(self) -> None:
        # whatever does not answer in time ends with this process
        with suppress(TimeoutError):
            self.client.close(timeout=10)
            if self.local is not None:
                self.local.close(timeout=60)

    def probe(self, job: Job, token: str) -> tuple[StoreSchema, dict[str, np.ndarray]]:
        """See :class:`~pipeline.dumping.engine.Engine`."""
        found, self.device = self._result(self.client.submit(probe, job, token, pure=False), "the first frame")
        return found

    def learn(
        self, job: Job, schema: StoreSchema, scenes: Sequence[Sequence[str]], report: Callable[[int], None]
    ) -> dict[str, np.ndarray]:
        """See :class:`~pipeline.dumping.engine.Engine`; one worker learns, and reports at the end."""
        found: dict[str, np.ndarray] = self._result(
            self.client.submit(learn, job, schema, scenes, pure=False), "learning the codes"
        )
        report(sum(map(len, scenes)))
        return found

    def look(
        self, job: Job, schema: StoreSchema, scenes: Sequence[Sequence[str]], report: Callable[[int], None]
    ) -> float | None:
        """See :class:`~pipeline.dumping.engine.Engine`; one worker looks, and reports at the end."""
        highest: float | None = self._result(
            self.client.submit(look, job, schema, scenes, pure=False), "the look for a stored cell"
        )
        if highest is not None:
            report(sum(map(len, scenes)))
        return highest

    def again(
        self, job: Job, writer: ShardWriter, shard: int
    ) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]]:
        """See :class:`~pipeline.dumping.engine.Engine`."""
        made: tuple[dict[str, dict[str, np.ndarray]], dict[str, Any]] = self._result(
            self.client.submit(again, job, writer, shard, pure=False), f"shard {shard}"
        )
        return made

    def run(self, job: Job, writer: ShardWriter, shards: Sequence[int], report: Report) -> None:
        """See :class:`~pipeline.dumping.engine.Engine`."""
        name = f"fd3d-{uuid.uuid4().hex[:8]}"
        self.client.subscribe_topic(name, lambda event: report(event[1]["shard"], event[1]["frames"]))
        self._tell_workers(ShardPlugin(name, job, writer, self.device), name)
        keys = {f"{name}-{shard}": shard for shard in shards}
        futures = [self.client.submit(run_shard, name, key, shard, key=key) for key, shard in keys.items()]
        try:
            for future in as_completed(futures):
                self._result(future, f"shard {keys[future.key]}")
                writer.check()  # the workers cannot see the lock
        finally:
            if self.client.status == "running":
                # no other dump may start before the last writer has stopped
                self.client.cancel(futures, force=True)
                self.client.run(settle, name, on_error="ignore")
                self.client.unsubscribe_topic(name)
                self.client.unregister_worker_plugin(name)

    def _tell_workers(self, plugin: WorkerPlugin, name: str) -> None:
        """Register a plugin on all workers; a worker that dies meanwhile is replaced, and told when it starts.

        Raises:
            FD3DError: workers die again and again.
        """
        for _ in range(TELLINGS):
            try:
                self.client.register_plugin(plugin, name=name)
                return
            except OSError:  # of the connection to the dead worker
                time.sleep(1)
        raise FD3DError(
            "workers of the dump die while it begins; is there enough memory? The same command goes on from here"
        )

    def _result(self, future: distributed.Future, what: str) -> Any:
        try:
            return future.result()
        except KilledWorker as error:
            raise FD3DError(
                f"{what} was given up: {counted(error.allowed_failures + 1, 'worker')} died over it, the last at "
                f"{error.last_worker.address}; is there enough memory? The same command goes on from here"
            ) from error
        except CancelledError as error:
            where = f" at {self.settings.address}" if self.settings.address else ""
            raise FD3DError(
                f"the dask scheduler{where} is gone; start it and repeat the command: missing shards are made"
            ) from error
