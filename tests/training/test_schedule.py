"""Updates, accumulation and learning rates of a schedule."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.optim import OneCycleLR

from pipeline.errors import FD3DError
from pipeline.models.build import load_config
from pipeline.training.schedule import Course, plan_course
from pipeline.training.settings import RunSettings, Schedule, read_schedule

FRAMES = 28130  # training frames of nuScenes
# The official schedule at the first of 3516 updates of an epoch: (update, rate of all but the backbone), from mmcv's runner.
OFFICIAL = {
    0: 6.666666666666668e-05,
    250: 1.3333333333333334e-04,
    499: 1.9973333333333335e-04,
    500: 2e-4,
    3515: 2e-4,
    3516: 1.9914534151286656e-04,
    12 * 3516: 1.001e-04,
    23 * 3516: 1.054658487133449e-06,
}


def published(project: Path) -> Schedule:
    return read_schedule(load_config(project / "configs/bevformer/small.py"))


def planned(processes: int = 1, **run) -> Course:
    schedule = Schedule(epochs=24, base_batch=8, batch_size=1, warmup_iters=500, policy="cosine", by_epoch=True)
    return plan_course(schedule, RunSettings(**run), FRAMES, processes)


def test_any_number_of_processes_makes_the_same_epochs_at_the_same_batch(project):
    courses = {n: plan_course(published(project), RunSettings(), FRAMES, n) for n in (1, 2, 4, 8)}
    assert str(courses[2]) == "8 = 2 processes x 1 x 4 accumulated; 84,390 updates"
    assert str(courses[1]) == "8 = 1 process x 1 x 8 accumulated; 84,390 updates"
    rates = [[c.learning_rate(u, 2e-4) for u in range(0, c.updates, 7)] for c in courses.values()]
    assert all(rate == rates[0] for rate in rates)
    assert {(c.batch, c.updates, c.warmup, c.epochs, c.epoch_length) for c in courses.values()} == {
        (8, 84390, 500, 24, 3516)
    }
    assert {c.updates * c.batch for c in courses.values()} == {24 * FRAMES}
    assert plan_course(published(project), RunSettings(batch_size=4), FRAMES, 1).accumulate == 2


def test_a_batch_that_the_processes_do_not_divide_is_refused():
    with pytest.raises(FD3DError, match="base_batch is 8, which 3 processes x 1 frame do not divide; choose another"):
        planned(3)
    with pytest.raises(FD3DError, match="base_batch is 8, which 1 process x 16 frames"):
        planned(batch_size=16)


def test_too_few_updates_are_told_with_what_they_come_from():
    schedule = Schedule(warmup_iters=0, batch_size=1, policy="cosine", epochs=2, base_batch=64)
    with pytest.raises(FD3DError, match=r"0 updates planned \(2 epochs of 12 frames, 64 an update\)"):
        plan_course(schedule, RunSettings(), frames=12, processes=1)


def test_learning_rates_are_those_of_the_official_schedule(parity_root):
    official, course = np.load(parity_root / "lr_official_24_epochs.npz"), planned()
    length = int(official["epoch_length"])
    assert course.epoch_length == length
    updates = {
        "lr_first_700": range(700),
        "lr_epoch_start": range(0, 24 * length, length),
        "lr_every_100": range(0, 24 * length, 100),
    }
    for name, steps in updates.items():
        ours = [[course.learning_rate(step, base) for base in (2e-4, 2e-4 * 0.1)] for step in steps]
        np.testing.assert_array_equal(np.array(ours), official[name], err_msg=name)


def test_learning_rates_of_some_updates():
    course = planned(4)
    assert {step: course.learning_rate(step, 2e-4) for step in OFFICIAL} == pytest.approx(OFFICIAL, rel=1e-14)


def test_a_cosine_may_fall_at_every_update():
    schedule = Schedule(epochs=2, base_batch=1, batch_size=1, warmup_iters=0, policy="cosine")
    course = plan_course(schedule, RunSettings(), 4, 1)
    rates = [course.learning_rate(u, 1.0) for u in range(course.updates)]
    assert rates == pytest.approx([1e-3 + 0.999 * (np.cos(np.pi * u / 8) + 1) / 2 for u in range(8)])


def test_a_cut_schedule_keeps_its_course():
    course = planned(max_iters=48)
    assert (course.updates, course.warmup, course.epoch_length) == (48, 24, 2)
    assert course.learning_rate(47, 2e-4) == planned().learning_rate(84389, 2e-4)


@pytest.mark.parametrize(("updates", "warmup"), [(1600, 160), (24, 12), (4, 2)])
def test_a_one_cycle_is_that_of_mmengine(updates, warmup):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2e-3)
    theirs = OneCycleLR(optimizer, eta_max=2e-3, total_steps=updates, pct_start=warmup / updates, by_epoch=False)
    schedule = Schedule(max_iters=updates, batch_size=2, warmup_iters=warmup, policy="onecycle")
    course = plan_course(schedule, RunSettings(), 0, 1)
    for update in range(updates):
        assert course.learning_rate(update, 2e-3) == optimizer.param_groups[0]["lr"]
        if update < updates - 1:
            optimizer.step()
            theirs.step()


@pytest.mark.parametrize("policy", ["onecycle", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 2, 8])
def test_any_warm_up_works(policy, warmup):
    schedule = Schedule(max_iters=8, batch_size=1, warmup_iters=warmup, policy=policy)
    course = plan_course(schedule, RunSettings(), 0, 1)
    rates = [course.learning_rate(update, 1.0) for update in range(8)]
    assert all(0 < rate <= 1 for rate in rates) and rates[-1] < 0.3
    first = {("onecycle", 0): 1.0, ("onecycle", 1): 1.0, ("cosine", 0): 1.0, ("cosine", 1): 1 / 3}
    assert rates[0] == pytest.approx(first.get((policy, warmup), rates[0]))
