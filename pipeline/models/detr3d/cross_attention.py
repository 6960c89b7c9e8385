"""DETR3D's cross-attention: every query reads the pyramids of the cameras at its one projected reference point."""

from dataclasses import dataclass

import torch
from mmdet.models.layers.transformer import inverse_sigmoid
from torch import Tensor, nn

from ..attention import DeformableSampler, Shapes, init_projections
from ..boxes import to_metres
from ..precision import in_float32
from ..views import own_extent


@dataclass
class CameraPyramid:
    """Camera pyramid that the queries read; made once per frame and shared by all decoder layers.

    Attributes:
        tokens: (B*V, sum H*W, C) pyramid levels concatenated.
        shapes: rows and columns of each level.
        lidar2img: (B, V, 4, 4) to pixels of the unpadded image.
        image_hw: rows and columns of the *padded* image, which normalise projections.
        view_hw: (B, V, 2) rows and columns of each camera's own image; None where all images have one size.
    """

    tokens: Tensor
    shapes: Shapes
    lidar2img: Tensor
    image_hw: tuple[int, int]
    view_hw: Tensor | None = None

    @classmethod
    def from_levels(
        cls, levels: list[Tensor], lidar2img: Tensor, image_hw: tuple[int, int], view_hw: Tensor | None = None
    ) -> "CameraPyramid":
        """Camera pyramid of levels (B, V, C, Hl, Wl)."""
        tokens = torch.cat([level.flatten(0, 1).flatten(2).transpose(1, 2) for level in levels], 1)
        shapes = [(level.shape[-2], level.shape[-1]) for level in levels]
        return cls(tokens, shapes, lidar2img, image_hw, view_hw)


@in_float32
def project_points(
    points: Tensor, lidar2img: Tensor, image_hw: tuple[int, int], view_hw: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Project points into every camera.

    Args:
        points: (B, N, 3) metres, LiDAR frame.
        lidar2img: (B, V, 4, 4) to pixels.
        image_hw: rows and columns that normalise.
        view_hw: (B, V, 2) rows and columns of each camera's own image; None where all images have one size.

    Returns:
        uv (B, V, N, 2) in 0..1 and the mask of points strictly inside an image and in front of it (B, V, N).
    """
    eps = 1e-5
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], -1)
    cam = torch.einsum("bvij,bnj->bvni", lidar2img, homogeneous)
    depth = cam[..., 2]
    uv = cam[..., :2] / depth.clamp(min=eps)[..., None] / cam.new_tensor([image_hw[1], image_hw[0]])
    visible = (depth > eps) & (uv > 0).all(-1) & (uv < own_extent(image_hw, view_hw)).all(-1)
    return torch.nan_to_num(uv), visible


class ProjectedCrossAttention(nn.Module):
    """Cross-attention with one sample per camera and level at the projected reference.

    Samples are weighted by a sigmoid, and are zero where the reference is not visible.

    The weights are no softmax and are not divided by the number of cameras (as published).

    Args:
        embed_dims: C.
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
        num_cams: V.
        num_levels: pyramid levels.
        dropout: on the output.
    """

    pc_range: Tensor

    def __init__(
        self, embed_dims: int, pc_range: list[float], num_cams: int = 6, num_levels: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.num_cams, self.num_levels = num_cams, num_levels
        self.attention_weights = nn.Linear(embed_dims, num_cams * num_levels)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.position_encoder = nn.Sequential(
            nn.Linear(3, embed_dims),
            nn.LayerNorm(embed_dims),
            nn.ReLU(),
            nn.Linear(embed_dims, embed_dims),
            nn.LayerNorm(embed_dims),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(dropout)
        self.sampler = DeformableSampler()
        self.register_buffer("pc_range", torch.tensor(pc_range), persistent=False)

    def init_weights(self) -> None:
        """Equal attention everywhere."""
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        init_projections(self.output_proj)

    def forward(self, query: Tensor, query_pos: Tensor, references: Tensor, pyramid: CameraPyramid) -> Tensor:
        """query, query_pos (B, N, C); references (B, N, 3) in 0..1 -> (B, N, C)."""
        batch, num, _ = query.shape
        points = to_metres(references, self.pc_range)
        uv, visible = project_points(points, pyramid.lidar2img, pyramid.image_hw, pyramid.view_hw)
        weights = self.attention_weights(query + query_pos).view(batch, num, self.num_cams, self.num_levels)
        weights = weights.float().sigmoid().permute(0, 2, 1, 3) * visible[..., None]
        # the deformable sampler with one head, one point, and cameras in the batch
        locations = uv.flatten(0, 1)[:, :, None, None, None].expand(-1, -1, -1, self.num_levels, -1, -1)
        read = self.sampler(
            pyramid.tokens[:, :, None], pyramid.shapes, locations, weights.flatten(0, 1)[:, :, None, :, None]
        )
        update = self.output_proj(read.unflatten(0, (batch, -1)).sum(1))
        return query + self.dropout(update) + self.position_encoder(inverse_sigmoid(references, eps=1e-5))
