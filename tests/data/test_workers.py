"""Worker processes of a data loader: threads, errors and shared memory."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numcodecs.blosc
import pytest
from mmdet3d.registry import DATASETS
from torch.utils.data import DataLoader, Dataset

from pipeline.data import workers
from pipeline.data.dataset import FrameDataset
from pipeline.data.frames import batch_bytes, frame_batches, frame_dataset
from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.data.workers import check_shared_memory, loader_options, worker_errors
from pipeline.errors import FD3DError
from pipeline.models.build import load_config


def threads(item: dict) -> int:
    """Transform that gives the number of OpenCV's threads."""
    return cv2.getNumThreads()


class Silent(Dataset):
    """Data set of one item that takes longer than the loader waits."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> int:
        time.sleep(3)
        return number


def test_a_worker_has_one_opencv_thread_and_maps_the_index(source: FrameSource) -> None:
    data = FrameDataset(source.index, source.root, source.split, [threads])
    assert len(pickle.dumps(data)) < 10_000  # a path and numbers: no column of the index
    loader = DataLoader(data, None, num_workers=1, **loader_options(1))
    assert set(loader) == {1}


class Decompressed(Dataset):
    """What Blosc gives back in a worker."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> int:
        return len(numcodecs.blosc.decompress(numcodecs.blosc.compress(bytes(8000), b"lz4", 5)))


def test_a_worker_that_decompresses_leaves_no_semaphore(project: Path) -> None:
    """A loader that is still there when the program ends, as a training's: its worker is ended by a signal."""
    code = (
        "from tests.data.test_workers import *\n"
        "if __name__ == '__main__':\n"
        "    loader = DataLoader(Decompressed(), None, num_workers=1, persistent_workers=True, **loader_options(1))\n"
        "    iterator = iter(loader)\n"
        "    print(next(iterator))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, timeout=120)
    assert done.stdout == "8000\n" and "semaphore" not in done.stderr, done.stderr


def test_a_bad_image_is_the_same_line_with_and_without_workers(
    source: FrameSource, project: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(source.root, tmp_path / "world")
    index = FrameIndex.load(source.index)
    (root / index[index.select(source.split)[0]].image_paths[2]).unlink()
    cfg, lines = load_config(project / "configs/world/apprentice.py"), []
    for number in (0, 1):
        with pytest.raises(FD3DError) as caught:
            list(frame_batches(cfg, FrameSource(source.index, root, source.split), None, number))
        lines.append(str(caught.value))
    assert lines[0] == lines[1] and "CAM_FRONT_LEFT" in lines[0] and "\n" not in lines[0]


def test_a_worker_that_brings_nothing_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr(workers, "TIMEOUT", 1)
    with pytest.raises(FD3DError, match="no worker has brought a batch for 1 s.*--shm-size"), worker_errors():
        list(DataLoader(Silent(), None, num_workers=1, **loader_options(1)))


class Dies(Dataset):
    """Data set of two items that ends its worker while it is imported, or when an item is asked for."""

    def __init__(self, early: bool) -> None:
        self.early = early

    def __setstate__(self, state: dict) -> None:
        if state["early"]:
            raise ImportError("another revision")
        self.__dict__.update(state)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> int:
        if number:
            os.kill(os.getpid(), signal.SIGKILL)
        return number


@pytest.mark.parametrize("early", [True, False])
def test_a_worker_that_dies_is_noticed_before_the_timeout(early: bool) -> None:
    begun, brought = time.monotonic(), []
    with pytest.raises(FD3DError, match="a worker that decodes images died, for want of"), worker_errors():
        for number in DataLoader(Dies(early), None, num_workers=1, persistent_workers=True, **loader_options(1, 1)):
            brought.append(number)
    assert time.monotonic() - begun < workers.TIMEOUT / 6
    assert brought == ([] if early else [0])  # what it sent before it died is not lost


@pytest.mark.parametrize("end", ["(pid(s) 7) exited unexpectedly", "(pid 7) is killed by signal: Bus error. "])
def test_a_worker_that_died_is_one_line(end: str) -> None:
    with pytest.raises(FD3DError, match="a worker that decodes images died.*--shm-size"), worker_errors():
        raise RuntimeError(f"DataLoader worker {end}")


def test_too_many_open_files_are_one_line() -> None:
    text = "Too many open files. Communication with the workers is no longer possible. Please increase the limit\nor so"
    with (
        pytest.raises(FD3DError, match=r"^too many files are open; raise the limit .ulimit -n 4096. and run"),
        worker_errors(),
    ):
        raise RuntimeError(text)


def test_errors_of_other_kinds_keep_their_traceback() -> None:
    with pytest.raises(KeyError, match="own"), worker_errors():
        raise KeyError("own")


def test_shared_memory_that_is_too_small_is_refused_before_the_first_batch(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(workers, "SHARED", tmp_path)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(64_000_000, 0, 0))
    check_shared_memory(20_000_000, 1)
    with pytest.raises(
        FD3DError,
        match=r"workers \(2\) decode 2 batches of 104.0 MB each ahead, which are 416 MB, .* has 64 MB; .*--shm-size",
    ):
        check_shared_memory(104_000_000, 2)


def test_bytes_of_a_trainings_batch_are_those_of_its_images(source: FrameSource, project: Path) -> None:
    for name in ("world/apprentice", "bevformer/small", "detr3d/r50"):
        cfg = load_config(project / f"configs/{name}.py")
        image = DATASETS.build(frame_dataset(cfg, source, train=True))[3]["inputs"]["img"]
        assert batch_bytes(cfg, FrameIndex.load(source.index), cfg.queue_length, 1, train=True) == image.nbytes


def test_bytes_of_a_batch_are_those_of_its_images(source: FrameSource, project: Path) -> None:
    for name in ("expert", "apprentice"):
        cfg = load_config(project / f"configs/world/{name}.py")
        (image,) = next(frame_batches(cfg, source, [0], 0))["inputs"]["img"]
        assert batch_bytes(cfg, FrameIndex.load(source.index), 1, 1) == image.nbytes


KILLED = """
import os, signal, sys, time
from torch.utils.data import DataLoader
from pipeline.data.workers import loader_options

class Slow(list):
    def __setstate__(self, state):
        time.sleep(30)

if __name__ == "__main__":
    items = Slow(range(10)) if sys.argv[1] == "starting" else range(10)
    loader = iter(DataLoader(items, num_workers=1, **loader_options(1)))
    if sys.argv[1] == "working":
        next(loader)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("state", ["starting", "working"])
def test_no_process_outlives_one_that_is_killed(tmp_path: Path, project: Path, state: str, session) -> None:
    """Neither the worker, though it is not yet able to watch its parent, nor the fork server."""
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, "killed.py", state]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(project)}, start_new_session=True
    )
    assert process.wait(60) == -signal.SIGKILL
    session.ends(process.pid)
