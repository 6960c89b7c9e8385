"""A world of several short scenes, so that a dump has several shards."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory):
    """Six training scenes of two frames."""
    from pipeline.data.index import build_index
    from pipeline.data.source import FrameSource
    from pipeline.data.world.config import WorldConfig
    from pipeline.data.world.generate import generate_world

    root = tmp_path_factory.mktemp("scenes") / "world"
    generate_world(root, WorldConfig(train_scenes=6, val_scenes=1, frames_per_scene=2), workers=0)
    build_index(root, "v1.0-world", root.parent / "index.npz")
    return FrameSource(root.parent / "index.npz", root, "world_train")


@pytest.fixture(scope="session")
def settings():
    """One scene per shard; an untrained expert's scores are low."""
    from pipeline.dumping.settings import DumpSettings
    from pipeline.focal.rule import FocalRule

    return DumpSettings(FocalRule(num_queries=20, min_score=0.0), frames_per_shard=2)


@pytest.fixture(scope="session")
def whole(scenes, settings, expert_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an undisturbed dump in one process, with random weights."""
    from pipeline.dumping.dump import dump

    path = tmp_path_factory.mktemp("whole") / "store"
    dump(expert_config, None, scenes, path, settings, workers=0)
    return path


@pytest.fixture(scope="session")
def digest():
    """Files of a store by name."""

    def read(path: Path) -> dict[str, bytes]:
        return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file() and f.name != ".lock"}

    return read


@pytest.fixture(scope="session")
def broken_checkpoint(expert_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of finite weights whose features are not finite: their sums are beyond float32."""
    import torch

    state = torch.load(expert_checkpoint, weights_only=True)["state_dict"]
    state["img_neck.fpn_convs.0.conv.weight"][:] = 3e38
    path = tmp_path_factory.mktemp("broken") / "huge.pth"
    torch.save({"state_dict": state, "training": {"seed": 0}}, path)
    return path


@pytest.fixture
def runs(monkeypatch) -> list[str]:
    """Tokens of the frames that the expert runs over."""
    from pipeline.expert.tapped import TappedExpert

    seen: list[str] = []
    run = TappedExpert.run

    def counted(self, batch):
        seen.append(batch["data_samples"][0].token)
        return run(self, batch)

    monkeypatch.setattr(TappedExpert, "run", counted)
    return seen
