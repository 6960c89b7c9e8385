"""The benchmark's BEVFormer expert with a relative depth error of 0.05, one for each object in a frame."""

_base_ = "expert.py"

corruption = dict(depth=0.05, depth_per="object")
