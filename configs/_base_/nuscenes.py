"""nuScenes at the size of the papers: ranges and schedule of BEVFormer, DETR3D and FD3D."""

_base_ = "runtime.py"

pc_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
post_center_range = [-61.2, -61.2, -10.0, 61.2, 61.2, 10.0]

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=0.01, fused=True),
    paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=0.1))),
    clip_grad=dict(max_norm=35),
)
# 24 epochs at 8 frames an update on any number of processes; the cosine is constant within an epoch.
schedule = dict(epochs=24, base_batch=8, batch_size=1, warmup_iters=500, policy="cosine", by_epoch=True)
# as published; BEVFormer thins its queue too
augment = dict(photometric_per_image=True, replace_empty=True)
