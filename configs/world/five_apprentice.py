"""The DETR3D apprentice for the embedded five-camera rig."""

_base_ = "detr3d_apprentice.py"

pc_range = [-40.0, -40.0, -3.0, 40.0, 40.0, 5.0]

model = dict(pts_bbox_head=dict(pc_range=pc_range, transformer=dict(num_cams=5)))
