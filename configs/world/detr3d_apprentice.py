"""The DETR3D apprentice of the embedded world: half the image size, a shallower backbone, two decoder layers."""

_base_ = "detr3d_expert.py"

image = dict(scale=0.5)

model = dict(
    img_backbone=dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2)),
    img_neck=dict(in_channels=[16, 32, 64]),
    pts_bbox_head=dict(transformer=dict(decoder=dict(num_layers=2))),
)

schedule = dict(max_iters=1600, warmup_iters=160)
