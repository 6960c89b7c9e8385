"""Pretrained starts: layouts, reports, refusals; inherited starts; the input that a backbone was pretrained on."""

from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.models import ResNet
from torch import nn

from pipeline.data import CLASSES
from pipeline.data.transforms import LoadMultiViewImages
from pipeline.errors import FD3DError
from pipeline.models.build import build_detector, load_config
from pipeline.models.checkpoints import convert_checkpoint, load_checkpoint
from pipeline.models.preprocessor import FramePreprocessor
from pipeline.models.pretrained import check_frozen, inherit_weights, take_pretrained

TORCHVISION = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
CAFFE = ([103.53, 116.28, 123.675], [1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def config(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded student with norms and a stem that are frozen, as in the paper's configs."""
    path = tmp_path_factory.mktemp("configs") / "frozen.py"
    body = 'model = dict(img_backbone=dict(frozen_stages=0, norm_eval=True, norm_cfg=dict(type="BN", requires_grad=False)))'
    path.write_text(f'_base_ = "{project}/configs/world/apprentice.py"\n{body}\n')
    return path


def detector(config: Path, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_detector(load_config(config))


def bare(model: nn.Module, module: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(module): t for n, t in model.state_dict().items() if n.startswith(module)}


def dressed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


FC = {"fc.weight": torch.ones(5, 3), "fc.bias": torch.ones(5)}


@pytest.mark.parametrize(
    ("layout", "has_neck"),
    [
        (lambda body, neck: body | FC, False),  # torchvision
        (lambda body, neck: {"state_dict": dressed(body, "backbone.") | dressed(FC, "head.")}, False),  # a classifier
        (
            lambda body, neck: {
                "meta": {"epoch": 12},
                "state_dict": dressed(body, "backbone.") | dressed(neck, "neck.") | dressed(FC, "bbox_head."),
            },
            True,
        ),  # FCOS3D as the model zoo has it
        (
            lambda body, neck: {
                "state_dict": dressed(body, "img_backbone.") | dressed(neck, "img_neck.") | dressed(FC, "bbox_head.")
            },
            True,
        ),  # FCOS3D as BEVFormer's authors have it
    ],
)
def test_layouts_are_recognised_by_their_names(config, tmp_path, layout, has_neck):
    source, model = detector(config, 1), detector(config, 2)
    torch.save(layout(bare(source, "img_backbone."), bare(source, "img_neck.")), tmp_path / "init.pth")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    taken = take_pretrained(model, tmp_path / "init.pth")
    want = {n for n in before if n.startswith(("img_backbone.", "img_neck.")[: 1 + has_neck])}
    assert taken.names == want
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (source.state_dict() if name in want else before)[name]), name
    count = len(bare(source, "img_backbone."))
    assert f"  img_backbone: {count} of {count} tensors" in taken.report
    assert taken.report[-1] in ("  left out: 2 of fc", "  left out: 2 of head", "  left out: 2 of bbox_head")
    assert ("img_neck: " in "".join(taken.report)) == has_neck


def test_a_file_of_an_old_pytorch_is_whole_without_its_counters(config, tmp_path):
    source, model = detector(config, 1), detector(config, 2)
    state = {n: nn.Parameter(t) for n, t in bare(source, "img_backbone.").items() if "num_batches" not in n}
    torch.save(OrderedDict(state), tmp_path / "resnet.pth", _use_new_zipfile_serialization=False)
    assert (
        f"  img_backbone: {len(state)} of {len(state)} tensors"
        in take_pretrained(model, tmp_path / "resnet.pth").report
    )
    check_frozen(model, take_pretrained(model, tmp_path / "resnet.pth").names, "init")


def test_the_report_tells_what_did_not_fit(config, tmp_path):
    source = detector(config, 1)
    neck = bare(source, "img_neck.")
    neck["lateral_convs.0.conv.weight"] = torch.zeros(64, 7, 1, 1)
    del neck["fpn_convs.0.conv.bias"]
    state = dressed(bare(source, "img_backbone."), "backbone.") | dressed(neck, "neck.")
    torch.save({"state_dict": state}, tmp_path / "init.pth")
    (line,) = (told for told in take_pretrained(detector(config), tmp_path / "init.pth").report if "img_neck" in told)
    assert line == (
        f"  img_neck: {len(neck) - 1} of {len(neck) + 1} tensors; other shape: img_neck.lateral_convs.0.conv.weight "
        "(64, 7, 1, 1) for (64, 16, 1, 1); not in the file: img_neck.fpn_convs.0.conv.bias"
    )


def test_frozen_parameters_do_not_start_from_random_weights(config, project, tmp_path):
    model = detector(config)
    with pytest.raises(FD3DError, match=r"img_backbone has frozen parameters .* set families.a.apprentice.init to"):
        check_frozen(model, (), "families.a.apprentice.init")
    state = bare(model, "img_backbone.")
    del state["layer2.1.bn2.weight"]
    torch.save(state, tmp_path / "init.pth")
    with pytest.raises(FD3DError, match=r"\(1, first img_backbone.layer2.1.bn2.weight\)"):
        check_frozen(model, take_pretrained(model, tmp_path / "init.pth").names, "init")
    state = bare(detector(config, 1), "img_backbone.")
    del state["layer2.1.bn2.running_var"]
    torch.save(state, tmp_path / "init.pth")
    with pytest.raises(
        FD3DError, match=r"\(1, first img_backbone.layer2.1.bn2.running_var\); set init, now .*/init.pth, which lacks"
    ):
        check_frozen(model, take_pretrained(model, tmp_path / "init.pth").names, "init", tmp_path / "init.pth")
    model.img_backbone.init_cfg = {"type": "Pretrained", "checkpoint": "torchvision://resnet18"}
    check_frozen(model, (), "init")  # mmengine has loaded it
    check_frozen(detector(project / "configs/world/apprentice.py"), (), "init")  # trains all it has


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (lambda t: t * float("nan"), r"init.pth has NaN or infinite values in layer2.1.conv1.weight"),
        (
            lambda t: t.to(torch.int8),
            r"init.pth .*: img_backbone.layer2.1.conv1.weight holds no floating-point numbers",
        ),
    ],
)
def test_values_that_are_no_weights_are_refused(config, tmp_path, spoiled, said):
    state = bare(detector(config), "img_backbone.")
    state["layer2.1.conv1.weight"] = spoiled(state["layer2.1.conv1.weight"])
    torch.save(state, tmp_path / "init.pth")
    with pytest.raises(FD3DError, match=said):
        take_pretrained(detector(config), tmp_path / "init.pth")


def test_a_negative_variance_is_refused(config, tmp_path):
    state = bare(detector(config), "img_backbone.")
    state["layer2.1.bn1.running_var"] = state["layer2.1.bn1.running_var"] - 2
    torch.save(state, tmp_path / "init.pth")
    with pytest.raises(FD3DError, match=r"layer2.1.bn1.running_var has negative values, which are no variance"):
        take_pretrained(detector(config), tmp_path / "init.pth")


def test_a_file_that_hardly_fits_is_refused(config, tmp_path):
    state = bare(detector(config), "img_backbone.")
    wide = {name: torch.cat([t, t]) if t.dim() else t for name, t in state.items()}
    torch.save(wide, tmp_path / "init.pth")
    with pytest.raises(FD3DError, match=r"init.pth .* has only \d+ of 90 tensors of img_backbone: it is of another"):
        take_pretrained(detector(config), tmp_path / "init.pth")


@pytest.mark.parametrize(
    "odd",
    [
        {1: torch.ones(1)},
        {"conv1.weight": torch.ones(2, 2).to_sparse()},
        {"conv1.weight": torch.ones(1, device="meta")},
    ],
)
def test_what_is_no_dense_tensor_by_name_is_refused(config, tmp_path, odd):
    torch.save(bare(detector(config), "img_backbone.") | odd, tmp_path / "init.pth")
    with pytest.raises(FD3DError, match=r"init.pth has a tensor .* under ('conv1.weight'|1) of its state dict"):
        take_pretrained(detector(config), tmp_path / "init.pth")


def test_torchvisions_style_is_not_caffes(config, tmp_path):
    state = bare(detector(config), "img_backbone.")
    torch.save(state, tmp_path / "init.pth")
    model = detector(config)
    model.img_backbone.style = "caffe"
    with pytest.raises(FD3DError, match="has a backbone with style pytorch, the detector's has caffe"):
        take_pretrained(model, tmp_path / "init.pth")


def test_a_file_of_another_kind_is_refused(config, tmp_path):
    model = detector(config)
    torch.save({"a.weight": torch.ones(1)}, tmp_path / "unknown.pth")
    with pytest.raises(FD3DError, match=r"none of the known layouts: torchvision's ResNet .* its names are a.weight"):
        take_pretrained(model, tmp_path / "unknown.pth")
    deeper = bare(model, "img_backbone.") | {"layer3.2.conv1.weight": torch.ones(1)}
    torch.save(deeper, tmp_path / "deeper.pth")
    with pytest.raises(FD3DError, match=r"3 blocks in layer3, the detector's has 2: another depth"):
        take_pretrained(model, tmp_path / "deeper.pth")
    wider = {name: torch.ones(*(3 * n for n in t.shape)) for name, t in bare(model, "img_backbone.").items() if t.dim()}
    torch.save(wider, tmp_path / "wider.pth")
    with pytest.raises(FD3DError, match="nothing below 'img_backbone' fits"):
        take_pretrained(model, tmp_path / "wider.pth")


class Backbone(nn.Module):
    """A narrow ResNet where detectors have theirs."""

    def __init__(self, depth: int, style: str, deformable: bool) -> None:
        super().__init__()
        dcn = dict(dcn=dict(type="DeformConv2d", deform_groups=1), stage_with_dcn=(False, False, True, True))
        self.img_backbone = ResNet(depth, base_channels=4, stem_channels=4, style=style, **(dcn if deformable else {}))


NOTES = {"converted_by": "fd3d convert"}
R50 = (50, "pytorch", False)


@pytest.mark.parametrize(
    ("student", "expert", "message"),
    [
        (R50, R50, None),
        (R50, (101, "caffe", True), "23 blocks in layer3, the detector's has 6: another depth"),
        (R50, (50, "pytorch", True), "deformable convolutions in layer3, the detector's does not have them"),
        ((50, "pytorch", True), R50, "no deformable convolutions in layer3, the detector's does have them"),
        (R50, (50, "caffe", False), "style caffe, the detector's has pytorch"),
        ((34, "pytorch", False), R50, "other blocks in layer1"),
    ],
)
def test_a_backbone_of_another_kind_is_not_inherited(tmp_path, student, expert, message):
    depth, style, deformable = expert
    kind = {"depth": depth, "style": style, "deformable": deformable}
    notes = NOTES | {"backbone": kind}
    torch.save({"state_dict": Backbone(*expert).state_dict(), "meta": notes}, tmp_path / "expert.pth")
    model = Backbone(*student)
    if message is None:
        assert len(inherit_weights(model, tmp_path / "expert.pth", ("img_backbone",)).names) == 318
        return
    with pytest.raises(FD3DError, match=message):
        inherit_weights(model, tmp_path / "expert.pth", ("img_backbone",))


def test_the_style_is_read_from_the_config_beside(tmp_path):
    """No tensor tells the style: the stride is in another convolution."""
    torch.save({"state_dict": Backbone(*R50).state_dict(), "meta": NOTES}, tmp_path / "detector.pth")
    inherit_weights(Backbone(*R50), tmp_path / "detector.pth", ("img_backbone",))
    (tmp_path / "config.py").write_text("model = dict(img_backbone=dict(depth=50, style='caffe'))")
    with pytest.raises(FD3DError, match="style caffe, the detector's has pytorch"):
        inherit_weights(Backbone(*R50), tmp_path / "detector.pth", ("img_backbone",))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (None, "does not tell its conventions"),
        ({"mmdet3d_version": "0.17.1"}, "boxes of mmdet3d before 1.0 or classes in another order"),
        ({"mmdet3d_version": "1.4.0", "CLASSES": list(CLASSES[::-1])}, "boxes of .* or classes in another order"),
    ],
)
def test_what_loading_refuses_is_not_inherited(project, tmp_path, meta, message):
    student = detector(project / "configs/world/apprentice.py")
    content = {"state_dict": student.state_dict()} | ({} if meta is None else {"meta": meta})
    torch.save(content, tmp_path / "expert.pth")
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(FD3DError, match=message):
        inherit_weights(student, tmp_path / "expert.pth", ("pts_bbox_head",))
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_an_inherited_start_is_reported(project, expert_checkpoint):
    student = detector(project / "configs/world/apprentice.py")
    taken = inherit_weights(student, expert_checkpoint, ("pts_bbox_head", "img_backbone"))
    told = "\n".join(taken.report)
    assert "  img_backbone: 90 of 90 tensors\n" in told  # three of the expert's four stages
    # the student's BEV map has a quarter of the expert's cells
    assert "pts_bbox_head: 124 of 127 tensors; other shape: " in told
    assert "pts_bbox_head.bev_embedding.weight (2500, 64) for (625, 64)" in told
    assert "left out: " in told


def test_a_converted_file_notes_its_backbone(config, tmp_path):
    meta = {"mmdet3d_version": "1.4.0", "time": "Sat Jun 11 10:20:30 2022", "CLASSES": CLASSES}
    torch.save({"state_dict": detector(config).state_dict(), "meta": meta}, tmp_path / "old.pth")
    made = convert_checkpoint(tmp_path / "old.pth", tmp_path / "new.pth", config)
    assert made["backbone"] == {"depth": 18, "style": "pytorch", "deformable": False}


def configs(project: Path) -> list[Path]:
    return [path for path in sorted((project / "configs").glob("*/*.py")) if path.parent.name != "_base_"]


def test_every_shipped_config_feeds_its_backbone_what_the_style_was_pretrained_on(project):
    for path in configs(project):
        cfg = load_config(path)
        caffe = cfg.model.img_backbone.style == "caffe"
        seen = [list(cfg.model.data_preprocessor[name]) for name in ("mean", "std")]
        assert (tuple(seen), cfg.image.to_rgb) == ((CAFFE if caffe else TORCHVISION), not caffe), path


@pytest.mark.parametrize("name", ["bevformer/tiny", "bevformer/base_r101", "detr3d/r50", "bevformer/small"])
def test_a_pixel_arrives_in_its_channel(project, tmp_path, name):
    """An orange image, (R, G, B) = (230, 120, 10), from the file to the backbone."""
    cfg = load_config(project / f"configs/{name}.py")
    cv2.imwrite(str(tmp_path / "orange.png"), np.full((32, 32, 3), (10, 120, 230), np.uint8))  # OpenCV's order: BGR
    loaded = LoadMultiViewImages(**cfg.image)._decode(tmp_path / "orange.png", np.array([32, 32]))
    kept = {k: v for k, v in cfg.model.data_preprocessor.items() if k != "type"}
    batch = {"inputs": {"img": [torch.from_numpy(loaded.transpose(2, 0, 1).copy())[None, None]]}, "data_samples": []}
    pixel = FramePreprocessor(**kept)(batch)["inputs"]["img"][0, 0, 0, :, 5, 7]
    rgb = torch.tensor([(230 - 123.675) / 58.395, (120 - 116.28) / 57.12, (10 - 103.53) / 57.375])
    bgr = torch.tensor([10 - 103.53, 120 - 116.28, 230 - 123.675])
    torch.testing.assert_close(pixel, bgr if name == "bevformer/small" else rgb)


def test_a_head_that_was_trained_with_other_classes_is_not_inherited(project, tmp_path):
    student = detector(project / "configs/world/apprentice.py")
    for classes, told in (
        (list(CLASSES), None),
        (list(CLASSES[::-1]), "trained with the classes traffic_cone, .*, the config"),
    ):
        content = {"state_dict": student.state_dict(), "training": {"seed": 0, "classes": classes}}
        torch.save(content, tmp_path / "expert.pth")
        inherit_weights(student, tmp_path / "expert.pth", ("img_backbone",))
        with nullcontext() if told is None else pytest.raises(FD3DError, match=told):
            inherit_weights(student, tmp_path / "expert.pth", ("pts_bbox_head",))
        with nullcontext() if told is None else pytest.raises(FD3DError, match=told):
            load_checkpoint(student, tmp_path / "expert.pth")
