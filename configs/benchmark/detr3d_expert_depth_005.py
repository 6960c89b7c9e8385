"""The benchmark's DETR3D expert with a relative depth error of 0.05, one for each frame."""

_base_ = "detr3d_expert.py"

corruption = dict(depth=0.05)
