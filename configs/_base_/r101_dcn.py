"""ResNet-101 in caffe style with deformable convolutions in its last two stages; images in BGR, not scaled."""

model = dict(
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
        dcn=dict(type="DeformConv2d", deform_groups=1, fallback_on_stride=False),
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
)
