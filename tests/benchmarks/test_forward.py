"""The official way of computing agrees with ours, and the script prints its table."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.forward import app
from benchmarks.measure import LIMITS, Case, measure

# Thin backbones, few queries and layers, images of 128x208, a small BEV map.
BEVFORMER = """
_base_ = "{configs}/bevformer/small.py"
image = dict(scale=0.13)
model = dict(
    img_backbone=dict(depth=50, base_channels=16, stem_channels=16),
    img_neck=dict(in_channels=[64, 128, 256, 512]),
    pts_bbox_head=dict(
        bev_h=20,
        bev_w=24,
        num_query=50,
        transformer=dict(
            rotate_center=(12, 10), encoder=dict(num_layers=2, shift_current={shift}), decoder=dict(num_layers=2)
        ),
    ),
)
"""
DETR3D = """
_base_ = "{configs}/detr3d/r50.py"
image = dict(scale=0.13)
model = dict(
    img_backbone=dict(base_channels=16, stem_channels=16),
    img_neck=dict(in_channels=[64, 128, 256, 512]),
    pts_bbox_head=dict(num_query=50, transformer=dict(decoder=dict(num_layers=2))),
)
"""


def written(folder: Path, project: Path, text: str, **settings: object) -> Path:
    path = folder / "tiny.py"
    path.write_text(text.format(configs=project / "configs", **settings))
    return path


@pytest.mark.parametrize(
    ("text", "settings"),
    [(BEVFORMER, {"shift": True}), (BEVFORMER, {"shift": False}), (DETR3D, {})],
    ids=["bevformer-fd3d", "bevformer-public", "detr3d"],
)
def test_the_official_way_gives_our_numbers(tmp_path: Path, project: Path, text: str, settings: dict):
    path = written(tmp_path, project, text, **settings)
    case = Case(str(path), 1, "cpu", "fp32", "-", fold=True, threads=1, repeats=1)
    ours, reference = measure(case, ("ours", "reference"))
    assert ours["ms"].keys() == reference["ms"].keys()
    assert ours["difference"].keys() == (LIMITS.keys() if text == BEVFORMER else LIMITS.keys() - {"bev"})
    assert all(value < LIMITS[kind] for kind, value in ours["difference"].items()), ours["difference"]


def test_the_script_prints_a_table_and_writes_rows(tmp_path: Path, project: Path):
    path, out = written(tmp_path, project, DETR3D), tmp_path / "rows.json"
    options = ["--device", "cpu", "--batch", "1", "--repeats", "1", "--threads", "1", "--reference", "--json", str(out)]
    done = CliRunner().invoke(app, [str(path), *options])
    assert done.exit_code == 0, done.output
    table = [line.split() for line in done.stdout.splitlines()[1:]]
    assert table[0][-2:] == ["peak", "MiB"]
    assert [row[5] for row in table[1:4]] == ["ours", "reference", "ratio"]
    rows = json.loads(out.read_text())
    assert [row["model"] for row in rows] == ["ours", "reference"]
    assert all(row["ms"]["whole"] > 0 and row["peak_mib"] > 0 for row in rows)
