"""The expert of the embedded world: 160x288 images, BEV 50x50, one frame of history, queries from a heatmap."""

_base_ = "../_base_/runtime.py"

pc_range = [-40.0, -40.0, -5.0, 40.0, 40.0, 3.0]
dims = 64

image = dict(scale=1.0, to_rgb=True)
queue_length = 2
# How stage 1 reads this detector as an expert.
adapter = dict(type="BEVFormerAdapter")

model = dict(
    type="BEVFormer",
    data_preprocessor=dict(
        type="FramePreprocessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], pad_divisor=16
    ),
    img_backbone=dict(
        type="mmdet.ResNet",
        depth=18,
        base_channels=16,
        stem_channels=16,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
    ),
    img_neck=dict(type="mmdet.FPN", in_channels=[32, 64, 128], out_channels=dims, num_outs=3),
    pts_bbox_head=dict(
        type="BEVFormerHead",
        bev_h=50,
        bev_w=50,
        pc_range=pc_range,
        embed_dims=dims,
        num_query=100,
        query_source="heatmap",
        post_center_range=[-45.0, -45.0, -10.0, 45.0, 45.0, 10.0],
        max_num=100,
        transformer=dict(
            rotate_mode="bilinear",
            encoder=dict(
                pc_range=pc_range,
                num_layers=1,
                num_heads=4,
                num_levels=3,
                num_points=4,
                # metres in the LiDAR frame: just above the ground (-1.84), waist, head, lorry
                pillar_heights=[-1.7, -1.0, -0.2, 1.2],
                feedforward_channels=128,
                dropout=0.0,
            ),
            decoder=dict(num_layers=3, num_heads=4, num_points=4, feedforward_channels=128, dropout=0.0),
        ),
    ),
)

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.01, betas=(0.9, 0.99), fused=True),
    paramwise_cfg=dict(custom_keys=dict(sampling_offsets=dict(lr_mult=0.2)), norm_decay_mult=0.0),
    clip_grad=dict(max_norm=35),
)
# One-cycle over max_iters (Smith and Topin, 2018), 10 % of it rising.
schedule = dict(max_iters=2000, warmup_iters=200, batch_size=2, policy="onecycle")
# No mirrored world: left-hand traffic taught no headings (cars' AOE 1.85 rad after 2300 steps), since the lane no longer tells them.
augment = dict(photometric=True)
