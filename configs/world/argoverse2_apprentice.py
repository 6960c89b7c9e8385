"""The apprentice for the embedded Argoverse 2 rig."""

_base_ = "apprentice.py"

model = dict(
    pts_bbox_head=dict(transformer=dict(num_cams=7, encoder=dict(pillar_heights=[-1.5, -0.8, 0.0, 1.4]))),
)
