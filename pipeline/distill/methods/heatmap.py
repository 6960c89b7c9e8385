"""The HeatmapDistiller of FD3D's authors, the only distiller in their release: cross-entropy on the pyramid, Gaussians on BEV."""

import torch
from mmdet3d.models.utils import draw_heatmap_gaussian, gaussian_radius
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample
from torch import Tensor
from torch.nn.functional import interpolate

from pipeline.models.detector import gt_tensors

from ..settings import HeatmapSettings
from ..whole_map import WholeMapDistiller, without


def channel_cross_entropy(student: Tensor, expert: Tensor, tau: float) -> Tensor:
    """Cross-entropy ``tau^2 / (C N) * sum -softmax_x(T / tau) log softmax_x(S / tau)``, softmax over positions x.

    The least value is the entropy of T, not zero.

    Args:
        student, expert: (N, C, H, W).
    """
    target = (expert.flatten(2) / tau).softmax(-1)
    return -(tau**2) * (target * (student.flatten(2) / tau).log_softmax(-1)).sum(-1).mean()


def object_gaussians(boxes: Tensor, pc_range: list[float], settings: HeatmapSettings) -> Tensor:
    """Peaks of 1 at boxes' centres, of all classes on one map; the higher one where they overlap.

    Args:
        boxes: (n, 9) in the LiDAR frame.
        pc_range: (x0, y0, z0, x1, y1, z1) metres that the map spans.

    Returns:
        (rows, columns) of the grid with ``settings.cell``, row = y.
    """
    x0, y0, _, x1, y1, _ = pc_range
    heatmap = boxes.new_zeros(round((y1 - y0) / settings.cell), round((x1 - x0) / settings.cell))
    for x, y, _, length, width, *_ in boxes.cpu():
        col, row = int((x - x0) / settings.cell), int((y - y0) / settings.cell)
        if not (0 <= row < heatmap.shape[0] and 0 <= col < heatmap.shape[1]):
            continue
        radius = gaussian_radius((width / settings.cell, length / settings.cell), settings.min_overlap)
        draw_heatmap_gaussian(heatmap, torch.tensor([col, row]), max(settings.min_radius, int(radius)))
    return heatmap


@MODELS.register_module()
class HeatmapDistiller(WholeMapDistiller):
    """Distiller on raw features, as released: neither side is standardised."""

    settings_type = HeatmapSettings
    standardise = False

    def map_loss(
        self,
        name: str,
        student: Tensor,
        expert: Tensor,
        data_samples: list[Det3DDataSample],
        own: Tensor | None = None,
    ) -> Tensor:
        """:func:`channel_cross_entropy` of a level; on BEV ``sum(((S - T) * m)^2) / sum(m)``, m of :func:`object_gaussians`."""
        if name != "bev":
            return channel_cross_entropy(without(student, own), without(expert, own), self.settings.tau)
        pc_range = self.manifest["coordinates"]["pc_range"]
        drawn = [object_gaussians(b, pc_range, self.settings) for b in gt_tensors(data_samples, student.device)[0]]
        # the release gives a size and no mode, so its resizing takes the nearest cell
        mask = interpolate(torch.stack(drawn)[:, None], student.shape[-2:], mode="nearest")
        # a batch without objects has no such loss
        return (((student - expert) * mask) ** 2).sum() / mask.sum().clamp(min=1e-6)
