"""What all trainings share."""

default_scope = "mmdet3d"
custom_imports = dict(
    imports=[
        "pipeline.data.dataset",
        "pipeline.data.transforms",
        "pipeline.models",
        "pipeline.distill",
        "pipeline.expert",
    ],
    allow_failed_imports=False,
)
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method="forkserver"))
