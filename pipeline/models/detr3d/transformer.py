"""DETR3D's transformer (Wang et al., 2021): a decoder over camera pyramids."""

from torch import nn

from ..decoder import DetectionDecoder
from .cross_attention import ProjectedCrossAttention


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
        self.num_cams = num_cams

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
