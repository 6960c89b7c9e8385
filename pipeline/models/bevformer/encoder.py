"""BEVFormer's encoder (Li et al., 2022): temporal self-attention and spatial cross-attention over a BEV grid."""

from dataclasses import dataclass
from functools import cached_property

import torch
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn

from ..attention import (
    DeformableSampler,
    Shapes,
    infers_on_cpu,
    init_projections,
    init_ring_offsets,
    per_cell,
    row_blocks,
)


@dataclass
class CameraHits:
    """Which BEV cells each camera sees and where; made once per frame and shared by all encoder layers.

    Attributes:
        index: (B*V, T) int64 cells seen, padded to the longest list T.
        valid: (B*V, T) False on padding.
        points: (B*V, T, D, 2) x and y of the pillar's D heights in 0..1 of the padded image.
        count: (B, N, 1) number of cameras that see a cell, at least 1.
        lengths: B*V numbers of cells seen.
    """

    index: Tensor
    valid: Tensor
    points: Tensor
    count: Tensor
    lengths: list[int]


@dataclass
class CameraTokens:
    """What BEV queries read from the cameras, with what tells cameras and levels apart; shared by all encoder layers.

    Attributes:
        levels: (B, V, C, Hl, Wl) each.
        embeddings: (V, levels, C), of the camera plus of the level, added to every cell.
    """

    levels: list[Tensor]
    embeddings: Tensor

    @property
    def shapes(self) -> Shapes:
        """Rows and columns of each level."""
        return [(level.shape[-2], level.shape[-1]) for level in self.levels]

    @cached_property
    def joined(self) -> Tensor:
        """(B*V, sum H*W, C)."""
        rows = [
            level.flatten(3).transpose(2, 3) + self.embeddings[:, i, None].to(level.dtype)
            for i, level in enumerate(self.levels)
        ]
        return torch.cat(rows, 2).flatten(0, 1)

    @cached_property
    def _scratch(self) -> Tensor:
        """One buffer for the values of all layers: touching fresh memory costs as much as filling it."""
        batch, views, channels = self.levels[0].shape[:3]
        return self.levels[0].new_empty(batch * views, sum(h * w for h, w in self.shapes), channels)

    def project(self, linear: nn.Linear) -> Tensor:
        """``linear(joined)``, (B*V, sum H*W, C); in inference on a CPU valid until the next call."""
        if not infers_on_cpu(linear.weight, *self.levels):
            return linear(self.joined)
        # embeddings are equal for all cells of a level: they are projected once, and levels are read where they lie
        bias = linear(self.embeddings)
        start, views = 0, len(bias)
        for i, level in enumerate(self.levels):
            cells = level.permute(0, 1, 3, 4, 2).flatten(2, 3).flatten(0, 1)  # (B*V, H*W, C)
            for n, rows in enumerate(cells):
                out = self._scratch[n, start : start + len(rows)]
                torch.addmm(bias[n % views, i], rows, linear.weight.T, out=out)
            start += cells.shape[1]
        return self._scratch


def grid_points(height: int, width: int, device: torch.device) -> Tensor:
    """Centres of the BEV cells, (H*W, 2) x and y in 0..1, row-major."""
    ys = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    xs = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def project_pillars(
    points: Tensor, heights: Tensor, pc_range: Tensor, lidar2img: Tensor, image_hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Project every cell's pillar of 3D points into every camera.

    Args:
        points: (N, 2) cell centres in 0..1.
        heights: (D,) heights in 0..1 of pc_range.
        pc_range: (6,) metres.
        lidar2img: (B, V, 4, 4) to pixels of the unpadded image.
        image_hw: rows and columns of the *padded* image; both normalise the result (as official checkpoints expect).

    Returns:
        uv (B, V, N, D, 2) in 0..1 and the mask of points strictly inside an image and in front of it (B, V, N, D).
    """
    eps = 1e-5
    num, depth = len(points), len(heights)
    unit = torch.cat([points[:, None].expand(num, depth, 2), heights[None, :, None].expand(num, depth, 1)], -1)
    metres = unit * (pc_range[3:] - pc_range[:3]) + pc_range[:3]
    homogeneous = torch.cat([metres, torch.ones_like(metres[..., :1])], -1)
    cam = torch.einsum("bvij,ndj->bvndi", lidar2img, homogeneous)
    z = cam[..., 2]
    uv = cam[..., :2] / z.clamp(min=eps)[..., None] / cam.new_tensor([image_hw[1], image_hw[0]])
    mask = (z > eps) & (uv > 0).all(-1) & (uv < 1).all(-1)
    return torch.nan_to_num(uv), mask


def camera_hits(uv: Tensor, mask: Tensor) -> CameraHits:
    """Compact the cells seen per camera, each sample of the batch by its own mask.

    Args:
        uv: (B, V, N, D, 2).
        mask: (B, V, N, D).
    """
    seen = mask.any(-1).flatten(0, 1)  # (B*V, N)
    count = mask.any(-1).sum(1).clamp(min=1)[..., None]
    # The one host sync of the encoder: the lengths of the lists.
    lengths = seen.sum(-1).tolist()
    longest = max(*lengths, 1)
    # A stable sort of "not seen" lists the seen cells first, in cell order.
    index = (~seen).to(torch.uint8).argsort(dim=-1, stable=True)[:, :longest]
    valid = seen.gather(1, index)
    points = uv.flatten(0, 1).gather(1, index[..., None, None].expand(-1, -1, *uv.shape[3:]))
    return CameraHits(index, valid, points, count, lengths)


class TemporalSelfAttention(nn.Module):
    """Deformable attention of the BEV queries to the aligned history and to themselves.

    Args:
        embed_dims: C.
        num_heads: M.
        num_points: P per head and per map.
        dropout: on the output.
    """

    num_maps = 2  # history and current

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_points: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.num_heads, self.num_points = num_heads, num_points
        samples = self.num_maps * num_heads * num_points
        self.sampling_offsets = nn.Linear(embed_dims * self.num_maps, samples * 2)
        self.attention_weights = nn.Linear(embed_dims * self.num_maps, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.sampler = DeformableSampler()

    def init_weights(self) -> None:
        """Ring offsets, uniform attention."""
        init_ring_offsets(self.sampling_offsets, self.num_heads, self.num_maps, self.num_points)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        init_projections(self.value_proj, self.output_proj)

    def forward(self, query: Tensor, query_pos: Tensor, maps: Tensor, references: Tensor, shapes: Shapes) -> Tensor:
        """Attend.

        Args:
            query: (B, N, C).
            query_pos: (B, N, C).
            maps: (B, 2, N, C) history and current.
            references: (B, 2, N, 2) in 0..1, where to look in each map.
            shapes: of the BEV grid, one level.
        """
        value = self.value_proj(maps.flatten(0, 1)).unflatten(-1, (self.num_heads, -1))
        blocks = row_blocks(query.shape[1]) if infers_on_cpu(query, maps, value) else [slice(None)]
        sampled = [
            self._sample(query[:, rows] + query_pos[:, rows], maps[:, 0, rows], value, references[:, :, rows], shapes)
            for rows in blocks
        ]
        return query + self.dropout(self.output_proj(torch.cat(sampled, 1)))

    def _sample(self, posed: Tensor, history: Tensor, value: Tensor, references: Tensor, shapes: Shapes) -> Tensor:
        """posed, history (B, n, C), value (B*2, N, M, C/M), references (B, 2, n, 2) -> (B, n, C)."""
        batch, num, _ = posed.shape
        heads, points = self.num_heads, self.num_points
        joined = torch.cat([history, posed], -1)
        offsets = self.sampling_offsets(joined).view(batch, num, heads, self.num_maps, 1, points, 2)
        weights = self.attention_weights(joined).view(batch, num, heads, self.num_maps, 1, points).softmax(-1)
        offsets = offsets.permute(0, 3, 1, 2, 4, 5, 6).flatten(0, 1) / per_cell(shapes, posed.device)
        weights = weights.permute(0, 3, 1, 2, 4, 5).flatten(0, 1)
        locations = references.flatten(0, 1)[:, :, None, None, None] + offsets
        return self.sampler(value, shapes, locations, weights).unflatten(0, (batch, self.num_maps)).mean(1)


class MSDeformableAttention3D(nn.Module):
    """Deformable attention into one camera's feature pyramid around the projected pillar points.

    Args:
        embed_dims: C.
        num_heads: M.
        num_levels: pyramid levels.
        num_points: P per head and level, a multiple of the pillar heights D; the height is the fastest index.
    """

    def __init__(self, embed_dims: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 8) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dims, samples * 2)
        self.attention_weights = nn.Linear(embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.sampler = DeformableSampler()

    def init_weights(self) -> None:
        """Ring offsets, uniform attention."""
        init_ring_offsets(self.sampling_offsets, self.num_heads, self.num_levels, self.num_points)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        init_projections(self.value_proj)

    def forward(self, query: Tensor, tokens: CameraTokens, points: Tensor, lengths: list[int]) -> Tensor:
        """Attend.

        Args:
            query: (B*V, T, C).
            points: (B*V, T, D, 2) in 0..1 of the padded image.
            lengths: B*V numbers of queries that count; what the others give is not defined.

        Returns:
            (B*V, T, C).
        """
        shapes, value = tokens.shapes, tokens.project(self.value_proj).unflatten(-1, (self.num_heads, -1))
        if not infers_on_cpu(query, value):
            return self._sample(query, value, points, shapes)
        out = torch.zeros_like(query)
        for n, length in enumerate(lengths):
            for rows in row_blocks(length):
                out[n, rows] = self._sample(query[n, None, rows], value[n, None], points[n, None, rows], shapes)[0]
        return out

    def _sample(self, query: Tensor, value: Tensor, points: Tensor, shapes: Shapes) -> Tensor:
        batch, num, _ = query.shape
        heads, levels, samples, depth = self.num_heads, self.num_levels, self.num_points, points.shape[2]
        offsets = self.sampling_offsets(query).view(batch, num, heads, levels, samples // depth, depth, 2)
        weights = self.attention_weights(query).view(batch, num, heads, levels * samples).softmax(-1)
        locations = points[:, :, None, None, None] + offsets / per_cell(shapes, query.device)[:, None]
        weights = weights.view(batch, num, heads, levels, samples)
        return self.sampler(value, shapes, locations.flatten(4, 5), weights)


class SpatialCrossAttention(nn.Module):
    """Each BEV query gathers from the cameras that see its pillar; the mean over those cameras is its update."""

    def __init__(
        self, embed_dims: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 8, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.deformable_attention = MSDeformableAttention3D(embed_dims, num_heads, num_levels, num_points)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """Xavier output projection."""
        init_projections(self.output_proj)

    def forward(self, query: Tensor, tokens: CameraTokens, hits: CameraHits) -> Tensor:
        """query (B, N, C) -> (B, N, C)."""
        batch, num, dims = query.shape
        views = len(hits.index) // batch
        # numbers of the cells in the batch's concatenated maps
        sample = torch.arange(batch * views, device=query.device) // views
        cells = (hits.index + (sample * num)[:, None]).flatten()
        gathered = query.flatten(0, 1)[cells].unflatten(0, hits.index.shape)
        attended = self.deformable_attention(gathered, tokens, hits.points, hits.lengths)
        attended = attended.masked_fill(~hits.valid[..., None], 0.0).flatten(0, 1)
        slots = attended.new_zeros(batch * num, dims).index_add(0, cells, attended).view(batch, num, dims)
        return query + self.dropout(self.output_proj(slots / hits.count))


class BEVFormerLayer(nn.Module):
    """Temporal self-attention, spatial cross-attention, feed-forward; each followed by LayerNorm."""

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
    """From camera features to a BEV map.

    Args:
        num_layers: encoder layers.
        pc_range: (x0, y0, z0, x1, y1, z1) metres.
        num_points_in_pillar: D heights, equally spaced over the z range; ``pillar_heights`` (metres) overrides them.
        shift_current: shift the current frame's reference points by the ego motion too. The FD3D release and BEVFormer
            before July 2023 did, by aliasing; needed for checkpoints that come from them.
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
        shift_current: bool = False,
    ) -> None:
        super().__init__()
        self.shift_current = shift_current
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
    ) -> Tensor:
        """Encode.

        Args:
            bev_query: (B, N, C).
            bev_pos: (B, N, C); enters temporal self-attention only.
            tokens: camera features with camera and level embeddings.
            lidar2img: (B, V, 4, 4).
            image_hw: of the padded image.
            history: (B, N, C) rotated to the current heading, or None.
            has_history: (B,) bool; samples without attend to their own query twice.
            shift: (B, 2) x and y of the ego motion as a fraction of the BEV extent.

        Returns:
            (B, N, C).
        """
        points = grid_points(*bev_hw, bev_query.device)
        bev_shapes = [bev_hw]
        hits = camera_hits(*project_pillars(points, self.heights, self.pc_range, lidar2img, image_hw))
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
