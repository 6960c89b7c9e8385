"""BEVFormer's detection head: BEV and object queries, box branches, losses and decoding."""

from typing import Any

from mmdet.models.layers import LearnedPositionalEncoding
from mmdet3d.registry import MODELS
from torch import Tensor, nn

from ..query_head import HeadOutput, QueryHead
from .queries import BEVHeatmapQueries
from .transformer import PerceptionTransformer


@MODELS.register_module()
class BEVFormerHead(QueryHead):
    """Detection head of BEVFormer.

    Args:
        bev_h, bev_w: rows (y) and columns (x) of the BEV grid.
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
        num_query: object queries.
        transformer: settings of :class:`PerceptionTransformer`.
        query_source: ``learned`` (as published) or ``heatmap`` (see :class:`BEVHeatmapQueries`).
        heatmap: further settings of :class:`BEVHeatmapQueries`.
        kwargs: of :class:`~pipeline.models.query_head.QueryHead`.
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
        **kwargs: Any,
    ) -> None:
        learned = self.is_learned(query_source)
        built = PerceptionTransformer(embed_dims=embed_dims, learned_references=learned, **transformer)
        super().__init__(pc_range, len(built.decoder.layers), num_classes, embed_dims, **kwargs)
        self.transformer = built
        self.bev_h, self.bev_w = bev_h, bev_w
        self.positional_encoding = LearnedPositionalEncoding(embed_dims // 2, row_num_embed=bev_h, col_num_embed=bev_w)
        self.bev_embedding = nn.Embedding(bev_h * bev_w, embed_dims)
        if learned:
            self.query_embedding = nn.Embedding(num_query, embed_dims * 2)
            self.heatmap_queries = None
        else:
            self.heatmap_queries = BEVHeatmapQueries(num_query, pc_range, embed_dims, num_classes, **(heatmap or {}))

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
        view_hw: Tensor | None = None,
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
            view_hw,
        )

    def forward(self, bev: Tensor) -> HeadOutput:
        """Detect objects on a BEV map (B, H*W, C)."""
        proposals = None if self.heatmap_queries is None else self.heatmap_queries(bev, self.bev_hw)
        context = (bev, [self.bev_hw])
        start = self.start(proposals, len(bev))
        states, code, entered = self.transformer.decoder(*start, self.reg_branches, context)
        return HeadOutput(self.classify(states), self.in_metres(code), states, entered, proposals)

    def loss(self, bev: Tensor, gt_boxes: list[Tensor], gt_labels: list[Tensor]) -> dict[str, Tensor]:
        """Losses by name; per frame gt_boxes (n, 9) with centres of gravity and gt_labels (n,)."""
        return self.output_loss(self(bev), gt_boxes, gt_labels)
