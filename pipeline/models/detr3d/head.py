"""DETR3D's detection head."""

from typing import Any

from mmdet3d.registry import MODELS
from torch import Tensor, nn

from pipeline.data.made_for import check_cameras

from ..query_head import HeadOutput, QueryHead
from .cross_attention import CameraPyramid
from .queries import ImageHeatmapQueries
from .transformer import DETR3DTransformer


@MODELS.register_module()
class DETR3DHead(QueryHead):
    """Detection head whose object queries read the camera pyramids.

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
        learned = self.is_learned(query_source)
        built = DETR3DTransformer(pc_range, embed_dims=embed_dims, learned_references=learned, **transformer)
        super().__init__(pc_range, len(built.decoder.layers), num_classes, embed_dims, **kwargs)
        self.transformer, self.num_cams = built, built.num_cams
        if learned:
            self.query_embedding = nn.Embedding(num_query, embed_dims * 2)
            self.heatmap_queries = None
        else:
            self.heatmap_queries = ImageHeatmapQueries(num_query, pc_range, embed_dims, num_classes, **(heatmap or {}))

    def forward(
        self, levels: list[Tensor], lidar2img: Tensor, image_hw: tuple[int, int], view_hw: Tensor | None = None
    ) -> HeadOutput:
        """Detect objects on levels (B, V, C, Hl, Wl).

        Args:
            lidar2img: (B, V, 4, 4) to pixels.
            image_hw: rows and columns of the padded image.
            view_hw: (B, V, 2) of each camera's own image, where images differ in size.

        Raises:
            FD3DError: the transformer is made for another number of cameras.
        """
        check_cameras(self.num_cams, lidar2img.shape[1])
        pyramid = CameraPyramid.from_levels(levels, lidar2img, image_hw, view_hw)
        proposals = None
        if self.heatmap_queries is not None:
            proposals = self.heatmap_queries(levels[0], lidar2img, image_hw, view_hw)
        start = self.start(proposals, len(lidar2img))
        states, code, entered = self.transformer.decoder(*start, self.reg_branches, (pyramid,))
        return HeadOutput(self.classify(states), self.in_metres(code), states, entered, proposals)
