"""The report's curve of validations during training."""

from pathlib import Path

from pipeline.report.report import validation_figure
from pipeline.training.validation import COLUMNS, write_curve


def test_the_curve_has_a_line_per_method_and_no_figure_without_rows(tmp_path: Path):
    files = {"plain": tmp_path / "plain.csv", "fd3d": tmp_path / "fd3d.csv"}
    assert validation_figure(files) is None  # runs of an earlier revision have no such files
    for file in files.values():
        write_curve(file)
    assert validation_figure(files) is None
    row = dict.fromkeys(COLUMNS, 1.0)
    write_curve(files["fd3d"], [row | {"NDS": 20.0}, row | {"epoch": 2.0, "NDS": 30.0, "mAP": 4.0}])
    figure = validation_figure(files)
    assert figure is not None
    nds, mean_ap = figure.axes
    assert [line.get_xydata().tolist() for line in nds.lines] == [[[1, 20], [2, 30]]]
    assert mean_ap.lines[0].get_ydata().tolist() == [1, 4]
