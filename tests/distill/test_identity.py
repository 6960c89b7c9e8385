"""Targets of another expert than the student starts from, and of no trained expert."""

import warnings
from pathlib import Path

import pytest

from pipeline.distill.apprentice import warn_of_expert
from pipeline.models.build import file_sha256


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
