"""FD3D around the embedded students, and batches for its steps."""

import torch
from mmdet3d.registry import DATASETS, MODELS

from pipeline.data.frames import collate, frame_dataset
from pipeline.distill.build import distiller_config
from pipeline.distill.loading import cached_targets
from pipeline.distill.settings import DistillSettings
from pipeline.models.build import load_config

APPRENTICES = {"bevformer": "apprentice", "detr3d": "detr3d_apprentice"}


def distiller(project, store, family="bevformer", **settings):
    cfg = load_config(project / f"configs/world/{APPRENTICES[family]}.py")
    torch.manual_seed(0)
    model = MODELS.build(distiller_config(cfg, store, "fd3d", DistillSettings.from_dict(settings)))
    model.init_weights()
    return cfg, model.train()


def batch_of(model, cfg, source, store):
    data = DATASETS.build(frame_dataset(cfg, source, True, targets=cached_targets(store)))
    return model.data_preprocessor(collate([data[1], data[5]]), True)
