"""Object queries proposed by a heatmap over the BEV map (CenterPoint, Yin et al., 2021; TransFusion, Bai et al., 2022).

A few minutes of training are too short for learned queries to spread over the scene; peaks of a heatmap start them at
the objects.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..boxes import CODE_SIZE, encode_boxes, to_metres, to_unit
from ..heatmap import HeatmapProposals, HeatmapQueries, splat_peaks, top_peaks
from ..precision import in_float32
from .grid import grid_points


@dataclass
class BEVProposals(HeatmapProposals):
    """Proposals with dense boxes; the heatmap is (B, classes, H, W).

    Attributes:
        code: (B, H*W, 10) dense box code in metres.
    """

    code: Tensor


class BEVHeatmapQueries(HeatmapQueries):
    """Top peaks of a class heatmap as queries, with a dense box prediction that places their references; all in float32.

    Args:
        num_query: N peaks kept over all classes.
        min_sigma: smallest standard deviation of a target peak, cells.
        heatmap_weight: weight of the Gaussian focal loss (CornerNet).
        box_weight: weight of the L1 loss of the dense boxes at true centres.
    """

    box: nn.Conv2d

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
        box = ("box", CODE_SIZE)
        super().__init__(num_query, pc_range, embed_dims, num_classes, min_sigma, heatmap_weight, box)
        self.box_weight = box_weight

    def init_weights(self) -> None:
        """Heatmap bias of a one-in-a-hundred prior, boxes of about no size in the middle of their cell."""
        super().init_weights()
        assert self.box.bias is not None
        nn.init.zeros_(self.box.bias)
        nn.init.normal_(self.box.weight, std=0.001)

    @in_float32
    def forward(self, bev: Tensor, bev_hw: tuple[int, int]) -> BEVProposals:
        """Proposals from a BEV map (B, H*W, C)."""
        height, width = bev_hw
        feature = self.stem(bev.transpose(1, 2).unflatten(-1, bev_hw))
        logits, raw = self.heatmap(feature), self.box(feature).flatten(2).transpose(1, 2)

        # dense boxes: the centre as an offset from the cell, in cells; z around the middle of the range
        cells = grid_points(height, width, bev.device)
        xy = cells + raw[..., :2] / bev.new_tensor([width, height])
        unit = torch.cat([xy, raw[..., 4:5].sigmoid()], -1)
        centre = to_metres(unit, self.pc_range)
        code = torch.cat([centre[..., :2], raw[..., 2:4], centre[..., 2:], raw[..., 5:]], -1)

        cell, label = top_peaks(logits, self.num_query)
        references = unit.detach().gather(1, cell[..., None].expand(-1, -1, 3)).clamp(1e-3, 1 - 1e-3)
        at_peak = bev.gather(1, cell[..., None].expand(-1, -1, bev.shape[-1]))
        return BEVProposals(*self.queries(at_peak, label, references), references, logits, code)

    @in_float32
    def loss(
        self, proposals: BEVProposals, gt_boxes: list[Tensor], gt_labels: list[Tensor], code_weights: Tensor
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
        loss_heatmap, loss_box = self.losses(proposals.heatmap, target, proposals.code, terms, num)
        return {"loss_heatmap": loss_heatmap, "loss_dense_bbox": self.box_weight * loss_box}
