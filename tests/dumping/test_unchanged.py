"""A store that other code of the project wrote: kept where that code made the same, told and dumped again where it did not."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from pipeline.dumping import session
from pipeline.dumping.dump import dump
from pipeline.dumping.settings import ClusterSettings
from pipeline.expert.tapped import TappedExpert
from store_schema import OtherStoreError, StoreReader, verify


@pytest.fixture
def edited(monkeypatch) -> str:
    """The digest of code that was edited since the store was made."""
    digest = "e" * 64
    for module in ("dump", "recipe", "shared", "unchanged"):
        monkeypatch.setattr(f"pipeline.dumping.{module}.source_sha256", lambda: digest)
    return digest


def other_rows(monkeypatch, change) -> None:
    """Let the edit change rows before they are written."""
    make = session.store_row

    def edited(*args, **kwargs):
        row = make(*args, **kwargs)
        change(row)
        return row

    monkeypatch.setattr(session, "store_row", edited)


def scaled(by: float):
    def change(row):
        row["query/boxes"] = (row["query/boxes"] * np.float32(by)).astype(row["query/boxes"].dtype)

    return change


def fewer(row):
    for name in ("index", "values"):
        row[f"bev/{name}"] = row[f"bev/{name}"][:-1]


def test_an_edit_that_changes_no_value_keeps_the_store(
    scenes, settings, expert_config, whole, digest, edited, tmp_path, capsys
):
    shutil.copytree(whole, tmp_path / "s")
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert "now it is eeeeeeeeeeee; shard 0 made again is the same, so the store is kept" in capsys.readouterr().out
    assert digest(tmp_path / "s") == digest(whole)


def test_the_same_code_makes_nothing_again(scenes, settings, expert_config, whole, runs, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert len(runs) == 1  # the frame that tells the store's shape


@pytest.mark.parametrize(
    ("change", "what"),
    [(scaled(1.01), r"query/boxes of shard 0 made again differs by 0\.9\d%"), (fewer, "of shard 0 made again differs")],
)
def test_an_edit_that_changes_values_is_told_before_anything_is_deleted(
    scenes, settings, expert_config, whole, digest, edited, tmp_path, capsys, monkeypatch, change, what
):
    other_rows(monkeypatch, change)
    shutil.copytree(whole, tmp_path / "s")
    with pytest.raises(OtherStoreError, match=rf"was made with fd3d's code = \w+, now it is e+, and .*{what}"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert digest(tmp_path / "s") == digest(whole)
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0, replace_other=True)
    assert "it is deleted" in capsys.readouterr().out
    assert StoreReader(tmp_path / "s").manifest["source_sha256"] == edited and verify(tmp_path / "s").problems == []
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)  # now its own


def test_last_bits_of_another_processor_keep_the_store(
    scenes, settings, expert_config, whole, digest, edited, tmp_path, capsys, monkeypatch
):
    other_rows(monkeypatch, scaled(1 + 1e-5))
    shutil.copytree(whole, tmp_path / "s")
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert (
        "shard 0 made again differs by 1.0e-05 at most (query/boxes), so the store is kept" in capsys.readouterr().out
    )
    assert digest(tmp_path / "s") == digest(whole)


@pytest.mark.parametrize("section", ["moments", "coverage"])
def test_sums_that_changed_are_told_too(scenes, settings, expert_config, whole, edited, tmp_path, monkeypatch, section):
    """Their rows are the same, and trainings and the report read the sums."""
    sums_of = session.sums_of

    def other(writer, result):
        sums = sums_of(writer, result)
        entry = next(iter(sums[section].values()))
        key = next(key for key in entry if np.any(entry[key]))
        entry[key] = (np.asarray(entry[key]) * 2).tolist()
        return sums

    monkeypatch.setattr(session, "sums_of", other)
    shutil.copytree(whole, tmp_path / "s")
    with pytest.raises(OtherStoreError, match=f"{section} of .* made again differs by"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)


def test_a_dump_that_was_stopped_goes_on_after_an_edit_that_changes_nothing(
    scenes, settings, expert_config, whole, edited, tmp_path
):
    shutil.copytree(whole, tmp_path / "s")
    (tmp_path / "s/.done/shard-00003.json").unlink()
    before = StoreReader(whole).manifest
    (tmp_path / "s/manifest.json").unlink()
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    manifest = StoreReader(tmp_path / "s").manifest
    assert manifest["source_sha256"] == [before["source_sha256"], edited]
    assert manifest["statistics"] == before["statistics"]


def test_a_dump_that_was_stopped_does_not_go_on_after_an_edit_that_changes_values(
    scenes, settings, expert_config, whole, edited, tmp_path, monkeypatch
):
    other_rows(monkeypatch, scaled(1 + 1e-5))
    shutil.copytree(whole, tmp_path / "s")
    (tmp_path / "s/.done/shard-00003.json").unlink()
    (tmp_path / "s/manifest.json").unlink()
    with pytest.raises(OtherStoreError, match="and a file of shard 0 made again differs; delete the store"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)


@pytest.mark.parametrize("values", ["pq", "pca"])
def test_codes_are_learned_anew_where_values_changed(
    scenes, settings, expert_config, edited, digest, tmp_path, monkeypatch, values
):
    with monkeypatch.context() as before:
        for module in ("dump", "recipe", "shared", "unchanged"):
            before.setattr(f"pipeline.dumping.{module}.source_sha256", lambda: "b" * 64)
        coded = replace(settings, values=values, code_frames=12)
        dump(expert_config, None, scenes, tmp_path / "s", coded, workers=0)
    made = digest(tmp_path / "s")
    dump(expert_config, None, scenes, tmp_path / "s", coded, workers=0)
    assert digest(tmp_path / "s") == made
    run = TappedExpert.run

    def brighter(self, batch):
        frames, states = run(self, batch)
        return [replace(frame, pv=[level * 3 for level in frame.pv]) for frame in frames], states

    monkeypatch.setattr(TappedExpert, "run", brighter)
    dump(expert_config, None, scenes, tmp_path / "s", coded, workers=0, replace_other=True)
    books = [name for name in made if name.startswith("code/") and "/c/" in name]
    assert books and any(made[name] != digest(tmp_path / "s").get(name) for name in books)


def test_workers_make_the_shard_again(scenes, settings, expert_config, whole, digest, tmp_path, capsys):
    """Their code is the main process's, so the store's digest is changed here."""
    shutil.copytree(whole, tmp_path / "s")
    for marker in sorted((tmp_path / "s/.done").glob("shard-*")):
        rename_source(marker)
    (tmp_path / "s/manifest.json").unlink()
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0, cluster=ClusterSettings(workers=2))
    assert "fd3d's code = aaaaaaaaaaaa" in capsys.readouterr().out
    assert StoreReader(tmp_path / "s").manifest["source_sha256"] == "a" * 64


def rename_source(marker) -> None:
    from store_schema.manifest import seal, unseal

    content = unseal(marker.read_bytes())
    assert content is not None
    marker.write_bytes(seal(content | {"source_sha256": "a" * 64}))
