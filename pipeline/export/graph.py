"""Detectors as functions of tensors alone, from images to boxes: what an ONNX file computes."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models.bevformer import BEVFormer
from pipeline.models.boxes import decode_boxes
from pipeline.models.detector import MultiCameraDetector
from pipeline.models.query_head import HeadOutput
from pipeline.models.views import own_cells

INPUTS = ("images", "lidar2img", "ego_motion", "history", "has_history")
"""Inputs of a graph; a detector without history has the first two."""
OUTPUTS = ("boxes", "scores", "labels", "kept", "bev")
"""Outputs of a graph; a detector without history has all but the last."""


def detector_views(model: MultiCameraDetector) -> int:
    """Number of cameras that a detector has weights for."""
    transformer = model.pts_bbox_head.transformer
    if isinstance(model, BEVFormer):
        return len(transformer.cams_embeds)
    return int(transformer.decoder.layers[0].attentions[1].num_cams)


class DetectorGraph(nn.Module):
    """Normalisation, detector and decoding of one frame.

    Args:
        model: detector in evaluation mode.
        view_hw: (V, 2) rows and columns of each camera's resized image; None where all have one size.
    """

    def __init__(self, model: MultiCameraDetector, view_hw: np.ndarray | None = None) -> None:
        super().__init__()
        self.model = model
        self._view_hw = None if view_hw is None else torch.as_tensor(view_hw)[None]

    @property
    def streams(self) -> bool:
        """Whether the detector takes the BEV map of the frame before."""
        return isinstance(self.model, BEVFormer)

    @property
    def bev_shape(self) -> tuple[int, int]:
        """Cells and channels of the BEV map."""
        return tuple(self.model.pts_bbox_head.bev_embedding.weight.shape)  # type: ignore[return-value]

    def forward(
        self,
        images: Tensor,
        lidar2img: Tensor,
        ego_motion: Tensor | None = None,
        history: Tensor | None = None,
        has_history: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Detect on a frame.

        Args:
            images: (1, V, 3, H, W) resized, 0..255, channels in the order of the detector's config; smaller images are padded at
                the right and bottom with anything.
            lidar2img: (1, V, 4, 4) to pixels of the resized images.
            ego_motion: (1, 18) as of :func:`~pipeline.data.geometry.can_bus_delta`.
            history: (1, N, C) output ``bev`` of the frame before.
            has_history: (1,) bool; without history its content counts for nothing.

        Returns:
            boxes (1, n, 9) in the LiDAR frame with centres of gravity, scores (1, n) falling, labels (1, n) int64, kept (1, n)
            bool: whether a centre lies inside the detector's range, others are not detections; with history the BEV map
            (1, N, C) too.
        """
        img, padded_hw = self._padded(images)
        features, head = self.model.extract_feat(img), self.model.pts_bbox_head
        if not self.streams:
            return self._decoded(head(features, lidar2img, padded_hw, self._view_hw))
        bev = head.encode(features, lidar2img, padded_hw, ego_motion, history, has_history, self._view_hw)
        return (*self._decoded(head(bev)), bev)

    def _padded(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """As the detector's preprocessor does."""
        given = self.model.data_preprocessor
        height, width = images.shape[-2:]
        rows, cols = (math.ceil(n / given.pad_divisor) * given.pad_divisor for n in (height, width))
        normal = (images - given.mean) / given.std
        if self._view_hw is not None:
            normal = normal * own_cells(self._view_hw, (height, width), (height, width))[:, :, None]
        return nn.functional.pad(normal, (0, cols - width, 0, rows - height)), (rows, cols)

    def _decoded(self, out: HeadOutput) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As :func:`~pipeline.models.boxes.decode_top`, without leaving out boxes."""
        head, logits = self.model.pts_bbox_head, out.logits[-1]
        classes = logits.shape[-1]
        scores, flat = logits.sigmoid().flatten(1).topk(min(head.max_num, logits.shape[1] * classes))
        query, labels = torch.div(flat, classes, rounding_mode="floor"), flat % classes
        boxes = decode_boxes(out.code[-1].gather(1, query[..., None].expand(-1, -1, out.code.shape[-1])))
        limits = head.post_center_range
        if limits is None:
            return boxes, scores, labels, torch.ones_like(labels, dtype=torch.bool)
        inside = ((boxes[..., :3] >= limits[:3]) & (boxes[..., :3] <= limits[3:])).all(-1)
        return boxes, scores, labels, inside
