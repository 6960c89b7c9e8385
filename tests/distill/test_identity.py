"""Targets of another expert than the student starts from, of no trained expert, and of no cell."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.distill.apprentice import check_cells, check_frames, train_apprentice, warn_of_expert
from pipeline.distill.settings import DistillSettings, ResponseSettings
from pipeline.dumping.dump import dump
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError
from pipeline.files import file_sha256
from pipeline.focal.rule import FocalRule
from pipeline.training.settings import RunSettings
from store_schema import StoreReader


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


def test_a_store_without_any_cell_is_refused_before_the_training(
    project: Path, source: FrameSource, expert_config: Path, expert_checkpoint: Path, tmp_path: Path
) -> None:
    """As an expert whose scores are all low makes it; only the expert's queries can be learned from."""
    rule = FocalRule(min_score=0.9999)
    dump(
        expert_config, expert_checkpoint, source, tmp_path / "store", DumpSettings(rule, frames_per_shard=3), workers=0
    )
    assert not any(StoreReader(tmp_path / "store").manifest["coverage"].values())

    def start(method: str, settings: DistillSettings | ResponseSettings, split: str = "world_train") -> None:
        train_apprentice(
            project / "configs/world/apprentice.py",
            method,
            settings,
            source=replace(source, split=split),
            store=tmp_path / "store",
            expert=expert_checkpoint,
            out=tmp_path / "out/detector.pth",
            run=RunSettings(max_iters=4, workers=0, batch_size=1000),
        )

    told = r"store .*store has no cell of bev, pv/0, pv/1, pv/2 in any frame, so distill has nothing to distil: .*min_score"
    with pytest.raises(FD3DError, match=told):
        start("fd3d", DistillSettings(rule=rule))
    assert not (tmp_path / "out").exists()
    with pytest.raises(FD3DError, match="lacks 3 of the 3 frames of split 'world_val'"):
        start("fd3d", DistillSettings(rule=rule), "world_val")
    with pytest.raises(FD3DError, match="takes 1000 different frames"):  # the refusal of a batch, which comes later
        start("response", ResponseSettings())


def test_a_store_of_another_split_is_refused_before_the_training(source: FrameSource, store: Path) -> None:
    index, reader = FrameIndex.load(source.index), StoreReader(store)
    check_frames(reader, index, "world_train")
    told = (
        "store .*store lacks 3 of the {} frames of split '{}', first .*: it is of split 'world_train'; name a store of split '{}' by "
        "--store, or make one with 'fd3d dump --split {}'"
    )
    for split, count in (("world_val", 3), ("all", 9)):
        with pytest.raises(FD3DError, match=told.format(count, split, split, split)):
            check_frames(reader, index, split)


def test_a_map_without_a_cell_is_warned_of(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = StoreReader(store)
    counts = {name: count.copy() for name, count in reader.counts().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_cells(reader, DistillSettings())
    counts["pv/2"][:] = 0
    monkeypatch.setattr(StoreReader, "counts", lambda self: counts)
    reader.manifest["coverage"]["pv/2"] = 0.0
    with pytest.warns(UserWarning, match="has no cell of pv/2 in any frame, of which nothing is distilled"):
        check_cells(reader, DistillSettings())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_cells(reader, DistillSettings(levels=(0, 1)))
    counts["bev"][:] = np.array([0, 1, 0, 0, 0, 0])[: len(counts["bev"])]
    counts["pv/0"][:] = counts["pv/1"][:] = 0
    with pytest.warns(UserWarning, match="has no cell of pv/0, pv/1, pv/2 in"):  # a share that is rounded to 0 is one
        check_cells(reader, DistillSettings())
