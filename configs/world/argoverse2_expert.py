"""The expert for the embedded Argoverse 2 rig: seven cameras, BEV map and boxes in the frame of the LiDAR, 1.64 m above the ground."""

_base_ = "expert.py"

model = dict(
    pts_bbox_head=dict(transformer=dict(num_cams=7, encoder=dict(pillar_heights=[-1.5, -0.8, 0.0, 1.4]))),
)
