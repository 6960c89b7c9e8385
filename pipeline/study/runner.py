"""Runs a grid: what trainings need, the trainings and their evaluation, as a queue of processes."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from pipeline.errors import FD3DError
from pipeline.files import write_atomically
from pipeline.study.grid import Grid
from pipeline.study.queue import Claimed, Outcome, Queue, Stopped, Task
from pipeline.study.table import METRICS, Line, folder_lock, put_lines, read_table
from pipeline.study.training import EXPERT, SPLITS, Training

COMMAND = (sys.executable, "-m", "stages.cli")
_CODE = ("pipeline", "stages", "store_schema", "configs", "params.yaml", "constraints.txt")
_CURVES = ("losses.csv", "validation.csv", "pr.csv")
_KEPT = ("params.yaml", "hash", "revision", "train.json", "metrics.json", "config.py", *_CURVES)


def revision() -> str:
    """The git revision, with '-dirty' when a file that decides results differs from it; 'unknown' outside git."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *_CODE)
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device() -> str:
    """Device of trainings on this machine: the GPU's name, or ``cpu``."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _last_words(log: Path) -> str:
    """A log's last line, or its last error message of a command."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    told = [line.removeprefix("fd3d: ") for line in lines[-20:] if line.startswith("fd3d: ")]
    return told[-1] if told else (lines[-1] if lines else "no output")


class Sweep:
    """Trainings of a grid, ``jobs`` at a time.

    Args:
        jobs: processes at once.
        force: train although the table has the row with the same hash.
        keep: leave checkpoints and submissions; otherwise only losses, metrics and logs stay.
        command: how a stage is called.
    """

    def __init__(
        self, grid: Grid, jobs: int, force: bool = False, keep: bool = False, command: Sequence[str] = COMMAND
    ) -> None:
        self.grid, self.jobs, self.force, self.keep, self.command = grid, jobs, force, keep, tuple(command)
        self.folder = grid.runs / "sweep"
        self.stopping = threading.Event()
        self.processes: set[subprocess.Popen] = set()
        self.outcome = Outcome()

    # What a training needs

    def _needs(self, training: Training) -> list[Task]:
        """Tasks that make what is not there yet; each comes after what it needs itself."""
        family, grid, data = training.family, self.grid, self.grid.profile["data"]
        tasks = []

        def add(
            name: str, needs: list[str], folder: Path, ready: Callable[[], bool], make: Callable[[int], None]
        ) -> None:
            if not ready():
                tasks.append(Task(name, needs, lambda: self._once(folder, ready, make)))

        tables = Path(data["root"]) / data["version"]
        add("world", [], self.folder / "world", tables.is_dir, self._make_world)
        add("index", ["world"], self.folder / "index", grid.index.is_file, self._make_index)
        if not grid.needs_expert(training):
            return tasks
        trained, expert = grid.trained_expert(family), grid.expert(family, training.expert)
        whole, own = f"expert {family}", f"expert {family} {training.expert}"
        add(whole, ["index"], trained, (trained / "detector.pth").is_file, lambda lock: self._make_expert(family, lock))
        if not expert.trained_fully:
            add(own, [whole], trained, expert.checkpoint.is_file, lambda lock: _refuse_missing(expert.checkpoint))
        if training.store:
            named, stored = (
                (family, training.expert, training.store),
                grid.store_folder(family, training.expert, training.store),
            )
            name = f"store {family} {stored.name}"
            ready = partial(self._store_ready, *named)
            add(name, ["index", whole, own], stored, ready, partial(self._make_store, *named))
        return tasks

    def missing(self, training: Training) -> list[str]:
        """Names of the tasks to be done before a training can run."""
        return [task.name for task in self._needs(training)]

    def _once(self, folder: Path, ready: Callable[[], bool], make: Callable[[int], None]) -> None:
        """Make what several trainings need; a second sweep waits here until the first has made it."""
        with folder_lock(folder, self.stopping.is_set) as lock:
            if lock is None:
                raise Stopped
            if not ready():
                make(lock)

    def _make_world(self, lock: int) -> None:
        data, folder = self.grid.profile["data"], self.folder / "world"
        if not data.get("generate"):
            raise FD3DError(
                f"data root {data['root']} has no folder {data['version']}; see data in {self.grid.profile_path}"
            )
        params = self._write_params(folder, self.grid.profile)
        self._call(folder, lock, "world", "--root", data["root"], "--params", str(params))

    def _make_index(self, lock: int) -> None:
        data, folder = self.grid.profile["data"], self.folder / "index"
        args = ("--root", data["root"], "--version", data["version"], "--out", data["index"])
        params = self._write_params(folder, self.grid.profile)  # classes, cameras and frame of reference
        self._call(folder, lock, "index", *args, "--params", str(params))

    def _make_expert(self, family: str, lock: int) -> None:
        folder = self.grid.trained_expert(family)
        params = self._write_params(folder, self.grid.profile)
        args = ("--family", family, "--out", str(folder), "--params", str(params), "--restart")
        self._call(folder, lock, "expert", *args)

    def _store_ready(self, family: str, expert: str, recipe: str) -> bool:
        folder = self.grid.store_folder(family, expert, recipe)
        with suppress(FileNotFoundError, FD3DError):
            fits = (folder / "hash").read_text() == self.grid.store_hash(family, expert, recipe)
            return fits and (folder / "store" / "manifest.json").is_file()
        return False

    def _make_store(self, family: str, expert: str, recipe: str, lock: int) -> None:
        folder, found = self.grid.store_folder(family, expert, recipe), self.grid.expert(family, expert)
        params = self._write_params(folder, self.grid.params(Training(family, "", 0, expert, recipe, {})))
        args = ("--family", family, "--config", str(found.config), "--checkpoint", str(found.checkpoint))
        outs = ("--out", str(folder / "store"), "--metrics", str(folder / "dump.json"))
        self._call(folder, lock, "dump", *args, *outs, "--params", str(params), "--replace")
        made = self.grid.store_hash(family, expert, recipe)
        write_atomically(folder / "hash", lambda file: file.write(made))

    # A training

    def run_folder(self, training: Training) -> Path:
        """Folder of a training's files."""
        return self.folder / training.name

    def is_done(self, training: Training) -> bool:
        """Whether the table has a line of a training with its hash, on each of its splits."""
        with suppress(FileNotFoundError, FD3DError):
            return all(self._lines(training, split) for split in training.splits)
        return False

    def _lines(self, training: Training, split: str) -> list[Line]:
        """The table's lines of a training on a split, whatever their rows are called."""
        what = (training.family, training.method, str(training.seed), self.grid.config_hash(training, split))
        names = ("family", "method", "seed", "config")
        return [line for line in read_table(self.grid.table) if tuple(line[name] for name in names) == what]

    def _name_all(self, training: Training) -> None:
        """Give a done training a line in every row that the grid has for it: rows may have been added since."""
        for split in training.splits:
            lines = self._lines(training, split)
            have = {(line["group"], line["row"]) for line in lines}
            wanted = [row for row in training.rows if row.split == split and (row.group, row.row) not in have]
            if wanted:
                put_lines(self.grid.table, [lines[0] | row._asdict() for row in wanted])

    def _train(self, training: Training) -> None:
        """Train and evaluate, or go on where a stopped sweep left off, and write the table's lines."""
        folder, made = self.run_folder(training), self.grid.config_hash(training, training.splits[0])
        with folder_lock(folder) as lock:
            if lock is None:
                raise Claimed
            if not self.force and self.is_done(training):
                self._name_all(training)
                return
            state = folder / "hash"
            # a finished training was cleaned up: one that lacks a split begins anew, all its lines of one revision
            cleaned = (folder / "train.json").is_file() and not (folder / "detector.pth").is_file()
            if self.force or cleaned or not state.is_file() or state.read_text() != made:
                metrics = [f"{split}/metrics.json" for split in SPLITS]
                for file in ("detector.pth", "train.json", "last_checkpoint", "resumed", *metrics):
                    (folder / file).unlink(missing_ok=True)
                for stopped in folder.glob("iter_*.pth"):
                    stopped.unlink()
                write_atomically(state, lambda file: file.write(made))
                write_atomically(folder / "revision", lambda file: file.write(revision()))
            params = self._write_params(folder, self.grid.params(training))
            if training.method == EXPERT:
                expert = self.grid.expert(training.family, training.expert)
                facts = _read_json(expert.checkpoint.with_name("train.json")) if expert.trained_fully else {}
                detector, config = expert.checkpoint, expert.config
            else:
                detector, config = folder / "detector.pth", folder / "config.py"
                if not (detector.is_file() and (folder / "train.json").is_file()):
                    self._call_train(training, folder, params, lock)
                facts = _read_json(folder / "train.json")
            for split in training.splits:
                out = folder / split
                out.mkdir(exist_ok=True)
                if not (out / "metrics.json").is_file():
                    args = ("--checkpoint", str(detector), "--config", str(config), "--split", split)
                    outs = ("--out", str(out), "--metrics", str(out / "metrics.json"))
                    self._call(out, lock, "evaluate", *args, *outs, "--params", str(params))
                self._put(training, split, facts, _read_json(out / "metrics.json"))
            if not self.keep:
                _clean(folder)

    def _call_train(self, training: Training, folder: Path, params: Path, lock: int) -> None:
        if (folder / "last_checkpoint").exists():
            (folder / "resumed").touch()  # its seconds are those of the last part only
        args = ["--method", training.method, "--family", training.family, "--seed", str(training.seed)]
        if training.store:
            store = self.grid.store_folder(training.family, training.expert, training.store) / "store"
            args += ["--store", str(store)]
        if self.grid.needs_expert(training):
            args += ["--expert", str(self.grid.expert(training.family, training.expert).checkpoint)]
        self._call(folder, lock, "train", *args, "--out", str(folder), "--params", str(params), "--restart")

    def _put(self, training: Training, split: str, facts: dict[str, Any], metrics: dict[str, Any]) -> None:
        folder, size = self.run_folder(training), 0
        if training.store:
            size = _size(self.grid.store_folder(training.family, training.expert, training.store) / "store")
        seconds = "" if (folder / "resumed").exists() else facts.get("seconds", "")
        line = {
            "family": training.family,
            "method": training.method,
            "seed": training.seed,
            "store": training.store or "",
            "seconds": seconds,
            "device": device(),
            "store_bytes": size,
            "config": self.grid.config_hash(training, split),
            "revision": (folder / "revision").read_text(),
            "date": date.today().isoformat(),
        } | {name: metrics[name] for name in METRICS}
        put_lines(self.grid.table, [line | row._asdict() for row in training.rows if row.split == split])

    # Processes

    def _write_params(self, folder: Path, params: dict[str, Any]) -> Path:
        write_atomically(folder / "params.yaml", lambda file: yaml.safe_dump(params, file, sort_keys=False))
        return folder / "params.yaml"

    def _call(self, folder: Path, lock: int, *args: str) -> None:
        """Run a stage with its output in ``STAGE.log``; its process holds the folder's lock too.

        Raises:
            FD3DError: the stage failed.
            Stopped: the sweep is being stopped.
        """
        log = folder / f"{args[0]}.log"
        with open(log, "w") as file:
            if self.stopping.is_set():
                raise Stopped
            process = subprocess.Popen([*self.command, *args], stdout=file, stderr=subprocess.STDOUT, pass_fds=[lock])
            self.processes.add(process)
            try:
                code = process.wait()
            finally:
                self.processes.discard(process)
        if self.stopping.is_set():
            raise Stopped
        if code:
            raise FD3DError(f"{args[0]}: {_last_words(log)} ({log})")

    def _stop(self) -> None:
        self.stopping.set()
        for process in list(self.processes):
            with suppress(ProcessLookupError):
                process.terminate()

    # The queue

    def run(self, trainings: Sequence[Training]) -> Outcome:
        """Run trainings in their order, as far as what they need is there.

        Returns:
            names of trainings by what became of them; those claimed are being trained by another sweep.

        Raises:
            KeyboardInterrupt: after the running processes have been ended; the same call goes on from there.
        """
        queue = Queue(self.jobs, self._stop, self.outcome, len(trainings))
        queue.run(self._tasks(trainings, queue.bar))
        return self.outcome

    def _tasks(self, trainings: Sequence[Training], bar: tqdm) -> list[Task]:
        """Tasks in the order of the trainings, what they need before them."""
        queue: dict[str, Task] = {}
        for training in trainings:
            if not self.force and self.is_done(training):
                self._name_all(training)
                self.outcome.skipped.append(training.name)
                bar.update()
                continue
            needs = self._needs(training)
            for task in needs:
                queue.setdefault(task.name, task)

            def run(training: Training = training) -> None:
                self._train(training)

            queue[training.name] = Task(training.name, [task.name for task in needs], run, counts=True)
        return list(queue.values())


def _refuse_missing(checkpoint: Path) -> None:
    if not checkpoint.is_file():
        raise FD3DError(
            f"{checkpoint} does not exist; train the expert with 'fd3d expert --retrain' and the iteration in its train.snapshots, see docs/sweep.md"
        )


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _clean(folder: Path) -> None:
    """Leave of a finished training what documents it."""
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name in SPLITS:
            _clean(entry)
        elif entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name not in _KEPT and entry.suffix != ".log":
            entry.unlink()
