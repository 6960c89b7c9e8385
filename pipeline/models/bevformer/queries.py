"""Object queries proposed by a heatmap over the BEV map (CenterPoint, Yin et al., 2021; TransFusion, Bai et al., 2022).

A few minutes of training are too short for learned queries to spread over the scene; peaks of a heatmap start them at
the objects.
"""

from dataclasses import dataclass

import torch
from mmdet.models.losses import GaussianFocalLoss
from mmengine.model import bias_init_with_prob
from torch import Tensor, nn

from ..boxes import encode_boxes, to_metres, to_unit
from ..heatmap import splat_peaks, top_peaks
from .encoder import grid_points


@dataclass
class Proposals:
    """Queries from the heatmap.

    Attributes:
        query, query_pos: (B, N, C).
        references: (B, N, 3) in 0..1 of pc_range, detached.
        heatmap: (B, classes, H, W) logits.
        code: (B, H*W, 10) dense box code in metres.
    """

    query: Tensor
    query_pos: Tensor
    references: Tensor
    heatmap: Tensor
    code: Tensor


class HeatmapQueries(nn.Module):
    """Top peaks of a class heatmap as queries, with a dense box prediction that places their references.

    Args:
        num_query: N peaks kept over all classes.
        min_sigma: smallest standard deviation of a target peak, cells.
        heatmap_weight: of the Gaussian focal loss (CornerNet).
        box_weight: of the L1 loss of the dense boxes at true centres.
    """

    pc_range: Tensor

    def __init__(
        self,
        num_query: int,
        pc_range: list[float],
        embed_dims: int = 256,
        num_classes: int = 10,
        min_sigma: float = 0.6,
        heatmap_weight: float = 1.0,
        box_weight: float = 0.25,
    ) -> None:
        super().__init__()
        self.num_query, self.num_classes, self.min_sigma, self.box_weight = (
            num_query,
            num_classes,
            min_sigma,
            box_weight,
        )
        self.stem = nn.Sequential(nn.Conv2d(embed_dims, embed_dims, 3, padding=1), nn.ReLU())
        self.heatmap = nn.Conv2d(embed_dims, num_classes, 1)
        self.box = nn.Conv2d(embed_dims, 10, 1)
        self.content = nn.Linear(embed_dims, embed_dims)
        self.class_embedding = nn.Embedding(num_classes, embed_dims)
        self.position = nn.Sequential(nn.Linear(3, embed_dims), nn.ReLU(), nn.Linear(embed_dims, embed_dims))
        self.loss_heatmap = GaussianFocalLoss(loss_weight=heatmap_weight)
        self.register_buffer("pc_range", torch.tensor(pc_range), persistent=False)

    def init_weights(self) -> None:
        """Heatmap bias of a one-in-a-hundred prior."""
        for layer, start in ((self.heatmap, bias_init_with_prob(0.01)), (self.box, 0.0)):
            assert layer.bias is not None
            nn.init.constant_(layer.bias, start)
        nn.init.normal_(self.box.weight, std=0.001)

    def forward(self, bev: Tensor, bev_hw: tuple[int, int]) -> Proposals:
        """bev (B, H*W, C)."""
        height, width = bev_hw
        feature = self.stem(bev.transpose(1, 2).unflatten(-1, bev_hw))
        logits, raw = self.heatmap(feature).float(), self.box(feature).flatten(2).transpose(1, 2).float()

        # dense boxes: the centre as an offset from the cell, in cells; z around the middle of the range
        cells = grid_points(height, width, bev.device)
        xy = cells + raw[..., :2] / bev.new_tensor([width, height])
        unit = torch.cat([xy, raw[..., 4:5].sigmoid()], -1)
        centre = to_metres(unit, self.pc_range)
        code = torch.cat([centre[..., :2], raw[..., 2:4], centre[..., 2:], raw[..., 5:]], -1)

        cell, label = top_peaks(logits, self.num_query)
        references = unit.detach().gather(1, cell[..., None].expand(-1, -1, 3)).clamp(1e-3, 1 - 1e-3)
        at_peak = bev.gather(1, cell[..., None].expand(-1, -1, bev.shape[-1]))
        query = self.content(at_peak) + self.class_embedding(label)
        return Proposals(query, self.position(references * 2 - 1), references, logits, code)

    def loss(
        self, proposals: Proposals, gt_boxes: list[Tensor], gt_labels: list[Tensor], code_weights: Tensor
    ) -> dict[str, Tensor]:
        """Heatmap and dense box losses; boxes (n, 9) per frame."""
        batch, _, height, width = proposals.heatmap.shape
        target = torch.zeros_like(proposals.heatmap)
        terms, num = [], 0
        for b, (boxes, labels) in enumerate(zip(gt_boxes, gt_labels, strict=True)):
            if len(boxes) == 0:
                continue
            xy = to_unit(boxes[:, :3], self.pc_range)[:, :2] * boxes.new_tensor([width, height]) - 0.5
            cell_size = (self.pc_range[3] - self.pc_range[0]) / width
            sigma = (boxes[:, 3:5].mean(-1) / cell_size / 6).clamp(min=self.min_sigma)
            col = xy[:, 0].round().long().clamp(0, width - 1)
            row = xy[:, 1].round().long().clamp(0, height - 1)
            splat_peaks(target[b], labels, row, col, sigma)
            error = (proposals.code[b, row * width + col] - torch.nan_to_num(encode_boxes(boxes))).abs()
            terms.append((error * code_weights).sum())
            num += len(boxes)
        loss_heatmap = self.loss_heatmap(
            proposals.heatmap.sigmoid().clamp(1e-4, 1 - 1e-4), target, avg_factor=max(num, 1)
        )
        loss_box = torch.stack(terms).sum() / num if terms else proposals.code.sum() * 0
        return {"loss_heatmap": loss_heatmap, "loss_dense_bbox": self.box_weight * loss_box}
