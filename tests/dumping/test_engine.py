"""The dump in one process: resuming, overlap, settings, what the stage leaves."""

import csv
import json
import shutil
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.dumping import session
from pipeline.dumping.coverage import lines
from pipeline.dumping.dump import dump
from pipeline.dumping.early import scene_rows
from pipeline.dumping.moments import RunningMoments, join_moments, shard_moments
from pipeline.dumping.settings import ClusterSettings, DumpSettings
from pipeline.errors import FD3DError
from pipeline.expert import TappedExpert, build_adapter
from pipeline.focal.rule import FocalRule
from pipeline.models.build import build_detector, load_config
from pipeline.viewer.payload import shown_score
from store_schema import OtherStoreError, StoreError, StoreReader, open_storage, verify


def scene_names(source) -> list[str]:
    return FrameIndex.load(source.index).splits[source.split]


def test_a_resumed_dump_runs_the_missing_shards_only(scenes, settings, expert_config, whole, digest, runs, tmp_path):
    shutil.copytree(whole, tmp_path / "store")
    (tmp_path / "store/.done/shard-00003.json").unlink()
    dump(expert_config, None, scenes, tmp_path / "store", settings, workers=0)
    manifest = StoreReader(whole).manifest
    third = manifest["scenes"][sorted(manifest["scenes"])[3]]
    assert runs[1:] == third  # the first run finds the store's shape
    assert digest(tmp_path / "store") == digest(whole)


def test_a_shard_is_written_while_the_next_is_inferred(scenes, settings, expert_config, monkeypatch, tmp_path):
    log: list[Any] = []
    begun: list[Any] = []
    write, infer = session.write, session.Session.infer
    next_begun = threading.Semaphore(0)

    def slow_write(writer, shard, result):
        if shard < 5:
            assert next_begun.acquire(timeout=20), "the next shard's inference waits for this write"
        log.append(("written", shard))
        write(writer, shard, result)

    def noted_infer(self, schema, tokens, batches, report):
        if begun:
            next_begun.release()
        begun.append(tokens)
        log.append(("inferring", len(begun) - 1))
        return infer(self, schema, tokens, batches, report)

    monkeypatch.setattr("pipeline.dumping.engine.write", slow_write)
    monkeypatch.setattr(session.Session, "infer", noted_infer)
    dump(expert_config, None, scenes, tmp_path / "store", settings, workers=0)
    for shard in range(4):
        # at most one shard waits to be written: the second next begins when this one is done
        assert log.index(("written", shard)) < log.index(("inferring", shard + 2))


def test_a_failed_write_ends_the_dump(scenes, settings, expert_config, monkeypatch, tmp_path):
    def fail(writer, shard, result):
        raise OSError("no space")

    monkeypatch.setattr("pipeline.dumping.engine.write", fail)
    with pytest.raises(OSError, match="no space"):
        dump(expert_config, None, scenes, tmp_path / "store", settings, workers=0)
    assert not (tmp_path / "store/manifest.json").exists()


@pytest.mark.parametrize("layout", ["focal", "dense"])
def test_the_manifest_has_the_moments_of_what_is_stored(scenes, layout, expert_config, tmp_path):
    settings = DumpSettings(FocalRule(num_queries=20, min_score=0.0), layout=layout, frames_per_shard=2)
    dump(expert_config, None, scenes, tmp_path / "store", settings, 0, scene_names(scenes)[:2])
    reader = StoreReader(tmp_path / "store")
    rows = [reader.read(token) for token in reader.tokens]
    for name in ("bev", "pv/0", "pv/2"):
        key = f"{name}/values" if layout == "focal" else f"{name}/dense"
        values = np.concatenate([row[key].reshape(-1, row[key].shape[-1]) for row in rows]).astype(np.float64)
        np.testing.assert_allclose(reader.manifest["statistics"][name]["mean"], values.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(reader.manifest["statistics"][name]["std"], values.std(0), rtol=1e-7)


def test_float32_features_are_the_experts_own(scenes, settings, expert_config, whole, tmp_path):
    stores = {"float16": StoreReader(whole)}
    for layout in ("focal", "dense"):
        path = tmp_path / layout
        chosen = replace(settings, values="float32", layout=layout)
        dump(expert_config, None, scenes, path, chosen, workers=0, scenes=scene_names(scenes)[:1])
        stores[layout] = StoreReader(path)
        assert verify(path).problems == []
    for token in stores["focal"].tokens:
        half, focal, dense = (store.read(token) for store in stores.values())
        for name in ("bev", "pv/0", "pv/1"):
            values, index = focal[f"{name}/values"], focal[f"{name}/index"]
            assert values.dtype == np.float32
            np.testing.assert_array_equal(dense[f"{name}/dense"].reshape(-1, values.shape[1])[index], values)
            np.testing.assert_array_equal(half[f"{name}/values"], values.astype(np.float16))


def test_moments_survive_json_bit_for_bit():
    rng = np.random.default_rng(0)
    rows = [{"bev/values": rng.normal(size=(n, 3)).astype(np.float16)} for n in (5, 0, 7)]
    shards = [shard_moments(rows[:1]), shard_moments(rows[1:])]
    assert join_moments(json.loads(json.dumps(shards))) == join_moments(shards)
    direct = RunningMoments.zero(3)
    direct.add(np.concatenate([row["bev/values"] for row in rows]))
    np.testing.assert_allclose(join_moments(shards)["bev"]["mean"], direct.result()["mean"], rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 0}, "dump.cluster.workers is 0; it is a number of at least 1"),
        ({"threads_per_worker": "all"}, "dump.cluster.threads_per_worker is all"),
        ({"workers": 2, "address": "tcp://host:8786"}, "dump.cluster has workers and an address"),
    ],
)
def test_contradictory_cluster_settings_are_refused(values, message):
    with pytest.raises(FD3DError, match=message):
        ClusterSettings(**values)


def test_the_stage_leaves_coverage_and_its_curve(scenes, expert_config, project, tmp_path, capsys):
    from stages.dump import dump as stage

    params = yaml.safe_load((project / "params.yaml").read_text())
    params["focal"] |= {"num_queries": 20, "min_score": 0.9}  # which random weights do not reach
    params["distill"]["rule"] |= {"num_queries": 20, "min_score": 0.9}
    params["dump"] |= {"frames_per_shard": 2, "cluster": {"workers": 1}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    stage(
        config=expert_config,
        random_weights=True,
        out=tmp_path / "store",
        index=scenes.index,
        root=scenes.root,
        split=scenes.split,
        scene=scene_names(scenes)[:1],
        workers=0,
        metrics=tmp_path / "dump.json",
        params=tmp_path / "params.yaml",
    )
    metrics = json.loads((tmp_path / "dump.json").read_text())
    assert metrics["frames"] == 2
    # the manifest's coverage is counted from the store itself
    stored = StoreReader(tmp_path / "store").manifest["coverage"]
    assert {name: entry["cells"] for name, entry in metrics["coverage"].items()} == stored
    with open(tmp_path / "coverage.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["queries"]) for row in rows] == list(range(1, 21))
    for name, entry in metrics["coverage"].items():
        shares = [float(row[name]) for row in rows]
        assert shares == sorted(shares) and shares[-1] <= entry["boxes"] <= 1
    assert all(entry["cells"] > 0 for entry in metrics["coverage"].values())
    assert "of the annotated boxes" in capsys.readouterr().out
    assert shown_score(StoreReader(tmp_path / "store")) == 0.0
    (tmp_path / "folder").mkdir()
    before = (tmp_path / "store/manifest.json").stat().st_mtime_ns
    with pytest.raises(FD3DError, match="folder cannot be written: Is a directory"):
        stage(
            config=expert_config,
            random_weights=True,
            out=tmp_path / "store",
            metrics=tmp_path / "folder",
            index=scenes.index,
            root=scenes.root,
            params=tmp_path / "params.yaml",
        )
    assert (tmp_path / "store/manifest.json").stat().st_mtime_ns == before


def test_a_scene_of_another_split_says_which(world_index):
    index = FrameIndex.load(world_index)
    (other,), known = index.splits["world_val"], index.splits["world_train"]
    with pytest.raises(
        FD3DError, match=f"scene {other} is not in split world_train, but in 'world_val'; give --split world"
    ):
        scene_rows(index, "world_train", [other])
    with pytest.raises(FD3DError, match=f"scene typo is not in split world_train; it has {', '.join(known)}$"):
        scene_rows(index, "world_train", ["typo"])


def test_a_dump_that_stores_nothing_says_so():
    none = np.zeros(2, np.int64)
    entry = {"cells": none + [100, 0], "box_cells": none, "boxes": np.zeros((10, 3)), "covered": np.zeros((10, 3))}
    assert lines({"bev": entry})[-1].startswith("no query reached focal.min_score, so no cell is stored")


def test_a_store_of_another_algorithm_is_told_and_redone(
    scenes, settings, expert_config, whole, tmp_path, monkeypatch, capsys
):
    """A dump after a change of the code that makes rows must not take the old shards for its own."""
    shutil.copytree(whole, tmp_path / "s")
    before = (tmp_path / "s/manifest.json").stat().st_mtime_ns
    monkeypatch.setattr("pipeline.dumping.recipe.ALGORITHM", 99)
    with pytest.raises(OtherStoreError, match=r"was made with algorithm = \d+, now it is 99"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    assert (tmp_path / "s/manifest.json").stat().st_mtime_ns == before
    dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0, replace_other=True)
    assert "now it is 99: it is deleted" in capsys.readouterr().out
    assert StoreReader(tmp_path / "s").manifest["algorithm"] == 99


def test_what_refuses_a_dump_is_found_before_the_expert_is_loaded(
    scenes, settings, expert_config, whole, tmp_path, monkeypatch
):
    def load(*args, **kwargs):
        raise AssertionError("the expert is loaded")

    monkeypatch.setattr(session, "load_expert", load)
    shutil.copytree(whole, tmp_path / "s")
    other = replace(settings, rule=replace(settings.rule, num_queries=7))
    with pytest.raises(OtherStoreError, match="was made with focal.num_queries = 20, now it is 7"):
        dump(expert_config, None, scenes, tmp_path / "s", other, workers=0)
    with open_storage(tmp_path / "s").lock(), pytest.raises(StoreError, match="is being written by another process"):
        dump(expert_config, None, scenes, tmp_path / "s", settings, workers=0)
    index = FrameIndex.load(scenes.index)
    gone = index[index.select(scenes.split)[-1]].image_paths[0]
    root = shutil.copytree(scenes.root, tmp_path / "world")
    (root / gone).unlink()
    with pytest.raises(FD3DError, match=f"image .*{gone} cannot be read: No such file"):
        dump(expert_config, None, replace(scenes, root=root), tmp_path / "new", settings, workers=0)
    assert not (tmp_path / "new").exists()


def test_a_store_stays_when_the_codes_of_another_cannot_be_learned(scenes, settings, expert_config, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    coded = replace(settings, values="pq", code_frames=1, rule=FocalRule(1, 0.0, 0.0, 0.0))
    with pytest.raises(FD3DError, match="found to learn dump.values: pq from, fewer than 256"):
        dump(expert_config, None, scenes, tmp_path / "s", coded, workers=0, replace_other=True)
    assert verify(tmp_path / "s").problems == []


def test_the_config_under_another_name_continues_the_store(
    scenes, settings, expert_config, whole, digest, runs, tmp_path
):
    shutil.copytree(whole, tmp_path / "s")
    (tmp_path / "renamed.py").write_text(load_config(expert_config).pretty_text)
    dump(tmp_path / "renamed.py", None, scenes, tmp_path / "s", settings, workers=0)
    assert len(runs) == 1 and digest(tmp_path / "s") == digest(whole)


def test_a_checkpoint_that_is_replaced_while_it_is_loaded_is_no_experts(
    scenes, settings, expert_config, expert_checkpoint, tmp_path, monkeypatch
):
    own = shutil.copy(expert_checkpoint, tmp_path / "detector.pth")
    load = session.load_expert

    def slow(*args, **kwargs):
        loaded = load(*args, **kwargs)
        own.write_bytes(own.read_bytes() + b"later")
        return loaded

    monkeypatch.setattr(session, "load_expert", slow)
    with pytest.raises(FD3DError, match="detector.pth was replaced while the expert was loaded; run the dump again"):
        dump(expert_config, own, scenes, tmp_path / "s", settings, workers=0)
    assert not (tmp_path / "s/recipe.json").exists()


def test_autocast_without_a_gpu_is_refused_before_anything_is_read(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    absent = tmp_path / "absent"
    source = FrameSource(absent, absent, "train")
    half = replace(settings, autocast="bf16")
    for cluster in (ClusterSettings(), ClusterSettings(workers=2)):
        with pytest.raises(FD3DError, match="dump.autocast is bf16 but there is no GPU; set it to null"):
            dump(absent, None, source, tmp_path / "s", half, cluster=cluster)
    assert not (tmp_path / "s").exists()


def test_an_expert_of_half_precision_is_refused_on_a_cpu(expert_config):
    cfg = load_config(expert_config)
    model = build_detector(cfg).eval()
    with pytest.raises(FD3DError, match="the expert is to run in fp16, which needs a GPU"):
        TappedExpert(model, build_adapter(cfg), 20, "fp16")
