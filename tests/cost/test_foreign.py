"""Costs of detectors of mmdet3d, measured on a frame of black images through their adapter."""

import pytest
import torch
import yaml
from mmdet3d.registry import MODELS
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from pipeline.cost.cameras import rig_cameras
from pipeline.cost.complexity import count
from pipeline.cost.plan import expert_schema
from pipeline.data import CAMERAS
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError
from pipeline.expert import TappedExpert
from pipeline.focal.rule import FocalRule
from pipeline.models.build import load_config
from stages.cli import app
from tests.foreign import CONFIGS, write_foreign, write_student

SETTINGS = DumpSettings(FocalRule(num_queries=20))
SIZE = ["--height", "160", "--width", "288"]


@pytest.mark.parametrize(
    ("name", "bev", "levels"),
    [
        ("imvoxelnet", (20, 40, 32), []),
        ("multiview", (20, 40, 32), []),
        ("fcos3d", None, [(20, 36, 16, (8, 8)), (10, 18, 16, (16, 16)), (5, 9, 16, (32, 32))]),
    ],
)
def test_a_store_is_planned_without_data(tmp_path, name, bev, levels):
    schema = expert_schema(load_config(write_foreign(tmp_path, name)), rig_cameras(160, 288), SETTINGS)
    assert (schema.bev, schema.pv, schema.queries, schema.reading) == (bev, levels, 20, "none")
    assert schema.cameras == CAMERAS


@pytest.mark.parametrize("name", CONFIGS)
def test_multiply_adds_are_those_that_torch_counts(tmp_path, name, monkeypatch):
    cfg = load_config(write_foreign(tmp_path, name))
    counter, run = FlopCounterMode(display=False), TappedExpert.run

    def counted(self, batch):
        with counter:
            return run(self, batch)

    monkeypatch.setattr(TappedExpert, "run", counted)
    found = count(cfg, rig_cameras(160, 288))
    layers = found.kind("convolution") + found.kind("linear")
    assert layers == pytest.approx(counter.get_total_flops() / 2, rel=0.02)  # torch leaves the biases out
    model = MODELS.build(cfg.model)
    assert sum(found.parameters.values()) == sum(p.numel() for p in model.parameters())
    assert found.parameters["backbone"] == sum(p.numel() for p in model.backbone.parameters())
    assert found.parameters["neck"] == sum(p.numel() for p in model.neck.parameters())
    assert found.image_hw == (160, 288) and found.query_rows is None


def test_the_commands_take_such_a_config(tmp_path):
    config = str(write_foreign(tmp_path, "multiview"))
    done = CliRunner().invoke(app, ["complexity", config, *SIZE], catch_exceptions=False)
    assert done.exit_code == 0 and "| 160x288 | -" in done.stdout
    done = CliRunner().invoke(app, ["plan", config, "--frames", "10", "--rate", "1", *SIZE], catch_exceptions=False)
    assert done.exit_code == 0 and "bev/values" in done.stdout and "10 frames" in done.stdout


def test_families_with_such_detectors_are_planned(tmp_path, project, monkeypatch):
    monkeypatch.chdir(project)
    profile = yaml.safe_load((project / "params.yaml").read_text())
    (family,) = [profile["families"]["bevformer"]]
    family["expert"] |= {"config": str(write_foreign(tmp_path, "multiview")), "checkpoint": "expert.pth"}
    family["apprentice"]["config"] = str(write_student(tmp_path, project))
    profile["families"] = {"mine": family | {"distill": {}}}
    profile["distill"]["inherit"] = []
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(profile))
    done = CliRunner().invoke(app, ["plan", "--params", str(tmp_path / "params.yaml"), "--frames", "100", *SIZE])
    assert done.exit_code == 0, done.output
    assert "plain: the memory of a detector of another project is measured, not planned" in done.stdout
    assert "families.mine" in done.stdout and "== mine" in done.stdout


class Strange(torch.nn.Module):
    """A layer without a counting rule."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))


def test_a_layer_without_a_rule_is_named(tmp_path):
    cfg = load_config(write_foreign(tmp_path, "imvoxelnet"))
    MODELS.register_module(name="StrangeBackbone", module=type("StrangeBackbone", (Strange,), {}), force=True)
    cfg.model.backbone = dict(type="StrangeBackbone")
    with pytest.raises(FD3DError, match="backbone is a StrangeBackbone, which no counting rule covers"):
        count(cfg, rig_cameras(160, 288))


def test_a_detector_that_does_not_fit_its_adapter_is_one_line(tmp_path):
    cfg = load_config(write_foreign(tmp_path, "multiview"))
    cfg.adapter.views = 7
    with pytest.raises(FD3DError, match="adapter.views is 7, but the data have 6 cameras; lower it"):
        expert_schema(cfg, rig_cameras(160, 288), SETTINGS)
    cfg.pop("adapter")
    with pytest.raises(FD3DError, match="has no 'adapter'; say how the expert is tapped"):
        count(cfg, rig_cameras(160, 288))
