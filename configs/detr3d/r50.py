"""DETR3D with a plain ResNet-50: an apprentice of the FD3D paper, at the expert's image size."""

_base_ = "r101.py"

# as torchvision's ResNets saw them, whose weights a training starts from
image = dict(to_rgb=True)

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    img_backbone=dict(
        _delete_=True,
        type="mmdet.ResNet",
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN2d", requires_grad=False),
        norm_eval=True,
        style="pytorch",
    ),
)
