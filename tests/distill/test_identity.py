"""Targets of another expert than the student starts from, and of no trained expert."""

import warnings
from pathlib import Path

import pytest

from pipeline.data.source import FrameSource
from pipeline.distill.apprentice import train_apprentice, warn_of_expert, warn_of_nothing
from pipeline.distill.settings import DistillSettings
from pipeline.errors import FD3DError
from pipeline.models.build import file_sha256
from pipeline.training.settings import RunSettings


def test_targets_of_another_expert_or_of_none_are_warned_of(tmp_path: Path) -> None:
    expert = tmp_path / "detector.pth"
    expert.write_bytes(b"weights")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_expert({"checkpoint_sha256": file_sha256(expert)}, Path("store"), expert)
        warn_of_expert({"checkpoint_sha256": "another"}, Path("store"), None)
    with pytest.warns(UserWarning, match="store store was dumped with random weights, its targets teach nothing"):
        warn_of_expert({"checkpoint_sha256": None}, Path("store"), None)
    with pytest.warns(
        UserWarning, match=r"starts from .*detector.pth .*, but another checkpoint made store store .another"
    ):
        warn_of_expert({"checkpoint_sha256": "another"}, Path("store"), expert)


def test_a_training_looks_at_the_expert_of_its_targets(
    project: Path, source: FrameSource, store: Path, expert_checkpoint: Path, tmp_path: Path
) -> None:
    """The refusal of a batch, which comes later, ends the training."""
    other = tmp_path / "other.pth"
    other.write_bytes(expert_checkpoint.read_bytes() + b"later")
    with (
        pytest.warns(UserWarning, match="but another checkpoint made store"),
        pytest.raises(FD3DError, match="takes 1000 different frames"),
    ):
        train_apprentice(
            project / "configs/world/apprentice.py",
            "fd3d",
            DistillSettings(inherit=("pts_bbox_head",)),
            source=source,
            store=store,
            expert=other,
            out=tmp_path / "out/detector.pth",
            run=RunSettings(max_iters=4, workers=0, batch_size=1000),
        )


def test_a_store_without_a_cell_is_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_nothing({"bev": 0.0, "pv/0": 0.1}, Path("store"))
        warn_of_nothing({}, Path("store"))  # a dense one
    with pytest.warns(
        UserWarning, match="store store has no cell, since no query .*; look at the expert, or lower focal"
    ):
        warn_of_nothing({"bev": 0.0, "pv/0": 0.0}, Path("store"))
