"""Class heatmaps with Gaussian peaks (CornerNet, Law and Deng, 2018; CenterNet, Zhou et al., 2019): targets and peaks."""

from dataclasses import dataclass

import torch
from mmdet.models.losses import GaussianFocalLoss
from mmengine.model import bias_init_with_prob
from torch import Tensor, nn


@dataclass
class HeatmapProposals:
    """Queries from peaks of a heatmap.

    Attributes:
        query, query_pos: (B, N, C).
        references: (B, N, 3) in 0..1 of pc_range, detached.
        heatmap: logits (..., classes, H, W).
    """

    query: Tensor
    query_pos: Tensor
    references: Tensor
    heatmap: Tensor


class HeatmapQueries(nn.Module):
    """Layers and loss that heatmaps over a BEV map and over images share.

    Args:
        num_query: N peaks kept.
        min_sigma: smallest standard deviation of a target peak, cells.
        heatmap_weight: weight of the Gaussian focal loss (CornerNet).
        regression: name and channels of the convolution that predicts the rest of a box in every cell.
    """

    pc_range: Tensor
    heatmap: nn.Conv2d

    def __init__(
        self,
        num_query: int,
        pc_range: list[float],
        embed_dims: int,
        num_classes: int,
        min_sigma: float,
        heatmap_weight: float,
        regression: tuple[str, int],
    ) -> None:
        super().__init__()
        self.num_query, self.min_sigma = num_query, min_sigma
        self.stem = nn.Sequential(nn.Conv2d(embed_dims, embed_dims, 3, padding=1), nn.ReLU())
        self.heatmap = nn.Conv2d(embed_dims, num_classes, 1)
        self.add_module(regression[0], nn.Conv2d(embed_dims, regression[1], 1))
        self.content = nn.Linear(embed_dims, embed_dims)
        self.class_embedding = nn.Embedding(num_classes, embed_dims)
        self.position = nn.Sequential(nn.Linear(3, embed_dims), nn.ReLU(), nn.Linear(embed_dims, embed_dims))
        self.loss_heatmap = GaussianFocalLoss(loss_weight=heatmap_weight)
        self.register_buffer("pc_range", torch.tensor(pc_range), persistent=False)

    def init_weights(self) -> None:
        """Heatmap bias of a one-in-a-hundred prior."""
        assert self.heatmap.bias is not None
        nn.init.constant_(self.heatmap.bias, bias_init_with_prob(0.01))

    def queries(self, at_peak: Tensor, label: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Content and position (B, N, C) of features (B, N, C), classes (B, N) and references (B, N, 3) in 0..1."""
        return self.content(at_peak) + self.class_embedding(label), self.position(references * 2 - 1)

    def losses(
        self, logits: Tensor, target: Tensor, regression: Tensor, terms: list[Tensor], num: int
    ) -> tuple[Tensor, Tensor]:
        """Loss of the heatmap, and the mean over ``num`` objects of the regression's ``terms``."""
        likely = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
        loss = self.loss_heatmap(likely, target, avg_factor=max(num, 1))
        return loss, torch.stack(terms).sum() / num if terms else regression.sum() * 0


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
