"""Whole maps of both shipped experts on the tiny world."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def dense_stores(source, project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dense store by family."""
    from pipeline.dumping.dump import dump
    from pipeline.dumping.settings import DumpSettings
    from pipeline.focal.rule import FocalRule

    settings, stores = DumpSettings(FocalRule(), layout="dense", frames_per_shard=3), {}
    for family, name in (("bevformer", "expert"), ("detr3d", "detr3d_expert")):
        stores[family] = tmp_path_factory.mktemp("dense") / family
        config, checkpoint = project / f"configs/world/{name}.py", project / f"checkpoints/world_{name}.pth"
        dump(config, checkpoint, source, stores[family], settings, workers=0)
    return stores
