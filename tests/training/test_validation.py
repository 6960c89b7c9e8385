"""Validation during training: it changes no bit of the training, and its metrics are those of an evaluation by hand."""

import csv
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from pipeline.data import CAMERAS, CLASSES
from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.evaluation.metrics import METRICS, evaluate
from pipeline.evaluation.predict import predict
from pipeline.evaluation.submission import write_submission
from pipeline.models.build import load_config
from pipeline.models.load import load_detector
from pipeline.models.pairs import StudentPlan
from pipeline.models.reading import read_checkpoint
from pipeline.training import hooks, run
from pipeline.training.expert import take_or_train
from pipeline.training.loop import UpdateLoop
from pipeline.training.plain import train_plain
from pipeline.training.processes import join_processes
from pipeline.training.schedule import Course
from pipeline.training.settings import RunSettings, Validation
from pipeline.training.validation import COLUMNS, Validate, prepare_validation, spread
from tests.training.small import Job, train_together, write_config

VERSION = "v1.0-world"
HEADER = ",".join(COLUMNS) + "\r\n"
UPDATES = 5
RUN = dict(max_iters=UPDATES, workers=0, curve_every=1, checkpoint_every=1)
VALIDATED = RUN | {"validate_every": 1}


@pytest.fixture
def jobs(project: Path, source: FrameSource, tmp_path: Path) -> Callable[..., Job]:
    """Trainings of a student, two batches of one of six frames an update, validated on the one scene of the other split."""
    val = Validation(replace(source, split="world_val"), VERSION)

    def job(family: str, name: str, **settings: Any) -> Job:
        config = write_config(project, family, tmp_path / f"{family}.py")
        return Job(config, source, tmp_path / name / "detector.pth", RUN | settings, validation=val)

    return job


def rows(job: Job) -> list[dict[str, float]]:
    with open(job.out.with_name("validation.csv"), newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def text(job: Job, name: str) -> str:
    with open(job.out.with_name(name), newline="") as file:
        return file.read()


def weights(job: Job) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(job.out, weights_only=True)["state_dict"]
    return state


@pytest.mark.parametrize("family", ["bevformer", "detr3d"])
def test_a_training_ends_in_the_same_bits_with_and_without_validations(family, jobs, request):
    """With a distiller, whose losses draw random blocks and tap the student, and plain; GridMask and colours draw too."""
    with_store = (
        {"store": request.getfixturevalue("store"), "distill": {"inherit": []}} if family == "bevformer" else {}
    )
    plain, validated = (
        replace(jobs(family, name, **more), **with_store) for name, more in (("plain", {}), ("validated", VALIDATED))
    )
    assert "validation" not in plain.train()
    facts = validated.train()
    have, want = weights(validated), weights(plain)
    assert have.keys() == want.keys() and all(torch.equal(have[name], want[name]) for name in want)
    assert text(validated, "losses.csv") == text(plain, "losses.csv")
    assert text(plain, "validation.csv") == HEADER
    # passes of three updates, and the last update
    assert [(row["epoch"], row["step"], row["scenes"]) for row in rows(validated)] == [(1, 3, 1), (1.67, 5, 1)]
    assert facts["validation"] == {name: rows(validated)[-1][name] for name in ("NDS", "mAP", "scenes")}
    assert json.loads(text(validated, "train.json")) == facts
    assert facts["seconds_per_step"] > 0 and facts["peak_memory_mb"] > 10
    assert not [file.name for file in validated.out.parent.iterdir() if "validation.json" in file.name]


def due(course: Course, frames: int, every: int) -> list[int]:
    hook = Validate(Path("none"), course, frames, every, lambda model: {}, None)
    return [update for update in range(1, course.updates + 1) if hook.is_due(update)]


def test_validations_are_due_after_passes_and_after_the_last_update():
    course = Course(processes=2, batch_size=1, accumulate=2, updates=14, warmup=0, policy="cosine")
    assert due(course, 8, 1) == [2, 4, 6, 8, 10, 12, 14]  # four frames an update
    assert due(course, 10, 1) == [3, 5, 8, 10, 13, 14]  # passes end within updates
    assert due(course, 10, 2) == [5, 10, 14]
    assert due(course, 3, 1) == list(range(1, 15))  # more than a pass an update
    assert due(course, 100, 1) == [14]
    whole = Course(processes=8, batch_size=1, accumulate=1, updates=84_390, warmup=500, policy="cosine")
    assert len(due(whole, 28_130, 1)) == 24


def test_scenes_are_spread_over_the_split():
    scenes = [f"scene-{n}" for n in range(10)]
    assert spread(scenes, 3) == ["scene-0", "scene-3", "scene-6"]
    assert spread(scenes, None) == spread(scenes, 11) == scenes


class Stop(Exception):
    """Stands for a kill."""


def fail(*_: Any) -> None:
    raise Stop


def stop_after(monkeypatch: pytest.MonkeyPatch, updates: int) -> None:
    original, batches = UpdateLoop.run_iter, iter(range(1, 1000))

    def stopping(self: UpdateLoop, batch: Any) -> None:
        if next(batches) > 2 * updates:
            raise Stop
        original(self, batch)

    monkeypatch.setattr(UpdateLoop, "run_iter", stopping)


def test_a_resumed_training_has_the_curve_of_one_never_stopped(jobs, monkeypatch):
    whole, stopped = jobs("detr3d", "whole", **VALIDATED), jobs("detr3d", "stopped", **VALIDATED)
    whole.train()
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stop):
            stopped.train()
    assert [row["step"] for row in rows(stopped)] == [3]

    def begin_again(job: Job) -> None:
        for name in ("validation.csv", "losses.csv"):  # as DVC does
            job.out.with_name(name).unlink()
        job.train()

    other = replace(stopped, out=stopped.out.parents[1] / "other/detector.pth", run=RUN | {"validate_scenes": 1})
    shutil.copytree(stopped.out.parent, other.out.parent)
    with monkeypatch.context() as patch:  # killed when all is done but the detector's file
        patch.setattr(run, "save_checkpoint", fail)
        with pytest.raises(Stop):
            begin_again(stopped)
    begin_again(stopped)
    for name in ("validation.csv", "losses.csv"):
        assert text(stopped, name) == text(whole, name)
    # other settings of the validation are no other training
    begin_again(other)
    assert rows(other) == rows(whole)[:1]


def test_the_last_update_is_validated_after_a_resume_that_has_none_left(jobs, monkeypatch):
    job = jobs("detr3d", "run")
    with monkeypatch.context() as patch:  # killed when all is done but the detector's file
        patch.setattr(run, "save_checkpoint", fail)
        with pytest.raises(Stop):
            job.train()
    validated = replace(job, run=job.run | {"validate_every": 9})
    facts = validated.train()
    (last,) = rows(validated)
    assert last["step"] == 5 and facts["validation"]["NDS"] == last["NDS"]


def test_the_facts_are_those_of_the_last_update_only(jobs, monkeypatch):
    job = jobs("detr3d", "run", **VALIDATED)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Stop):
            job.train()
    assert "validation" not in replace(job, run=RUN).train()
    assert [row["step"] for row in rows(job)] == [3]


@pytest.fixture(scope="module")
def expert(project: Path, source: FrameSource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A detector with detections: the DETR3D expert some updates further, validated on the first of two scenes."""
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("expert")
    config, out = folder / "expert.py", folder / "run/detector.pth"
    base = project / "configs/world/detr3d_expert.py"
    config.write_text(f"_base_ = '{base}'\nschedule = dict(max_iters=4, warmup_iters=2, batch_size=1, base_batch=2)\n")
    settings = RunSettings(max_iters=4, workers=0, validate_every=2, validate_scenes=1, tensorboard=True)
    modules = ("img_backbone", "img_neck", "pts_bbox_head")
    start: dict[str, Any] = {"expert": project / "checkpoints/world_detr3d_expert.pth", "inherit": modules}
    facts = train_plain(config, source, out, settings, validation=Validation(source, VERSION), **start)
    with open(out.with_name("validation.csv"), newline="") as file:
        (row,) = csv.DictReader(file)
    return {"config": config, "out": out, "row": row, "facts": facts}


def test_metrics_are_those_of_the_saved_detector_on_the_scenes(expert, source, tmp_path):
    cfg, index = load_config(expert["config"]), FrameIndex.load(source.index)
    first, frames = index.splits[source.split][0], 3
    found = predict(cfg, load_detector(cfg, expert["out"]), source, 0, range(frames))
    write_submission(tmp_path / "s.json", index, found)
    metrics = evaluate(tmp_path / "s.json", source.root, VERSION, source.split, scenes=[first])
    assert metrics["mAP"] > 5
    assert expert["row"] == {name: str(float(metrics[name])) for name in METRICS} | {
        "epoch": "1.33",
        "step": "4",
        "scenes": "1",
    }


def test_a_trained_detector_tells_its_cameras(expert):
    told = read_checkpoint(expert["out"]).training
    assert (told["cameras"], told["reference"]) == (list(CAMERAS), "LIDAR_TOP")
    assert told["image_sizes"] == [[160, 288]] * 6
    assert told["lidar_turn"] == 0.0
    assert told["classes"] == list(CLASSES)


def test_a_subset_of_scenes_is_evaluated_as_a_split_of_them(expert, source, tmp_path):
    cfg, index = load_config(expert["config"]), FrameIndex.load(source.index)
    write_submission(tmp_path / "s.json", index, predict(cfg, load_detector(cfg, expert["out"]), source, 0, range(3)))
    root, scene = tmp_path / "world", index.splits[source.split][0]
    shutil.copytree(source.root / VERSION, root / VERSION)
    (root / "maps").symlink_to(source.root / "maps")
    (root / VERSION / "splits.json").write_text(json.dumps({"one": [scene]}))
    want = evaluate(tmp_path / "s.json", root, VERSION, "one", tmp_path)
    assert evaluate(tmp_path / "s.json", source.root, VERSION, source.split, scenes=[scene]) == want
    with pytest.raises(FD3DError, match=r"has 3 of the 6 samples of world_train"):
        evaluate(tmp_path / "s.json", source.root, VERSION, source.split)
    with pytest.raises(FD3DError, match="split 'world_train' has no scene elsewhere"):
        evaluate(tmp_path / "s.json", source.root, VERSION, source.split, scenes=["elsewhere"])


@dataclass(frozen=True)
class Together:
    """A validation of given weights on two scenes, in one process or several; the main one writes the metrics."""

    config: Path
    checkpoint: Path
    source: FrameSource
    out: Path

    def train(self) -> None:
        torch.set_num_threads(1)
        cfg, settings = load_config(self.config), RunSettings(workers=0, validate_every=1)
        validator = prepare_validation(cfg, settings, Validation(self.source, VERSION), self.out.parent)
        join_processes()
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        state = torch.load(self.checkpoint, weights_only=True)["state_dict"]
        name = "img_backbone.bn1.running_mean"
        state[name] = state[name] * (1 + (0.5, -0.5)[rank]) if torch.distributed.is_initialized() else state[name]
        assert validator is not None
        found = validator(state, torch.device("cpu"))
        self.out.with_suffix(f".{rank}").write_text(json.dumps(found))


def test_several_processes_share_the_scenes_and_find_what_one_finds(expert, source, tmp_path):
    """Their batch normalisations' statistics differ and are averaged, as they are in the saved detector."""
    one, two = (Together(expert["config"], expert["out"], source, tmp_path / name) for name in ("one", "two"))
    one.train()
    train_together(two, 2)  # type: ignore[arg-type]
    found = json.loads(one.out.with_suffix(".0").read_text())
    assert found["mAP"] > 5 and found["scenes"] == 2
    for rank in (0, 1):
        assert json.loads(two.out.with_suffix(f".{rank}").read_text()) == pytest.approx(found, abs=0.02)


def test_tensorboard_has_losses_rate_and_metrics(expert):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (file,) = expert["out"].parent.glob("*/vis_data/events.out.*")
    events = accumulator.EventAccumulator(str(file)).Reload()
    assert {"loss", "lr", "val/NDS", "val/mAP"} <= set(events.Tags()["scalars"])
    (last,) = events.Scalars("val/NDS")
    assert (last.step, round(last.value, 2)) == (8, expert["facts"]["validation"]["NDS"])  # iterations, as the losses
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8]


def test_a_missing_tensorboard_is_named(jobs, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FD3DError, match=r"train.tensorboard is set, .*: pip install fd3d\[tensorboard\]"):
        jobs("detr3d", "run", tensorboard=True).train()


@pytest.mark.parametrize(
    ("split", "version", "message"),
    [
        ("world_test", VERSION, r"split 'world_test' has no scene in this index; it has .*world_val"),
        ("world_val", "v1.0-mini", r"was made from v1.0-world, but the tables to validate on are v1.0-mini"),
    ],
)
def test_frames_that_cannot_be_validated_on_are_refused_before_training(jobs, source, split, version, message):
    job = replace(jobs("detr3d", "run", **VALIDATED), validation=Validation(replace(source, split=split), version))
    with pytest.raises(FD3DError, match=message):
        job.train()
    assert not job.out.parent.exists()


def test_missing_tables_and_frames_are_refused_before_training(jobs, source, tmp_path):
    root = tmp_path / "world"
    shutil.copytree(source.root / VERSION, root / VERSION)
    (root / VERSION / "sample_annotation.json").unlink()
    job = jobs("detr3d", "run", **VALIDATED)
    with pytest.raises(FD3DError, match=r"v1.0-world has no sample_annotation.json, which the devkit needs"):
        replace(job, validation=Validation(replace(source, root=root, split="world_val"), VERSION)).train()
    with pytest.raises(FD3DError, match=r"train.validate_every is 1, but no validation frames are given"):
        replace(job, validation=None).train()
    assert not job.out.parent.exists()


def test_an_expert_that_is_taken_has_a_curve_without_rows(project, source, tmp_path):
    configs, out = project / "configs/world", tmp_path / "expert/detector.pth"
    taken = (configs / "detr3d_expert.py", project / "checkpoints/world_detr3d_expert.pth", RunSettings())
    take_or_train(*taken, source, out, StudentPlan(configs / "detr3d_apprentice.py"))
    with open(out.with_name("validation.csv"), newline="") as file:
        assert file.read() == HEADER


def test_the_time_of_a_step_is_a_median_without_validations(monkeypatch):
    clock = iter([0.0, 9.0, 11.0, 12.0, 14.0, 20.0, 70.0, 73.0, 77.0])
    monkeypatch.setattr(hooks.time, "perf_counter", lambda: next(clock))
    runner: Any = SimpleNamespace(iter=0)
    times = hooks.StepTimes(accumulate=2)
    times.before_train(runner)
    for runner.iter in range(8):
        times.after_train_iter(runner, runner.iter)
    times.before_val(runner)
    times.after_val(runner)
    for runner.iter in range(8, 12):
        times.after_train_iter(runner, runner.iter)
    assert times.times == [9.0, 2.0, 1.0, 2.0, 9.0, 4.0] and times.validating == 50.0
    assert times.facts()["seconds_per_step"] == 4.0  # of 2, 9 and 4


def test_a_wrong_setting_of_a_training_is_named_with_its_family_and_role(project, monkeypatch):
    from pipeline.profile import parse_profile

    monkeypatch.chdir(project)
    for role, name in (("expert", "validate_every"), ("apprentice", "validate_scenes")):
        values = yaml.safe_load((project / "params.yaml").read_text())
        values["families"]["detr3d"][role]["train"][name] = 0
        with pytest.raises(FD3DError, match=rf"^families.detr3d.{role}.train.{name} is 0; it must be at least 1"):
            parse_profile(values, Path("params.yaml"))
