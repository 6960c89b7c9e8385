"""The benchmark's expert with a relative depth error of 0.05."""

_base_ = "expert.py"

corruption = dict(depth=0.05)
