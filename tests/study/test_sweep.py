"""A sweep: what a grid file unfolds to, when a row is trained again, and what a table holds after kills and failures."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from pipeline.distill.settings import DistillSettings
from pipeline.errors import FD3DError
from pipeline.profile import parse_profile
from pipeline.settings import merged, read_yaml
from pipeline.study.grid import Grid, chosen
from pipeline.study.queue import Outcome, Queue, Task
from pipeline.study.runner import Sweep
from pipeline.study.table import COLUMNS, put_lines, read_table
from stages.cli import app

# Stands in for `fd3d`: notes what it was called with, and writes what a stage writes.
STAGES = """
import json, os, sys, time
from pathlib import Path
stage, args = sys.argv[1], dict(zip(sys.argv[2::2], sys.argv[3::2]))
with open("calls.txt", "a") as file:
    file.write(" ".join([stage, args.get("--method", ""), args.get("--seed", ""), args.get("--out", "")]) + "\\n")
out = Path(args["--out"]) if "--out" in args else None
if stage == "index":
    Path("indexed.yaml").write_text(Path(args["--params"]).read_text())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("index")
if stage == "world":
    (Path(args["--root"]) / "v1.0-world").mkdir(parents=True)
if stage == "expert":
    (out / "config.py").write_text("model = dict()")
    (out / "detector.pth").write_text("weights")
    (out / "train.json").write_text('{"seconds": 9}')
if stage == "dump":
    (out).mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").write_text("x" * 10)
if stage == "train":
    if args["--method"] == "response":
        sys.exit("fd3d: method 'response' is unknown")
    (out / "detector.pth").touch()
    if Path("slow").exists():
        (out / "detector.pth").unlink()
        (out / "last_checkpoint").touch()
        while not Path("end").exists():
            time.sleep(0.1)
    (out / "iter_2.pth").write_text("big")
    (out / "losses.csv").write_text("step,loss")
    (out / "train.json").write_text('{"seconds": 5}')
if stage == "evaluate":
    if Path("no_evaluation").exists():
        sys.exit("no")
    names = ("NDS", "mAP", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
    (out / "submission.json").write_text("big")
    Path(args["--metrics"]).write_text(json.dumps({name: 1.0 for name in names}))
"""
GRID = """
profile: profile.yaml
runs: runs
table: results/evidence.csv
experts: {trained: {}, steps-500: {snapshot: 500}}
stores: {focal: {}, dense: {dump: {layout: dense}}}
experiments:
  main: {seeds: 0-1, store: focal, rows: {plain: {}, fd3d: {}, mgd: {store: dense}}}
  more: {rows: {plain: {}, pv: {method: fd3d, store: focal, distill: {w_bev: 0}}}}
"""


@pytest.fixture
def place(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a profile of one family, a grid, and stages that only pretend."""
    monkeypatch.chdir(tmp_path)
    profile = yaml.safe_load((project / "params.yaml").read_text())
    profile["families"].pop("detr3d")
    for role in ("expert", "apprentice"):
        profile["families"]["bevformer"][role]["config"] = str(project / f"configs/world/{role}.py")
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    (tmp_path / "sweep.yaml").write_text(GRID)
    (tmp_path / "stages.py").write_text(STAGES)
    return tmp_path


def read(**experiments: object) -> Grid:
    """The grid of this folder, with other experiments if given."""
    if experiments:
        Path("sweep.yaml").write_text(
            yaml.safe_dump(yaml.safe_load(GRID) | {"experiments": experiments}, sort_keys=False)
        )
    return Grid(Path("sweep.yaml"))


def sweep(grid: Grid | None = None, **choice: Any):
    grid = grid or read()
    options = {name: choice.pop(name) for name in ("force", "keep") if name in choice}
    trainings = chosen(grid.trainings, *(choice.get(name, ()) for name in ("groups", "families", "rows", "seeds")))
    return Sweep(grid, 2, **options, command=(sys.executable, "stages.py")).run(trainings)


def calls(stage: str) -> Counter[str]:
    path = Path("calls.txt")
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(line for line in lines if line.startswith(stage))


def trained() -> list[str]:
    return sorted(" ".join(line.split()[1:3]) for line in calls("train").elements())


def test_a_grid_unfolds_by_seed_and_shares_what_groups_have_in_common(place):
    assert [(t.name, t.store, [row[:2] for row in t.rows[1:]]) for t in read().trainings] == [
        ("main/bevformer/expert/0", None, [("more", "expert")]),
        ("main/bevformer/plain/0", None, [("more", "plain")]),
        ("main/bevformer/fd3d/0", "focal", []),
        ("main/bevformer/mgd/0", "dense", []),
        ("more/bevformer/pv/0", "focal", []),
        ("main/bevformer/plain/1", None, []),
        ("main/bevformer/fd3d/1", "focal", []),
        ("main/bevformer/mgd/1", "dense", []),
    ]


def test_a_list_of_experts_is_a_row_for_each_and_their_own_evaluation(place):
    rows = {"fd3d": {"store": "focal", "expert": ["trained", "steps-500"]}}
    grid = read(imperfect={"rows": rows})
    assert [t.rows[0].row for t in grid.trainings] == ["expert", "expert-steps-500", "fd3d-trained", "fd3d-steps-500"]
    params = grid.params(grid.trainings[3])
    assert params["families"]["bevformer"]["expert"]["checkpoint"] == "runs/bevformer/expert/detector-500.pth"
    assert grid.store_folder("bevformer", "steps-500", "focal") == Path("runs/bevformer/stores/focal-steps-500")


@pytest.fixture
def two_families(place: Path, project: Path) -> dict[str, Any]:
    """The profile of two families, also in the place."""
    profile = yaml.safe_load((project / "params.yaml").read_text())
    for name, configs in (("bevformer", ("expert", "apprentice")), ("detr3d", ("detr3d_expert", "detr3d_apprentice"))):
        for role, config in zip(("expert", "apprentice"), configs, strict=True):
            profile["families"][name][role]["config"] = str(project / f"configs/world/{config}.py")
    Path("profile.yaml").write_text(yaml.safe_dump(profile))
    return profile


def test_a_row_may_have_values_of_one_family(two_families):
    profile = two_families
    limits = {"distill": {"mixed_limit": 0.7}, "families": {"detr3d": {"distill": {"mixed_limit": 0.6}}}}
    grid = read(main={"store": "focal", "rows": {"fd3d": limits}})
    found = {t.family: grid.parsed(t).method("fd3d", grid.parsed(t).family(t.family)) for t in grid.trainings[2:]}
    assert {family: settings.mixed_limit for family, settings in found.items()} == {"bevformer": 0.7, "detr3d": 0.6}
    profile["families"]["detr3d"]["distill"] = {"geometry": {"match": True}}
    Path("profile.yaml").write_text(yaml.safe_dump(profile))
    of_all = {"apprentice": {"train": {"amp": True}}, "distill": {"mixed_limit": 0.5, "w_fine": 7.0}}
    limits["families"] = {"detr3d": {"distill": {"mixed_limit": 0.6, "geometry": {"reanchor": True}}}, "FAMILY": of_all}
    grid = read(main={"store": "focal", "rows": {"fd3d": limits}})
    parsed = {t.family: grid.parsed(t) for t in grid.trainings[2:]}
    assert all(profile.family(family).apprentice.train.amp for family, profile in parsed.items())
    found = {family: profile.method("fd3d", profile.family(family)) for family, profile in parsed.items()}
    # the family's own values win over those of all, which win over the row's; whatever their place
    assert {family: (s.mixed_limit, s.w_fine) for family, s in found.items()} == {
        "bevformer": (0.5, 7),
        "detr3d": (0.6, 7),
    }
    assert [(s.geometry.match, s.geometry.reanchor) for s in found.values()] == [(False, False), (True, True)]
    path = {"families": {"FAMILY": {"apprentice": {"init": "checkpoints/FAMILY.pth"}}}}
    grid = read(main={"rows": {"plain": path}})
    assert grid.trainings[2].overrides["families"]["bevformer"]["apprentice"]["init"] == "checkpoints/bevformer.pth"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distill": {"mixed_limt": 0.6}}, r"rows.fd3d: .*unknown setting distill.mixed_limt"),
        ({"distill": {"mixed_limit": 60}}, r"rows.fd3d: .*mixed_limit"),
        ({"distil": {}, "apprentice": 5}, r"rows.fd3d.families.detr3d.apprentice is 5; it must be a mapping"),
        ({"expert": {"checkpoint": "x.pth"}}, r"families.detr3d.expert has no effect in a row; name the expert"),
        ({"apprentice": {"train": {"seed": 7}}}, r"detr3d.apprentice.train.seed has no effect in a row; the group's"),
    ],
)
@pytest.mark.parametrize("families", [["bevformer"], ["bevformer", "detr3d"]])
def test_values_of_a_family_are_checked_though_the_group_does_not_train_it(two_families, families, values, message):
    right = {"detr3d": {"distill": {"mixed_limit": 0.6}}}
    grid = read(main={"families": families, "store": "focal", "rows": {"fd3d": {"families": right}}})
    assert {t.family for t in grid.trainings} == set(families)
    with pytest.raises(FD3DError, match=message):
        read(main={"families": families, "store": "focal", "rows": {"fd3d": {"families": {"detr3d": values}}}})


def test_nothing_in_place_of_a_section_changes_nothing(place):
    rows = [
        {},
        {"distill": None, "methods": None, "families": None},
        {"distill": {"rule": None}},
        {"families": {"FAMILY": None, "bevformer": {}}},
        {"families": {"bevformer": {"distill": {"rule": None}, "expert": None}}},
        {"families": {"FAMILY": {"distill": {"rule": {}}}}},
        {"distill": {"geometry": {}}},  # which the profile does not have
    ]
    grids = [read(main={"store": "focal", "rows": {"fd3d": row}}) for row in rows]
    assert len({grid.trainings[1].identity() for grid in grids}) == 1
    assert all(grid.params(grid.trainings[1]) == grids[0].params(grids[0].trainings[1]) for grid in grids)
    below = {"distill": {"geometry": {"match": True}}, "families": {"bevformer": {"distill": {"geometry": None}}}}
    grid = read(main={"store": "focal", "rows": {"fd3d": below}})  # nor takes it back what the row gives
    assert grid.params(grid.trainings[1])["distill"]["geometry"] == {"match": True}


def test_a_group_without_rows_is_refused(place):
    with pytest.raises(FD3DError, match=r"experiments.empty has no rows; give at least one row"):
        read(empty={"rows": None})


def test_parameters_are_the_profile_with_the_rows_overrides_and_the_stores_recipe(place):
    override = {
        "families": {"FAMILY": {"apprentice": {"train": {"amp": True}}}},
        "distill": {"rule": {"num_queries": 20}},
    }
    grid = read(main={"rows": {"x": {"method": "mgd", "store": "dense"} | override}})
    params = grid.params(grid.trainings[1])
    assert params["distill"]["rule"] == grid.profile["distill"]["rule"] | {"num_queries": 20}
    assert params["families"]["bevformer"]["apprentice"]["train"]["amp"] is True
    assert params["dump"]["layout"] == "dense" and grid.profile["dump"]["layout"] == "focal"
    grid.profile["families"]["bevformer"]["distill"] = {"rule": {"num_queries": 50, "pv_margin": 0.1}}
    rule = grid.params(grid.trainings[1])["distill"]["rule"]  # the row's wins over the family's
    assert (rule["num_queries"], rule["pv_margin"], rule["bev_margin"]) == (20, 0.1, 0.5)
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"store": "nowhere"}, "unknown store 'nowhere' in .*rows.fd3d; known: focal, dense"),
        ({"expert": "nobody"}, "unknown expert 'nobody' in .*rows.fd3d; known: trained, steps-500"),
        ({"distil": {}}, "unknown setting experiments.main.rows.fd3d.distil; known: distill"),
        ("fd3d", "rows.fd3d is 'fd3d'; it must be a mapping"),
        ({"method": "magic"}, "rows.fd3d: unknown method 'magic'; known: plain, cwd, fd3d"),
        ({"distill": {"w_bevv": 1}}, "rows.fd3d: unknown setting distill.w_bevv; known: .*w_bev"),
        ({"distill": {"w_bev": "much"}}, "rows.fd3d: distill.w_bev is 'much'; it must be a finite number"),
        ({"distill": {"rule": {"num_queries": 70}}}, "rows.fd3d: distill.rule.num_queries is 70, but the store covers"),
        (
            {"method": "cwd", "store": "focal"},
            "rows.fd3d: cwd compares whole maps, but store 'focal' is of layout focal",
        ),
        (
            {"families": {"FAMILY": {"apprentice": {"inherit": 1}}}},
            "rows.fd3d: unknown setting families.bevformer.apprentice.inherit",
        ),
        ({"families": {"nobody": {}}}, "rows.fd3d.families.nobody; known: FAMILY, bevformer"),
        ({"families": {"bevformer": {"expert": 1}}}, r"rows.fd3d.families.bevformer.expert is 1; it must be a mapping"),
        ({"method": [1]}, r"rows.fd3d.method is \[1\]"),
        ({"methods": {"mgd": [1]}}, r"rows.fd3d: methods.mgd is \[1\]; it must be a mapping"),
        ({"distill": {"rule": [1]}}, r"rows.fd3d.distill.rule is \[1\]; it must be a mapping"),
        ({"families": {"bevformer": [1]}}, r"rows.fd3d.families.bevformer is \[1\]; it must be a mapping"),
    ],
)
def test_an_unknown_name_in_a_grid_is_refused(place, row, message):
    with pytest.raises(FD3DError, match=message):
        read(main={"store": "focal", "rows": {"fd3d": row}})


@pytest.mark.parametrize(
    ("main", "message"),
    [
        ({"seeds": "4-0"}, r"experiments.main.seeds is '4-0'; first-last counts upwards"),
        ({"seeds": "0-100000"}, r"experiments.main.seeds is '0-100000'; .* 1000 seeds at most"),
        ({"seeds": []}, r"experiments.main.seeds is \[\]; give a list of different numbers"),
        ({"seeds": -1}, r"experiments.main.seeds is -1; give a list of different numbers from 0 on"),
        ({"seeds": True}, r"experiments.main.seeds is True; give"),
        ({"seeds": [0, 0]}, r"experiments.main.seeds is \[0, 0\]; give a list of different numbers"),
        ({"families": None}, r"experiments.main.families is None; give a list of names"),
        ({"families": "bevformer"}, r"experiments.main.families is 'bevformer'; give a list of names"),
        ({"store": ["focal"], "rows": {"fd3d": {}}}, r"experiments.main.rows.fd3d.store is \['focal'\]; a name is"),
        (
            {"rows": {"fd3d": {"expert": [["trained"]], "store": "focal"}}},
            r"rows.fd3d.expert is \['trained'\]; a name is",
        ),
        ({"rows": {"fd3d": {"expert": None, "store": "focal"}}}, r"rows.fd3d.expert is None; a name is"),
        ({"split": "test"}, r"experiments.main.split is 'test'; use val or dev"),
        ({"split": ["dev"]}, r"experiments.main.split is \['dev'\]; use val or dev"),
        ({"split": "dev"}, r"experiments.main.split is dev, but profile.yaml has no data.dev; name a split there"),
        ({"rows": {"a/b": {"method": "plain"}}}, r"a row's name in experiments.main.rows is 'a/b'; a name is"),
        ({"rows": {"a|b": {"method": "plain"}}}, r"a row's name in experiments.main.rows is 'a\|b'; a name is"),
        # without a store a student would read whatever lies where the profile's own store belongs
        ({"rows": {"fd3d": {}}}, r"rows.fd3d has no store, which method 'fd3d' reads; known: focal, dense"),
        ({"store": "focal", "rows": {"fd3d": {"store": None}}}, r"rows.fd3d has no store, which"),
        ({"rows": {"plain": {"store": "nope"}}}, r"unknown store 'nope' in experiments.main.rows.plain; known: focal"),
        ({"store": "nope"}, r"unknown store 'nope' in experiments.main.rows.plain; known: focal"),
        (
            {"store": "focal", "rows": {"expert": {"method": "fd3d"}}},
            r"rows has 'expert' twice; .* 'expert' and 'expert-NAME'",
        ),
    ],
)
def test_wrong_names_and_seeds_are_refused(place, main, message):
    with pytest.raises(FD3DError, match=message):
        read(main={"rows": {"plain": {}}} | main)


def test_a_choice_that_is_not_there_is_refused(place):
    with pytest.raises(FD3DError, match="no row 'fd4d'; it has expert, fd3d, mgd, plain, pv"):
        chosen(read().trainings, (), (), ["fd4d"], ())
    with pytest.raises(FD3DError, match="no seed '9'; it has 0, 1"):
        chosen(read().trainings, (), (), (), [9])
    with pytest.raises(FD3DError, match="no training of group main and row pv"):
        chosen(read().trainings, ["main"], (), ["pv"], ())
    assert chosen([], (), (), (), ()) == []


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        ({"config": "configs/FAMILY_nope.py"}, "config configs/bevformer_nope.py of expert 'worse' does not exist"),
        ({"config": ""}, "experts.worse is .*; snapshot is a number from 1 on, config a path"),
        ({"snapshot": 0}, "experts.worse is .*; snapshot is a number from 1 on, config a path"),
    ],
)
def test_a_wrong_expert_is_refused_before_any_training(place, expert, message):
    grid = yaml.safe_load(GRID) | {"experiments": {"main": {"rows": {"fd3d": {"expert": "worse", "store": "focal"}}}}}
    Path("sweep.yaml").write_text(yaml.safe_dump(grid | {"experts": {"trained": {}, "worse": expert}}))
    with pytest.raises(FD3DError, match=message):
        read()


def hashes(**rows: object) -> dict[str, str]:
    grid = read(main={"rows": rows})
    return {t.rows[0].row: grid.config_hash(t, "val") for t in grid.trainings}


def test_the_hash_changes_with_all_that_decides_a_result_and_with_nothing_else(place):
    sweep(seeds=[0])
    fd3d = {"method": "fd3d", "store": "focal"}
    mgd = {"method": "mgd", "store": "dense"}
    rows = {
        "same": fd3d,
        "weight": fd3d | {"distill": {"w_pv": 3}},
        "nested": fd3d | {"distill": {"rule": {"num_queries": 20}}},
        "store": fd3d | {"store": "dense"},
        "inherit": fd3d | {"distill": {"inherit": []}},
        "ray": fd3d | {"distill": {"geometry": {"match": True, "ray_along": 0.2}}},
        "ray across": fd3d | {"distill": {"geometry": {"match": True, "ray_along": 0.2, "ray_across": 2}}},
        "iterations": fd3d | {"families": {"FAMILY": {"apprentice": {"train": {"max_iters": 7}}}}},
        "mgd": mgd,
        "mgd weight": mgd | {"methods": {"mgd": {"w_bev": 2}}},
        "plain": {"method": "plain"},
    }
    first = hashes(**rows)
    assert len(set(first.values())) == len(first)
    same = hashes(
        again=fd3d | {"families": {"FAMILY": {"apprentice": {"train": {"workers": 3}}}}},
        other=mgd | {"distill": {"w_pv": 3}, "methods": {"cwd": {"tau": 2}}},
        off=fd3d | {"distill": {"geometry": {"ray_across": 2}}},
    )
    assert (same["again"], same["other"], same["off"]) == (first["same"], first["mgd"], first["same"])
    Path("runs/bevformer/expert/detector.pth").write_text("other weights")
    later = hashes(**rows)
    assert {name for name in later if later[name] == first[name]} == {"plain"}


def test_a_sweep_makes_what_is_missing_once_and_writes_a_line_per_row(place):
    outcome = sweep()
    assert len(outcome.done) == 8 and not outcome.failed
    for stage, count in {"world": 1, "index": 1, "expert": 1, "dump": 2, "train": 7, "evaluate": 8}.items():
        assert sum(calls(stage).values()) == count, stage
    ours = (yaml.safe_load(Path(name).read_text())["data"] for name in ("indexed.yaml", "profile.yaml"))
    assert next(ours) == next(ours)  # classes and cameras, which decide the index
    lines = read_table(Path("results/evidence.csv"))
    assert tuple(lines[0]) == COLUMNS
    assert [(line["group"], line["row"], line["seed"]) for line in lines] == sorted(
        [("main", row, seed) for row in ("plain", "fd3d", "mgd") for seed in "01"]
        + [("main", "expert", "0"), ("more", "expert", "0"), ("more", "plain", "0"), ("more", "pv", "0")]
    )
    fd3d = next(line for line in lines if line["row"] == "fd3d")
    assert (fd3d["store_bytes"], fd3d["seconds"], fd3d["NDS"]) == ("10", "5", "1.0")
    assert fd3d["device"] == (torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")
    kept = {path.name for path in Path("runs/sweep/main/bevformer/fd3d/0").iterdir()}
    assert {"train.json", "losses.csv", "val", "params.yaml", "train.log"} <= kept
    assert {p.name for p in Path("runs/sweep/main/bevformer/fd3d/0/val").iterdir()} == {"metrics.json", "evaluate.log"}
    assert not kept & {"detector.pth", "iter_2.pth"}
    assert {line["split"] for line in lines} == {"val"}


def test_rows_of_the_table_are_skipped_until_something_changes_or_force(place):
    sweep()
    before = calls("")
    assert len(sweep().skipped) == 8 and calls("") == before
    sweep(rows=["fd3d"], seeds=[1], force=True, keep=True)
    assert calls("train") - before == Counter(["train fd3d 1 runs/sweep/main/bevformer/fd3d/1"])
    assert Path("runs/sweep/main/bevformer/fd3d/1/detector.pth").exists()
    before = calls("")
    profile = yaml.safe_load(Path("profile.yaml").read_text())
    profile["distill"]["w_pv"] = 2.0
    Path("profile.yaml").write_text(yaml.safe_dump(profile))
    sweep()
    assert sorted(line.split()[1] for line in (calls("train") - before).elements()) == ["fd3d", "fd3d", "fd3d"]
    assert not calls("dump") - before


def test_a_row_added_for_a_training_that_is_done_takes_its_line(place):
    sweep(rows=["fd3d"])
    before = calls("")
    grid = read(
        added={"families": ["bevformer"], "seeds": "0-1", "store": "focal", "rows": {"ours": {"method": "fd3d"}}}
    )
    outcome = sweep(grid, rows=["ours"])
    assert outcome.skipped == [f"added/bevformer/ours/{seed}" for seed in (0, 1)] and calls("") == before
    lines = {(line["group"], line["row"], line["seed"]): line for line in read_table(Path("results/evidence.csv"))}
    for seed in "01":
        names = {"group": "added", "row": "ours"}
        assert lines["added", "ours", seed] == lines["main", "fd3d", seed] | names


def with_dev() -> None:
    """Gives this folder's profile a split for choices."""
    profile = yaml.safe_load(Path("profile.yaml").read_text())
    profile["data"]["dev"] = "world_dev"
    Path("profile.yaml").write_text(yaml.safe_dump(profile))


ROWS = {"plain": {}, "fd3d": {"store": "focal"}}


def test_a_training_of_two_splits_is_trained_once_and_has_a_line_of_each(place):
    with_dev()
    Path("stages.py").write_text(STAGES.replace('"submission.json").write_text("big")', '"pr.csv").write_text("x")'))
    grid = read(main={"seeds": [0], "rows": ROWS}, dev={"seeds": "0-1", "split": "dev", "rows": ROWS})
    outcome = sweep(grid)
    assert len(outcome.done) == 5 and not outcome.failed
    assert trained() == ["fd3d 0", "fd3d 1", "plain 0", "plain 1"]
    lines = {(line["group"], line["row"], line["seed"]): line for line in read_table(Path("results/evidence.csv"))}
    assert {key: line["split"] for key, line in lines.items()} == {
        ("main", "expert", "0"): "val",
        ("main", "plain", "0"): "val",
        ("main", "fd3d", "0"): "val",
        ("dev", "expert", "0"): "dev",
        **{("dev", row, seed): "dev" for row in ROWS for seed in "01"},
    }
    assert lines["main", "fd3d", "0"]["config"] != lines["dev", "fd3d", "0"]["config"]
    folder = Path("runs/sweep/main/bevformer/fd3d/0")
    assert [(folder / split / "pr.csv").is_file() for split in ("val", "dev")] == [True, True]
    before = calls("")
    assert len(sweep(grid).skipped) == 5 and calls("") == before


def test_each_split_is_evaluated_on_its_own_scenes(place):
    with_dev()
    Path("stages.py").write_text(STAGES.replace("name: 1.0", 'name: {"val": 1.0, "dev": 2.0}[args["--split"]]'))
    sweep(read(main={"rows": {"plain": {}}}, dev={"split": "dev", "rows": {"plain": {}}}))
    found = {(line["split"], line["row"]): line["NDS"] for line in read_table(Path("results/evidence.csv"))}
    assert found["val", "plain"] == found["val", "expert"] == "1.0"
    assert found["dev", "plain"] == found["dev", "expert"] == "2.0"


def test_a_split_added_after_the_detector_was_cleaned_up_trains_it_again_and_renews_its_line(place):
    with_dev()
    sweep(read(main={"rows": {"plain": {}}}))
    Path("runs/sweep/main/bevformer/plain/0/revision").write_text("old")
    outcome = sweep(read(main={"rows": {"plain": {}}}, dev={"split": "dev", "rows": {"plain": {}}}))
    assert sorted(outcome.done) == ["main/bevformer/expert/0", "main/bevformer/plain/0"]
    assert trained() == ["plain 0", "plain 0"]
    lines = [line for line in read_table(Path("results/evidence.csv")) if line["row"] == "plain"]
    assert [line["split"] for line in lines] == ["dev", "val"] and len({line["revision"] for line in lines}) == 1
    assert lines[0]["revision"] != "old"


def test_the_start_from_a_corrupted_experts_weights_is_trained_once(place):
    values = yaml.safe_load(GRID)
    values["experts"] = {"trained": {}, "noise-1": {"config": "noise.py"}, "steps-500": {"snapshot": 500}}
    start = {"method": "plain", "methods": {"plain": {"inherit": ["pts_bbox_head"]}}, "expert": list(values["experts"])}
    values["experiments"] = {"imperfect": {"rows": {"start": start}}}
    Path("sweep.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    Path("noise.py").touch()
    students = [t for t in Grid(Path("sweep.yaml")).trainings if t.method == "plain"]
    assert [[(row.row, row.expert) for row in t.rows] for t in students] == [
        [("start-trained", "trained"), ("start-noise-1", "noise-1")],
        [("start-steps-500", "steps-500")],
    ]


def test_a_store_of_another_recipe_is_dumped_again(place):
    sweep(rows=["fd3d"])
    profile = yaml.safe_load(Path("profile.yaml").read_text())
    profile["focal"]["bev_margin"] = 2.0
    Path("profile.yaml").write_text(yaml.safe_dump(profile))
    sweep(rows=["fd3d", "plain"])
    assert sum(calls("dump").values()) == 2
    assert trained() == sorted(["fd3d 0", "fd3d 1"] * 2 + ["plain 0", "plain 1"])


def test_a_failing_row_is_reported_and_stops_no_other(place):
    grid = read(
        main={
            "store": "focal",
            "rows": {
                "broken": {"method": "response", "store": "dense"},
                "early": {"method": "fd3d", "expert": "steps-500"},
                "plain": {},
            },
        }
    )
    outcome = sweep(grid)
    assert sorted(outcome.done) == ["main/bevformer/expert/0", "main/bevformer/plain/0"]
    assert "method 'response' is unknown" in outcome.failed["main/bevformer/broken/0"]
    assert "detector-500.pth does not exist; train the expert" in outcome.failed["expert bevformer steps-500"]
    assert outcome.failed["main/bevformer/early/0"] == "expert bevformer steps-500 failed"
    Path("stages.py").write_text(STAGES.replace("response", "mended"))
    assert "main/bevformer/broken/0" in sweep(grid).done


def test_an_evaluation_that_failed_does_not_train_again(place):
    Path("no_evaluation").touch()
    assert set(sweep(rows=["plain"], seeds=[0]).failed) == {"main/bevformer/plain/0"}
    Path("no_evaluation").unlink()
    assert sweep(rows=["plain"], seeds=[0]).done == ["main/bevformer/plain/0"]
    assert trained() == ["plain 0"]


RUN = """
import sys
from pathlib import Path
from pipeline.study.grid import Grid
from pipeline.study.runner import Sweep
grid = Grid(Path("sweep.yaml"))
try:
    print(Sweep(grid, 2, command=(sys.executable, "stages.py")).run(grid.trainings))
except KeyboardInterrupt:
    sys.exit(130)
"""


def start(project: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(project)}
    return subprocess.Popen([sys.executable, "-c", RUN], env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


def test_a_stopped_sweep_ends_its_trainings_and_goes_on(place, project):
    Path("slow").touch()
    running = start(project)
    wait_for(place / "runs/sweep/main/bevformer/plain/0/last_checkpoint")
    os.kill(running.pid, signal.SIGTERM)  # SIGINT may be ignored where tests run in the background
    running.communicate(timeout=60)
    assert running.returncode == 130
    Path("slow").unlink()
    outcome = sweep(rows=["plain"])
    assert sorted(outcome.done) == ["main/bevformer/plain/0", "main/bevformer/plain/1"]
    seconds = {
        line["seed"]: line["seconds"] for line in read_table(Path("results/evidence.csv")) if line["row"] == "plain"
    }
    assert seconds == {"0": "", "1": "5"}  # a resumed training does not know how long its first part took


def test_a_request_to_end_is_not_lost_where_exceptions_are():
    before = signal.getsignal(signal.SIGTERM)  # a command that another test ran in this process may have set one

    class Asks:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    def one() -> None:
        queue.bar.update = lambda: Asks() and None  # deleted at once, in this thread

    done, stopped = Outcome(), []
    queue = Queue(1, lambda: stopped.append(True), done, 2)
    tasks = [Task("one", [], one, counts=True), Task("two", ["one"], lambda: None, counts=True)]
    with pytest.raises(KeyboardInterrupt):
        queue.run(tasks)
    assert done.done == ["one"] and stopped == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_whose_sweep_was_killed_is_still_claimed(place, project):
    sweep(rows=["expert"])
    Path("slow").touch()
    running = start(project)
    wait_for(place / "runs/sweep/main/bevformer/plain/0/last_checkpoint")
    running.kill()
    running.communicate()
    Path("slow").unlink()
    assert sweep(rows=["plain"], seeds=[0]).claimed == ["main/bevformer/plain/0"]
    assert trained().count("plain 0") == 1
    Path("end").touch()  # the training that nobody waits for


def test_two_sweeps_at_once_train_each_row_once(place, project):
    both = [start(project), start(project)]
    for running in both:
        running.communicate(timeout=120)
        assert running.returncode == 0
    sweep()
    assert trained() == sorted(["fd3d 0"] * 2 + ["plain 0", "mgd 0", "plain 1", "fd3d 1", "mgd 1"])
    assert sum(calls("dump").values()) == 2 and sum(calls("expert").values()) == 1
    assert len(read_table(Path("results/evidence.csv"))) == 10


def test_lines_written_side_by_side_are_all_there(tmp_path):
    table = tmp_path / "evidence.csv"

    def write(seed: int) -> None:
        put_lines(table, [dict.fromkeys(COLUMNS, "x") | {"seed": seed}])

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line["seed"] for line in read_table(table)] == [str(seed) for seed in range(12)]
    older = [name for name in COLUMNS if name != "split"]
    table.write_text(",".join(older) + "\n" + ",".join("7" for _ in older) + "\n")
    assert read_table(table) == [dict.fromkeys(older, "7") | {"split": "val"}]
    put_lines(table, [dict.fromkeys(COLUMNS, "7") | {"split": split} for split in ("dev", "val")])
    assert [line["split"] for line in read_table(table)] == ["dev", "val"]
    table.write_text("a,b\n1,2\n")
    with pytest.raises(FD3DError, match="has other columns"):
        put_lines(table, [])


def test_the_shipped_grid_is_readable(project, monkeypatch):
    monkeypatch.chdir(project)
    grid = Grid(Path("configs/sweep.yaml"))
    main = chosen(grid.trainings, ["main"], (), (), ())
    methods = {"plain", "fd3d", "fitnets", "cwd", "mgd", "fgd", "heatmap", "response"}
    # with and without the expert's head; FD3D as published, with geometry, mixed maps, mixed maps with a limit, geometry and mixed maps
    rows = {"plain": 2, "fd3d": 6}
    assert Counter((t.family, t.method) for t in main if t.method != "expert") == {
        (family, method): 5 * rows.get(method, 1) for family in ("bevformer", "detr3d") for method in methods
    }
    assert {(row.group, row.split) for t in grid.trainings for row in t.rows} == {
        ("main", "val"),
        ("imperfect", "val"),
        ("ablations", "val"),
        ("dev", "dev"),
        ("coding", "dev"),
    }
    dev = {(t.family, r.row): grid.params(t)["distill"] for t in grid.trainings for r in t.rows if r.group == "dev"}
    for family in ("bevformer", "detr3d"):  # rows that differ in the trust along the ray alone
        for with_ray, without in (("fd3d-ray", "match"), ("fd3d-geometry-ray", "fd3d-geometry")):
            base = dev[family, f"{without}-object-0.2"]
            assert dev[family, f"{with_ray}-object-0.2"] == merged(base, {"geometry": {"ray_along": 0.2}})
    default = parse_profile(read_yaml(Path("params.yaml")), Path("params.yaml"))
    for training in grid.trainings:  # the limit that dev chose is the default profile's
        if any(row.row.startswith("fd3d-mixed-limit") for row in training.rows):
            own, theirs = (p.method("fd3d", p.family(training.family)) for p in (grid.parsed(training), default))
            assert isinstance(own, DistillSettings) and isinstance(theirs, DistillSettings)
            assert (own.w_mixed, own.mixed_limit) == (theirs.w_mixed, theirs.mixed_limit)
    for training in grid.trainings:  # no student copies a part of the expert but its head
        if training.method != "expert":
            profile = grid.parsed(training)
            settings = profile.method(training.method, profile.family(training.family))
            assert set(settings.inherit) <= {"pts_bbox_head"}
            assert profile.family(training.family).apprentice.init == Path("checkpoints/benchmark_backbone.pth")


def test_a_real_sweep_on_a_tiny_world(
    tmp_path, project, world, world_index, expert_config, expert_checkpoint, monkeypatch
):
    profile = yaml.safe_load((project / "params.yaml").read_text())
    profile["data"] |= {"root": str(world), "index": str(world_index)}
    pair = profile["families"].pop("bevformer")
    pair["expert"] |= {"config": str(expert_config), "checkpoint": str(expert_checkpoint)}
    pair["apprentice"] = {
        "config": str(project / "configs/world/apprentice.py"),
        "train": {"max_iters": 4, "workers": 0},
    }
    profile["families"], profile["dump"]["frames_per_shard"] = {"bevformer": pair}, 3
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    grid = yaml.safe_load(GRID) | {"experiments": {"main": {"store": "focal", "rows": {"plain": {}, "fd3d": {}}}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(project))
    done = CliRunner().invoke(app, ["sweep", "--grid", "sweep.yaml"])
    assert done.exit_code == 0, done
    assert "3 rows made, 0 were there, 0 failed" in done.stdout
    lines = read_table(tmp_path / "results/evidence.csv")
    assert [line["row"] for line in lines] == ["expert", "fd3d", "plain"]
    assert float(lines[0]["NDS"]) > 20 and int(lines[1]["store_bytes"]) > 1_000_000
    facts = json.loads((tmp_path / "runs/sweep/main/bevformer/fd3d/0/train.json").read_text())
    assert facts["method"] == "fd3d" and facts["steps"] == 4
    done = CliRunner().invoke(app, ["sweep", "--grid", "sweep.yaml", "--dry-run"])
    assert [line.rsplit(": ")[1] for line in done.stdout.splitlines()] == ["done"] * 3
    assert "3 trainings, 3 done" in done.stderr
