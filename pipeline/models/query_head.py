"""Base of the detection heads of BEVFormer and DETR3D: box branches, set losses and decoding."""

from dataclasses import dataclass

import torch
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from .boxes import CODE_SIZE, decode_top, to_metres
from .heatmap import HeatmapProposals, HeatmapQueries
from .matching import SetLoss


@dataclass
class HeadOutput:
    """Predictions of a head for a batch.

    Attributes:
        logits: (L, B, N, classes).
        code: (L, B, N, 10) with centres in metres.
        states: (L, B, N, C) query states.
        references: (L, B, N, 3) in 0..1, entering each layer.
        proposals: proposals of a heatmap, when the queries come from one.
    """

    logits: Tensor
    code: Tensor
    states: Tensor
    references: Tensor
    proposals: HeatmapProposals | None = None


class QueryHead(BaseModule):
    """Detection head whose decoder layers each predict a class and a box per object query.

    Args:
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
        num_layers: decoder layers.
        code_weights: weights of the L1 terms; velocity counts 0.2 by default.
        post_center_range: limits for decoded centres, metres.
        max_num: boxes per frame.
    """

    pc_range: Tensor
    transformer: nn.Module
    heatmap_queries: HeatmapQueries | None

    def __init__(
        self,
        pc_range: list[float],
        num_layers: int,
        num_classes: int = 10,
        embed_dims: int = 256,
        code_weights: tuple[float, ...] = (1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2),
        cls_weight: float = 2.0,
        box_weight: float = 0.25,
        post_center_range: list[float] | None = None,
        max_num: int = 300,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.max_num = max_num
        self.code_weights = nn.Parameter(torch.tensor(code_weights, dtype=torch.float32), requires_grad=False)
        self.cls_branches = nn.ModuleList(self._cls_branch(embed_dims, num_classes) for _ in range(num_layers))
        self.reg_branches = nn.ModuleList(self._reg_branch(embed_dims) for _ in range(num_layers))
        self.set_loss = SetLoss(num_classes, cls_weight, box_weight)
        self.register_buffer("pc_range", torch.tensor(pc_range), persistent=False)
        limits = None if post_center_range is None else torch.tensor(post_center_range)
        self.register_buffer("post_center_range", limits, persistent=False)

    @staticmethod
    def _cls_branch(dims: int, num_classes: int) -> nn.Sequential:
        hidden = [m for _ in range(2) for m in (nn.Linear(dims, dims), nn.LayerNorm(dims), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(dims, num_classes))

    @staticmethod
    def _reg_branch(dims: int) -> nn.Sequential:
        hidden = [m for _ in range(2) for m in (nn.Linear(dims, dims), nn.ReLU())]
        return nn.Sequential(*hidden, nn.Linear(dims, CODE_SIZE))

    def init_weights(self) -> None:
        """The transformer's start, and classification at a prior of 0.01 (RetinaNet)."""
        self.transformer.init_weights()
        if self.heatmap_queries is not None:
            self.heatmap_queries.init_weights()
        for branch in self.cls_branches:
            nn.init.constant_(branch[-1].bias, bias_init_with_prob(0.01))

    @staticmethod
    def is_learned(query_source: str) -> bool:
        """Whether queries are learned (as published) or proposed by a heatmap.

        Raises:
            ValueError: ``query_source`` is neither.
        """
        if query_source not in ("learned", "heatmap"):
            raise ValueError(f"query_source is '{query_source}'; use 'learned' or 'heatmap'")
        return query_source == "learned"

    def start(self, proposals: HeatmapProposals | None, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Content and position (B, N, C) of the queries and their references (B, N, 3) in 0..1, entering the decoder."""
        if proposals is not None:
            return proposals.query, proposals.query_pos, proposals.references
        pos, content = self.query_embedding.weight.chunk(2, -1)
        query_pos, query = (t.expand(batch, -1, -1) for t in (pos, content))
        return query, query_pos, self.transformer.reference_points(query_pos).float().sigmoid()

    def classify(self, states: Tensor) -> Tensor:
        """Query states (L, B, N, C) to logits (L, B, N, classes)."""
        return torch.stack([branch(s) for branch, s in zip(self.cls_branches, states, strict=True)])

    def in_metres(self, code: Tensor) -> Tensor:
        """Code (..., 10) with its centre turned from 0..1 of the range to metres."""
        centre = to_metres(code[..., [0, 1, 4]], self.pc_range)
        return torch.cat([centre[..., :2], code[..., 2:4], centre[..., 2:], code[..., 5:]], -1)

    def output_loss(self, out: HeadOutput, gt_boxes: list[Tensor], gt_labels: list[Tensor]) -> dict[str, Tensor]:
        """Losses by name; per frame gt_boxes (n, 9) with centres of gravity and gt_labels (n,)."""
        losses = self.set_loss(out.logits, out.code, gt_boxes, gt_labels, self.code_weights)
        if out.proposals is not None and self.heatmap_queries is not None:
            losses |= self.heatmap_queries.loss(out.proposals, gt_boxes, gt_labels, self.code_weights)
        return losses

    def decode(self, out: HeadOutput) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Per frame: boxes (n, 9), scores (n,), labels (n,), query numbers (n,)."""
        return [
            decode_top(logits, code, self.max_num, self.post_center_range)
            for logits, code in zip(out.logits[-1], out.code[-1], strict=True)
        ]
