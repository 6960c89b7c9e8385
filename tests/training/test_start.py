"""What a training starts from: pretrained and inherited weights, and what is refused before it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from pipeline.data import CLASSES
from pipeline.data.source import FrameSource
from pipeline.distill import mixing
from pipeline.distill.apprentice import train_apprentice
from pipeline.distill.settings import DistillSettings
from pipeline.errors import FD3DError
from pipeline.models.build import build_detector, load_config
from pipeline.models.checkpoints import load_checkpoint
from pipeline.models.pairs import StudentPlan
from pipeline.models.reading import read_checkpoint
from pipeline.training.expert import check_told, take_or_train
from pipeline.training.plain import train_plain
from pipeline.training.run import _recipe
from pipeline.training.schedule import plan_course
from pipeline.training.settings import RANDOM, Initial, RunSettings, read_schedule

RUN = RunSettings(max_iters=4, workers=0)
SETTING = "families.bevformer.apprentice.init"
FROZEN = 'model = dict(img_backbone=dict(norm_eval=True, norm_cfg=dict(type="BN", requires_grad=False)))'
CAFFE_INPUT = """
image = dict(to_rgb=False)
model = dict(data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0]))
"""


def student(folder: Path, project: Path, body: str) -> Path:
    path = folder / "student.py"
    path.write_text(f'_base_ = "{project}/configs/world/apprentice.py"\n{body}\n')
    return path


@pytest.fixture
def init(project: Path, tmp_path: Path) -> Initial:
    """The backbone of an embedded student as torchvision would save it, trained to recognisable values."""
    torch.manual_seed(1)
    state = build_detector(load_config(project / "configs/world/apprentice.py")).state_dict()
    body = {n.removeprefix("img_backbone."): t for n, t in state.items() if n.startswith("img_backbone.")}
    body |= {n: torch.full_like(t, 0.75) for n, t in body.items() if n.endswith("bn2.weight")}
    torch.save(body | {"fc.weight": torch.ones(10, 8)}, tmp_path / "resnet.pth")
    return Initial(tmp_path / "resnet.pth", SETTING)


def test_a_frozen_student_trains_from_its_file_and_only_from_it(project, source, init, tmp_path, capsys):
    config, out = student(tmp_path, project, FROZEN), tmp_path / "run/detector.pth"
    with pytest.raises(
        FD3DError, match=f"frozen parameters or statistics that would start from random weights .* set {SETTING} to"
    ):
        train_plain(config, source, out, RUN, init=Initial(None, SETTING))
    assert not out.exists()
    with pytest.raises(FD3DError, match=rf"{SETTING} .*none.pth does not exist"):
        train_plain(config, source, out, RUN, init=Initial(tmp_path / "none.pth", SETTING))
    train_plain(config, source, out, RUN, init=init)
    assert "img_backbone: 90 of 90 tensors" in capsys.readouterr().out
    trained, given = read_checkpoint(out).state, torch.load(init.checkpoint, weights_only=True)
    # frozen norms keep what the file gave, and convolutions moved a little
    assert torch.equal(trained["img_backbone.layer1.0.bn2.weight"], given["layer1.0.bn2.weight"])
    change = (trained["img_backbone.conv1.weight"] - given["conv1.weight"]).abs().max()
    assert 0 < change < 0.05 * given["conv1.weight"].abs().max()


def test_a_training_tells_of_itself_and_nothing_of_frozen_parameters(project, source, init, tmp_path):
    """In a process of its own, whose streams mmengine's logger holds."""
    config = student(tmp_path, project, FROZEN)
    code = f"""
from pathlib import Path
from pipeline.data.source import FrameSource
from pipeline.training.plain import train_plain
from pipeline.training.settings import Initial, RunSettings
source = FrameSource(Path({str(source.index)!r}), Path({str(source.root)!r}), {source.split!r})
train_plain(Path({str(config)!r}), source, Path("run/detector.pth"), RunSettings(max_iters=4, workers=0), init=Initial(Path({str(init.checkpoint)!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines() + [line for line in done.stderr.splitlines() if "mmengine" in line]
    assert lines[0] == "2 = 1 process x 2 x 1 accumulated; 4 updates"
    assert any("img_backbone: 90 of 90 tensors" in line for line in lines)
    assert not any("WARNING" in line for line in lines)


def test_inherited_weights_give_a_frozen_backbone_too(project, source, expert_checkpoint, tmp_path):
    config = student(tmp_path, project, FROZEN)
    modules = ("img_backbone", "img_neck")
    train_plain(config, source, tmp_path / "run/detector.pth", RUN, expert=expert_checkpoint, inherit=modules)


def test_the_file_is_part_of_the_recipe(project, source, init):
    cfg = load_config(project / "configs/world/apprentice.py")

    course = plan_course(read_schedule(cfg), RUN, 0, 1)

    def recipe(start: Initial) -> dict[str, Any]:
        return _recipe(cfg, cfg.model, source, RUN, course, start, None, {})

    first = recipe(init)
    assert first == recipe(init) != recipe(RANDOM)
    torch.save({"conv1.weight": torch.zeros(1)}, init.checkpoint)
    assert recipe(init) != first


def test_the_expert_stage_checks_what_the_student_starts_from(
    project, expert_config, expert_checkpoint, init, tmp_path
):
    """The student's training starts hours later."""
    frozen, source = student(tmp_path, project, FROZEN), FrameSource(Path("none"), Path("none"), "none")
    out = tmp_path / "expert/detector.pth"
    arguments = (expert_config, expert_checkpoint, RUN, source, out)
    random = Initial(None, SETTING)
    with pytest.raises(FD3DError, match=f"set {SETTING} to a pretrained checkpoint"):
        take_or_train(*arguments, StudentPlan(frozen, ("pts_bbox_head",)), student_init=random)
    for values, told in (
        ({"inherit": ("pts_bbox",)}, "distill.inherit has 'pts_bbox', no module of .*; there are .*img_backbone"),
        ({"levels": (0, 3)}, r"distill.levels is \[0, 3\]; this family has levels 0..2"),
        ({"layers": (3,)}, r"distill.layers is \[3\]; this family has layers 0..2"),
    ):
        with pytest.raises(FD3DError, match=told):
            take_or_train(*arguments, replace(StudentPlan(frozen), **values), student_init=init)
    assert not out.parent.exists()
    torch.save({"a": torch.ones(1)}, tmp_path / "unknown.pth")
    with pytest.raises(FD3DError, match=f"{SETTING}: .* has none of the known layouts"):
        take_or_train(*arguments, StudentPlan(frozen), student_init=Initial(tmp_path / "unknown.pth", SETTING))
    take_or_train(*arguments, StudentPlan(frozen, ("img_backbone",)), student_init=random)
    take_or_train(*arguments, StudentPlan(frozen, levels=(0, 2), layers=(2,)), student_init=init)


def test_the_profile_may_tell_an_experts_lost_conventions(project, expert_config, expert_checkpoint, tmp_path):
    """The shipped expert's tensors alone, with the classes turned around."""
    state = read_checkpoint(expert_checkpoint).state
    turned = {n: t.flip(0) if "cls_branches" in n and ".6." in n else t for n, t in state.items()}
    torch.save(turned, tmp_path / "bare.pth")
    apprentice, source = project / "configs/world/apprentice.py", FrameSource(Path("none"), Path("none"), "none")
    out = tmp_path / "expert/detector.pth"
    arguments = (expert_config, tmp_path / "bare.pth", RUN, source, out, StudentPlan(apprentice))
    with pytest.raises(FD3DError, match="does not tell its conventions"):
        take_or_train(*arguments)
    assert not out.exists()
    with pytest.raises(
        FD3DError, match="^expert.boxes: checkpoint .* conventions already, by its notes; remove expert.boxes$"
    ):
        take_or_train(expert_config, expert_checkpoint, *arguments[2:], boxes="old")
    with pytest.raises(FD3DError, match="does not tell its box convention"):
        take_or_train(*arguments, classes=CLASSES[::-1])
    config = tmp_path / "expert.py"  # says what the file does not: its history
    config.write_text(
        f'_base_ = "{expert_config}"\nmodel = dict(pts_bbox_head=dict(transformer=dict(encoder=dict(shift_current=False))))'
    )
    facts = take_or_train(config, *arguments[1:], boxes="new", classes=CLASSES[::-1])
    assert "told by --boxes" in facts["boxes"]
    load_checkpoint(build_detector(load_config(out.with_name("config.py"))), out)
    found = read_checkpoint(out).state
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_conventions_of_another_projects_checkpoint_are_for_the_adapter(tmp_path):
    (tmp_path / "own.py").write_text('model = dict(type="ImVoxelNet")')
    cfg = Config.fromfile(tmp_path / "own.py")
    with pytest.raises(
        FD3DError, match="^expert.classes: ImVoxelNet is another project's .* in the adapter of .*own.py$"
    ):
        check_told(cfg, tmp_path / "none.pth", None, CLASSES)


def test_a_student_with_other_input_than_the_expert_learns_from_its_store(
    project, source, store, expert_checkpoint, tmp_path, monkeypatch
):
    """And its facts tell in how many updates mixing paused, here in all but the first."""
    monkeypatch.setattr(mixing, "BLOCK", 1)
    monkeypatch.setattr(mixing, "FIRST", 1)
    config, out, run = (
        student(tmp_path, project, CAFFE_INPUT),
        tmp_path / "run/detector.pth",
        replace(RUN, curve_every=3),
    )
    settings = DistillSettings(w_mixed=1.0, mixed_limit=0.01)
    facts = train_apprentice(
        config, "fd3d", settings, source=source, store=store, expert=expert_checkpoint, out=out, run=run
    )
    load_checkpoint(build_detector(load_config(config)), out)
    assert facts["mixing_paused"] == facts["steps"] - 1 and facts["unexplained"] > 0.01
    assert json.loads(out.with_name("train.json").read_text()) == facts
    rows = out.with_name("losses.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "3", "4"]  # the rest of an interval is a row, too
