"""A small DETR3D for a few real frames at a quarter of nuScenes' image size, see ``benchmarks/overfit.py``."""

_base_ = "../world/detr3d_expert.py"

pc_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
post_center_range = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]

image = dict(scale=0.25)

model = dict(
    # with one frame an update, batch norm would train on the frame's own statistics and predict with those of all frames
    img_backbone=dict(norm_cfg=dict(_delete_=True, type="GN", num_groups=8, requires_grad=True)),
    pts_bbox_head=dict(pc_range=pc_range, post_center_range=post_center_range, max_num=300),
)

schedule = dict(max_iters=2000, warmup_iters=200, batch_size=1)
augment = dict(photometric=False)
