"""The benchmark's BEVFormer expert: the embedded world's, trained longer."""

_base_ = "../world/expert.py"

schedule = dict(max_iters=4500, warmup_iters=450)
