"""The FD3D paper's Base*: BEVFormer-Base with a plain ResNet-101, no deformable convolutions."""

_base_ = "base.py"

# as torchvision's ResNets saw them, whose weights a training starts from
image = dict(to_rgb=True)

model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    img_backbone=dict(
        style="pytorch", norm_cfg=dict(type="BN2d", requires_grad=False), dcn=None, stage_with_dcn=(False,) * 4
    ),
)
