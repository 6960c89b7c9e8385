"""A training that is killed goes on from where it stopped, to the same bits."""

import csv
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.errors import FD3DError
from pipeline.training.checkpoints import changes, find_unfinished, flat
from pipeline.training.plain import train_plain
from pipeline.training.randomness import ResumableSampler
from pipeline.training.settings import Initial, RunSettings
from tests.training.small import Job, die_after, die_at_call, start, write_config

UPDATES = 7


@pytest.fixture(scope="module")
def whole(project: Path, source, store, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """An undisturbed FD3D training: two batches an update, every second update distilled, colours and hidden blocks drawn at random,
    a data worker."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(project, "bevformer", folder / "config.py")
    run = dict(max_iters=UPDATES, workers=1, checkpoint_every=1, curve_every=3)
    job = Job(config, source, folder / "run/detector.pth", run, store, {"inherit": [], "every": 2})
    process = start(job)
    process.join(300)
    assert process.exitcode == 0
    return job


def in_place(whole: Job, folder: Path, **settings) -> Job:
    return replace(whole, out=folder / "run/detector.pth", run=whole.run | settings)


def outcome(job: Job) -> tuple[dict[str, torch.Tensor], str]:
    return torch.load(job.out, weights_only=True)["state_dict"], job.out.with_name("losses.csv").read_text()


def assert_same(job: Job, whole: Job) -> None:
    (have, curve), (want, wanted) = outcome(job), outcome(whole)
    assert curve == wanted
    assert have.keys() == want.keys() and all(torch.equal(have[name], want[name]) for name in want)
    assert not list(job.out.parent.glob("*iter_*")) and not (job.out.parent / "last_checkpoint").exists()


def kill(job: Job, prepare, *args) -> None:
    process = start(job, None, prepare, *args)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def test_a_training_killed_at_random_moments_ends_in_the_same_bits(whole, tmp_path):
    """Killed somewhere in a step; in writing a checkpoint, before it has its name, before the former is removed; and again."""
    job = in_place(whole, tmp_path)
    kill(job, die_after, 2, 0)
    for name, count in (("fsync", 1), ("replace", 2), ("unlink", 3)):
        before = find_unfinished(job.out.parent)
        kill(job, die_at_call, name, count)
        after = find_unfinished(job.out.parent)
        assert before is None or (after is not None and after.iterations >= before.iterations)
    kill(job, die_after, 1, 1)
    job.out.with_name("losses.csv").unlink(missing_ok=True)  # as DVC does before it repeats a stage
    process = start(job)
    process.join(300)
    assert process.exitcode == 0
    assert_same(job, whole)


def stopped(whole: Job, folder: Path) -> Job:
    """A training killed after its second checkpoint."""
    job = in_place(whole, folder, workers=0)
    kill(job, die_at_call, "fsync", 6)  # a file each for a checkpoint and its name; the curve is not due yet
    return job


def test_what_a_stopped_training_left_decides_how_it_goes_on(whole, tmp_path, capfd):
    job = stopped(whole, tmp_path / "here")
    folder = job.out.parent
    name = (folder / "last_checkpoint").read_text()
    assert "/" not in name and (folder / name).is_file()

    # another recipe: refused, naming the setting, and nothing is lost
    other = replace(job, run=job.run | {"seed": 3})
    with pytest.raises(FD3DError, match=r"train.seed = 0, now 3\); set them back to go on with it, or give --restart"):
        other.train()
    assert (folder / name).is_file()

    # the folder has moved, and a newer checkpoint is cut short
    os.rename(tmp_path / "here", tmp_path / "there")
    moved = replace(job, out=tmp_path / "there/run/detector.pth")
    whole_file = (moved.out.parent / name).read_bytes()
    moved.out.with_name("iter_14.pth").write_bytes(whole_file[: len(whole_file) // 2])
    found = find_unfinished(moved.out.parent)
    assert found is not None and found.path.name == name
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "iter_14.pth cannot be read" in line]
    assert line.startswith("warning: checkpoint ")

    # nothing can be read: it starts afresh and says so
    (moved.out.parent / name).write_bytes(whole_file[:1000])
    moved.train()
    assert "warning: no checkpoint in" in capfd.readouterr().out
    with open(moved.out.with_name("losses.csv"), newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6", "7"]  # the rest is a row, too


def test_restart_gives_up_a_training_of_other_settings(whole, tmp_path, capfd):
    job = stopped(whole, tmp_path)
    facts = replace(job, run=job.run | {"max_iters": 4}, restart=True).train()
    told = capfd.readouterr().out
    assert (
        "train.max_iters = 7, now 4" in told
        and told.count("warning: ") == 1
        and "it is deleted" in told
        and facts["steps"] == 4
    )
    assert not list(tmp_path.glob("run/iter_*"))


def test_what_was_trained_stays_when_the_new_start_is_refused(whole, tmp_path):
    job = stopped(whole, tmp_path)
    kept = list(tmp_path.glob("run/iter_*"))
    torch.save({"layer1.0.conv1.weight": torch.ones(1)}, tmp_path / "foreign.pth")
    with pytest.raises(FD3DError, match="init: .*foreign.pth"):
        train_plain(
            job.config,
            job.source,
            job.out,
            RunSettings(**job.run),
            init=Initial(tmp_path / "foreign.pth"),
            restart=True,
        )
    assert kept and list(tmp_path.glob("run/iter_*")) == kept and find_unfinished(job.out.parent) is not None


def test_the_order_of_frames_goes_on_and_does_not_depend_on_the_processes(monkeypatch):
    def drawn(count: int, rank: int = 0, world: int = 1, start: int = 0) -> list[int]:
        monkeypatch.setattr("mmengine.dataset.sampler.get_dist_info", lambda: (rank, world))
        return [index for index, _ in zip(ResumableSampler(range(5), 7, start), range(count), strict=False)]

    order = drawn(20)
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4] and order[:5] != order[5:10]
    assert drawn(8, start=12) == order[12:]
    assert drawn(10, 0, 2) == order[0::2] and drawn(10, 1, 2) == order[1::2]
    assert drawn(6, 1, 2, start=4) == order[1::2][4:]


def test_changed_settings_are_named():
    made, wanted = {"a": {"b": 1, "c": (1, 2)}, "d": 1, "e": {}}, {"a": {"b": 2, "c": [1, 2]}, "e": {}, "f": None}
    assert changes(flat(made), flat(made)) == ""
    assert changes(flat(made), flat(wanted)) == "a.b = 1, now 2, d = 1, now None"
