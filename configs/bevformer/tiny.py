"""FD3D's Tiny apprentice: as Small with a ResNet-50; inferred from the paper's complexity column, no config was released."""

_base_ = "small.py"

model = dict(
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
    )
)
