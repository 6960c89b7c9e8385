"""Ego-motion alignment, camera and level embeddings, encoder and decoder in one module."""

import math

import torch
from torch import Tensor, nn

from pipeline.data.made_for import check_cameras

from ..decoder import DetectionDecoder
from ..precision import in_float32
from .cross_attention import BEVDeformableAttention
from .encoder import BEVFormerEncoder, CameraTokens


def rotate_bev(
    bev: Tensor, degrees: Tensor, center: tuple[float, float] | None = None, mode: str = "nearest"
) -> Tensor:
    """Rotate BEV maps counter-clockwise about a point, filling with zeros.

    The semantics of torchvision's tensor ``rotate`` (sampling grid of cell centres, nearest neighbour), batched.

    Args:
        bev: (B, C, H, W).
        degrees: (B,).
        center: (x, y) in cells from the upper left corner; None is the middle of the map.
        mode: ``nearest`` (what official checkpoints were trained with) or ``bilinear``.
    """
    grid = _rotation_grid(degrees, (bev.shape[-2], bev.shape[-1]), center)
    return nn.functional.grid_sample(bev.float(), grid, mode=mode, padding_mode="zeros", align_corners=False).to(
        bev.dtype
    )


@in_float32
def _rotation_grid(degrees: Tensor, size: tuple[int, int], center: tuple[float, float] | None) -> Tensor:
    """Positions (B, H, W, 2) in -1..1 that the cells of a rotated map of ``size`` read; arguments as of :func:`rotate_bev`."""
    height, width = size
    cx, cy = (0.0, 0.0) if center is None else (center[0] - width * 0.5, center[1] - height * 0.5)
    angle = -degrees.double() * (math.pi / 180.0)
    cos, sin = angle.cos(), angle.sin()
    # inverse map: output offset from the middle -> source offset from the middle
    row_x = torch.stack([cos, sin, cx - cos * cx - sin * cy], -1)
    row_y = torch.stack([-sin, cos, cy + sin * cx - cos * cy], -1)
    half = torch.tensor([0.5 * width, 0.5 * height], device=degrees.device)
    theta = torch.stack([row_x, row_y], -1).float() / half  # (B, 3, 2)
    xs = torch.linspace(-width * 0.5 + 0.5, width * 0.5 - 0.5, width, device=degrees.device)
    ys = torch.linspace(-height * 0.5 + 0.5, height * 0.5 - 0.5, height, device=degrees.device)
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    base = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3)
    return base.expand(len(degrees), -1, -1).bmm(theta).view(-1, height, width, 2)


def ego_shift(can_bus: Tensor, pc_range: Tensor) -> Tensor:
    """Ego translation since the previous frame as a fraction of the BEV extent (BEVFormer's formula).

    Args:
        can_bus: (B, 18) with position deltas in [0:2] (global frame, metres) and the absolute yaw in radians in [-2].
        pc_range: (6,) metres.

    Returns:
        (B, 2) x and y: where a cell of the current map lay in the previous one.
    """
    dx, dy, yaw = can_bus[:, 0], can_bus[:, 1], can_bus[:, -2]
    length, bev_angle = torch.hypot(dx, dy), yaw - torch.atan2(dy, dx)
    extent = pc_range[3:5] - pc_range[:2]
    return torch.stack([length * bev_angle.sin(), length * bev_angle.cos()], -1) / extent


class PerceptionTransformer(nn.Module):
    """Encoder and decoder with their embeddings.

    Args:
        encoder: settings of :class:`BEVFormerEncoder`.
        decoder: settings of :class:`~pipeline.models.decoder.DetectionDecoder`, and ``num_points`` per head.
        learned_references: predict initial reference points from learned query embeddings.
        rotate_center: (x, y) cells; None is the middle. Public BEVFormer always uses (100, 100).
        rotate_mode: ``nearest`` or ``bilinear``.
    """

    max_levels = 4  # official checkpoints carry four level embeddings whatever the pyramid

    def __init__(
        self,
        encoder: dict,
        decoder: dict,
        embed_dims: int = 256,
        num_cams: int = 6,
        learned_references: bool = True,
        rotate_center: tuple[float, float] | None = None,
        rotate_mode: str = "nearest",
    ) -> None:
        super().__init__()
        self.rotate_center, self.rotate_mode = rotate_center, rotate_mode
        self.encoder = BEVFormerEncoder(embed_dims=embed_dims, **encoder)
        points = decoder.get("num_points", 4)
        settings = {name: value for name, value in decoder.items() if name != "num_points"}

        def cross_attention(dims: int, heads: int, dropout: float) -> nn.Module:
            return BEVDeformableAttention(dims, heads, points, dropout)

        self.decoder = DetectionDecoder(cross_attention, embed_dims=embed_dims, **settings)
        self.level_embeds = nn.Parameter(torch.empty(self.max_levels, embed_dims))
        self.cams_embeds = nn.Parameter(torch.empty(num_cams, embed_dims))
        if learned_references:
            self.reference_points = nn.Linear(embed_dims, 3)
        self.can_bus_mlp = nn.Sequential(
            nn.Linear(18, embed_dims // 2), nn.ReLU(), nn.Linear(embed_dims // 2, embed_dims), nn.ReLU()
        )
        self.can_bus_mlp.add_module("norm", nn.LayerNorm(embed_dims))

    def init_weights(self) -> None:
        """Xavier for all matrices, then each attention's own start, then unit-normal embeddings."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if module is not self and hasattr(module, "sampler"):
                module.init_weights()
        nn.init.normal_(self.level_embeds)
        nn.init.normal_(self.cams_embeds)

    def encode(
        self,
        features: list[Tensor],
        bev_query: Tensor,
        bev_pos: Tensor,
        bev_hw: tuple[int, int],
        lidar2img: Tensor,
        image_hw: tuple[int, int],
        can_bus: Tensor,
        history: Tensor | None,
        has_history: Tensor,
        view_hw: Tensor | None = None,
    ) -> Tensor:
        """BEV map of camera features.

        Args:
            features: per level (B, V, C, H, W).
            bev_query: (H*W, C) shared by the batch.
            bev_pos: (H*W, C).
            lidar2img: (B, V, 4, 4).
            can_bus: (B, 18) with deltas.
            history: (B, H*W, C) BEV of the previous frame in its own heading, or None.
            has_history: (B,) bool.
            view_hw: (B, V, 2) rows and columns of each camera's own image, where images differ in size.

        Returns:
            (B, H*W, C).
        """
        batch = len(lidar2img)
        query = bev_query + self.can_bus_mlp(can_bus)[:, None]
        if history is not None:
            maps = history.transpose(1, 2).unflatten(-1, bev_hw)
            maps = rotate_bev(maps, can_bus[:, -1], self.rotate_center, self.rotate_mode)
            history = maps.flatten(2).transpose(1, 2)
        check_cameras(len(self.cams_embeds), features[0].shape[1])
        embeddings = self.cams_embeds[:, None] + self.level_embeds[: len(features)]
        return self.encoder(
            query,
            bev_pos.expand(batch, -1, -1),
            CameraTokens(features, embeddings),
            bev_hw,
            lidar2img,
            image_hw,
            history,
            has_history,
            ego_shift(can_bus, self.encoder.pc_range),
            view_hw,
        )
