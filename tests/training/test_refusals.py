"""Trainings that cannot work are refused in one line, before anything is built."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.training.checkpoints import take_up
from pipeline.training.plain import train_plain
from pipeline.training.settings import RunSettings
from pipeline.training.work_folder import WorkFolder

RUN = RunSettings(max_iters=4, workers=0)


def test_an_index_that_is_not_there_is_named(project: Path, source: FrameSource, tmp_path: Path):
    missing = replace(source, index=tmp_path / "no.npz")
    with pytest.raises(FD3DError, match=r"index .*no.npz does not exist; make it with 'fd3d index'"):
        train_plain(project / "configs/world/apprentice.py", missing, tmp_path / "plain/detector.pth", RUN)
    assert not (tmp_path / "plain").exists()


def test_a_config_without_a_model_is_named(project: Path, source: FrameSource, tmp_path: Path):
    with pytest.raises(FD3DError, match="params.yaml has no model, so it is no detector's config"):
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


def test_an_image_that_is_gone_is_named_before_the_first_step(project: Path, source: FrameSource, tmp_path: Path):
    """The last frame of the split, which a training would come to late."""
    index = FrameIndex.load(source.index)
    root = shutil.copytree(source.root, tmp_path / "world")
    gone = index[index.select(source.split)[-1]].image_paths[1]
    (root / gone).unlink()
    with pytest.raises(FD3DError, match=f"image .*{gone} cannot be read: No such file"):
        train_plain(
            project / "configs/world/apprentice.py", replace(source, root=root), tmp_path / "plain/detector.pth", RUN
        )
    assert not (tmp_path / "plain").exists()


def test_heights_of_another_frame_are_warned_of_before_the_first_step(
    project: Path, source: FrameSource, tmp_path: Path
):
    """The refusal of a batch, which comes later, ends the training."""
    (tmp_path / "high.py").write_text(
        f"_base_ = '{project}/configs/world/apprentice.py'\n"
        "model = dict(pts_bbox_head=dict(transformer=dict(encoder=dict(pillar_heights=[-4.5, -3.5, -0.2, 1.2]))))\n"
    )
    with (
        pytest.warns(UserWarning, match="2 of 4 pillar_heights of .*high.py are below the ground"),
        pytest.raises(FD3DError, match="takes 1000 different frames"),
    ):
        train_plain(tmp_path / "high.py", source, tmp_path / "plain/detector.pth", replace(RUN, batch_size=1000))


def test_a_disk_error_gives_up_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "iter_4.pth").write_bytes(b"weights of hours")

    def fails(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(FD3DError, match=r"iter_4.pth cannot be opened .*Input/output error"):
        take_up(tmp_path, {}, restart=True)
    assert (tmp_path / "iter_4.pth").exists()


def test_a_training_that_is_refused_by_what_it_starts_from_leaves_nothing(
    project: Path, source: FrameSource, expert_checkpoint: Path, tmp_path: Path
):
    """mmengine has written its log and the config by then; what another training left stays."""
    start = (project / "configs/world/apprentice.py", source)
    for out in (tmp_path / "runs/plain", tmp_path / "there"):
        if out.name == "there":
            (out / "20260101_000000").mkdir(parents=True)
            (out / "losses.csv").write_text("step,loss\n")
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(FD3DError, match="nothing below 'pts_head' fits the expert's checkpoint"):
            train_plain(*start, out / "detector.pth", RUN, expert_checkpoint, ("pts_head",))
        assert sorted(tmp_path.rglob("*")) == before


def test_a_training_that_has_begun_keeps_its_files(tmp_path: Path):
    def fails(folder: WorkFolder, begins: bool = False) -> None:
        with pytest.raises(OSError), folder:
            if begins:
                folder.begin()
            (folder.path / "log").touch()
            raise OSError

    fails(WorkFolder(tmp_path / "a/b"))
    assert not (tmp_path / "a").exists()
    fails(WorkFolder(tmp_path / "a/b"), begins=True)
    (tmp_path / "c").mkdir()
    fails(WorkFolder(tmp_path / "c", begun=True))
    assert (tmp_path / "a/b/log").exists() and (tmp_path / "c/log").exists()
