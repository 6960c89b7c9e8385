"""Two processes train what one trains with gradients accumulated."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.dumping.dump import dump
from pipeline.dumping.settings import DumpSettings
from pipeline.focal.rule import FocalRule
from tests.training.small import Job, train_together, write_config

RULE = FocalRule(num_queries=20, min_score=0.0)
UPDATES = int(os.environ.get("FD3D_TEST_UPDATES", 6))
# Blocks are hidden and colours distorted at random, by numbers that each process draws for itself.
PLAIN_COLOURS = "augment = dict(photometric=False)\n"
DISTILL = {"inherit": [], "mask_ratio": 0.0, "every": 2}
UNTRAINED = DISTILL | {"trust_threshold": 0.0, "rule": RULE.to_dict()}


@pytest.fixture(scope="module")
def detr3d_store(project: Path, source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, settings = tmp_path_factory.mktemp("detr3d") / "store", DumpSettings(RULE, frames_per_shard=3)
    dump(project / "configs/world/detr3d_expert.py", None, source, path, settings, workers=0)
    return path


def curve(out: Path) -> list[dict[str, float]]:
    with open(out.with_name("losses.csv"), newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize("family", ["bevformer", "detr3d"])
def test_two_processes_train_as_one_that_accumulates(family, project, source, store, request, tmp_path):
    """Same frames in the same order, detection losses divided by the boxes of all frames, FD3D's by each frame's own area:
    so the same losses and weights."""
    config = write_config(project, family, tmp_path / "config.py", more=PLAIN_COLOURS)
    stored, distill = store, DISTILL
    if family == "detr3d":
        stored, distill = request.getfixturevalue("detr3d_store"), UNTRAINED
    run = dict(max_iters=UPDATES, workers=0, curve_every=2)

    def job(name: str) -> Job:
        out = tmp_path / name / "detector.pth"
        return Job(config, source, out, run, stored, distill)

    train_together(job("two"), 2)
    facts = job("one").train()
    assert facts["steps"] == UPDATES and facts["batch"] == 2
    one, two = curve(job("one").out), curve(job("two").out)
    assert [row["step"] for row in two] == list(range(2, UPDATES + 1, 2))
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=2e-5)  # the file keeps five decimals
    states = [torch.load(job(name).out, weights_only=True)["state_dict"] for name in ("one", "two")]
    for name, weight in states[0].items():
        torch.testing.assert_close(states[1][name], weight, rtol=1e-5, atol=1e-5, msg=name)
    assert {file.name for file in (tmp_path / "two").iterdir() if file.is_file()} >= {"train.json", "losses.csv"}


def test_torchrun_trains_a_plain_student_and_one_process_writes(project, source, tmp_path):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["data"] |= {"root": str(source.root), "index": str(source.index)}
    config = write_config(project, "bevformer", tmp_path / "config.py", batch=4)
    student = {
        "config": str(config),
        "train": {"max_iters": 4, "workers": 0, "checkpoint_every": 3, "validate_every": 2},
    }
    params["families"] = {"bevformer": {"expert": {"config": str(config)}, "apprentice": student, "distill": {}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "stages.cli",
    ]
    environment = os.environ | {"PYTHONPATH": str(project)}
    done = subprocess.run(
        [*launch, "train", "--method", "plain", "--out", "run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("4 = 2 processes x 1 x 2 accumulated; 4 updates") == 1
    written = {file.name for file in (tmp_path / "run").iterdir() if file.is_file()}
    assert written >= {"detector.pth", "config.py", "losses.csv", "validation.csv", "train.json"}
    assert [row["step"] for row in curve(tmp_path / "run/detector.pth")] == [1, 2, 3, 4]
    # passes of six frames, four an update
    assert (tmp_path / "run/validation.csv").read_text().splitlines()[1:][0].startswith("2.0,3,")
    assert not [name for name in written if name.startswith((".", "iter_", "last_"))]
