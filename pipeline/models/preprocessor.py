"""Preprocessor from the data set's images to the padded, normalised batch that detectors take."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet3d.registry import MODELS
from mmengine.model import BaseDataPreprocessor

from pipeline.data.pixels import levels


@MODELS.register_module()
class FramePreprocessor(BaseDataPreprocessor):
    """Stack, normalise and zero-pad multi-camera images on the device.

    Args:
        mean: per channel, on the 0..255 scale, in the channel order of the loaded images.
        std: likewise.
        pad_divisor: rows and columns are padded at the bottom and right to a multiple of this.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], pad_divisor: int = 32) -> None:
        super().__init__()
        self.pad_divisor = pad_divisor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """``inputs.img``: B tensors (Q, V, 3, H, W) to one (B, Q, V, 3, Hp, Wp); ``frames[*].pad_hw`` is set to (Hp, Wp); what is
        outside an image's own ``view_hw`` is zero."""
        data = self.cast_data(data)
        img = data["inputs"]["img"]
        img = torch.stack(list(img)) if not isinstance(img, torch.Tensor) else img
        img = (levels(img) - self.mean) / self.std
        height, width = (math.ceil(n / self.pad_divisor) * self.pad_divisor for n in img.shape[-2:])
        img = torch.nn.functional.pad(img, (0, width - img.shape[-1], 0, height - img.shape[-2]))
        for sample in data["data_samples"]:
            for frame in sample.frames:
                frame["pad_hw"] = (height, width)
        for b, sample in enumerate(data["data_samples"]):
            for q, frame in enumerate(sample.frames):
                for v, (rows, columns) in enumerate(frame.get("view_hw", ())):
                    img[b, q, v, :, int(rows) :], img[b, q, v, :, :, int(columns) :] = 0, 0
        return {"inputs": {"img": img}, "data_samples": data["data_samples"]}
