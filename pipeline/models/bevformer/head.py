"""BEVFormer's detection head: BEV and object queries, box branches, losses and decoding."""

from dataclasses import dataclass

import torch
from mmdet.models.layers import LearnedPositionalEncoding
from mmdet3d.registry import MODELS
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from ..boxes import CODE_SIZE, decode_top, to_metres
from ..matching import SetLoss
from .queries import HeatmapQueries, Proposals
from .transformer import PerceptionTransformer


@dataclass
class HeadOutput:
    """What the head predicts for a batch.

    Attributes:
        logits: (L, B, N, classes).
        code: (L, B, N, 10) with centres in metres.
        states: (L, B, N, C) query states.
        references: (L, B, N, 3) in 0..1, entering each layer.
        proposals: of a heatmap, when the queries come from one.
    """

    logits: Tensor
    code: Tensor
    states: Tensor
    references: Tensor
    proposals: Proposals | None


@MODELS.register_module()
class BEVFormerHead(BaseModule):
    """The head.

    Args:
        bev_h, bev_w: rows (y) and columns (x) of the BEV grid.
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
        num_query: object queries.
        transformer: settings of :class:`PerceptionTransformer`.
        query_source: ``learned`` (as published) or ``heatmap`` (see :class:`HeatmapQueries`).
        heatmap: further settings of :class:`HeatmapQueries`.
        code_weights: of the L1 terms; velocity counts 0.2 by default.
        post_center_range: limits for decoded centres, metres.
        max_num: boxes per frame.
    """

    def __init__(
        self,
        bev_h: int,
        bev_w: int,
        pc_range: list[float],
        transformer: dict,
        num_query: int = 900,
        num_classes: int = 10,
        embed_dims: int = 256,
        query_source: str = "learned",
        heatmap: dict | None = None,
        code_weights: tuple[float, ...] = (1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2),
        cls_weight: float = 2.0,
        box_weight: float = 0.25,
        post_center_range: list[float] | None = None,
        max_num: int = 300,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if query_source not in ("learned", "heatmap"):
            raise ValueError(f"query_source is '{query_source}'; use 'learned' or 'heatmap'")
        self.bev_h, self.bev_w, self.max_num = bev_h, bev_w, max_num
        learned = query_source == "learned"
        self.code_weights = nn.Parameter(torch.tensor(code_weights, dtype=torch.float32), requires_grad=False)
        self.positional_encoding = LearnedPositionalEncoding(embed_dims // 2, row_num_embed=bev_h, col_num_embed=bev_w)
        self.transformer = PerceptionTransformer(embed_dims=embed_dims, learned_references=learned, **transformer)
        layers = len(self.transformer.decoder.layers)
        self.cls_branches = nn.ModuleList(self._cls_branch(embed_dims, num_classes) for _ in range(layers))
        self.reg_branches = nn.ModuleList(self._reg_branch(embed_dims) for _ in range(layers))
        self.bev_embedding = nn.Embedding(bev_h * bev_w, embed_dims)
        if learned:
            self.query_embedding = nn.Embedding(num_query, embed_dims * 2)
            self.heatmap_queries = None
        else:
            self.heatmap_queries = HeatmapQueries(num_query, pc_range, embed_dims, num_classes, **(heatmap or {}))
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
        """Start classification at a prior of 0.01 (RetinaNet)."""
        self.transformer.init_weights()
        for branch in self.cls_branches:
            nn.init.constant_(branch[-1].bias, bias_init_with_prob(0.01))
        if self.heatmap_queries is not None:
            self.heatmap_queries.init_weights()

    @property
    def bev_hw(self) -> tuple[int, int]:
        """Rows and columns of the BEV grid."""
        return self.bev_h, self.bev_w

    def encode(
        self,
        features: list[Tensor],
        lidar2img: Tensor,
        image_hw: tuple[int, int],
        can_bus: Tensor,
        history: Tensor | None,
        has_history: Tensor,
    ) -> Tensor:
        """BEV map (B, H*W, C); arguments as in :meth:`PerceptionTransformer.encode`."""
        mask = lidar2img.new_zeros(1, *self.bev_hw)
        bev_pos = self.positional_encoding(mask)[0].flatten(1).transpose(0, 1)
        return self.transformer.encode(
            features,
            self.bev_embedding.weight,
            bev_pos,
            self.bev_hw,
            lidar2img,
            image_hw,
            can_bus,
            history,
            has_history,
        )

    def forward(self, bev: Tensor) -> HeadOutput:
        """Detect objects on a BEV map (B, H*W, C)."""
        proposals = None
        if self.heatmap_queries is not None:
            proposals = self.heatmap_queries(bev, self.bev_hw)
            query, query_pos, references = proposals.query, proposals.query_pos, proposals.references
        else:
            pos, content = self.query_embedding.weight.chunk(2, -1)
            query_pos, query = (t.expand(len(bev), -1, -1) for t in (pos, content))
            references = self.transformer.reference_points(query_pos).float().sigmoid()
        states, code, entered = self.transformer.decoder(
            query, query_pos, bev, references, self.bev_hw, self.reg_branches
        )
        logits = torch.stack([branch(s) for branch, s in zip(self.cls_branches, states, strict=True)])
        centre = to_metres(code[..., [0, 1, 4]], self.pc_range)
        code = torch.cat([centre[..., :2], code[..., 2:4], centre[..., 2:], code[..., 5:]], -1)
        return HeadOutput(logits, code, states, entered, proposals)

    def loss(self, bev: Tensor, gt_boxes: list[Tensor], gt_labels: list[Tensor]) -> dict[str, Tensor]:
        """Losses by name; per frame gt_boxes (n, 9) with centres of gravity and gt_labels (n,)."""
        out = self(bev)
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
