"""Trainings that cannot work are refused in one line, before anything is built."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.training.checkpoints import take_up
from pipeline.training.plain import train_plain
from pipeline.training.settings import RunSettings

RUN = RunSettings(max_iters=4, workers=0)


def test_an_index_that_is_not_there_is_named(project: Path, source: FrameSource, tmp_path: Path):
    missing = replace(source, index=tmp_path / "no.npz")
    with pytest.raises(FD3DError, match=r"index .*no.npz does not exist; make it with 'fd3d index'"):
        train_plain(project / "configs/world/apprentice.py", missing, tmp_path / "plain/detector.pth", RUN)
    assert not (tmp_path / "plain").exists()


def test_a_config_without_a_model_is_named(project: Path, source: FrameSource, tmp_path: Path):
    with pytest.raises(FD3DError, match="schedule"):
        train_plain(project / "params.yaml", source, tmp_path / "plain/detector.pth", RUN)


def test_weights_of_an_update_that_never_comes_are_refused(project: Path, source: FrameSource, tmp_path: Path):
    with pytest.raises(FD3DError, match=r"train.snapshots has 9, but the training has the updates 1 to 4"):
        train_plain(
            project / "configs/world/apprentice.py",
            source,
            tmp_path / "plain/detector.pth",
            replace(RUN, snapshots=(2, 9)),
        )


def test_a_batch_of_more_frames_than_there_are_is_refused(project: Path, source: FrameSource, tmp_path: Path):
    with pytest.raises(
        FD3DError, match=r"takes 1000 different frames, but split 'world_train' has 6; lower train.batch_size"
    ):
        train_plain(
            project / "configs/world/apprentice.py",
            source,
            tmp_path / "plain/detector.pth",
            replace(RUN, batch_size=1000),
        )


def test_a_disk_error_gives_up_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "iter_4.pth").write_bytes(b"weights of hours")

    def fails(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(FD3DError, match=r"iter_4.pth cannot be opened .*Input/output error"):
        take_up(tmp_path, {}, restart=True)
    assert (tmp_path / "iter_4.pth").exists()
