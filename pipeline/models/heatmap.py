"""Class heatmaps with Gaussian peaks (CornerNet, Law and Deng, 2018; CenterNet, Zhou et al., 2019): targets and peaks."""

import torch
from torch import Tensor, nn


def splat_peaks(target: Tensor, labels: Tensor, row: Tensor, col: Tensor, sigma: Tensor) -> None:
    """Draw Gaussian peaks into a heatmap in place; where peaks overlap the higher value stays.

    Args:
        target: (classes, H, W).
        labels, row, col: (n,) class and cell of each peak.
        sigma: (n,) standard deviations in cells.
    """
    height, width = target.shape[-2:]
    rows = torch.arange(height, device=target.device)[:, None]
    cols = torch.arange(width, device=target.device)[None]
    distance = (rows - row[:, None, None]) ** 2 + (cols - col[:, None, None]) ** 2
    blob = (-distance / (2 * sigma[:, None, None] ** 2)).exp()
    target.scatter_reduce_(0, labels[:, None, None].expand_as(blob), blob, "amax")


def top_peaks(logits: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The highest cells that no neighbour exceeds, over all classes.

    Args:
        logits: (B, classes, H, W).
        num: peaks per batch row.

    Returns:
        flat cells and classes, each (B, num).
    """
    cells = logits.shape[-2] * logits.shape[-1]
    scores = logits.detach().sigmoid()
    peak = scores == nn.functional.max_pool2d(scores, 3, stride=1, padding=1)
    top = (scores * peak).flatten(1).topk(num, -1).indices
    return top % cells, torch.div(top, cells, rounding_mode="floor")
