"""A small BEVFormer for a few real frames at a quarter of nuScenes' image size, see ``benchmarks/overfit.py``."""

_base_ = "../world/expert.py"

pc_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
post_center_range = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]

image = dict(scale=0.25)

model = dict(
    pts_bbox_head=dict(
        pc_range=pc_range,
        post_center_range=post_center_range,
        max_num=300,
        transformer=dict(encoder=dict(pc_range=pc_range)),
    ),
)

schedule = dict(max_iters=2000, warmup_iters=200, batch_size=1)
augment = dict(photometric=False)
