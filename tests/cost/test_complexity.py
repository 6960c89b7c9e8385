"""Counting rules by hand; the published GFLOPS column; the official code's counts by part."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.cost.cameras import frame_cameras, rig_cameras
from pipeline.cost.complexity import PARTS, PUBLISHED, REPEATED, Complexity, count, counting, markdown, stand_ins
from pipeline.data.index import build_index
from pipeline.errors import FD3DError
from pipeline.models.attention import DeformableSampler
from pipeline.models.build import load_config
from pipeline.models.deform_conv import DeformConv2d
from stages.complexity import complexity

PROJECT = Path(__file__).resolve().parents[2]
# row of flops.json, keys file with the parameter count (no official model is Base* or DETR3D-R50)
ROWS = {
    "bevformer/base_r101": (0, None),
    "bevformer/tiny": (1, "bevformer_r50_4lvl_bev100"),
    "bevformer/base": (2, "bevformer_base"),
    "bevformer/small": (3, "bevformer_small_fd3d"),
    "detr3d/r101": (4, "detr3d_res101_gridmask"),
    "detr3d/r50": (5, None),
}


@cache
def counted(name: str) -> Complexity:
    return count(load_config(PROJECT / "configs" / f"{name}.py"), rig_cameras())


def by_kind(model: nn.Module, *inputs: object, path: str = "img_backbone") -> dict[str, int]:
    """Counts of one layer in a model that has it at ``path``."""
    holder = nn.Module()
    holder.add_module(path, nn.Sequential())
    holder.get_submodule(path).add_module("layer", model.to("meta"))
    with torch.no_grad(), stand_ins(), counting(holder) as macs:
        model(*inputs)
    return dict(sum(macs.values(), start=type(macs["backbone"])()))


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta")


@pytest.mark.parametrize(
    ("layer", "shapes", "want"),
    [
        # 5x5 outputs, each of 2 channels from 3x3 of 3 channels; 50 biases
        (nn.Conv2d(3, 2, 3), [(1, 3, 7, 7)], {"convolution": 25 * 2 * 27 + 50}),
        # stride 2, two groups: 2x2 positions x 4 channels from 3x3 of 1 channel; no bias
        (nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2, bias=False), [(1, 2, 4, 4)], {"convolution": 4 * 4 * 9}),
        # 6 vectors from 4 to 5 values; the bias is not counted
        (nn.Linear(4, 5), [(2, 3, 4)], {"linear": 6 * 4 * 5}),
        (nn.LayerNorm(4), [(6, 4)], {"norm": 48}),
        (nn.BatchNorm2d(4).eval(), [(1, 4, 2, 2)], {"norm": 32}),
        (nn.ReLU(), [(3, 5)], {"activation": 15}),
        # pooling counts what goes in
        (nn.MaxPool2d(2), [(1, 1, 4, 4)], {"pooling": 16}),
        # 3 queries, 5 keys of 4 values: projections of queries, keys, values and results, then scores and sums
        (
            nn.MultiheadAttention(4, 2),
            [(3, 1, 4), (5, 1, 4), (5, 1, 4)],
            {"attention": (3 + 5 + 5 + 3) * 16 + 2 * 3 * 5 * 4},
        ),
        # offset layer: 27 of 2x9 at 16 positions, and biases; the product 3 of 2x9 and biases; 18 samples of 5 a position
        (
            DeformConv2d(2, 3, 3, padding=1),
            [(1, 2, 4, 4)],
            {
                "convolution": 16 * 27 * 18 + 16 * 27,
                "deformable convolution": 16 * 3 * 18 + 16 * 3,
                "sampling": 16 * 18 * 5,
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_rules_by_hand(layer, shapes, want):
    assert by_kind(layer, *(zeros(*shape) for shape in shapes)) == want


def test_sampling_takes_four_corners_and_a_weight():
    # 5 queries, 2 heads of 3 channels, 1 level, 4 points
    value, locations, weights = zeros(1, 6, 2, 3), zeros(1, 5, 2, 1, 4, 2), zeros(1, 5, 2, 1, 4)
    assert by_kind(DeformableSampler(), value, [(2, 3)], locations, weights) == {"sampling": 5 * 2 * 4 * 3 * (4 + 1)}


def test_the_papers_convention_leaves_out_and_repeats():
    macs: dict[str, Counter[str]] = {part: Counter() for part in PARTS}
    macs["decoder"].update({"linear": 1, "attention": 10, "sampling": 100})
    macs["branches"].update({"linear": 1000, REPEATED: 10000})
    one = Complexity((1, 1), None, {}, macs)
    assert (one.paper(), one.full()) == (11001, 1111) and one.paper("branches") == 11000
    # the second run is counted for regression branches only
    assert by_kind(nn.Linear(2, 3), zeros(1, 2), path="reg_branches") == {"linear": 6}
    holder = nn.ModuleDict({"pts_bbox_head": nn.ModuleDict({"reg_branches": nn.ModuleList([nn.Linear(2, 3)])})})
    with counting(holder) as counts:
        holder["pts_bbox_head"]["reg_branches"][0](torch.zeros(1, 2))
    assert counts["branches"] == {"linear": 6, REPEATED: 6}


def test_a_layer_without_rule_is_refused():
    with (
        pytest.raises(FD3DError, match="neck is a Bilinear, which no counting rule covers"),
        counting(nn.ModuleDict({"neck": nn.Bilinear(1, 1, 4)})),
    ):
        pass


def test_stand_ins_are_taken_out_again():
    sampler = DeformableSampler.forward
    with pytest.raises(KeyError), stand_ins():
        assert DeformableSampler.forward is not sampler
        raise KeyError
    assert DeformableSampler.forward is sampler


@pytest.mark.parametrize("name", ROWS)
def test_the_published_column(name):
    assert counted(name).paper() / 1e9 == pytest.approx(PUBLISHED[name], rel=2e-3)


def test_a_real_frames_cameras_give_the_published_column_to_the_last_digit(excerpt_root, project, tmp_path):
    frames = build_index(excerpt_root, "v1.0-mini", tmp_path / "index.npz")
    cameras = frame_cameras(tmp_path / "index.npz", frames[frames.scenes["scene-0103"][0]].token)
    for name, published in PUBLISHED.items():
        cfg = load_config(project / "configs" / f"{name}.py")
        assert round(count(cfg, cameras).paper() / 1e9, 2) == published, name


@pytest.mark.parametrize("name", ROWS)
def test_parts_are_the_official_codes(name, parity_root):
    official = json.loads((parity_root / "flops.json").read_text())["fd3d_table"][ROWS[name][0]]
    assert official["table_gflops"] == PUBLISHED[name]
    one, parts = counted(name), dict(official["parts_mmcv_hook"])
    # their frame and our rig differ in the longest list of cells that a camera sees, at a known cost per row
    encoder, rows = parts.pop("encoder"), official.get("sca_max_len_here")
    if rows is not None:
        assert one.query_rows == pytest.approx(rows, rel=0.01)
        encoder += (one.query_rows - rows) * official["gmac_per_query_row"]
    assert one.paper("encoder") / 1e9 == pytest.approx(encoder, rel=1e-6)
    parts["other"] = parts.pop("head_other")
    for part, want in parts.items():
        assert one.paper(part) / 1e9 == pytest.approx(want, rel=1e-6), part
    assert one.kind("deformable convolution") / 1e9 == pytest.approx(official["dcn_main_conv_gmac_not_counted"])


@pytest.mark.parametrize("name", [name for name, (_, keys) in ROWS.items() if keys])
def test_parameters_are_the_official_codes(name, parity_root):
    official, parameters = (
        json.loads((parity_root / f"{ROWS[name][1]}.keys.json").read_text()),
        counted(name).parameters,
    )
    assert sum(parameters.values()) == official["n_params_total"]
    paths = {
        "backbone": "img_backbone",
        "neck": "img_neck",
        "encoder": "pts_bbox_head.transformer.encoder",
        "decoder": "pts_bbox_head.transformer.decoder",
    }
    assert {part: parameters[part] for part in paths} == {
        part: official["params_by_part"][path] for part, path in paths.items()
    }


def test_a_frames_cameras_replace_the_rig(world_index, project):
    cfg = load_config(project / "configs" / "world" / "apprentice.py")
    frame, same, wide = frame_cameras(world_index), rig_cameras(160, 288), rig_cameras(160, 320)
    np.testing.assert_allclose(frame.lidar2cam, same.lidar2cam, atol=1e-6)
    assert count(cfg, frame) == count(cfg, same)
    assert count(cfg, wide).image_hw == (80, 160)


def test_the_document_is_what_the_command_prints(project):
    document = (project / "docs" / "complexity.md").read_text()
    command = next(line for line in document.splitlines() if line.startswith("fd3d complexity "))
    assert command.split()[2:] == [f"configs/{name}.py" for name in PUBLISHED]
    tables = markdown({f"configs/{name}.py": counted(name) for name in PUBLISHED})
    assert all(table in document for table in tables.split("\n\n"))


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ("nowhere.py", {}, "config .*nowhere.py does not exist"),
        ("configs/_base_/nuscenes.py", {}, "_base_/nuscenes.py has no model, so it is no detector"),
        ("configs/detr3d/r50.py", {"token": "x"}, "--token names a frame of an index; give --index too"),
        ("configs/detr3d/r50.py", {"index": Path("none.npz")}, "index none.npz does not exist"),
        ("configs/detr3d/r50.py", {"index": Path("none.npz"), "width": 8}, "--index brings its images' size"),
    ],
)
def test_bad_input_is_named(project, config, options, message):
    with pytest.raises(FD3DError, match=message):
        complexity([project / config], **options)


def test_the_command_prints_the_tables(project, capsys):
    complexity([project / "configs" / "detr3d" / "r50.py"])
    printed = capsys.readouterr().out
    assert "cameras of the nuScenes-like rig" in printed and "| 876.94    | 876.94             | +0.000" in printed
