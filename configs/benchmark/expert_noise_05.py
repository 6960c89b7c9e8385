"""The benchmark's expert with noise on its features, of 0.5 times each channel's standard deviation."""

_base_ = "expert.py"

corruption = dict(noise=0.5)
