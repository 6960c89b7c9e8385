"""The benchmark's BEVFormer apprentice: the embedded world's, trained longer."""

_base_ = "../world/apprentice.py"

schedule = dict(max_iters=2000, warmup_iters=200)
