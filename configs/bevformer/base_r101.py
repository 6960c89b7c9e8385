"""The FD3D paper's Base*: BEVFormer-Base with a plain ResNet-101, no deformable convolutions."""

_base_ = "base.py"

model = dict(
    img_backbone=dict(
        style="pytorch", norm_cfg=dict(type="BN2d", requires_grad=False), dcn=None, stage_with_dcn=(False,) * 4
    )
)
