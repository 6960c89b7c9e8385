"""BEVFormer-Base (Li et al., 2022): R101-DCN, 900x1600, BEV 200x200, 6 + 6 layers; an expert of the FD3D paper."""

_base_ = "../_base_/runtime.py"

pc_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]

# Images as the dataset loads them: share of the original size, and whether BGR is turned to RGB.
image = dict(scale=1.0, to_rgb=False)
queue_length = 4

model = dict(
    type="BEVFormer",
    grid_mask=0.7,
    data_preprocessor=dict(
        type="FramePreprocessor", mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], pad_divisor=32
    ),
    img_backbone=dict(
        type="mmdet.ResNet",
        depth=101,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN2d", requires_grad=False),
        norm_eval=True,
        style="caffe",
        dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, False, True, True),
    ),
    img_neck=dict(
        type="mmdet.FPN",
        in_channels=[512, 1024, 2048],
        out_channels=256,
        start_level=0,
        add_extra_convs="on_output",
        num_outs=4,
        relu_before_extra_convs=True,
    ),
    pts_bbox_head=dict(
        type="BEVFormerHead",
        bev_h=200,
        bev_w=200,
        pc_range=pc_range,
        num_query=900,
        post_center_range=[-61.2, -61.2, -10.0, 61.2, 61.2, 10.0],
        transformer=dict(
            # public BEVFormer turns history about cell (100, 100) at every grid size
            rotate_center=(100, 100),
            encoder=dict(pc_range=pc_range, num_layers=6, num_levels=4),
            decoder=dict(num_layers=6),
        ),
    ),
)

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys=dict(img_backbone=dict(lr_mult=0.1))),
    clip_grad=dict(max_norm=35),
)
schedule = dict(max_iters=24 * 28130 // 8, warmup_iters=500, batch_size=1, policy="cosine")
augment = dict(photometric=True, world_flip=0.0)
