"""What a signal to end and a kill leave: one line, all finished shards, and no process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.dumping.dump import dump
from pipeline.dumping.guard import MARK

WAITING = """
import signal, sys, time
from stages.stopping import stoppable
from stages import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background processes ignore
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
def wait(): print("ready", flush=True); time.sleep(60)
cli.app.command()(stoppable(wait))
sys.argv = ["fd3d", "wait"]
cli.main()
"""
DUMPING = """
import sys
from pathlib import Path
from pipeline.data.source import FrameSource
from pipeline.dumping.dump import dump
from pipeline.dumping.settings import ClusterSettings, DumpSettings
from pipeline.focal.rule import FocalRule
from stages.stopping import stoppable
from stages import cli
def run():
    source = FrameSource(Path({index!r}), Path({root!r}), {split!r})
    settings = DumpSettings(FocalRule(num_queries=20, min_score=0.0), frames_per_shard=2)
    dump(Path({config!r}), None, source, {out!r}, settings, 0, cluster=ClusterSettings({cluster}))
if __name__ == "__main__":
    cli.app.command()(stoppable(run))
    sys.argv = ["fd3d", "run"]
    cli.main()
"""
DEAF = """
if __name__ == "__mp_main__":  # a worker that starts, which imports this before it can watch its parent
    import time
    time.sleep(120)
"""
LINE = "fd3d: stopped; the same command goes on from here"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_end_is_one_line_and_its_status(project, number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()) == (code, [LINE])


@pytest.mark.parametrize(
    ("number", "cluster", "moment"),
    [
        (signal.SIGTERM, 1, "a shard"),
        (signal.SIGKILL, 2, "workers"),
    ],
)
def test_a_dump_that_is_ended_leaves_its_shards_and_no_process(
    scenes, settings, expert_config, whole, digest, project, session, tmp_path, number, cluster, moment
):
    out = tmp_path / "s"
    places = dict(config=str(expert_config), index=str(scenes.index), root=str(scenes.root), out=str(out))
    script = DUMPING.format(split=scenes.split, cluster=cluster, **places)
    (tmp_path / "dumping.py").write_text(script + DEAF * (moment == "workers"))
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(
            [sys.executable, "dumping.py"],
            cwd=tmp_path,
            # as in a process that has dumped before
            env=os.environ | {"PYTHONPATH": str(project), MARK: "another dump's"},
            stderr=said,
            start_new_session=True,
        )
    wait_for(lambda: len(session.alive(process.pid)) > 3 if moment == "workers" else any(out.glob(".done/shard-*")))
    process.send_signal(number)
    process.wait(60)
    session.ends(process.pid)
    done = {file: file.stat().st_ino for file in out.glob(".done/shard-*")}
    if number == signal.SIGTERM:
        assert process.returncode == 143 and (tmp_path / "said").read_text().splitlines()[-1] == LINE
        assert not any(out.glob(".tmp/*"))  # the shard that was being written is written
    dump(expert_config, None, scenes, out, settings, 0)
    assert digest(out) == digest(whole)
    assert all(file.stat().st_ino == inode for file, inode in done.items())


def wait_for(ready) -> None:
    for _ in range(4800):
        if ready():
            return
        time.sleep(0.05)
    pytest.fail("it did not come")


def test_a_worker_that_is_killed_while_it_starts_is_one_line(
    scenes, settings, expert_config, project, session, tmp_path
):
    places = dict(config=str(expert_config), index=str(scenes.index), root=str(scenes.root), out=str(tmp_path / "s"))
    (tmp_path / "dumping.py").write_text(DUMPING.format(split=scenes.split, cluster=2, **places))
    process = subprocess.Popen(
        [sys.executable, "dumping.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(project)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def workers() -> list[int]:
        return [number for number, line in session.alive(process.pid).items() if "spawn_main" in line]

    wait_for(workers)
    os.kill(workers()[0], signal.SIGKILL)
    said = process.communicate(timeout=120)[1].splitlines()
    session.ends(process.pid)
    assert process.returncode == 1 and [line for line in said if line.startswith(("fd3d:", "Traceback"))] == [
        "fd3d: a worker of the dump died while it was starting; is there enough memory for 2 workers? The same command goes "
        "on from here"
    ]
