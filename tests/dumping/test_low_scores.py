"""An expert whose queries do not reach ``focal.min_score`` makes no store, and costs none that is there."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.dumping.dump import dump
from pipeline.dumping.settings import ClusterSettings
from pipeline.errors import FD3DError
from pipeline.expert.tapped import TappedExpert
from pipeline.focal.rule import FocalRule
from store_schema import StoreReader

LOW = FocalRule(num_queries=20, min_score=0.9999)


@pytest.mark.parametrize("values", ["float16", "pq"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_good_store_is_not_deleted_for_an_expert_of_low_scores(
    scenes, settings, expert_config, whole, digest, tmp_path, copied, values, workers
):
    before = digest(copied)
    low = replace(settings, rule=LOW, values=values)
    told = (
        r"^no query of 12 frames .* reaches focal.min_score, 0.9999: the highest is 0\.\d+, so the store would have no cell; "
        r"look at the expert \(is it trained\?\), or lower focal.min_score and distill.rule.min_score$"
    )
    with pytest.raises(FD3DError, match=told if workers == 1 else told[1:]):
        dump(expert_config, None, scenes, copied, low, 0, cluster=ClusterSettings(workers=workers), replace_other=True)
    assert digest(copied) == before


def test_an_expert_that_detects_nothing_makes_no_store(scenes, settings, expert_config, monkeypatch, tmp_path):
    """Whatever ``min_score``: detectors that drop low scores have their frames filled up with boxes of score 0."""
    run = TappedExpert.run

    def nothing(self, batch):
        frames, samples = run(self, batch)
        for frame in frames:
            frame.score.zero_()
        return frames, samples

    monkeypatch.setattr(TappedExpert, "run", nothing)
    every = replace(settings, rule=replace(settings.rule, min_score=0.0))
    with pytest.raises(
        FD3DError, match=r"^no query of 12 frames .* above 0, .* cell: the expert detects nothing; look at the"
    ):
        dump(expert_config, None, scenes, tmp_path / "s", every, workers=0)


@pytest.fixture
def copied(whole, tmp_path):
    import shutil

    return shutil.copytree(whole, tmp_path / "s")


def test_frames_may_be_empty_if_one_is_not(scenes, settings, expert_config, expert_checkpoint, tmp_path, monkeypatch):
    """All but the last: the search finds it, and the store has all frames."""
    run, seen = TappedExpert.run, set()

    def dim(self, batch):
        frames, samples = run(self, batch)
        seen.add(batch["data_samples"][0].token)
        if len(seen) < 12:
            for frame in frames:
                frame.score.mul_(1e-6)
        return frames, samples

    monkeypatch.setattr(TappedExpert, "run", dim)
    bright = replace(settings, rule=FocalRule())
    made = dump(expert_config, expert_checkpoint, scenes, tmp_path / "s", bright, workers=0)
    assert made["frames"] == 12 and len(StoreReader(tmp_path / "s").tokens) == 12


def test_the_search_costs_a_frame_and_nothing_where_a_store_has_cells(
    scenes, settings, expert_config, expert_checkpoint, tmp_path, runs
):
    bright = replace(settings, rule=FocalRule())
    dump(expert_config, expert_checkpoint, scenes, tmp_path / "s", bright, workers=0)
    assert len(runs) == 1 + 1 + 12  # the shape, the search, the dump
    runs.clear()
    for file in (tmp_path / "s/.done").glob("*5*"):
        file.unlink()
    dump(expert_config, expert_checkpoint, scenes, tmp_path / "s", bright, workers=0)
    assert len(runs) == 1 + 2


def test_a_store_without_a_cell_is_not_continued(scenes, settings, expert_config, tmp_path, monkeypatch):
    """One that a dump left which did not look."""
    low = replace(settings, rule=LOW)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.dumping.dump.check_any_cell", lambda *args: None)
        dump(expert_config, None, scenes, tmp_path / "s", low, workers=0)
    assert not np.any([*StoreReader(tmp_path / "s").manifest["coverage"].values()])
    with pytest.raises(FD3DError, match="reaches focal.min_score, 0.9999"):
        dump(expert_config, None, scenes, tmp_path / "s", low, workers=0)


def test_frames_of_finished_shards_are_not_looked_at_again(
    scenes, settings, expert_config, expert_checkpoint, tmp_path, monkeypatch, runs
):
    """They have no cell, as their markers say."""
    low = replace(settings, rule=LOW)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.dumping.dump.check_any_cell", lambda *args: None)
        dump(expert_config, expert_checkpoint, scenes, tmp_path / "s", low, workers=0)
    layout = StoreReader(tmp_path / "s").layout
    (tmp_path / "s/manifest.json").unlink()
    last = sorted((tmp_path / "s/.done").glob("shard-*"))[-1]
    last.unlink()
    runs.clear()
    with pytest.raises(FD3DError, match=r"^no query of (\d+) frames? .* reaches focal.min_score, 0.9999"):
        dump(expert_config, expert_checkpoint, scenes, tmp_path / "s", low, workers=0)
    assert runs[1:] and set(runs[1:]) == set(layout.tokens(len(layout.plan) - 1))  # the first is run for the shape
