"""The dump on worker processes of dask: the same store, whatever happens to the workers."""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import warnings
from dataclasses import replace
from unittest.mock import Mock

import pytest
from distributed import Client, LocalCluster

from pipeline.dumping import cluster, engine
from pipeline.dumping.dump import dump, make_engine
from pipeline.dumping.settings import ClusterSettings
from pipeline.errors import FD3DError
from store_schema import StoreError, open_storage


@pytest.fixture(scope="module")
def scheduler():
    """Two workers that the module's tests share; starting them takes most of the time."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=None,
        memory_limit=None,
        silence_logs=logging.CRITICAL,
    ) as local:
        yield local.scheduler_address


@pytest.fixture
def progress(monkeypatch):
    """The progress bars of the test's dumps; ``hooks`` are called with each event."""

    class Watched(engine.Progress):
        hooks: list = []
        made: list["Watched"] = []

        def __init__(self, *args):
            super().__init__(*args)
            self.made.append(self)

        def __call__(self, shard, frames):
            super().__call__(shard, frames)
            for hook in self.hooks:
                hook(shard, frames)

    monkeypatch.setattr("pipeline.dumping.dump.Progress", Watched)
    return Watched


def test_two_workers_write_what_one_process_writes(
    scenes, settings, expert_config, whole, digest, scheduler, progress, tmp_path
):
    found = dump(expert_config, None, scenes, tmp_path / "s", settings, 1, cluster=ClusterSettings(address=scheduler))
    assert found["frames"] == 12 and digest(tmp_path / "s") == digest(whole)
    assert progress.made[0].frames == dict.fromkeys(range(6), 2)


def test_killed_workers_are_replaced(scenes, settings, expert_config, whole, digest, scheduler, progress, tmp_path):
    with Client(scheduler, set_as_default=False) as client:
        workers = list(client.run(os.getpid).values())
    killed: list[int] = []

    def kill(shard: int, frames: int) -> None:
        if frames == 1 and len(killed) < 2 and shard != (killed[-1] if killed else None):
            os.kill(workers[len(killed)], signal.SIGKILL)
            killed.append(shard)

    progress.hooks = [kill]
    dump(expert_config, None, scenes, tmp_path / "s", settings, 1, cluster=ClusterSettings(address=scheduler))
    assert len(killed) == 2 and digest(tmp_path / "s") == digest(whole)


def test_a_worker_that_dies_while_the_dump_begins_is_replaced(
    scenes, settings, expert_config, whole, digest, scheduler, monkeypatch, tmp_path
):
    """Between the first frame and the shards, when all workers are told about the dump."""
    register, killed = Client.register_plugin, list[int]()

    def dying(self, *args, **kwargs):
        if not killed:
            killed.append(self.run(os.getpid).popitem()[1])
            os.kill(killed[0], signal.SIGKILL)
        return register(self, *args, **kwargs)

    monkeypatch.setattr(Client, "register_plugin", dying)
    dump(expert_config, None, scenes, tmp_path / "s", settings, 1, cluster=ClusterSettings(address=scheduler))
    assert killed and digest(tmp_path / "s") == digest(whole)


def test_features_that_are_not_finite_name_the_frame(
    scenes, settings, expert_config, broken_checkpoint, scheduler, tmp_path
):
    with pytest.raises(FD3DError, match=r"of frame [0-9a-f]{32} is not finite"):
        dump(
            expert_config,
            broken_checkpoint,
            scenes,
            tmp_path / "s",
            settings,
            1,
            cluster=ClusterSettings(address=scheduler),
        )
    assert not (tmp_path / "s/manifest.json").exists()


def test_a_stopped_dump_keeps_its_shards_and_leaves_the_cluster_idle(
    scenes, settings, expert_config, whole, digest, scheduler, progress, monkeypatch, tmp_path
):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        cluster.DaskEngine, "_result", lambda self, future, what: stop() if "shard" in what else future.result()
    )
    with pytest.raises(KeyboardInterrupt):
        dump(expert_config, None, scenes, tmp_path / "s", settings, 1, cluster=ClusterSettings(address=scheduler))
    done = {file.name for file in (tmp_path / "s/.done").glob("shard-*")}
    assert 0 < len(done) < 6 and not (tmp_path / "s/manifest.json").exists()
    monkeypatch.undo()
    dump(expert_config, None, scenes, tmp_path / "s", settings, 1)
    assert digest(tmp_path / "s") == digest(whole)


def test_a_worker_with_other_libraries_is_refused(scenes, settings, expert_config, scheduler, monkeypatch, tmp_path):
    monkeypatch.setattr("pipeline.dumping.dump.library_versions", lambda: {"torch": "1.0"})
    with pytest.raises(FD3DError, match=r"a worker has torch .*, the dump 1.0; use one environment"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, 1, cluster=ClusterSettings(address=scheduler))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("store", "worker tcp://.*: store .* is not there; mount the folder"),
        ("other store", "worker tcp://.*: store .* is another store here"),
        ("code", "worker tcp://.*: the code of fd3d is another version here"),
        ("file", "worker tcp://.*index.npz is another file here: its SHA-256 is .*, the dump's 000000000000"),
        ("device", "worker tcp://.*: the expert runs on its cpu, on that of the first frame on the cuda"),
    ],
)
def test_a_worker_that_differs_is_named_before_it_infers_a_frame(
    scenes, settings, expert_config, scheduler, progress, monkeypatch, tmp_path, changed, message
):
    """The worker sees what it sees; the main process is made to see something else."""
    out = tmp_path / "s"
    if changed == "code":
        monkeypatch.setattr("pipeline.dumping.dump.source_sha256", lambda: "0")
    if changed == "file":
        monkeypatch.setattr("pipeline.data.index.FrameIndex.sha256", "0" * 64)
    run = cluster.DaskEngine.run

    def elsewhere(self, job, writer, shards, report):
        if changed == "device":
            self.device = "cuda"
        elif changed == "store":
            writer = replace(writer, storage=open_storage(tmp_path / "unseen"))
        elif changed == "other store":
            writer = replace(writer, fingerprint="0")
        run(self, job, writer, shards, report)

    monkeypatch.setattr(cluster.DaskEngine, "run", elsewhere)
    with pytest.raises(FD3DError, match=message) as told:
        dump(expert_config, None, scenes, out, settings, 1, cluster=ClusterSettings(address=scheduler))
    assert "\n" not in str(told.value)
    assert not progress.made or not any(progress.made[-1].frames.values())


def test_an_unreachable_scheduler_gets_one_line(scenes, settings, expert_config, monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "CONNECT", 1)
    with pytest.raises(FD3DError, match="no dask scheduler answers at tcp://127.0.0.1:9 ") as told:
        dump(
            expert_config,
            None,
            scenes,
            tmp_path / "s",
            settings,
            1,
            cluster=ClusterSettings(address="tcp://127.0.0.1:9"),
        )
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("reply", [None, b"HTTP/1.0 400 Bad request\r\n\r\n"], ids=["nothing", "another protocol"])
def test_what_listens_and_is_no_scheduler_gets_one_line(reply: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT", 1)
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            with contextlib.suppress(OSError):
                while reply:
                    connection = stack.enter_context(server.accept()[0])
                    connection.sendall(reply)

        threading.Thread(target=answer, daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(FD3DError, match=f"^no dask scheduler answers at {address} [(].+[)]; start one") as told:
            make_engine(ClusterSettings(address=address)).__enter__()
        assert time.monotonic() - begun < 20 and "\n" not in str(told.value)
        server.shutdown(socket.SHUT_RDWR)


def test_a_scheduler_without_workers_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "SILENT", 0.2)
    monkeypatch.setattr(cluster, "WORKERS", 1)
    with LocalCluster(n_workers=0, dashboard_address=None, processes=False, protocol="tcp") as empty:
        with pytest.raises(FD3DError, match="has no workers; start some with 'dask worker'"):
            make_engine(ClusterSettings(address=empty.scheduler_address)).__enter__()
        told = (
            f"warning: the scheduler at {empty.scheduler_address} has no workers yet; waiting up to 1 s for the first"
        )
    assert told in "".join(capsys.readouterr())


def test_two_clusters_at_once_share_no_port() -> None:
    """Dask's own port is in use, as by another dump or a notebook."""
    with socket.socket() as taken, warnings.catch_warnings():
        with contextlib.suppress(OSError):  # something else has the port already
            taken.bind(("", 8787))
            taken.listen()
        warnings.filterwarnings("error", message=".*already in use")
        with make_engine(ClusterSettings(workers=2)):
            pass


def test_a_cluster_stops_when_another_dump_has_the_store(monkeypatch):
    """The workers cannot see the lock; the main process looks after every shard."""
    made, writer = cluster.DaskEngine(ClusterSettings(2)), Mock()
    made.client, made.device = Mock(status="running"), "cpu"
    made.client.submit = lambda *task, key: Mock(key=key)
    monkeypatch.setattr(made, "_tell_workers", lambda plugin, name: None)
    monkeypatch.setattr(cluster, "as_completed", lambda futures: futures)
    writer.check.side_effect = [None, StoreError("taken over")]
    with pytest.raises(StoreError, match="taken over"):
        made.run(Mock(), writer, [0, 1, 2], Mock())
    assert writer.check.call_count == 2 and made.client.cancel.called
