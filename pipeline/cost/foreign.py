"""One frame of nothing through a detector of another project, whose heads need values where shapes suffice for ours."""

import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from mmengine.config import Config

from pipeline.data.geometry import lidar2img, resize_factors, resized_hw
from pipeline.errors import FD3DError
from pipeline.expert import ExpertFrame, TappedExpert, adapter_of
from pipeline.expert.adapters import padded_hw

from .cameras import Cameras
from .counting import Counts, counting


def foreign_frame(cfg: Config, cameras: Cameras, num_queries: int) -> ExpertFrame:
    """The frame that stage 1 would store of black images, by a detector with random weights on the CPU.

    Raises:
        FD3DError: the config's detector cannot be built, or does not fit its adapter.
    """
    (frame,), _ = _expert(cfg, num_queries).run(_black(cfg, cameras))
    return frame


def count_foreign(cfg: Config, cameras: Cameras) -> tuple[tuple[int, int], dict[str, int], dict[str, Counts]]:
    """Cost of a frame: rows and columns of the padded image, parameters by module path, and multiply-adds of the detector's layers.

    Raises:
        FD3DError: as of :func:`foreign_frame`, or the detector includes a layer without a counting rule.
    """
    expert = _expert(cfg, 1)
    with counting(expert.model) as macs:
        _, samples = expert.run(_black(cfg, cameras))
    parameters = {path: parameter.numel() for path, parameter in expert.model.named_parameters()}
    return padded_hw(samples[0]) or resized_hw(cameras.image_hw, cfg.image.scale), parameters, macs


def _expert(cfg: Config, num_queries: int) -> TappedExpert:
    try:
        with torch.random.fork_rng():
            model = MODELS.build(cfg.model).eval()  # without init_weights, which may look for pretrained files
    except (TypeError, KeyError, ValueError, AssertionError) as error:
        raise FD3DError(f"the model of config {cfg.filename} cannot be built: {error}") from error
    return TappedExpert(model, adapter_of(cfg, model), num_queries)


def _black(cfg: Config, cameras: Cameras) -> dict:
    """The data's batch of one frame of black images."""
    size, factors = resized_hw(cameras.image_hw, cfg.image.scale), resize_factors(cameras.image_hw, cfg.image.scale)
    frame = {
        "token": "",
        "scene_token": "",
        "timestamp": 0,
        "lidar2img": lidar2img(cameras.intrinsics, cameras.lidar2cam, factors).astype(np.float32),
        "lidar2cam": cameras.lidar2cam,
        "img_hw": size,
        "can_bus": np.zeros(18, np.float32),
        "has_history": False,
    }
    images = torch.zeros(1, len(cameras.names), 3, *size, dtype=torch.uint8)
    return {"inputs": {"img": [images]}, "data_samples": [Det3DDataSample(metainfo={"token": "", "frames": [frame]})]}
