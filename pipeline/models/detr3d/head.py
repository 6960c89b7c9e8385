"""DETR3D's detection head."""

from dataclasses import dataclass
from typing import Any

from mmdet3d.registry import MODELS
from torch import Tensor, nn

from ..decoder import DetectionDecoder
from ..query_head import HeadOutput, QueryHead
from .cross_attention import CameraPyramid, ProjectedCrossAttention
from .queries import ImageHeatmapQueries, ImageProposals


@dataclass
class CameraHeadOutput(HeadOutput):
    """With the proposals of heatmaps, when the queries come from them."""

    proposals: ImageProposals | None


class DETR3DTransformer(nn.Module):
    """Decoder and initial reference points.

    Args:
        pc_range: metres.
        decoder: settings of :class:`~pipeline.models.decoder.DetectionDecoder`.
        num_cams, num_levels: of the pyramid that queries read.
        learned_references: predict initial reference points from learned query embeddings.
    """

    def __init__(
        self,
        pc_range: list[float],
        decoder: dict,
        embed_dims: int = 256,
        num_cams: int = 6,
        num_levels: int = 4,
        learned_references: bool = True,
    ) -> None:
        super().__init__()

        def cross_attention(dims: int, heads: int, dropout: float) -> nn.Module:
            return ProjectedCrossAttention(dims, pc_range, num_cams, num_levels, dropout)

        self.decoder = DetectionDecoder(cross_attention, embed_dims=embed_dims, **decoder)
        if learned_references:
            self.reference_points = nn.Linear(embed_dims, 3)

    def init_weights(self) -> None:
        """Xavier for all matrices, then each attention's own start."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, ProjectedCrossAttention):
                module.init_weights()
        if hasattr(self, "reference_points"):
            nn.init.zeros_(self.reference_points.bias)


@MODELS.register_module()
class DETR3DHead(QueryHead):
    """Object queries that read the camera pyramids.

    Args:
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
        transformer: settings of :class:`DETR3DTransformer`.
        num_query: object queries.
        query_source: ``learned`` (as published) or ``heatmap`` (see :class:`ImageHeatmapQueries`).
        heatmap: further settings of :class:`ImageHeatmapQueries`.
        kwargs: of :class:`~pipeline.models.query_head.QueryHead`.
    """

    def __init__(
        self,
        pc_range: list[float],
        transformer: dict,
        num_query: int = 900,
        num_classes: int = 10,
        embed_dims: int = 256,
        query_source: str = "learned",
        heatmap: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if query_source not in ("learned", "heatmap"):
            raise ValueError(f"query_source is '{query_source}'; use 'learned' or 'heatmap'")
        learned = query_source == "learned"
        built = DETR3DTransformer(pc_range, embed_dims=embed_dims, learned_references=learned, **transformer)
        super().__init__(pc_range, len(built.decoder.layers), num_classes, embed_dims, **kwargs)
        self.transformer = built
        if learned:
            self.query_embedding = nn.Embedding(num_query, embed_dims * 2)
            self.heatmap_queries = None
        else:
            self.heatmap_queries = ImageHeatmapQueries(num_query, pc_range, embed_dims, num_classes, **(heatmap or {}))

    def init_weights(self) -> None:
        """The transformer's start, and classification at a prior of 0.01."""
        self.transformer.init_weights()
        super().init_weights()
        if self.heatmap_queries is not None:
            self.heatmap_queries.init_weights()

    def forward(self, levels: list[Tensor], lidar2img: Tensor, image_hw: tuple[int, int]) -> CameraHeadOutput:
        """levels (B, V, C, Hl, Wl), lidar2img (B, V, 4, 4), image_hw of the padded image."""
        pyramid = CameraPyramid.from_levels(levels, lidar2img, image_hw)
        proposals = None
        if self.heatmap_queries is not None:
            proposals = self.heatmap_queries(levels[0], lidar2img, image_hw)
            query, query_pos, references = proposals.query, proposals.query_pos, proposals.references
        else:
            pos, content = self.query_embedding.weight.chunk(2, -1)
            query_pos, query = (t.expand(len(lidar2img), -1, -1) for t in (pos, content))
            references = self.transformer.reference_points(query_pos).float().sigmoid()
        states, code, entered = self.transformer.decoder(query, query_pos, references, self.reg_branches, (pyramid,))
        return CameraHeadOutput(self.classify(states), self.in_metres(code), states, entered, proposals)

    def output_loss(self, out: HeadOutput, gt_boxes: list[Tensor], gt_labels: list[Tensor]) -> dict[str, Tensor]:
        """Losses by name, those of the proposals with them; arguments as :meth:`QueryHead.output_loss`."""
        losses = super().output_loss(out, gt_boxes, gt_labels)
        if isinstance(out, CameraHeadOutput) and out.proposals is not None and self.heatmap_queries is not None:
            losses |= self.heatmap_queries.loss(out.proposals, gt_boxes, gt_labels)
        return losses
