"""The DETR3D expert for the embedded five-camera rig: boxes in the ego frame, whose origin is on the ground."""

_base_ = "detr3d_expert.py"

pc_range = [-40.0, -40.0, -3.0, 40.0, 40.0, 5.0]

model = dict(pts_bbox_head=dict(pc_range=pc_range, transformer=dict(num_cams=5)))
