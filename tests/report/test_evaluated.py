"""Outputs of other detectors or frames in a report: refused, and what is missing is told at once."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import CLASSES
from pipeline.data.index import FrameIndex
from pipeline.errors import FD3DError
from pipeline.report.evaluated import ROLES, check_evaluated
from pipeline.report.figures import bev_figure
from pipeline.report.report import build_report, loss_figure, pr_figure

FAMILIES = ("small", "other")


@pytest.fixture
def index(world_index: Path) -> FrameIndex:
    return FrameIndex.load(world_index)


@pytest.fixture
def outputs(tmp_path: Path, index: FrameIndex, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for all that a report of two families reads, below the working folder; metrics are of these detectors."""
    monkeypatch.chdir(tmp_path)
    for family in FAMILIES:
        put(Path(f"runs/{family}/store/manifest.json"), {})
        for role in ROLES:
            for file in ("detector.pth", "train.json", "losses.csv"):
                put(Path(f"runs/{family}/{role}/{file}"), f"{file} of {family} {role}")
            for file in ("submission.json", "pr.csv"):
                put(Path(f"runs/evaluate/{family}/{role}/{file}"), {})
            put(metrics_of(family, role), {"NDS": 1.0, "evaluated": [notes(family, role, index)]})
    return tmp_path


def put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def metrics_of(family: str, role: str) -> Path:
    return Path(f"metrics/detectors/{family}/{role}.json")


def notes(family: str, role: str, index: FrameIndex) -> dict[str, str]:
    detector = Path(f"runs/{family}/{role}/detector.pth").read_bytes()
    return {
        "checkpoint_sha256": hashlib.sha256(detector).hexdigest(),
        "index_sha256": hashlib.sha256(index.path.read_bytes()).hexdigest(),
        "split": "world_val",
    }


def check(index: FrameIndex, split: str = "world_val") -> None:
    check_evaluated(FAMILIES, index, split, Path("runs"), Path("metrics"))


def test_metrics_of_the_reports_own_detectors_are_taken(outputs: Path, index: FrameIndex) -> None:
    check(index)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"checkpoint_sha256": "ab" * 32}, "is of another checkpoint, abababababab, than checkpoint runs/other/plain/"),
        (
            {"checkpoint_sha256": None},
            "is of another checkpoint, None, than checkpoint runs/other/plain/detector.pth, ",
        ),
        ({"index_sha256": "cd" * 32}, "is of another index, cdcdcdcdcdcd, than index /"),
        ({"split": "world_train"}, "is of another split, world_train, than data.val, world_val"),
        (None, "does not say which detector and frames it is of"),
    ],
)
def test_metrics_of_something_else_are_refused_with_the_command(
    outputs: Path, index: FrameIndex, change: dict[str, Any] | None, told: str
) -> None:
    evaluated = {} if change is None else {"evaluated": [notes("other", "plain", index) | change]}
    put(metrics_of("other", "plain"), {"NDS": 1.0} | evaluated)
    with pytest.raises(FD3DError) as refused:
        check(index)
    line = str(refused.value)
    assert line.startswith(f"metrics/detectors/other/plain.json {told}") and "\n" not in line
    assert line.endswith("anew with 'fd3d evaluate --family other --role plain' or 'dvc repro'")


def test_all_metrics_of_something_else_are_named(outputs: Path, index: FrameIndex) -> None:
    with pytest.raises(FD3DError) as refused:
        check(index, "world_train")
    line = str(refused.value)
    assert all(str(metrics_of(family, role)) in line for family in FAMILIES for role in ROLES)
    with pytest.raises(
        FD3DError, match="fd3d evaluate --checkpoint .*/runs/small/expert/detector.pth --out .* --metrics"
    ):
        check_evaluated(FAMILIES, index, "world_train", outputs / "runs", Path("metrics"))


def test_the_report_refuses_before_it_draws(outputs: Path, world: Path, world_index: Path) -> None:
    place = (FAMILIES, world_index, world, "world_train", Path("runs"), Path("metrics"), Path("report"))
    with pytest.raises(FD3DError, match="small/expert.json is of another split, world_val, than data.val, world_train"):
        build_report(*place)
    gone = [metrics_of("small", "fd3d"), Path("runs/other/plain/losses.csv"), Path("runs/evaluate/other/fd3d/pr.csv")]
    for path in gone:
        path.unlink()
    with pytest.raises(FD3DError) as refused:
        build_report(*place)
    assert str(refused.value) == f"{', '.join(map(str, gone))} do not exist; run 'dvc repro'"
    assert not Path("report").exists()


def test_figures_without_a_line_are_drawn_without_a_word(tmp_path: Path) -> None:
    """A training too short for a row, a detector without a curve, and a frame without a box."""
    (tmp_path / "losses.csv").write_text("step,loss\n")
    (tmp_path / "pr.csv").write_text("class,recall,precision\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_figure({"plain": tmp_path / "losses.csv"})
        pr_figure({"plain": tmp_path / "pr.csv"})
        bev_figure({"expert": (np.zeros((0, 9)), "tomato")}, 40.0, np.eye(4))
    (tmp_path / "pr.csv").write_text(f"class,recall,precision\n{CLASSES[0]},0.5,0.5\n")
    (tmp_path / "losses.csv").write_text("step,loss\n1,2\n")
    assert loss_figure({"plain": tmp_path / "losses.csv"}).axes[0].get_legend() is not None
    assert pr_figure({"plain": tmp_path / "pr.csv"}).axes[0].get_legend() is not None
