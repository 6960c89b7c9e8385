"""BEVFormer-Base (Li et al., 2022): R101-DCN, 900x1600, BEV 200x200, 6 + 6 layers; an expert of the FD3D paper."""

_base_ = ["../_base_/nuscenes.py", "../_base_/r101_dcn.py"]

# Images as the dataset loads them: share of the original size, and whether BGR is turned to RGB.
image = dict(scale=1.0, to_rgb=False)
queue_length = 4
augment = dict(thin_queue=True)
# How stage 1 reads this detector as an expert.
adapter = dict(type="BEVFormerAdapter")

model = dict(
    type="BEVFormer",
    grid_mask=0.7,
    pts_bbox_head=dict(
        type="BEVFormerHead",
        bev_h=200,
        bev_w=200,
        pc_range={{_base_.pc_range}},
        num_query=900,
        post_center_range={{_base_.post_center_range}},
        transformer=dict(
            # public BEVFormer turns history about cell (100, 100) at every grid size
            rotate_center=(100, 100),
            # encoder.shift_current is told by a converted checkpoint; the published one dates from June 2022: true
            encoder=dict(pc_range={{_base_.pc_range}}, num_layers=6, num_levels=4),
            decoder=dict(num_layers=6),
        ),
    ),
)
