"""Targets of another expert than the student starts from, of no trained expert, and of no cell."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.distill.apprentice import check_cells, check_frames, train_apprentice, warn_of_expert
from pipeline.distill.scores import SAMPLE, check_scores
from pipeline.distill.settings import CWDSettings, DistillSettings, ResponseSettings
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
    project: Path,
    source: FrameSource,
    expert_config: Path,
    expert_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a dump made it that did not look at the scores; only the expert's queries can be learned from."""
    monkeypatch.setattr("pipeline.dumping.dump.check_any_cell", lambda *args: None)
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


@pytest.mark.parametrize(
    ("method", "settings", "told"),
    [
        (
            "fd3d",
            DistillSettings(trust_threshold=0.9999),
            r"no query of \d frames of store .*store has a score that reaches distill.trust_threshold, 0.9999: the highest is 0\.\d+, so "
            r"distill has nothing to distil; look at the expert \(is it trained\?\), or lower distill.trust_threshold$",
        ),
        (
            "response",
            ResponseSettings(min_score=0.9999),
            "reaches methods.response.min_score, 0.9999: .* or lower methods.response.min_score$",
        ),
    ],
)
def test_a_store_whose_scores_are_all_too_low_is_refused_before_the_training(
    project: Path,
    source: FrameSource,
    store: Path,
    expert_checkpoint: Path,
    tmp_path: Path,
    method: str,
    settings: DistillSettings | ResponseSettings,
    told: str,
) -> None:
    """All losses would be 0 in every step."""
    with pytest.raises(FD3DError, match=told):
        train_apprentice(
            project / "configs/world/apprentice.py",
            method,
            settings,
            source=source,
            store=store,
            expert=expert_checkpoint,
            out=tmp_path / "out/detector.pth",
            run=RunSettings(max_iters=4, workers=0, batch_size=1000),
        )
    assert not (tmp_path / "out").exists()


class Scores:
    """Reader of frames with one query each, of these scores; ``read`` are the frames that were read."""

    storage = "STORE"

    def __init__(self, scores: list[float]) -> None:
        self.scores, self.read = scores, list[str]()
        self.tokens = [str(i) for i in range(len(scores))]

    def read_array(self, token: str, path: str) -> np.ndarray:
        assert path == "query/score"
        self.read.append(token)
        return np.array([self.scores[int(token)]], np.float32)


def test_all_scores_are_read_only_where_none_of_a_spread_counts() -> None:
    kinds = ([0.5] * 1000, [0.05] * 999 + [0.5], [0.05] * 1000)
    good, late, low = (cast(Any, Scores(scores)) for scores in kinds)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_scores(good, DistillSettings(), good.tokens)
        assert good.read == good.tokens[:: 1000 // SAMPLE]
        check_scores(low, CWDSettings(), low.tokens)  # whole maps, whatever the scores are
        check_scores(low, DistillSettings(areas="everywhere"), low.tokens)
        assert low.read == []
        check_scores(good, DistillSettings(), ["of another split, as with an online expert"])
    with pytest.warns(UserWarning, match="only 1 of 1000 frames of store STORE have a query whose score reaches"):
        check_scores(late, DistillSettings(), late.tokens)
    with pytest.raises(FD3DError, match="of 999 frames .* the highest is 0.05, .*or lower distill.trust_threshold$"):
        check_scores(late, DistillSettings(), late.tokens[:-1])  # frames of the split only
    both = DistillSettings(rule=FocalRule(min_score=0.07))
    with pytest.raises(FD3DError, match="or lower distill.trust_threshold and distill.rule.min_score$"):
        check_scores(low, both, low.tokens)
    none = cast(Any, Scores([0.0] * 30))
    lowest = DistillSettings(trust_threshold=0.0, rule=FocalRule(min_score=0.0))
    for settings in (DistillSettings(), lowest, ResponseSettings()):
        with pytest.raises(
            FD3DError, match="^no query of 30 frames of store STORE has a score above 0, so .* detects nothing"
        ):
            check_scores(none, settings, none.tokens)
    with pytest.warns(UserWarning, match="only 1 of 30 frames"):
        check_scores(cast(Any, Scores([0.0] * 29 + [0.1])), lowest, none.tokens)


@pytest.mark.parametrize(("share", "warned"), [(9, True), (10, False)])
def test_few_frames_with_scores_that_count_are_warned_of(share: int, warned: bool) -> None:
    some: Any = Scores([0.5 if i % 100 < share else 0.05 for i in range(100)])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        check_scores(some, DistillSettings(), some.tokens)
    assert [str(one.message)[:25] for one in seen] == ([f"only {share} of 100 frames of s"[:25]] if warned else [])


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
