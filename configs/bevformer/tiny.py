"""FD3D's Tiny apprentice: as Small with a ResNet-50; inferred from the paper's complexity column, no config was released."""

_base_ = "small.py"

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
        frozen_stages=0,
        norm_cfg=dict(type="BN2d", requires_grad=False),
        norm_eval=True,
        style="pytorch",
    ),
)
