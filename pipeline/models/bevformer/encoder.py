"""BEVFormer's encoder (Li et al., 2022): temporal self-attention and spatial cross-attention over a BEV grid."""

import torch
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn

from .grid import camera_hits, grid_points, project_pillars
from .spatial import CameraTokens, SpatialCrossAttention
from .temporal import TemporalSelfAttention


class BEVFormerLayer(nn.Module):
    """Encoder layer: temporal self-attention, spatial cross-attention, feed-forward; each followed by LayerNorm."""

    attentions: nn.ModuleList
    norms: nn.ModuleList
    ffns: nn.ModuleList

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        feedforward_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [
                TemporalSelfAttention(embed_dims, num_heads, dropout=dropout),
                SpatialCrossAttention(embed_dims, num_heads, num_levels, num_points, dropout),
            ]
        )
        self.ffns = nn.ModuleList([FFN(embed_dims, feedforward_channels, ffn_drop=dropout)])
        self.norms = nn.ModuleList([nn.LayerNorm(embed_dims) for _ in range(3)])


class BEVFormerEncoder(nn.Module):
    """Encoder from camera features to a BEV map.

    Args:
        num_layers: encoder layers.
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
        num_points_in_pillar: D heights, equally spaced over the z range; ``pillar_heights`` (metres) overrides them.
        shift_current: shift the current frame's reference points by the ego motion too. The FD3D release and BEVFormer
            before July 2023 did, by aliasing; needed for checkpoints that come from them. None takes the setting from a
            converted checkpoint's notes, and without one is False.

    Attributes:
        states_shift: whether ``shift_current`` was given.
    """

    pc_range: Tensor
    heights: Tensor

    def __init__(
        self,
        pc_range: list[float],
        num_layers: int = 6,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
        num_points_in_pillar: int = 4,
        pillar_heights: list[float] | None = None,
        feedforward_channels: int = 512,
        dropout: float = 0.1,
        shift_current: bool | None = None,
    ) -> None:
        super().__init__()
        self.shift_current, self.states_shift = bool(shift_current), shift_current is not None
        self.layers = nn.ModuleList(
            BEVFormerLayer(embed_dims, num_heads, num_levels, num_points, feedforward_channels, dropout)
            for _ in range(num_layers)
        )
        self.register_buffer("pc_range", torch.tensor(pc_range), persistent=False)
        low, high = pc_range[2], pc_range[5]
        if pillar_heights is not None:
            heights = (torch.tensor(pillar_heights) - low) / (high - low)
        else:
            heights = torch.linspace(0.5, high - low - 0.5, num_points_in_pillar) / (high - low)
        self.register_buffer("heights", heights, persistent=False)

    def forward(
        self,
        bev_query: Tensor,
        bev_pos: Tensor,
        tokens: CameraTokens,
        bev_hw: tuple[int, int],
        lidar2img: Tensor,
        image_hw: tuple[int, int],
        history: Tensor | None,
        has_history: Tensor,
        shift: Tensor,
        view_hw: Tensor | None = None,
    ) -> Tensor:
        """Encode camera features into a BEV map.

        Args:
            bev_query: (B, N, C).
            bev_pos: (B, N, C); enters temporal self-attention only.
            tokens: camera features with camera and level embeddings.
            lidar2img: (B, V, 4, 4).
            image_hw: of the padded image.
            history: (B, N, C) rotated to the current heading, or None.
            has_history: (B,) bool; samples without history attend to their own query twice.
            shift: (B, 2) x and y of the ego motion as a fraction of the BEV extent.
            view_hw: (B, V, 2) rows and columns of each camera's own image, where images differ in size.

        Returns:
            (B, N, C).
        """
        points = grid_points(*bev_hw, bev_query.device)
        bev_shapes = [bev_hw]
        hits = camera_hits(*project_pillars(points, self.heights, self.pc_range, lidar2img, image_hw, view_hw))
        moved = points + (shift * has_history[:, None])[:, None]
        current = moved if self.shift_current else points.expand_as(moved)
        references = torch.stack([moved, current], 1)
        # With history the "current" map stays the encoder's input in every layer, without it both maps are the query.
        maps = None if history is None else torch.stack([history, bev_query], 1)
        # a GPU would have to be waited for to learn this
        mixed = maps is not None and (has_history.device.type != "cpu" or not has_history.all())
        gate = has_history[:, None, None, None]
        query = bev_query
        for layer in self.layers:
            seen = maps
            if seen is None or mixed:
                own = query[:, None].expand(-1, 2, -1, -1)
                seen = own if maps is None else torch.where(gate, maps, own)
            query = layer.norms[0](layer.attentions[0](query, bev_pos, seen, references, bev_shapes))
            query = layer.norms[1](layer.attentions[1](query, tokens, hits))
            query = layer.norms[2](layer.ffns[0](query))
        return query
