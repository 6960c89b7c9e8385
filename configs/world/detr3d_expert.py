"""The DETR3D expert of the embedded world: 160x288 images, one frame, queries from heatmaps over the images."""

_base_ = "expert.py"

queue_length = 1
adapter = dict(type="DETR3DAdapter")

model = dict(
    type="DETR3D",
    pts_bbox_head=dict(
        _delete_=True,
        type="DETR3DHead",
        pc_range={{_base_.pc_range}},
        embed_dims={{_base_.dims}},
        num_query=100,
        query_source="heatmap",
        post_center_range=[-45.0, -45.0, -10.0, 45.0, 45.0, 10.0],
        max_num=100,
        transformer=dict(
            num_levels=3,
            decoder=dict(num_layers=3, num_heads=4, feedforward_channels=128, dropout=0.0),
        ),
    ),
)

schedule = dict(max_iters=3000, warmup_iters=300)
