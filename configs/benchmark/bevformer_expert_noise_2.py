"""The benchmark's BEVFormer expert with noise on its features, of 2.0 times each channel's standard deviation."""

_base_ = "expert.py"

corruption = dict(noise=2.0)
