"""The apprentice of the embedded world: half the image size, half the BEV side, a shallower backbone.

Its pyramid has strides 4, 8 and 16 on half-size images, so every level has the grid of an expert level.
"""

_base_ = "expert.py"

image = dict(scale=0.5)

model = dict(
    img_backbone=dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2)),
    img_neck=dict(in_channels=[16, 32, 64]),
    pts_bbox_head=dict(
        bev_h=25,
        bev_w=25,
        transformer=dict(decoder=dict(num_layers=2)),
    ),
)

schedule = dict(max_iters=1600, warmup_iters=160)
