"""Public BEVFormer-Tiny: R50, 450x800, one level, BEV 50x50, 3 encoder layers."""

_base_ = "base.py"

image = dict(scale=0.5, to_rgb=True)
queue_length = 3

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    img_backbone=dict(
        _delete_=True,
        type="mmdet.ResNet",
        depth=50,
        num_stages=4,
        out_indices=(3,),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="pytorch",
    ),
    img_neck=dict(in_channels=[2048], num_outs=1),
    pts_bbox_head=dict(bev_h=50, bev_w=50, transformer=dict(encoder=dict(num_layers=3, num_levels=1))),
)
