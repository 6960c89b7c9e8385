"""``--replace`` deletes a store that another dump made, and nothing else."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.dumping.dump import check_place, dump, opened
from pipeline.dumping.settings import DumpSettings
from pipeline.focal.rule import FocalRule
from pipeline.settings import from_mapping
from store_schema import OtherStoreError, StoreError, StoreWriter, open_storage
from store_schema.manifest import made_by
from tests.store.synthetic import digest, write, writer


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A finished store of the expert ``x``."""
    write(tmp_path / "store")
    return tmp_path / "store"


def test_an_error_that_only_says_who_made_the_store_deletes_nothing(made, monkeypatch):
    message = 'a row was made with focal.rule = "old", now it is "new"; delete the store'

    def refuse(self: StoreWriter) -> None:
        raise StoreError(message)

    before = digest(made)
    monkeypatch.setattr(StoreWriter, "_open", refuse)
    with pytest.raises(StoreError, match="was made with") as caught, opened(writer(made), replace_other=True):
        pass
    assert type(caught.value) is StoreError and digest(made) == before


def test_a_store_of_another_expert_is_kept_unless_its_replacement_is_asked_for(made):
    before = digest(made)
    with pytest.raises(OtherStoreError), opened(writer(made, "y"), replace_other=False):
        pass
    assert digest(made) == before


def test_a_store_of_another_expert_is_deleted_where_that_is_asked_for(made, capsys):
    store = writer(made, "y")
    with opened(store, replace_other=True):
        assert store.pending() == [0, 1] and not (made / "manifest.json").exists()
    told = "".join(capsys.readouterr())
    assert 'was made with expert.checkpoint_sha256 = "x", now it is "y": it is deleted' in told
    assert told.lstrip().startswith("warning: ")


def test_settings_that_state_their_defaults_make_the_same_store(store, source, expert_config, expert_checkpoint):
    """Also with values that null stands for: all three decoder layers."""
    before, written = digest(store), {file: file.stat().st_mtime_ns for file in store.rglob("c/**/*")}
    stated = {"layout": "focal", "values": "float16", "code_bytes": None, "code_bits": None, "code_frames": 100}
    stated |= {"layers": 3, "frames_per_shard": 3, "autocast": None, "seed": 0}
    focal = {"num_queries": 60, "min_score": 0.05, "bev_margin": 1, "pv_margin": 0.15}
    settings = from_mapping(DumpSettings, stated, "dump", rule=from_mapping(FocalRule, focal, "focal"))
    made = dump(expert_config, expert_checkpoint, source, store, settings, workers=0)
    assert made["frames"] == 6 and digest(store) == before
    assert {file: file.stat().st_mtime_ns for file in store.rglob("c/**/*")} == written
    with pytest.raises(OtherStoreError, match="was made with"):
        dump(expert_config, expert_checkpoint, source, store, replace(settings, layers=2), workers=0)


def test_other_values_are_told_before_codes_are_learned_for_them(
    store, source, expert_config, expert_checkpoint, runs, tmp_path
):
    shutil.copytree(store, tmp_path / "s")
    focal = {"num_queries": 60, "min_score": 0.05, "bev_margin": 1, "pv_margin": 0.15}
    rule, before = from_mapping(FocalRule, focal, "focal"), digest(tmp_path / "s")
    settings = DumpSettings(rule, frames_per_shard=3, values="pca", code_frames=4)
    with pytest.raises(OtherStoreError, match='was made with schema.values = "float16", now it is "pca"'):
        dump(expert_config, expert_checkpoint, source, tmp_path / "s", settings, workers=0)
    assert len(runs) == 1 and digest(tmp_path / "s") == before  # of the frame that tells the shapes


def test_a_store_without_its_markers_is_told_before_the_expert_is_loaded(store, tmp_path):
    shutil.copytree(store, tmp_path / "s", ignore=shutil.ignore_patterns(".done", "manifest.json"))
    made, place = made_by(open_storage(store)), open_storage(tmp_path / "s")
    assert made is not None
    with pytest.raises(OtherStoreError, match="has shards, but its folder .done is gone"):
        check_place(place, {"expert": made["expert"]}, False)
    check_place(place, {"expert": made["expert"]}, True)
