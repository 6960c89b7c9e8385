"""Shared fixtures: a tiny embedded world, its index, and the optional real excerpt."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

torch.set_num_threads(1)
PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def project() -> Path:
    return PROJECT


@pytest.fixture(scope="session")
def excerpt_root() -> Path:
    """Real nuScenes key frames, where they are at hand."""
    root = Path(os.environ.get("FD3D_NUSCENES_EXCERPT", PROJECT.parent / "shared" / "nuscenes_excerpt"))
    if not (root / "v1.0-mini").is_dir():
        pytest.skip(f"no nuScenes excerpt at {root.name}; set FD3D_NUSCENES_EXCERPT")
    return root


@pytest.fixture(scope="session")
def parity_root() -> Path:
    """What the official code computes, where it is at hand."""
    root = Path(os.environ.get("FD3D_PARITY", PROJECT.parent / "shared" / "parity"))
    if not root.is_dir():
        pytest.skip("no parity data; set FD3D_PARITY")
    return root


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training scenes and one validation scene of three frames."""
    from pipeline.data.world.config import WorldConfig
    from pipeline.data.world.generate import generate_world

    root = tmp_path_factory.mktemp("data") / "world"
    generate_world(root, WorldConfig(train_scenes=2, val_scenes=1, frames_per_scene=3), workers=0)
    return root


@pytest.fixture(scope="session")
def world_index(world: Path) -> Path:
    from pipeline.data.index import build_index

    path = world.parent / "index.npz"
    build_index(world, "v1.0-world", path)
    return path


@pytest.fixture(scope="session")
def source(world: Path, world_index: Path):
    from pipeline.data.source import FrameSource

    return FrameSource(world_index, world, "world_train")


@pytest.fixture(scope="session")
def expert_config(project: Path) -> Path:
    return project / "configs" / "world" / "expert.py"


@pytest.fixture(scope="session")
def expert_checkpoint(project: Path) -> Path:
    return project / "checkpoints" / "world_expert.pth"


@pytest.fixture(scope="session")
def store(source, expert_config: Path, expert_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world's training scenes dumped by the shipped expert."""
    from pipeline.dumping.dump import dump
    from pipeline.dumping.settings import DumpSettings
    from pipeline.focal.rule import FocalRule

    path = tmp_path_factory.mktemp("store") / "store"
    dump(expert_config, expert_checkpoint, source, path, DumpSettings(FocalRule(), frames_per_shard=3), workers=0)
    return path


@pytest.fixture(scope="session")
def session():
    """Processes of a session (``start_new_session``) by the number of the session's first."""
    return SimpleNamespace(alive=alive, ends=_ends)


def alive(leader: int) -> dict[int, str]:
    """Command lines of the processes that have not ended."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, number = (path / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(number) == leader and state != "Z":
                found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def _ends(leader: int, seconds: float = 20) -> None:
    """Fail unless all processes end within a time that is enough on a busy machine; ``tests.dumping.kills`` measures it."""
    deadline = time.monotonic() + seconds
    while left := alive(leader):
        if time.monotonic() > deadline:
            for number in left:
                os.kill(number, signal.SIGKILL)
            pytest.fail(f"these live on: {left}")
        time.sleep(0.05)
