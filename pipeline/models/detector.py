"""Base of multi-camera detectors: images to a pyramid, true boxes, predictions as mmdet3d instances."""

from typing import Any

import torch
from mmdet3d.models.detectors import Base3DDetector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor

from .grid_mask import GridMask
from .query_head import HeadOutput

Frames = list[dict[str, Any]]


def gt_tensors(samples: list[Det3DDataSample], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Per frame true boxes (n, 9) with centres of gravity, LiDAR frame, and labels (n,)."""
    boxes, labels = [], []
    for sample in samples:
        gt = sample.gt_instances_3d
        tensor = gt.bboxes_3d.tensor.to(device)
        boxes.append(torch.cat([gt.bboxes_3d.gravity_center.to(device), tensor[:, 3:]], -1))
        labels.append(gt.labels_3d.to(device))
    return boxes, labels


def stack_meta(frames: Frames, name: str, device: torch.device) -> Tensor:
    """A metainfo array of every frame as one float32 tensor."""
    return torch.stack([torch.as_tensor(frame[name]) for frame in frames]).to(device, torch.float32)


class MultiCameraDetector(Base3DDetector):
    """Backbone, neck and a :class:`~pipeline.models.query_head.QueryHead`.

    Args:
        img_backbone, img_neck, pts_bbox_head: mmdet/mmdet3d configs.
        grid_mask: probability of GridMask in training.
    """

    def __init__(
        self,
        img_backbone: dict,
        img_neck: dict,
        pts_bbox_head: dict,
        data_preprocessor: dict | None = None,
        grid_mask: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.img_backbone = MODELS.build(img_backbone)
        self.img_neck = MODELS.build(img_neck)
        self.pts_bbox_head = MODELS.build(pts_bbox_head)
        self.grid_mask = GridMask(grid_mask)

    def extract_feat(self, img: Tensor) -> list[Tensor]:
        """Pyramid levels (B, V, C, Hl, Wl) of images (B, V, 3, H, W)."""
        flat = self.grid_mask(img.flatten(0, 1)).contiguous(memory_format=torch.channels_last)
        levels = self.img_neck(self.img_backbone(flat))
        return [level.unflatten(0, img.shape[:2]) for level in levels]

    def detect_on(self, levels: list[Tensor], samples: list[Det3DDataSample]) -> HeadOutput:
        """Head output for pyramid levels (B, V, C, Hl, Wl) of the samples' last frames, without history."""
        raise NotImplementedError

    def with_instances(self, samples: list[Det3DDataSample], out: HeadOutput) -> list[Det3DDataSample]:
        """Samples with ``pred_instances_3d`` (bboxes_3d, scores_3d, labels_3d)."""
        for sample, (boxes, scores, labels, _) in zip(samples, self.pts_bbox_head.decode(out), strict=True):
            instances = LiDARInstance3DBoxes(boxes, box_dim=9, origin=(0.5, 0.5, 0.5))
            sample.pred_instances_3d = InstanceData(bboxes_3d=instances, scores_3d=scores, labels_3d=labels)
        return samples
