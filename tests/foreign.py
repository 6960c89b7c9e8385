"""Tiny detectors of mmdet3d, and checkpoints in the layouts that mmengine and mmcv write."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

# the order of mmdet3d's configs of nuScenes
CLASSES = (
    "car",
    "truck",
    "trailer",
    "bus",
    "construction_vehicle",
    "bicycle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
)
_HEAD = """
custom_imports = dict(
    imports=["pipeline.data.dataset", "pipeline.data.transforms", "pipeline.expert.foreign"], allow_failed_imports=False
)
image = dict(scale=1.0, to_rgb=True)
pc_range = [-40.0, -40.0, -5.0, 40.0, 40.0, 3.0]
classes = {classes}
processor = dict(type="Det3DDataPreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], pad_size_divisor=32)
"""
_BACKBONE = """
backbone = dict(
    type="mmdet.ResNet", depth=18, base_channels=8, stem_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1)
)
neck = dict(type="mmdet.FPN", in_channels=[8, 16], out_channels=16, num_outs=2)
anchors = dict(
    type="AlignedAnchor3DRangeGenerator", ranges=[[-40.0, -40.0, -1.8, 40.0, 40.0, -1.8]], sizes=[[4.2, 1.9, 1.6]], rotations=[0, 1.57],
    reshape_out={reshape},
)
head = dict(  # an untrained head's scores would be 0.01, below what spans an area
    type="Anchor3DHead", init_cfg=dict(
        type="Normal", layer="Conv2d", std=0.01, override=dict(type="Normal", name="conv_cls", std=0.01, bias_prob=0.3)
    ), num_classes=10, in_channels=32, feat_channels=32, anchor_generator=anchors,
    loss_cls=dict(type="mmdet.FocalLoss", use_sigmoid=True),
)
neck_3d = dict(type="OutdoorImVoxelNeck", in_channels=16, out_channels=32)
test_cfg = dict(use_rotate_nms=True, nms_across_levels=False, nms_thr=0.1, score_thr=0.05, min_bbox_size=0, nms_pre=100, max_num=50)
voxels = dict(type="AlignedAnchor3DRangeGenerator", ranges=[[-40.0, -40.0, -5.0, 40.0, 40.0, 3.0]], rotations=[0.0])
"""
_IMVOXELNET = """
adapter = dict(type="MultiViewAdapter", views=1, bev="neck_3d", classes=classes)
model = dict(
    type="ImVoxelNet", data_preprocessor=processor, backbone=backbone, neck=neck, neck_3d=neck_3d, bbox_head=head,
    n_voxels=[40, 20, 12], coord_type="LIDAR", prior_generator=voxels, test_cfg=test_cfg,
)
"""
_MULTIVIEW = """
adapter = dict(type="MultiViewAdapter", bev="neck_3d", classes=classes)
model = dict(
    type="MultiViewDfM", data_preprocessor=processor, backbone=backbone, neck=neck, neck_3d=neck_3d, bbox_head_3d=head,
    backbone_stereo=None, backbone_3d=None, voxel_size=(2.0, 4.0, 8.0 / 12), anchor_generator=voxels, test_cfg=test_cfg,
)
"""
_FCOS3D = """
adapter = dict(type="MonocularAdapter", pv="neck", classes=classes)
model = dict(
    type="FCOSMono3D",
    data_preprocessor=processor,
    backbone=dict(type="mmdet.ResNet", depth=18, base_channels=8, stem_channels=8, num_stages=4, out_indices=(1, 2, 3)),
    neck=dict(type="mmdet.FPN", in_channels=[16, 32, 64], out_channels=16, num_outs=3),
    bbox_head=dict(
        type="FCOSMono3DHead", num_classes=10, in_channels=16, stacked_convs=1, feat_channels=16, pred_attrs=True, pred_velo=True,
        dir_offset=0.7854, strides=[8, 16, 32], group_reg_dims=(2, 1, 3, 1, 2), cls_branch=(16,),
        reg_branch=((16,), (16,), (16,), (16,), ()), dir_branch=(16,), attr_branch=(16,),
        regress_ranges=((-1, 48), (48, 96), (96, 1e8)), norm_cfg=dict(type="BN"),
        bbox_coder=dict(type="FCOS3DBBoxCoder", code_size=9), norm_on_bbox=True, centerness_on_reg=True, conv_bias=True,
    ),
    test_cfg=dict(
        use_rotate_nms=True, nms_across_levels=False, nms_pre=100, nms_thr=0.8, score_thr=0.0, min_bbox_size=0, max_per_img=20
    ),
)
"""
CONFIGS = {
    "imvoxelnet": _BACKBONE.replace("{reshape}", "True") + _IMVOXELNET,
    "multiview": _BACKBONE.replace("{reshape}", "False") + _MULTIVIEW,
    "fcos3d": _FCOS3D,
}
"""Configs by name: boxes of seven values and a BEV map from one camera and from six, boxes of nine values in cameras' frames."""


def write_foreign(folder: Path, name: str, classes: Sequence[str | None] = CLASSES) -> Path:
    """Write a config of ``CONFIGS``."""
    path = folder / f"{name}.py"
    path.write_text(_HEAD.replace("{classes}", repr(list(classes))) + CONFIGS[name])
    return path


_STUDENT = """
_base_ = {base}
queue_length = 1
adapter = dict(type="MultiViewAdapter", pv="neck", bev="neck_3d", classes=classes, values=7)
backbone["stem_channels"] = 8
backbone.update(strides=(2, 2), out_indices=(0, 1))  # levels of strides 8 and 16, as the first two of the world's expert
train_cfg = dict(
    assigner=dict(
        type="Max3DIoUAssigner", iou_calculator=dict(type="BboxOverlapsNearest3D"), pos_iou_thr=0.3, neg_iou_thr=0.2, min_pos_iou=0.1,
        ignore_iof_thr=-1,
    ), allowed_border=0, pos_weight=-1, debug=False,
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
schedule = dict(max_iters=4, warmup_iters=0, batch_size=2, policy="cosine")
"""


def write_student(folder: Path, project: Path) -> Path:
    """Write the config of a MultiViewDfM that trains here."""
    path = folder / "student.py"
    custom, _, rest = _HEAD.partition("image =")
    body = f"image ={rest}".replace("{classes}", repr(list(CLASSES))) + _BACKBONE.replace("{reshape}", "False")
    settings = _STUDENT.replace("{base}", repr(str(project / "configs/_base_/runtime.py")))
    path.write_text(
        body
        + settings
        + _MULTIVIEW.split(")\n", 1)[1].replace("test_cfg=test_cfg", "test_cfg=test_cfg, train_cfg=train_cfg")
    )
    return path


class _Frames(Dataset):
    metainfo: Mapping[str, Any] = {"classes": CLASSES, "version": "v1.0-trainval"}

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> int:
        return number


def mmengine_file(model: nn.Module, path: Path, averaged: bool) -> Path:
    """The checkpoint that the CheckpointHook of mmengine's Runner writes in an epoch of a model: meta, message hub with log
    histories, optimiser, schedulers, and with ``averaged`` the moving averages of its EMAHook and best scores of numpy."""

    def train_step(data: Any, optim_wrapper: OptimWrapper) -> dict[str, torch.Tensor]:
        """A step of a loss that needs no annotations."""
        loss = sum(p.square().sum() for p in model.parameters() if p.requires_grad)
        assert isinstance(loss, torch.Tensor)
        optim_wrapper.update_params(loss)
        return {"loss": loss.detach()}

    model.train_step = train_step  # type: ignore[assignment]
    runner = Runner(
        model=model,
        work_dir=str(path.parent / path.stem),
        train_dataloader=DataLoader(_Frames()),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-4)),
        param_scheduler=[dict(type="MultiStepLR", milestones=[1])],
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
        custom_hooks=[dict(type="EMAHook")] if averaged else None,
        default_scope="mmdet3d",
        experiment_name=f"foreign-{path.stem}",
        log_level="ERROR",
    )
    if averaged:
        runner.message_hub.update_scalar("val/mAP", np.float64(1.5))
        runner.message_hub.update_info("best_score", np.float32(0.5))
    runner.train()
    return (path.parent / path.stem / "epoch_1.pth").rename(path)


def mmcv_file(model: nn.Module, path: Path, version: str = "1.0.0rc6") -> Path:
    """The checkpoint that mmcv 1.x wrote of a parallel model with an EMAHook, in a run of mmdet3d before mmengine."""
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    averages = {f"module.ema_{name.replace('.', '_')}": tensor * 0 for name, tensor in model.state_dict().items()}
    meta = {
        "env_info": "sys.platform: linux",
        "config": "model = dict()",
        "seed": np.int64(0),
        "exp_name": "fcos3d.py",
        "epoch": 12,
        "iter": np.int64(84408),
        "hook_msgs": {"best_score": np.float64(0.3), "best_ckpt": "best.pth"},
        "mmcv_version": "1.6.0",
        "mmdet_version": "2.25.1",
        "mmdet3d_version": version,
        "time": "Sat Jul 17 09:56:45 2021",
        "CLASSES": CLASSES,
        "PALETTE": None,
    }
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 2e-3, "params": [0]}]}
    torch.save({"meta": meta, "state_dict": state | averages, "optimizer": optimizer}, path)
    return path
