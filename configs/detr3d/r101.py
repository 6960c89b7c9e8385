"""DETR3D (Wang et al., 2021) with R101-DCN and GridMask: an expert of the FD3D paper."""

_base_ = ["../_base_/nuscenes.py", "../_base_/r101_dcn.py"]

image = dict(scale=1.0, to_rgb=False)
queue_length = 1
# augment.class_balanced trains with CBGS, published as 43.4 NDS and 34.9 mAP in place of 42.2 and 34.7
# How stage 1 reads this detector as an expert.
adapter = dict(type="DETR3DAdapter")

model = dict(
    type="DETR3D",
    grid_mask=0.7,
    img_backbone=dict(out_indices=(0, 1, 2, 3)),
    img_neck=dict(in_channels=[256, 512, 1024, 2048], start_level=1),
    pts_bbox_head=dict(
        type="DETR3DHead",
        pc_range={{_base_.pc_range}},
        num_query=900,
        post_center_range={{_base_.post_center_range}},
        transformer=dict(num_levels=4, decoder=dict(num_layers=6)),
    ),
)
