"""DETR3D's detection head."""

from typing import Any

from mmdet3d.registry import MODELS
from torch import Tensor, nn

from ..decoder import DetectionDecoder
from ..query_head import HeadOutput, QueryHead
from .cross_attention import CameraPyramid, ProjectedCrossAttention


class DETR3DTransformer(nn.Module):
    """Decoder and initial reference points.

    Args:
        pc_range: metres.
        decoder: settings of :class:`~pipeline.models.decoder.DetectionDecoder`.
        num_cams, num_levels: of the pyramid that queries read.
    """

    def __init__(
        self, pc_range: list[float], decoder: dict, embed_dims: int = 256, num_cams: int = 6, num_levels: int = 4
    ) -> None:
        super().__init__()

        def cross_attention(dims: int, heads: int, dropout: float) -> nn.Module:
            return ProjectedCrossAttention(dims, pc_range, num_cams, num_levels, dropout)

        self.decoder = DetectionDecoder(cross_attention, embed_dims=embed_dims, **decoder)
        self.reference_points = nn.Linear(embed_dims, 3)

    def init_weights(self) -> None:
        """Xavier for all matrices, then each attention's own start."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, ProjectedCrossAttention):
                module.init_weights()
        nn.init.zeros_(self.reference_points.bias)


@MODELS.register_module()
class DETR3DHead(QueryHead):
    """Learned object queries that read the camera pyramids.

    Args:
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
        transformer: settings of :class:`DETR3DTransformer`.
        num_query: object queries.
        kwargs: of :class:`~pipeline.models.query_head.QueryHead`.
    """

    def __init__(
        self, pc_range: list[float], transformer: dict, num_query: int = 900, embed_dims: int = 256, **kwargs: Any
    ) -> None:
        built = DETR3DTransformer(pc_range, embed_dims=embed_dims, **transformer)
        super().__init__(pc_range, len(built.decoder.layers), embed_dims=embed_dims, **kwargs)
        self.transformer = built
        self.query_embedding = nn.Embedding(num_query, embed_dims * 2)

    def init_weights(self) -> None:
        """The transformer's start, and classification at a prior of 0.01."""
        self.transformer.init_weights()
        super().init_weights()

    def forward(self, levels: list[Tensor], lidar2img: Tensor, image_hw: tuple[int, int]) -> HeadOutput:
        """levels (B, V, C, Hl, Wl), lidar2img (B, V, 4, 4), image_hw of the padded image."""
        pyramid = CameraPyramid.from_levels(levels, lidar2img, image_hw)
        pos, content = self.query_embedding.weight.chunk(2, -1)
        query_pos, query = (t.expand(len(lidar2img), -1, -1) for t in (pos, content))
        references = self.transformer.reference_points(query_pos).float().sigmoid()
        states, code, entered = self.transformer.decoder(query, query_pos, references, self.reg_branches, (pyramid,))
        return HeadOutput(self.classify(states), self.in_metres(code), states, entered)
