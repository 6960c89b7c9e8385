"""Public BEVFormer-Small: R101-DCN, 720x1280, one level, BEV 150x150, 3 encoder layers."""

_base_ = "base.py"

image = dict(scale=0.8, to_rgb=False)
queue_length = 3

model = dict(
    img_backbone=dict(out_indices=(3,)),
    img_neck=dict(in_channels=[2048], num_outs=1),
    pts_bbox_head=dict(bev_h=150, bev_w=150, transformer=dict(encoder=dict(num_layers=3, num_levels=1))),
)
