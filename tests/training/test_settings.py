"""What a detector's config says about its training is checked, and its unknown keys are refused."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.models.build import load_config
from pipeline.models.pairs import StudentPlan
from pipeline.settings import from_mapping
from pipeline.training.expert import take_or_train
from pipeline.training.settings import RunSettings, read_schedule

SCHEDULE = dict(max_iters=100, warmup_iters=10, batch_size=2, policy="onecycle")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            {"schedule": SCHEDULE | {"max_iterz": 1}},
            "unknown setting schedule.max_iterz; known: base_batch, batch_size, by_epoch",
        ),
        ({"schedule": SCHEDULE | {"policy": "step"}}, "schedule.policy is 'step'; use cosine or onecycle"),
        (
            {"schedule": SCHEDULE | {"max_iters": 3}},
            "schedule.max_iters is 3; it must be at least 4, for the warm-up and decay of the learning rate",
        ),
        ({"schedule": SCHEDULE | {"batch_size": "2"}}, "schedule.batch_size is '2'; it must be a whole number"),
        (
            {"schedule": SCHEDULE | {"epochs": 24}},
            "schedule.max_iters is 100 and schedule.epochs is 24; give one of them",
        ),
        (
            {"schedule": SCHEDULE | {"max_iters": None}},
            "schedule.max_iters is None and schedule.epochs is None; give one",
        ),
        ({"schedule": SCHEDULE | {"max_iters": None, "epochs": 24}}, "schedule.epochs needs schedule.base_batch"),
        ({"schedule": SCHEDULE | {"by_epoch": True}}, "schedule.by_epoch needs schedule.epochs and the policy cosine"),
        ({"schedule": {"max_iters": 9}}, "schedule has no warmup_iters; give a whole number"),
        (
            {"schedule": SCHEDULE, "augment": {"world_flip": 0.5}},
            "unknown setting augment.world_flip; known: class_balanced, photometric",
        ),
        (
            {"schedule": SCHEDULE, "augment": {"photometric": True, "photometric_per_image": True}},
            "augment.photometric and augment.photometric_per_image are both set; leave one off",
        ),
        ({}, "has no schedule"),
    ],
)
def test_a_wrong_key_of_a_config_is_named(config: dict[str, Any], told: str):
    with pytest.raises(FD3DError, match=told):
        read_schedule(config)


def test_the_expert_stage_checks_the_students_schedule(project: Path, tmp_path: Path):
    """The student's training starts hours later."""
    student = tmp_path / "student.py"
    student.write_text(f"_base_ = '{project}/configs/world/apprentice.py'\nschedule = dict(max_iterz=3)\n")
    expert, source = project / "configs/world/expert.py", FrameSource(Path("none"), Path("none"), "none")
    checkpoint = project / "checkpoints/world_expert.pth"
    with pytest.raises(FD3DError, match="unknown setting schedule.max_iterz"):
        take_or_train(expert, checkpoint, RunSettings(), source, tmp_path / "expert/detector.pth", StudentPlan(student))
    assert not (tmp_path / "expert").exists()


def test_every_shipped_config_of_a_detector_can_be_trained(project: Path):
    for path in sorted((project / "configs").glob("*/*.py")):
        if path.parent.name != "_base_":
            read_schedule(load_config(path))


def test_a_machine_has_so_many_threads_and_no_more():
    for name in ("workers", "threads"):
        with pytest.raises(FD3DError, match=f"{name} is 1000000000; it must be at most 1024"):
            from_mapping(RunSettings, {name: 10**9}, "train")
