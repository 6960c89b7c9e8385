"""The benchmark's DETR3D apprentice: the embedded world's with a narrower backbone, trained longer."""

_base_ = "../world/detr3d_apprentice.py"

# the same backbone as the BEVFormer apprentice's: both start from the same pretrained file
model = dict(img_backbone=dict(base_channels=12, stem_channels=12), img_neck=dict(in_channels=[12, 24, 48]))

schedule = dict(max_iters=2000, warmup_iters=200)
