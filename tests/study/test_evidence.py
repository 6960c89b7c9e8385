"""What is read from a sweep's table: intervals, gains paired by seed, shares of the gap, figures, the document's tables."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pipeline.errors import FD3DError
from pipeline.files import between_markers
from pipeline.study.evidence import build_evidence
from pipeline.study.plots import curves_figure, gains_figure
from pipeline.study.statistics import Interval, comparisons, paired
from pipeline.study.table import COLUMNS, put_lines, read_table
from pipeline.study.tables import MARKERS, NO_ROWS, markdown


def line(row: str, seed: int, nds: float, group: str = "main", expert: str = "trained", **values: object) -> dict:
    method = values.pop("method", row.split("-")[0])
    known = {
        "group": group,
        "split": "val",
        "row": row,
        "method": method,
        "seed": seed,
        "NDS": nds,
        "mAP": nds / 2,
        "expert": expert,
    }
    rest = {
        "family": "bevformer",
        "seconds": 100,
        "device": "cpu",
        "store_bytes": 0,
        "revision": "abc",
        "date": "2025-01-01",
    }
    return dict.fromkeys(COLUMNS, "") | rest | known | values


MAIN = [
    *(line("plain", seed, nds) for seed, nds in enumerate((20, 21, 22))),
    *(line("fd3d", seed, nds, store_bytes=2_000_000) for seed, nds in enumerate((25, 27, 26))),
    *(line("mgd", seed, nds) for seed, nds in enumerate((23, 24, 25))),
    *(line("cwd", seed, nds) for seed, nds in enumerate((22, 22, 22))),
    line("response", 1, 22.5),
    line("expert", 0, 31),
]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "evidence.csv"
    put_lines(path, MAIN)
    return path


def test_an_interval_is_scipys_and_one_seed_has_none():
    values = [3.1, 4.4, 2.7, 5.0, 3.9]
    found = Interval.of(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert Interval.of([2.0]) == Interval(2.0, None, 1) and Interval.of([2.0]).text(True) == "+2.00"


def test_gains_are_paired_by_seed(table):
    (main,) = comparisons(read_table(table))
    # differences 5, 6, 4: mean 5, standard deviation 1, t(0.975, 2) = 4.3027
    fd3d, response = main.find("fd3d"), main.find("response")
    assert fd3d and response
    gain = main.gain(fd3d)
    assert (gain.mean, gain.half) == pytest.approx((5, 4.3027 / 3**0.5), rel=1e-4)
    # a seed that only one has does not count: 22.5 - 21
    assert main.gain(response) == Interval(1.5, None, 1)
    assert paired({0: 1.0}, {1: 1.0}).count == 0


def test_the_gap_reaches_from_the_plain_student_on_the_same_seeds_to_the_expert(table):
    (main,) = comparisons(read_table(table))
    fd3d, response = main.find("fd3d"), main.find("response")
    assert fd3d and response
    assert main.share(fd3d) == pytest.approx(5 / (31 - 21))
    assert main.share(response) == pytest.approx(1.5 / (31 - 21))


def test_an_expert_that_is_no_better_leaves_no_share_and_no_line_of_the_gap(table):
    (ahead,) = comparisons(read_table(table))
    put_lines(table, [*MAIN[:-1], line("expert", 0, 19)])
    (behind,) = comparisons(read_table(table))
    fd3d = behind.find("fd3d")
    assert fd3d and behind.share(fd3d) is None
    legends = [gains_figure([found]).axes[0].get_legend() for found in (ahead, behind)]
    assert legends[0].get_texts()[0].get_text() == "half of the gap to the expert (10.0 NDS)" and legends[1] is None


def test_fd3d_is_compared_with_the_best_other(table):
    (main,) = comparisons(read_table(table))
    assert main.best_other().row == "mgd"
    assert [r.row for r in main.results] == ["plain", "fd3d", "cwd", "mgd", "response", "expert"]


def test_the_text_stands_in_the_document_and_is_written_again(table, tmp_path):
    document = tmp_path / "docs" / "results.md"
    document.parent.mkdir()
    document.write_text(f"before\n{MARKERS[0]}\nold\n{MARKERS[1]}\nafter\n")
    for _ in range(2):
        build_evidence(table, tmp_path / "docs" / "figures", document)
    text = document.read_text()
    assert (
        text.startswith(f"before\n{MARKERS[0]}\nNDS") and text.endswith(f"{MARKERS[1]}\nafter\n") and "old" not in text
    )
    assert "| fd3d | 3 | 26.00 ± 2.48 | 13.00 ± 1.24 | +5.00 ± 2.48 | 50% |  |  | 100 | cpu | 2 |" in text
    assert "| mgd | 3 | 24.00 ± 2.48 | 12.00 ± 1.24 | +3.00 ± 0.00 | 30% |  | +2.00 ± 2.48 | 100 | cpu |  |" in text
    assert "| response | 1 | 22.50 | 11.25 | +1.50 | 15% |  | +4.50 | 100 | cpu |  |" in text
    assert "FD3D minus the best other distiller (mgd): +2.00 ± 2.48 NDS." in text
    assert "### main, on split val" in text
    assert "![main on val](figures/evidence_main_val.svg)" in text
    assert "<svg" in (tmp_path / "docs" / "figures" / "evidence_main_val.svg").read_text()


def test_what_is_added_to_the_start_is_paired_by_seed_and_of_the_same_expert():
    starts = [line("plain-inherit-trained", 0, 25), line("plain-inherit-early", 0, 23, expert="early")]
    students = [line("fd3d-early", 0, 24.5, expert="early"), line("fd3d-early", 1, 99, expert="early")]
    text = markdown([line("plain", 0, 20), *starts, *students, line("cwd-noisy", 0, 22, expert="noisy")], {})
    cells = {row[1].strip(): row[7].strip() for row in (row.split("|") for row in text.splitlines()) if len(row) > 7}
    assert cells["fd3d-early"] == "+1.50"
    assert cells["cwd-noisy"] == cells["plain-inherit-early"] == cells["plain"] == ""


def test_students_are_compared_with_those_of_the_same_expert_alone():
    noisy = {"expert": "noise-2"}
    lines = [line("plain", 0, 20), line("fd3d", 0, 30), line("cwd", 0, 28), line("cwd-noise-2", 0, 29, **noisy)]
    (found,) = comparisons(lines)
    assert [row and row.row for row in map(found.fd3d_beside, found.results)] == ["fd3d", "fd3d", "fd3d", None]
    assert found.best_other().row == "cwd"  # cwd-noise-2 comes nearer to FD3D, but is of another expert
    (found,) = comparisons([*lines, line("fd3d-noise-2", 0, 29.5, **noisy)])
    assert {row.row: found.fd3d_beside(row).row for row in found.students if row.row.endswith("noise-2")} == {
        "cwd-noise-2": "fd3d-noise-2",
        "fd3d-noise-2": "fd3d-noise-2",
    }


def test_an_experts_own_start_goes_before_the_groups():
    early = {"expert": "steps-500"}
    lines = [line("start", 0, 25), line("start-steps-500", 0, 22, **early), line("cwd-steps-500", 0, 24, **early)]
    (found,) = comparisons([*lines, line("cwd", 0, 27), line("cwd-noise-2", 0, 26, expert="noise-2")])
    beside = {row.row: found.start_beside(row).row for row in found.results if row.method == "cwd"}
    assert beside == {"cwd": "start", "cwd-noise-2": "start", "cwd-steps-500": "start-steps-500"}


def test_rows_are_sorted_by_the_numbers_in_their_names():
    names = ["cwd-v1.2.3", "cwd.b", "cwd-10", "cwd-9", "cwd-0.25", "cwd-0.3", "cwd"]
    (found,) = comparisons([line(name, 0, 20, method="cwd") for name in names])
    assert [row.row for row in found.results] == [
        "cwd",
        "cwd-0.25",
        "cwd-0.3",
        "cwd-9",
        "cwd-10",
        "cwd-v1.2.3",
        "cwd.b",
    ]


def test_a_store_is_as_large_as_its_largest_line_tells():
    sizes = enumerate((0, 2_000_000, 1_000_000))  # a store that was deleted, and an old line, tell less
    (found,) = comparisons([line("fd3d", seed, 20, store_bytes=size) for seed, size in sizes])
    assert found.results[0].store_bytes == 2_000_000


def test_seconds_of_several_devices_have_no_mean(tmp_path):
    lines = [line("plain", seed, 20, device=device) for seed, device in enumerate(("cpu", "GPU", "cpu"))]
    put_lines(tmp_path / "evidence.csv", lines)
    (found,) = comparisons(read_table(tmp_path / "evidence.csv"))
    assert (found.results[0].seconds, found.results[0].device) == (None, "GPU, cpu")


def test_a_curve_runs_over_the_experts_own_quality(tmp_path):
    lines = [line("plain", 0, 20, "imperfect")]
    for expert, quality, gain in (("trained", 31, 5), ("steps-500", 24, 1), ("steps-1000", 28, 3), ("noise-2", 26, 2)):
        lines.append(line(f"expert-{expert}", 0, quality, "imperfect", expert, method="expert"))
        lines.append(line(f"fd3d-{expert}", 0, 20 + gain, "imperfect", expert))
    # a seed that other points lack, and a row without an expert of any kind, are not drawn
    lines += [line("plain", 1, 10, "imperfect"), line("fd3d-trained", 1, 12, "imperfect", "trained")]
    lines.append(line("cwd-trained", 0, 30, "imperfect", "trained"))
    put_lines(tmp_path / "evidence.csv", lines)
    found = comparisons(read_table(tmp_path / "evidence.csv"))
    panels = curves_figure(found).axes
    assert {axes.get_title(): axes.get_lines()[0].get_xydata().tolist() for axes in panels} == {
        "bevformer: steps (seed 0)": [[24, 1], [28, 3], [31, 5]],
        "bevformer: noise (seed 0)": [[26, 2], [31, 5]],
    }
    assert [axes.get_legend_handles_labels()[1] for axes in panels] == [["fd3d"], ["fd3d"]]


def test_a_kind_of_expert_without_a_curve_has_no_panel(tmp_path):
    lines = [line("plain", 0, 20, "imperfect"), line("expert", 0, 31, "imperfect", method="expert")]
    for expert in ("trained", "noise-1", "steps-500", "steps-1000"):
        lines.append(line(f"fd3d-{expert}", 0, 24, "imperfect", expert))
    lines.append(line("expert-steps-500", 0, 24, "imperfect", "steps-500", method="expert"))
    found = comparisons(lines)  # nobody knows how good the noisy expert is
    assert [axes.get_title() for axes in curves_figure(found).axes] == ["bevformer: steps (seed 0)"]
    put_lines(tmp_path / "evidence.csv", [row for row in lines if row["expert"] != "steps-500"])
    (tmp_path / "results.md").write_text("\n".join(MARKERS))
    build_evidence(tmp_path / "evidence.csv", tmp_path, tmp_path / "results.md")
    assert "no seed in common" not in (tmp_path / "evidence_imperfect_val.svg").read_text()


def test_splits_of_a_group_are_told_apart(tmp_path):
    dev = [line(row, 0, nds, "main", split="dev") for row, nds in (("plain", 10), ("fd3d", 11))]
    put_lines(tmp_path / "evidence.csv", [*MAIN, *dev])
    found = comparisons(read_table(tmp_path / "evidence.csv"))
    students = [(c, c.find("fd3d")) for c in found]
    assert [(c.group, c.split, row and c.gain(row).mean) for c, row in students] == [
        ("main", "dev", 1),
        ("main", "val", 5),
    ]
    (tmp_path / "results.md").write_text("\n".join(MARKERS))
    text = build_evidence(tmp_path / "evidence.csv", tmp_path, tmp_path / "results.md")
    assert [
        text.count(f"### main, on split {split}\n\n![main on {split}](evidence_main_{split}.svg)")
        for split in ("dev", "val")
    ] == [1, 1]


def test_the_start_of_an_older_table_is_its_own(tmp_path):
    older = [line(row, 0, nds) for row, nds in (("plain", 20), ("plain-inherit", 22), ("fd3d", 25))]
    newer = [line(row, 0, nds) for row, nds in (("plain", 20), ("start", 23), ("fd3d", 25))]
    for lines, start, gain in ((older, "plain-inherit", "+3.00"), (newer, "start", "+2.00")):
        text = markdown(lines, {})
        assert f"over the row `{start}` of the same expert, or over the group's only one" in text
        (fd3d,) = (row.split("|") for row in text.splitlines() if row.startswith("| fd3d"))
        assert fd3d[7].strip() == gain


def test_the_evidence_of_an_older_table_is_read_as_of_val(project, tmp_path):
    (tmp_path / "results.md").write_text("\n".join(MARKERS))
    text = build_evidence(project / "benchmarks/results/evidence_1.csv", tmp_path, tmp_path / "results.md")
    assert "FD3D minus the best other distiller (cwd): +0.02 ± 0.15 NDS." in text and "### main, on split val" in text
    assert (tmp_path / "evidence_1_main_val.svg").is_file()


def test_a_table_without_rows_gives_a_text_that_says_so(tmp_path):
    put_lines(tmp_path / "evidence.csv", [])
    (tmp_path / "results.md").write_text("\n".join(MARKERS))
    assert build_evidence(tmp_path / "evidence.csv", tmp_path, tmp_path / "results.md") == NO_ROWS
    assert NO_ROWS in (tmp_path / "results.md").read_text()


def test_no_table_or_no_markers_are_told(tmp_path):
    with pytest.raises(FD3DError, match="none.csv does not exist; run 'fd3d sweep'"):
        build_evidence(tmp_path / "none.csv", tmp_path, tmp_path / "d.md")
    with pytest.raises(FD3DError, match="results.md lacks the lines"):
        between_markers("text", "content", MARKERS, "results.md")
