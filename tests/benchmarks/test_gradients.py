"""Official layouts as facts, and a training that reaches all of its parameters from them."""

import math
from pathlib import Path

import mmdet3d
import pytest
from mmdet3d.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from benchmarks.gradients import (
    official_layout,
    reduced,
    refused_without_file,
    started,
    without_gradient,
)
from benchmarks.layouts import Shapes, fcos3d_r101_dcn, torchvision_resnet, write_official
from pipeline.models.build import build_detector, load_config

FCOS3D = "fcos3d/fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d.py"


def parameters(shapes: Shapes) -> int:
    left_out = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(left_out))


def test_torchvisions_resnets():
    """Numbers of parameters as torchvision documents them for ResNet50_Weights and ResNet101_Weights."""
    assert parameters(torchvision_resnet(50)) == 25_557_032 and parameters(torchvision_resnet(101)) == 44_549_160
    shapes = torchvision_resnet(50)
    assert len(shapes) == 320
    some = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer2.3.bn3.num_batches_tracked": (),
        "layer3.5.conv2.weight": (256, 256, 3, 3),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "fc.weight": (1000, 2048),
    }
    assert some.items() <= shapes.items()
    assert "layer3.6.conv1.weight" not in shapes and "layer2.1.downsample.0.weight" not in shapes


def test_fcos3d_is_that_of_the_model_zoo():
    path = Path(mmdet3d.__file__).parent / ".mim/configs" / FCOS3D
    if not path.is_file():
        pytest.skip("mmdet3d came without its model zoo's configs")
    init_default_scope("mmdet3d")
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    official = MODELS.build(cfg.model)
    assert {name: tuple(t.shape) for name, t in official.state_dict().items()} == fcos3d_r101_dcn()


def test_official_backbones_are_taken_whole(project: Path, tmp_path: Path):
    for name, count, neck in (("bevformer/small", 676, "11 of 16"), ("detr3d/r101", 676, "14 of 14")):
        cfg = reduced(load_config(project / f"configs/{name}.py"), 4)
        init = tmp_path / "fcos3d.pth"
        told = "\n".join(started(cfg, init if init.exists() else write_official(init, "fcos3d"))[1])
        assert f"img_backbone: {count} of {count} tensors\n" in told and f"img_neck: {neck} tensors" in told
        assert "of bbox_head" in told


@pytest.mark.parametrize("name", ["bevformer/tiny", "world/detr3d_apprentice"])
def test_every_parameter_that_is_meant_to_train_gets_a_gradient(project: Path, tmp_path: Path, name: str):
    cfg = reduced(load_config(project / f"configs/{name}.py"), 10)
    layout = official_layout(cfg)
    assert refused_without_file(cfg) == (layout is not None)
    init = None if layout is None else write_official(tmp_path / "init.pth", layout)
    assert without_gradient(started(cfg, init)[0], cfg) == []


def test_frozen_residual_branches_are_off_in_random_weights(project: Path):
    """Why such a start is refused: the last gamma of every residual branch is 0 and stays 0."""
    model = build_detector(reduced(load_config(project / "configs/bevformer/tiny.py"), 4))
    last = {n: p for n, p in model.named_parameters() if n.endswith("bn3.weight")}
    assert len(last) == 16 and not any(p.any() or p.requires_grad for p in last.values())
