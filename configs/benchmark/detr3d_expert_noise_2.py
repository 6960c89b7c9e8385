"""The benchmark's DETR3D expert with noise on its features, of 2.0 times each channel's standard deviation."""

_base_ = "detr3d_expert.py"

corruption = dict(noise=2.0)
