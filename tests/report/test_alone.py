"""A report of a student that distils nothing, without the detectors that nobody made, and of submissions of other frames."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.data.index import FrameIndex
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.evaluation.run import score
from pipeline.evaluation.submission import write_submission
from pipeline.files import file_sha256
from pipeline.report.report import build_report
from stages.cli import app


def repeated(index: FrameIndex, split: str, path: Path) -> None:
    """A submission that repeats the annotations of a split."""
    frames = [index[row] for row in index.select(split)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_submission(
        path, index, [(f.token, np.nan_to_num(f.boxes), np.linspace(1, 0.5, len(f.labels)), f.labels) for f in frames]
    )


@pytest.fixture
def plain(tmp_path: Path, world: Path, world_index: Path, monkeypatch: pytest.MonkeyPatch) -> FrameIndex:
    """The outputs of one plain student, which detects what is annotated, below the working folder."""
    monkeypatch.chdir(tmp_path)
    index, run, out = FrameIndex.load(world_index), Path("runs/own/plain"), Path("runs/evaluate/own/plain")
    run.mkdir(parents=True)
    (run / "detector.pth").write_bytes(b"weights")
    (run / "train.json").write_text(json.dumps({"seed": 0, "seconds": 1.0}))
    (run / "losses.csv").write_text("step,loss\n1,2\n2,1\n")
    repeated(index, "world_val", out / "submission.json")
    source = FrameSource(world_index, world, "world_val")
    metrics = Path("metrics/detectors/own/plain.json")
    score(out / "submission.json", index, source, out, metrics, file_sha256(run / "detector.pth"))
    return index


def report(index: FrameIndex, world: Path) -> None:
    place = (Path("runs"), Path("metrics"), Path("report"))
    build_report(["own"], index.path, world, "world_val", *place, frames=1)


def test_a_plain_student_alone_is_reported(plain: FrameIndex, world: Path) -> None:
    report(plain, world)
    text, page = Path("report/summary.md").read_text(), Path("report/index.html").read_text()
    assert "| own | plain |" in text and "| own | fd3d |" not in text and "| own | expert |" not in text
    told = "own: there is no expert and no distilled student, so nothing is compared with them."
    assert f"- {told}\n" in text and told in page
    assert "plain student blue" in page and "What is stored" not in page
    assert list(json.loads(Path("metrics/summary.json").read_text())) == ["plain"]


def test_a_student_that_is_half_made_is_missing(plain: FrameIndex, world: Path) -> None:
    distilled = Path("runs/own/fd3d/detector.pth")
    distilled.parent.mkdir(parents=True)
    distilled.write_bytes(b"weights")
    with pytest.raises(FD3DError, match=r"runs/own/store/manifest.json, .*own/fd3d.json, .* do not exist; run 'dvc re"):
        report(plain, world)
    distilled.unlink()
    Path("runs/own/plain/detector.pth").unlink()
    Path("metrics/detectors/own/plain.json").unlink()
    with pytest.raises(FD3DError, match=r"runs/own/expert/detector.pth, .* do not exist; run 'dvc repro'"):
        report(plain, world)


def test_the_command_takes_a_plain_student_alone(plain: FrameIndex, world: Path, project: Path) -> None:
    from tests.evaluation.test_commands import profile

    Path("configs").symlink_to(project / "configs")
    Path("checkpoints").symlink_to(project / "checkpoints")
    data = {"root": str(world), "index": str(plain.path), "train": "world_train", "val": "world_val"}
    profile(project, data)
    text = Path("params.yaml").read_text().replace("  bevformer:", "  own:", 1)
    before, _, after = text.partition("  detr3d:")
    Path("params.yaml").write_text(before + after[after.index("\nfocal:") :])
    done = CliRunner().invoke(app, ["report"], catch_exceptions=False)
    assert done.exit_code == 0 and "there is no expert and no distilled student" in done.output


def test_a_submission_of_another_split_is_refused_with_the_command(plain: FrameIndex, world: Path) -> None:
    repeated(plain, "world_train", Path("runs/evaluate/own/plain/submission.json"))
    told = (
        r"runs/evaluate/own/plain/submission.json lacks 3 of the frames of data.val, world_val: it is of split "
        "'world_train'; make it anew with 'fd3d evaluate --family own --role plain'"
    )
    with pytest.raises(FD3DError, match=told):
        report(plain, world)
