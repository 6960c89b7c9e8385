"""The benchmark's DETR3D expert: the embedded world's, trained longer."""

_base_ = "../world/detr3d_expert.py"

schedule = dict(max_iters=8000, warmup_iters=800)
