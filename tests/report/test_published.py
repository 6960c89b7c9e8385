"""Published numbers beside the measured ones, in the report's table and in its summary."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FD3DError
from pipeline.profile import parse_profile
from pipeline.report.report import flat_summary, markdown, put_result, summarise
from pipeline.settings import read_yaml

MEASURED = {"expert": (50.0, 40.0), "plain": (46.5, 34.5), "fd3d": (48.73, 37.0)}
PUBLISHED = {"expert": {"NDS": 51.74, "mAP": 41.64}, "fd3d": {"NDS": 48.73, "mAP": 37.64}}


@pytest.fixture
def outputs(tmp_path: Path) -> dict[str, Path]:
    """Folders of metrics and runs of two families, written by hand."""
    metrics, runs = tmp_path / "metrics", tmp_path / "runs"
    for family in ("small", "other"):
        for role, (nds, ap) in MEASURED.items():
            errors: dict[str, Any] = dict.fromkeys(("mATE", "mASE", "mAOE", "mAVE", "mAAE"), 0.5)
            found = {"NDS": nds, "mAP": ap, "errors": {"car": {"orient_err": 0.1}}} | errors
            for file, content in (
                (metrics / f"detectors/{family}/{role}.json", found),
                (runs / f"{family}/{role}/train.json", {"seed": 0, "seconds": 1.0}),
            ):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(content))
    return {"metrics": metrics, "runs": runs}


def profile(published: dict[str, Any] | None) -> Any:
    """The profile of the small pair with other published numbers."""
    values = read_yaml(Path("configs/profiles/paper-small.yaml"))
    family = values["families"]["small"]
    del family["published"]
    if published is not None:
        family["published"] = published
    return parse_profile(values, Path("params.yaml"))


def rows(text: str) -> list[dict[str, str]]:
    head, _, *lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_differences_stand_beside_the_measured_numbers(outputs, monkeypatch, project, tmp_path):
    monkeypatch.chdir(project)
    published = {"small": profile(PUBLISHED).family().published}
    summary = summarise(["small", "other"], **outputs, published=published)
    expert, plain, fd3d, *other = rows(markdown(summary))
    assert list(expert)[2:8] == ["NDS", "published_NDS", "difference_NDS", "mAP", "published_mAP", "difference_mAP"]
    assert [expert[name] for name in list(expert)[2:8]] == ["50.0", "51.74", "-1.74", "40.0", "41.64", "-1.64"]
    assert (fd3d["difference_NDS"], fd3d["difference_mAP"]) == ("+0.00", "-0.64")
    assert all(row["published_NDS"] == row["difference_NDS"] == "-" for row in (plain, *other))
    flat = flat_summary(summary)
    assert flat["expert"]["difference_mAP"] == -1.64 and "published_NDS" not in flat["other"]["expert"]
    document = tmp_path / "page.md"
    document.write_text("<!-- result -->\n<!-- /result -->\n")
    put_result(summary, document)
    assert rows(document.read_text())[0]["difference_NDS"] == "-1.74"


def test_the_gain_is_told_beside_the_published_gain(outputs, monkeypatch, project):
    monkeypatch.chdir(project)
    known = (
        profile(None),
        profile(read_yaml(Path("configs/profiles/paper-small.yaml"))["families"]["small"]["published"]),
    )
    without, beside = (
        markdown(summarise(["small"], **outputs, published={"small": one.family().published})) for one in known
    )
    assert "small: FD3D adds +2.23 NDS to the plain student; the expert" in without
    assert "small: FD3D adds +2.23 NDS to the plain student (published: +2.47); the expert" in beside


@pytest.mark.parametrize(
    ("curve", "gain"),
    [
        ("step,loss,loss_pv,loss_bev,loss_fine\n1,2,0.0,0.0,0.0\n2,1,0.0,0.0,0.0\n", False),
        ("step,loss,loss_pv,loss_fine\n1,2,,\n2,1,0.0,0.0\n", False),  # every second update distils, no BEV map
        ("step,loss,loss_pv,loss_bev,loss_fine\n1,2,0.0,0.0,0.0\n2,1,0.0,0.1,0.0\n", True),
        ("step,loss,loss_pv,loss_mixed\n1,2,0.0,0.5\n", True),
        ("step,loss\n1,2\n", True),
        ("", True),  # a training too short for a row
    ],
)
def test_a_student_whose_losses_were_all_zero_gained_nothing_by_them(outputs, curve, gain):
    file = outputs["runs"] / "small/fd3d/losses.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(curve)
    summary = summarise(["small"], **outputs)
    told = "the distilled student is +2.23 NDS from the plain one, of which FD3D's losses added nothing: they were 0 in every step"
    assert ("FD3D adds +2.23 NDS" in markdown(summary)) is gain and (told in markdown(summary)) is not gain
    assert summary["small"]["fd3d"].get("distilled", True) is gain


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({}, "the expert is"),  # no limit, or an older training
        ({"mixing_paused": 0, "unexplained": 0.4}, "the expert is"),
        (
            {"mixing_paused": 1400, "unexplained": 0.8},
            "mixing paused in 1,400 of 1,600 updates, as the generators left too much of the expert's pyramid unexplained (distill.mixed_limit); the expert is",
        ),
    ],
)
def test_a_pause_of_mixing_is_told(outputs, facts, told):
    file = outputs["runs"] / "small/fd3d/train.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"steps": 1600} | facts))
    summary = summarise(["small"], **outputs)
    assert f"to the plain student; {told}" in markdown(summary)
    assert summary["small"]["fd3d"].get("mixing_paused", 0) == facts.get("mixing_paused", 0)
    del summary["small"]["plain"]  # told of a student that is alone, too
    assert ("paused" in markdown(summary)) is ("paused" in told)


def test_an_expert_below_its_student_and_without_a_training_is_told_so(outputs):
    summary = summarise(["small"], **outputs)
    expert = summary["small"]["expert"]
    assert "; the expert is +" in markdown(summary)
    expert |= {"NDS": summary["small"]["plain"]["NDS"] - 0.46, "training_seconds": None}
    assert markdown(summary).endswith(
        "; the expert is 0.46 below it, so it has no gap to close.\n"
    ) and "None" not in markdown(summary)
    assert rows(markdown(summary))[0]["training_seconds"] == "-"
    del summary["small"]["fd3d"]
    assert markdown(summary).endswith("; the expert is 0.46 NDS below the plain student, so it has no gap to close.\n")


@pytest.mark.parametrize(
    ("expert", "plain", "fd3d", "told"),
    [
        (
            50,
            40,
            39.5,
            "FD3D adds nothing: the distilled student is 0.50 NDS below the plain student; the expert is +10.00 above it",
        ),
        (
            40,
            40,
            40,
            "FD3D adds nothing: the distilled student is level with the plain student; the expert is level with it, so it has no gap to close",
        ),
        (
            50,
            0,
            20,
            "NDS is 0 of the plain student: no class has a match, so look at the training first; FD3D adds +20.00 NDS to",
        ),
        (0, 0, 0, "NDS is 0 of the expert and of the plain student and of the distilled student: no class"),
    ],
)
def test_a_gain_or_a_gap_that_is_none_is_not_told_as_one(outputs, expert, plain, fd3d, told):
    summary = summarise(["small"], **outputs)
    for role, nds in {"expert": expert, "plain": plain, "fd3d": fd3d}.items():
        summary["small"][role]["NDS"] = nds
    assert f"small: {told}" in markdown(summary)
    assert "+0.00" not in markdown(summary) and "adds -" not in markdown(summary)


def test_without_published_numbers_nothing_is_added(outputs, monkeypatch, project):
    monkeypatch.chdir(project)
    summary = summarise(["small"], **outputs, published={"small": profile(None).family().published})
    assert summary == summarise(["small"], **outputs)
    assert "published" not in markdown(summary) + json.dumps(flat_summary(summary))


def test_the_shipped_report_is_written_as_before(project):
    """The embedded families have no published numbers."""
    flat = json.loads((project / "metrics/summary.json").read_text())
    roles = ("expert", "plain", "fd3d")
    summary = {"bevformer": {role: flat[role] for role in roles}, "detr3d": flat["detr3d"]}
    assert markdown(summary) == (project / "report/summary.md").read_text()


@pytest.mark.parametrize(
    ("published", "told"),
    [
        (
            {"student": {"NDS": 1, "mAP": 1}},
            "unknown setting families.small.published.student; known: expert, fd3d, plain",
        ),
        ({"plain": {"NDS": 101, "mAP": 1}}, "families.small.published.plain.NDS is 101.0; it must be in 0..100"),
        ({"plain": {"NDS": 40, "mAP": -1}}, "families.small.published.plain.mAP is -1.0; it must be in 0..100"),
        ({"plain": {"NDS": 40}}, "families.small.published.plain has no mAP"),
        (
            {"plain": {"NDS": "40 %", "mAP": 1}},
            "families.small.published.plain.NDS is '40 %'; it must be a finite number",
        ),
    ],
)
def test_a_wrong_number_is_named(published, told, monkeypatch, project):
    monkeypatch.chdir(project)
    with pytest.raises(FD3DError) as refused:
        profile(published)
    assert told in str(refused.value)
