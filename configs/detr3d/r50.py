"""DETR3D with a plain ResNet-50: an apprentice of the FD3D paper, at the expert's image size."""

_base_ = "r101.py"

model = dict(
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
    )
)
