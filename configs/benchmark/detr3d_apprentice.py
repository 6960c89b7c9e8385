"""The benchmark's DETR3D apprentice: the embedded world's, trained longer."""

_base_ = "../world/detr3d_apprentice.py"

schedule = dict(max_iters=2000, warmup_iters=200)
