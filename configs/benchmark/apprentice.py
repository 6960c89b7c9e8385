"""The benchmark's BEVFormer apprentice: the embedded world's with a narrower backbone, trained longer."""

_base_ = "../world/apprentice.py"

# 3 stages of 12, 24 and 48 channels where the expert has 4 of 16, 32, 64 and 128
model = dict(img_backbone=dict(base_channels=12, stem_channels=12), img_neck=dict(in_channels=[12, 24, 48]))

schedule = dict(max_iters=2000, warmup_iters=200)
