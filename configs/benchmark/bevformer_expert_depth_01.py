"""The benchmark's BEVFormer expert with a relative depth error of 0.1, one for each frame."""

_base_ = "expert.py"

corruption = dict(depth=0.1)
