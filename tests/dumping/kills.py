"""Kill a real ``fd3d dump`` again and again, main process or workers, by SIGKILL or SIGTERM: the same command goes on.

    python -m tests.dumping.kills                # 30 kills of a dump with two processes that run the expert
    python -m tests.dumping.kills --kills 4

Prints a line per kill and the figures. After each kill of the main process no process of the dump lives a second later;
the store is at last the same, bit for bit, as that of a dump without a kill.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import yaml

from store_schema import StoreError, StoreReader, verify
from tests.conftest import alive
from tests.store.crash import digest

PROJECT = Path(__file__).resolve().parents[2]
LINE = "fd3d: stopped; the same command goes on from here"
SECONDS = 600
"""Time after which a dump hangs."""


def make_inputs(folder: Path, scenes: int) -> list[str]:
    """A world of scenes of two frames, one scene a shard; returns the dump's command without the store."""
    from pipeline.data.index import build_index
    from pipeline.data.world.config import WorldConfig
    from pipeline.data.world.generate import generate_world

    world, index, params = folder / "world", folder / "index.npz", folder / "params.yaml"
    generate_world(world, WorldConfig(train_scenes=scenes, val_scenes=1, frames_per_scene=2), workers=0)
    build_index(world, "v1.0-world", index)
    profile = yaml.safe_load((PROJECT / "params.yaml").read_text())
    profile["dump"]["frames_per_shard"] = 2
    params.write_text(yaml.safe_dump(profile))
    command: list[object] = [
        sys.executable,
        "-m",
        "stages.cli",
        "dump",
        "--split",
        "world_train",
        "--cluster-workers",
        "2",
    ]
    command += ["--params", params, "--index", index, "--root", world]
    command += ["--config", PROJECT / "configs/world/expert.py"]
    return [str(part) for part in [*command, "--checkpoint", PROJECT / "checkpoints/world_expert.pth"]]


class Dump:
    """A running dump in a session of its own."""

    def __init__(self, command: list[str], out: Path) -> None:
        self.said = out.with_name("said")
        with open(self.said, "w") as said:
            self.process = subprocess.Popen(
                [*command, "--out", str(out)],
                cwd=PROJECT,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self.start = time.perf_counter()

    def workers(self) -> list[int]:
        """Processes that run the expert, those that are being started included."""
        return [number for number, line in alive(self.process.pid).items() if "spawn_main" in line]

    def wait_for(self, ready: Callable[[], bool], seconds: float = SECONDS) -> None:
        """Wait until something is so, the dump has ended, or the time is over."""
        end = time.perf_counter() + seconds
        while self.process.poll() is None and not ready() and time.perf_counter() < end:
            time.sleep(0.02)

    def gone(self) -> float:
        """Seconds until no process of the dump lives any more.

        Raises:
            AssertionError: some live on.
        """
        start = time.perf_counter()
        while left := alive(self.process.pid):
            assert time.perf_counter() - start < 30, f"these live on: {left}"
            time.sleep(0.02)
        return time.perf_counter() - start

    def errors(self) -> list[str]:
        return [line for line in self.said.read_text().splitlines() if line.startswith(("Traceback", "fd3d:"))]


def wrong(path: Path) -> list[str]:
    """Errors among what can be read of a store; what a kill leaves in ``.tmp`` is never read."""
    try:
        StoreReader(path)
    except StoreError:
        return []
    return [problem for problem in verify(path).problems if not problem.startswith(".tmp/")]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        faults = kills(Path(folder), args.kills, args.scenes, random.Random(args.seed))
    for fault in faults:
        print("WRONG", fault)
    sys.exit(1 if faults else 0)


def more_shards(path: Path, than: int) -> bool:
    return len(list(path.glob(".done/shard-*"))) > than


def kills(folder: Path, number: int, scenes: int, chance: random.Random) -> list[str]:
    """Kill dumps; returns what was not as it should be, a line each."""
    command, path, faults = make_inputs(folder, scenes), folder / "store", list[str]()
    calm = Dump(command, folder / "calm")
    calm.wait_for(lambda: any(folder.glob("calm/.done/shard-*")))
    starting = time.perf_counter() - calm.start
    assert calm.process.wait(SECONDS) == 0, calm.said.read_text()
    want, slowest, hits, ends = digest(folder / "calm"), 0.0, 0, 0
    print(
        f"undisturbed: {starting:.1f} s to the first shard, {time.perf_counter() - calm.start:.1f} s, {len(want)} files"
    )
    for kill in range(number):
        victim = ("main", "worker")[kill % 4 == 3]
        signals = signal.SIGKILL if (kill + kill // 4) % 2 else signal.SIGTERM  # of main and of workers both
        dump, before, wait = Dump(command, path), len(list(path.glob(".done/shard-*"))), chance.random()
        if kill % 3 == 0:  # anywhere before the first shard
            wait *= starting
        else:  # while shards are inferred and written, or in finalising
            dump.wait_for(partial(more_shards, path, before))
        dump.wait_for(lambda: False, wait)
        prey = [dump.process.pid] if victim == "main" else dump.workers()
        running = dump.process.poll() is None and bool(prey)
        seen = time.perf_counter() - dump.start
        if running:
            os.kill(chance.choice(prey), signals)
            hits += 1
        status = dump.process.wait(SECONDS)
        seconds = dump.gone()
        slowest = max(slowest, seconds)
        said, problems = dump.errors(), wrong(path)
        done = len(list(path.glob(".done/shard-*")))
        print(
            f"kill {kill + 1:2d} {signals.name} of {victim if running else 'nothing'} after {seen:.1f} s: status {status}, "
            f"{done} shards, the last process gone after {seconds:.2f} s",
            *said,
            flush=True,
        )
        faults += [f"kill {kill + 1}: {problem}" for problem in problems]
        if len(said) > 1 or any(line.startswith("Traceback") for line in said):
            faults.append(f"kill {kill + 1}: traceback")
        if (
            running
            and victim == "main"
            and signals == signal.SIGTERM
            and (status, said) not in ((143, [LINE]), (0, []))
        ):
            faults.append(f"kill {kill + 1}: status {status} {said}")
        if seconds > 1 * max(1.0, os.getloadavg()[0]):
            faults.append(f"kill {kill + 1}: a process lived for {seconds:.1f} s")
        if (path / "manifest.json").exists():
            ends += 1
            if digest(path) != want:
                faults.append(f"kill {kill + 1}: the store is another one")
            (path / "manifest.json").unlink()
            for marker in chance.sample(sorted(path.glob(".done/shard-*")), k=3 * scenes // 4):
                marker.unlink()
    last = Dump(command, path)
    status = last.process.wait(SECONDS)
    have = digest(path)
    different = sorted(name for name in have.keys() | want.keys() if have.get(name) != want.get(name))
    faults += [f"at last: status {status}"] * (status != 0) + [f"at last: {name} differs" for name in different]
    print(
        f"{hits} of {number} kills hit a running dump, {ends + 1} stores were finished, {len(different)} files differ, the "
        f"slowest process was gone after {slowest:.2f} s, {len(faults)} faults"
    )
    return faults


if __name__ == "__main__":
    main()
