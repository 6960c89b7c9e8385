"""FD3D's Small apprentice: R101-DCN, 450x800 padded to 464x800, four levels from strides 4 to 32, BEV 100x100."""

_base_ = "base.py"

image = dict(scale=0.5, to_rgb=False)

model = dict(
    data_preprocessor=dict(pad_divisor=16),
    img_backbone=dict(out_indices=(0, 1, 2, 3), frozen_stages=0),
    img_neck=dict(in_channels=[256, 512, 1024, 2048]),
    pts_bbox_head=dict(
        bev_h=100,
        bev_w=100,
        transformer=dict(
            rotate_center=(50, 50),
            # FD3D's release shifts the current frame's reference points too
            encoder=dict(num_layers=3, shift_current=True),
        ),
    ),
)
