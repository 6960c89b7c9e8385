"""Detectors of other projects in training: their batches come through their adapter."""

import copy
from typing import Any

import numpy as np
import torch
from mmdet3d.registry import DATASETS, MODELS, TASK_UTILS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config
from mmengine.model import BaseDataPreprocessor

from pipeline.data.frames import collate, frame_dataset
from pipeline.data.source import FrameSource
from pipeline.errors import FD3DError
from pipeline.models.load import best_device

from .adapters import padded_hw
from .declared import foreign_errors, is_foreign
from .tapped import build_adapter


@MODELS.register_module()
class AdaptedPreprocessor(BaseDataPreprocessor):
    """Data preprocessor of a detector of another project, behind the detector's adapter.

    Args:
        adapter: config of the adapter, whose ``prepare`` takes the data's batch.
        preprocessor: config of the detector's own data preprocessor.
    """

    def __init__(self, adapter: dict[str, Any], preprocessor: dict[str, Any]) -> None:
        super().__init__()
        self.adapter, self.inner = TASK_UTILS.build(adapter), MODELS.build(preprocessor)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """The data's batch as the detector takes it; ``frames[-1].pad_hw`` of the data's samples is set to the padded size."""
        bare = [_without_expert(sample) for sample in data["data_samples"]]
        given = self.inner(self.adapter.prepare({"inputs": data["inputs"], "data_samples": bare}), training)
        for sample in data["data_samples"]:
            sample.frames[-1]["pad_hw"] = padded_hw(given["data_samples"][0])
        return given


def _without_expert(sample: Det3DDataSample) -> Det3DDataSample:
    """A sample without the expert's arrays, which mmengine would copy with the metainfo."""
    made = Det3DDataSample(metainfo={name: value for name, value in sample.metainfo.items() if name != "expert"})
    if "gt_instances_3d" in sample:
        made.gt_instances_3d = sample.gt_instances_3d
    return made


@MODELS.register_module()
class Untouched(BaseDataPreprocessor):
    """Preprocessor that leaves the batch to another one inside the model."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """The batch itself."""
        return data


def trainable_model(cfg: Config, source: FrameSource) -> dict[str, Any]:
    """Config of a config's detector as it trains on the data's batches; tensors have the names that the detector's have.

    Args:
        source: frames of the training, on whose first a detector of another project is tried.

    Raises:
        FD3DError: a detector of another project has no adapter, its config lacks what a training needs, or its losses do not run.
    """
    if not is_foreign(cfg):
        return cfg.model
    check_trainable(cfg)
    preprocessor = cfg.model.get("data_preprocessor") or dict(type="Det3DDataPreprocessor")
    model = copy.deepcopy(cfg.model)  # with attributes, which mmdet3d's heads read
    model.data_preprocessor = dict(type="AdaptedPreprocessor", adapter=cfg.adapter, preprocessor=preprocessor)
    _try_losses(cfg, model, source)
    return model


def check_trainable(cfg: Config) -> None:
    """Refuse a config of a detector of another project that lacks what a training needs.

    Raises:
        FD3DError: naming the entry.
    """
    build_adapter(cfg)
    for name in ("optim_wrapper", "schedule", "env_cfg", "queue_length"):
        if name not in cfg:
            raise FD3DError(
                f"config {cfg.filename} has no {name}, so it cannot be trained; inherit from configs/_base_/runtime.py and see configs/world/expert.py"
            )
    if cfg.queue_length != 1:
        raise FD3DError(
            f"queue_length of config {cfg.filename} is {cfg.queue_length}; a detector through an adapter takes 1"
        )


def _try_losses(cfg: Config, model: dict[str, Any], source: FrameSource) -> None:
    """Compute the losses of a batch, drawing none of the training's random numbers."""
    numpy_state = np.random.get_state()
    with torch.random.fork_rng():
        detector = MODELS.build(model).to(best_device()).train()
        data = DATASETS.build(frame_dataset(cfg, source, train=True))
        batch = collate([data[n] for n in range(min(2, len(data)))])
        with foreign_errors(detector.data_preprocessor.adapter, detector), torch.no_grad():
            losses = detector(**detector.data_preprocessor(batch, True), mode="loss")
            detector.parse_losses(losses)
    np.random.set_state(numpy_state)
