"""Kill a dump again and again at random moments and resume it: the store must come out bit for bit as if undisturbed.

    python -m tests.store.crash                 # 30 kills, two writer processes, prints a line per kill and the figures
    python -m tests.store.crash --kills 5

Frames are a seeded function of their token, so no expert is needed. Victims are the main process (its orphans go on
writing beside the resumed dump), one writer process, or all of them; a quarter of the kills waits for finalising.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from store_schema import ShardWriter, StoreError, StoreReader, StoreSchema, StoreWriter, verify

SCHEMA = StoreSchema(
    bev=(40, 40, 32),
    pv=[(12, 20, 32, (8, 8))],
    cameras=("A", "B"),
    queries=10,
    layers=1,
    heads=2,
    points=2,
    query_channels=32,
    bev_kmax=1600,
    pv_kmax=[480],
)
FRAMES_PER_SHARD = 4


def make_scenes(scenes: int) -> dict[str, list[str]]:
    """Scenes of 1 to 4 frames, tokens by scene."""
    return {
        f"scene-{i:04d}": [hashlib.md5(f"{i} {n}".encode()).hexdigest() for n in range(1 + i % FRAMES_PER_SHARD)]
        for i in range(scenes)
    }


def make_frame(token: str, schema: StoreSchema = SCHEMA) -> dict[str, np.ndarray]:
    """Arrays of a frame as the writer takes them; the number of its cells is random, too, and may be zero."""
    rng = np.random.default_rng(int(token[:8], 16))
    frame: dict[str, np.ndarray] = {}
    for path, spec in schema.arrays().items():
        if spec.kind == "values":
            cells = int(rng.integers(0, spec.shape[0] // 4))
            frame[path] = rng.normal(size=(cells, spec.shape[1])).astype(np.float16)
            name = path.replace("values", "index")
            frame[name] = np.sort(rng.choice(spec.attributes["cells"], cells, replace=False))
        elif spec.kind == "plain":
            whole = spec.dtype == "uint8"
            frame[path] = rng.integers(0, 10, spec.shape) if whole else rng.random(spec.shape).astype(np.float32)
    return frame


def make_constants(schema: StoreSchema = SCHEMA) -> dict[str, np.ndarray]:
    """The value projection."""
    return {path: np.ones(spec.shape, np.float32) for path, spec in schema.constants().items()}


def open_writer(path: str | Path, scenes: int, expert: str = "crash") -> StoreWriter:
    """A writer of the synthetic store."""
    return StoreWriter(path, SCHEMA, {"expert": {"checkpoint_sha256": expert}}, make_scenes(scenes), FRAMES_PER_SHARD)


def write_shard(writer: ShardWriter, shard: int) -> None:
    """One shard; runs in the writer processes."""
    writer.write(shard, {token: make_frame(token) for token in writer.layout.tokens(shard)})


def write_shards(jobs: Connection) -> None:
    """A writer process: takes one job, a writer and its shards."""
    writer, shards = jobs.recv()
    for shard in shards:
        write_shard(writer, shard)


def dump(path: str | Path, scenes: int, workers: int = 0) -> None:
    """The whole dump, or what is left of it, by ``workers`` processes besides this one; prints its phases.

    Plain processes, each with a pipe of its own: a pool's processes share queues, and one killed with a queue's
    lock in its hand hangs the pool.
    """
    # started before the lock is taken, so that orphans do not hold it
    context = get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(workers)]
    writers = [context.Process(target=write_shards, args=(jobs,)) for jobs, _ in pipes]
    for process in writers:
        process.start()
    if writers:
        print("workers", *(process.pid for process in writers), flush=True)
    with open_writer(path, scenes) as store:
        print("writing", flush=True)
        store.write_constants(make_constants())
        pending = store.pending()
        for i, (_, job) in enumerate(pipes):
            job.send((store.shards, pending[i::workers]))
        if not writers:
            for shard in pending:
                write_shard(store.shards, shard)
        for process in writers:
            process.join()
        if any(process.exitcode for process in writers):
            raise SystemExit("a writer process died")
        print("finalising", flush=True)
        store.finalise({"bev": {"mean": [0.0] * 32, "std": [1.0] * 32}})
    print("done", flush=True)


def digest(path: Path) -> dict[str, str]:
    """MD5 of every file of a store but the lock, by name."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(path)): hashlib.md5(file.read_bytes()).hexdigest() for file in files}


class Run:
    """A dump in a session of its own."""

    def __init__(self, path: Path, scenes: int, workers: int) -> None:
        command = [sys.executable, "-m", "tests.store.crash", "--dump", str(path)]
        command += ["--scenes", str(scenes), "--workers", str(workers)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        self.workers: list[int] = []

    def wait_for(self, phase: str) -> bool:
        """Whether the dump got to a phase."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            words = line.split()
            if words[0] == "workers":
                self.workers = [int(word) for word in words[1:]]
            if words[0] == phase:
                return True
        return False

    def kill(self, victim: str) -> bool:
        """SIGKILL a victim; False when the dump had ended."""
        alive = self.process.poll() is None
        if victim == "all" or not self.workers:
            self.end()
        elif alive:
            try:
                os.kill(self.process.pid if victim == "main" else self.workers[0], signal.SIGKILL)
            except ProcessLookupError:  # it has written its shards
                alive = False
        self.process.wait()
        return alive

    def end(self) -> None:
        """SIGKILL every process that is left of the dump."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def wrong(path: Path) -> list[str]:
    """Errors among what can be read of a store; a temporary file, which a kill may leave, is never read."""
    try:
        StoreReader(path)
    except StoreError:
        return []
    return [problem for problem in verify(path).problems if not problem.startswith(".tmp/")]


def crash(folder: Path, kills: int, scenes: int, workers: int, seed: int) -> dict[str, int]:
    """Dump once undisturbed and once with kills.

    Returns:
        how many kills hit a running dump, by phase, and how many files of the two stores differ.
    """
    chance = random.Random(seed)
    calm, path = folder / "calm", folder / "killed"
    run = Run(calm, scenes, workers)
    run.wait_for("writing")
    start = time.perf_counter()
    run.wait_for("finalising")
    writing, start = time.perf_counter() - start, time.perf_counter()
    run.wait_for("done")
    finalising = time.perf_counter() - start
    run.process.wait()
    counts = {"writing": 0, "finalising": 0, "after the end": 0, "wrong": 0}
    last: Run | None = None
    for number in range(kills):
        run = Run(path, scenes, workers)
        phase = "finalising" if number % 4 == 3 else "writing"
        # kills while writing are spread so that the last ones still find shards to write
        delay = chance.uniform(0, finalising if phase == "finalising" else 2.2 * writing / (0.75 * kills))
        if phase == "finalising":
            # it writes what is left first; most of it, so that later kills find some, goes missing again
            run.wait_for("finalising")
        else:
            run.wait_for("writing")
        time.sleep(delay)
        victim = chance.choice(["main", "all"] if phase == "finalising" else ["main", "worker", "all"])
        alive = run.kill(victim)
        counts[phase if alive else "after the end"] += 1
        done = len(list((path / ".done").glob("shard-*")))
        left = len([f for f in (path / ".tmp").glob("*")]) if (path / ".tmp").exists() else 0
        problems = wrong(path)
        counts["wrong"] += bool(problems)
        print(
            f"kill {number + 1:2d} {victim:6} {phase:10} {delay:5.3f} s: {done} shards done, {left} temporary files",
            *problems,
        )
        if phase == "finalising":
            (path / "manifest.json").unlink(missing_ok=True)
            for marker in chance.sample(sorted((path / ".done").glob("shard-*")), k=scenes // 5):
                marker.unlink()
        if last is not None:
            last.end()
        last = run
    if last is not None:
        last.end()
    run = Run(path, scenes, workers)
    finished = run.wait_for("done")
    run.process.wait()
    a, b = digest(calm), digest(path)
    counts["differing"] = sum(a.get(name) != b.get(name) for name in a.keys() | b.keys()) + (not finished)
    print(f"undisturbed: {writing:.2f} s writing, {finalising:.2f} s finalising, {len(a)} files")
    return counts


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--scenes", type=int, default=80)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dump", type=Path, help="only dump to this folder (what is killed)")
    args = parser.parse_args()
    if args.dump:
        dump(args.dump, args.scenes, args.workers)
        return
    with tempfile.TemporaryDirectory() as folder:
        counts = crash(Path(folder), args.kills, args.scenes, args.workers, args.seed)
    print(*(f"{name}: {count}" for name, count in counts.items()), sep=", ")
    sys.exit(1 if counts["differing"] or counts["wrong"] else 0)


if __name__ == "__main__":
    main()
